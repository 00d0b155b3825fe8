//! An image becomes a disk of a vault: its name, its record, and one recovery point.
//!
//! The point is made as a first cycle makes one: through the pipeline that checksums before it
//! compresses (I6), the indexes read back and compared (I7), the point put only if it is absent (I5).
//! Killed before that there is a disk without points, which the next import of that name goes on
//! with; what it had put is nobody's and is collected later.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use backstay_engine::CycleError;
use backstay_engine::config::Ship;
use backstay_engine::pipeline::{Feed, Shipment, ship};
use backstay_engine::source::extents::{self, Run};
use backstay_engine::throttle::Throttle;
use backstay_format::superblock::Geometry;
use backstay_format::unfinished::{MARK_BYTES, UnfinishedRestore};
use backstay_host::clock::now_unix_ns;
use backstay_host::in_use::{self, Look, Subject};
use backstay_types::{ByteLen, CycleNo, DiskId, DiskName, PointId, SectorRange};
use backstay_vault::format::segment::FRAME_SECTORS_MAX;
use backstay_vault::read::Progress;
use backstay_vault::{
    Base, Consistency, CycleKind, DiskRecord, Manifest, Pass, PointMeta, SectorSet, TermRecord,
    Vault, VaultError, verify_cycle,
};

use super::qemu::{self, ImageExtents, Served};
use super::{Format, ImageError};

/// What an import works with.
pub struct Import<'a> {
    /// The image, or a block device.
    pub image: &'a Path,
    /// What it is.
    pub format: Format,
    /// The disk's name in the vault.
    pub name: &'a DiskName,
    /// Where it goes.
    pub vault: &'a Vault,
    /// How to ship.
    pub ship: &'a Ship,
    /// How fast.
    pub throttle: &'a Throttle,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Set from outside to end it.
    pub stop: &'a AtomicBool,
}

/// What an import made.
#[derive(Debug)]
pub struct Imported {
    /// The disk's first recovery point.
    pub point: Manifest,
}

/// Imports an image.
///
/// # Errors
/// [`ImageError::Refused`] if the name is taken or the image is in use; the image cannot be read or
/// changed meanwhile; the vault cannot be written. There is no recovery point then.
pub fn import(job: &Import<'_>) -> Result<Imported, ImageError> {
    let cut_unix_ns = now_unix_ns();
    let mut image = Image::open(job.image, job.format)?;
    let size = image.size;
    if size.0 == 0 || size.0 > Geometry::SIZE_MAX.0 {
        return Err(ImageError::Refused(format!(
            "{} has {size} bytes; a disk has 1 to {}",
            job.image.display(),
            Geometry::SIZE_MAX
        )));
    }
    let (disk, term) = take_place(job, size)?;
    let cycle = CycleNo(1);
    let shipment = Shipment {
        vault: job.vault,
        disk,
        cycle,
        attempt: attempt(),
        first_segment: 0,
        ship: job.ship,
        throttle: job.throttle,
        stop: job.stop,
    };
    let mut failed = None;
    let shipped = ship(shipment, |feed| {
        image.feed(feed, job.progress).map_err(|e| {
            let said = e.to_string();
            failed = Some(e);
            CycleError::Source { what: "the image".into(), source: std::io::Error::other(said) }
        })
    });
    let segments = shipped.segments.clone();
    let committed = (|| {
        match (shipped.result, failed) {
            // What the image says is more than what the pipeline makes of it.
            (Err(CycleError::Source { .. }), Some(e)) => return Err(e),
            (result, _) => result?,
        }
        image.close()?;
        let mut must_move = SectorSet::new();
        must_move.insert(SectorRange::whole(size));
        let pass = Pass { must_move, segments: shipped.segments };
        let verified = verify_cycle(job.vault, disk, size, cycle, vec![pass])?;
        Ok((
            verified,
            PointMeta {
                term: term.term,
                predecessor: None,
                base: Base::Nothing { continues: None },
                kind: CycleKind::Initial,
                point: PointId::random(),
                consistency: Consistency::Crash,
                cut_unix_ns,
                written: ByteLen(0),
            },
        ))
    })();
    match committed {
        // From here on nobody but the vault knows whether the point exists: its segments stay.
        Ok((verified, meta)) => Ok(Imported { point: job.vault.commit(verified, meta)? }),
        Err(e) => {
            job.vault.remove_segments(disk, &segments);
            Err(e)
        }
    }
}

/// The name, the record and the term that the point is made in. An import that was killed has these
/// already; everybody else's are refused.
fn take_place(job: &Import<'_>, size: ByteLen) -> Result<(DiskId, TermRecord), ImageError> {
    let taken = |why: String| {
        Err(ImageError::Refused(format!(
            "the name {} is taken in {}: {why}. Nothing was written; use another name",
            job.name,
            job.vault.url()
        )))
    };
    let disk = match job.vault.disk_named(job.name) {
        Ok(record) => record.disk,
        Err(VaultError::NotFound { .. } | VaultError::Renamed { .. }) => {
            let disk = DiskId::random();
            let record = DiskRecord {
                disk,
                name: job.name.clone(),
                size_bytes: size,
                sector_bytes: 512,
                created_unix_ns: now_unix_ns(),
            };
            let found = || {
                job.vault.claim_name(job.name, disk)?;
                // Before the record, so that anyone who finds the record finds whose it is.
                job.vault.term_or_first(disk, &writer(disk))?;
                job.vault.found_disk(&record)
            };
            match found() {
                Err(VaultError::NameTaken { disk, .. }) => {
                    return taken(format!("disk {disk} has had it since a moment ago"));
                }
                found => found.map(|()| disk)?,
            }
        }
        Err(e) => return Err(e.into()),
    };
    if let Some(newest) = job.vault.points(disk)?.last() {
        return taken(format!("disk {disk} has it, with recovery points up to {newest}"));
    }
    match job.vault.newest_term(disk)? {
        Some(term) if term.writer == writer(disk) => Ok((disk, term)),
        Some(term) => taken(format!("{} makes its first point, or was killed at it", term.writer)),
        None => taken(format!("disk {disk} has no point yet, and somebody else began it")),
    }
}

fn writer(disk: DiskId) -> String {
    format!("import of {disk}")
}

/// An image that is read from its first byte to its last.
struct Image {
    what: String,
    size: ByteLen,
    file: File,
    /// When it was changed last, as it was opened.
    stamp: (i64, i64, i64, i64, u64),
    kind: Kind,
}

enum Kind {
    Raw,
    Qcow2(Option<(Served, ImageExtents)>),
}

impl Image {
    fn open(path: &Path, format: Format) -> Result<Self, ImageError> {
        let what = path.display().to_string();
        let said = || ImageError::io(format!("opening {what}"));
        let kind = std::fs::metadata(path).map_err(said())?.file_type();
        if kind.is_file() || kind.is_block_device() {
            refuse_if_used(path)?;
        }
        let mut options = OpenOptions::new();
        options.read(true);
        if kind.is_block_device() {
            // Refused by the kernel while it is mounted or claimed.
            options.custom_flags(libc::O_EXCL);
        } else if !kind.is_file() {
            return Err(ImageError::Refused(format!(
                "{what} is neither a file nor a block device"
            )));
        }
        let file = options.open(path).map_err(|e| match e.raw_os_error() {
            Some(libc::EBUSY) => ImageError::Refused(format!(
                "{what} is in use (mounted?): what is read of it would be no state it ever had. \
                 Unmount it first, or protect it (backstay protect)"
            )),
            _ => said()(e),
        })?;
        refuse_unfinished(path, &file)?;
        let stamp = stamp(&file).map_err(said())?;
        let (size, kind) = match format {
            Format::Raw => {
                let size = std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0));
                (ByteLen(size.map_err(said())?), Kind::Raw)
            }
            Format::Qcow2 => {
                let size = qemu::size_of_qcow2(path)?;
                let mut served = Served::open(path, false)?;
                let there = served.nbd().size();
                let parts = ImageExtents::of(path);
                match parts {
                    Ok(parts) if there == size.0 => (size, Kind::Qcow2(Some((served, parts)))),
                    Ok(_) => {
                        served.forget();
                        return Err(ImageError::Changed(what));
                    }
                    Err(e) => {
                        served.forget();
                        return Err(e);
                    }
                }
            }
        };
        Ok(Self { what, size, file, stamp, kind })
    }

    /// Ships all of it, in order: what holds nothing as zeroes, without reading it.
    fn feed(&mut self, feed: &mut Feed<'_>, progress: Progress<'_>) -> Result<(), ImageError> {
        let (size, what) = (self.size, &self.what);
        let said = || ImageError::io(format!("reading {what}"));
        let whole = SectorRange::whole(size);
        let tell = |range: SectorRange| progress((range.end.0 * 512).min(size.0), size.0);
        match &mut self.kind {
            Kind::Raw => {
                for run in extents::runs(&self.file, size).map_err(said())? {
                    match run {
                        Run::Hole(range) => feed.zero(range)?,
                        Run::Data(range) => {
                            let file = &self.file;
                            send(feed, range, |at, bytes| {
                                let there = bytes.len().min((size.0 - at) as usize);
                                file.read_exact_at(&mut bytes[..there], at).map_err(said())?;
                                tell(SectorRange::new(0, at.div_ceil(512)));
                                Ok(())
                            })?;
                        }
                    }
                }
            }
            Kind::Qcow2(open) => {
                let Some((served, parts)) = open else {
                    return Err(ImageError::Qemu("the image was closed".into()));
                };
                let mut next = 0;
                while let Some(part) = parts.next()? {
                    let end = part.start.checked_add(part.length).filter(|&end| end <= size.0);
                    let Some(end) = end.filter(|_| part.start == next && part.start < size.0)
                    else {
                        return Err(ImageError::Changed(what.clone()));
                    };
                    next = end;
                    // Clusters are whole sectors; so is the disk's end in such an image.
                    let range = SectorRange::new(part.start / 512, end.div_ceil(512));
                    if !part.start.is_multiple_of(512) || range.is_empty() {
                        return Err(ImageError::Changed(what.clone()));
                    }
                    if part.zero {
                        feed.zero(range)?;
                    } else {
                        send(feed, range, |at, bytes| {
                            served.nbd().read_at(bytes, at).map_err(said())?;
                            tell(SectorRange::new(0, at.div_ceil(512)));
                            Ok(())
                        })?;
                    }
                }
                if next != size.0 {
                    return Err(ImageError::Changed(what.clone()));
                }
            }
        }
        tell(whole);
        Ok(())
    }

    /// Whether what was read is one state of the image.
    fn close(&mut self) -> Result<(), ImageError> {
        if let Kind::Qcow2(open) = &mut self.kind
            && let Some((served, _)) = open.take()
        {
            served.close()?;
        }
        let now = stamp(&self.file).map_err(ImageError::io(format!("looking at {}", self.what)))?;
        if now == self.stamp { Ok(()) } else { Err(ImageError::Changed(self.what.clone())) }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Kind::Qcow2(open) = &mut self.kind
            && let Some((served, _)) = open.take()
        {
            served.forget();
        }
    }
}

/// Reads a run in frames and ships them.
fn send(
    feed: &Feed<'_>,
    range: SectorRange,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    for piece in range.split_at_multiples(FRAME_SECTORS_MAX) {
        let mut chunk = feed.chunk()?;
        chunk.data.clear();
        chunk.data.resize(piece.bytes().0 as usize, 0);
        read(piece.start.byte_offset().0, &mut chunk.data)?;
        chunk.runs.push(piece);
        feed.send(chunk)?;
    }
    Ok(())
}

/// Refuses an image that somebody uses, or that a driver serves: what is read of it would be no state it
/// ever had, or is a disk that is protected already.
fn refuse_if_used(path: &Path) -> Result<(), ImageError> {
    let shown = path.display();
    let looked = || ImageError::io(format!("finding out whether {shown} is in use"));
    let subject = Subject::at(path).map_err(looked())?;
    let mut users = in_use::lasting_users(&subject, &Look::default()).map_err(looked())?;
    if users.is_empty() {
        users.extend(in_use::served_by(&subject).map_err(looked())?);
    }
    if users.is_empty() {
        return Ok(());
    }
    Err(ImageError::Refused(format!(
        "{shown} is in use: {}. What is read of it would be no state it ever had. Stop that first, or \
         protect it (backstay protect)",
        in_use::list(&users)
    )))
}

/// Refuses a device that a restore has not finished.
fn refuse_unfinished(path: &Path, file: &File) -> Result<(), ImageError> {
    let mut first = [0; MARK_BYTES];
    match file.read_exact_at(&mut first, 0) {
        Ok(()) if UnfinishedRestore::is_mark(&first) => Err(ImageError::Refused(format!(
            "{} holds an unfinished restore: it is no disk. Run the restore again",
            path.display()
        ))),
        _ => Ok(()),
    }
}

/// What tells that a file was written to. Devices have no such thing; they are held instead.
fn stamp(file: &File) -> std::io::Result<(i64, i64, i64, i64, u64)> {
    let meta = file.metadata()?;
    if meta.file_type().is_block_device() {
        return Ok((0, 0, 0, 0, 0));
    }
    Ok((meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.size()))
}

/// A number that no other attempt has.
fn attempt() -> u64 {
    u64::from_le_bytes(PointId::random().to_bytes()[..8].try_into().unwrap_or_default())
}

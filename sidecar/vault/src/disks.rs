//! What a vault has of a disk: its record, its points.

use backstay_types::{Classified, CycleNo, DiskId};
use futures::TryStreamExt;
use object_store::path::Path;

use crate::encrypt::sign::TRAILER_BYTES;
use crate::error::{In, VaultError};
use crate::format::document::DiskRecord;
use crate::format::key::{DiskFolder, Folder, ObjectKey, Piece};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::store::Vault;

/// Objects deleted at a time.
const DELETES: usize = 256;
/// How often what stays is deleted again.
const REMOVALS_MAX: usize = 3;

/// A disk's record, or how it is damaged.
type ReadRecord = Result<DiskRecord, VaultError>;

impl Vault {
    /// The records of all disks, as they were made.
    pub(crate) fn disk_records(&self) -> Result<Vec<DiskRecord>, VaultError> {
        self.each_record()?.into_iter().map(|(_, record)| record).collect()
    }

    /// The records of all disks, each as it was read.
    pub(crate) fn each_record(&self) -> Result<Vec<(DiskId, ReadRecord)>, VaultError> {
        let mut disks = vec![];
        for folder in self.folders(&Folder::Disks)? {
            let Folder::Disk(disk) = folder else { continue };
            match self.disk(disk) {
                // A folder whose record was never finished.
                Err(VaultError::NotFound { .. }) => {}
                Err(e) if !e.is_damage() => return Err(e),
                read => disks.push((disk, read)),
            }
        }
        Ok(disks)
    }

    /// The record of a disk.
    ///
    /// # Errors
    /// [`VaultError::NotFound`] if there is no such disk, or it was never finished; or the record is damaged. A record that
    /// is gone although the disk has points or a ledger is damage: it is put before any of them, and deleted after all of
    /// them. A term says nothing: an import takes its own before it puts the record.
    pub fn disk(&self, disk: DiskId) -> Result<DiskRecord, VaultError> {
        let key = Piece::Record.of(disk);
        match self.document(&key) {
            Err(VaultError::NotFound { .. }) if self.has_history(disk)? => {}
            read => return read,
        }
        // It may have been put since.
        self.judged(true, || self.document(&key)).map_err(|e| match e {
            VaultError::NotFound { .. } => VaultError::Inconsistent {
                object: (&key).into(),
                reason: "it is not there, although the disk has recovery points or a ledger".into(),
            },
            e => e,
        })
    }

    /// Whether a disk has anything that is there only after its record.
    fn has_history(&self, disk: DiskId) -> Result<bool, VaultError> {
        for folder in [DiskFolder::Points, DiskFolder::Ledger] {
            if !self.listed(&folder.of(disk))?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A disk by its identity. What its record says is made up from its newest point, if that record is gone or damaged:
    /// its points are as whole as before.
    ///
    /// # Errors
    /// As for [`Self::disk`], if no point of it can be read either.
    pub fn disk_by_id(&self, disk: DiskId) -> Result<DiskRecord, VaultError> {
        let damage = match self.disk(disk) {
            Err(e) if e.is_damage() => e,
            read => return read,
        };
        for cycle in self.points(disk)?.into_iter().rev() {
            match self.manifest(disk, cycle) {
                Ok(point) => {
                    tracing::warn!(
                        "{damage}; what is known of the disk is of recovery point {cycle}"
                    );
                    return Ok(DiskRecord {
                        disk,
                        name: disk.to_string().parse().map_err(|_| damage)?,
                        size_bytes: point.size,
                        sector_bytes: 512,
                        created_unix_ns: point.cut_unix_ns,
                    });
                }
                Err(e) if e.is_damage() || matches!(e, VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Err(damage)
    }

    /// Puts the record of a new disk.
    ///
    /// # Errors
    /// If it is there already, or the vault cannot be written.
    pub fn create_disk(&self, record: &DiskRecord) -> Result<(), VaultError> {
        self.put_document(&Piece::Record.of(record.disk), record)
    }

    /// The cycles of all recovery points of a disk, oldest first. Those that retention deletes while
    /// this is read may be in it; who must have a point holds it (see [`crate::retain`]).
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn points(&self, disk: DiskId) -> Result<Vec<CycleNo>, VaultError> {
        crate::retain::existing_points(self, disk)
    }

    /// The cycle of the newest recovery point of a disk. No list decides that: what the ledger names, what follows the
    /// newest, and what somebody knows to be there is asked for by name.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn newest_point(
        &self,
        disk: DiskId,
        known: Option<CycleNo>,
    ) -> Result<Option<CycleNo>, VaultError> {
        let mut newest = self.points(disk)?.last().copied();
        if let Some(known) = known.filter(|known| newest.is_none_or(|newest| *known > newest))
            && self.has_point(disk, known, true)?
        {
            let mut at = known;
            while self.has_point(disk, at.next(), false)? {
                at = at.next();
            }
            newest = Some(at);
        }
        Ok(newest)
    }

    /// The highest cycle whose point is known to have been there, by what retention wrote down; none if it never did.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn highest_known(&self, disk: DiskId) -> Result<Option<CycleNo>, VaultError> {
        Ok(self.ledger(disk)?.map(|ledger| ledger.horizon).filter(|horizon| horizon.0 > 0))
    }

    /// Whether there is an object of that name among a disk's points; one that must be there is asked for several times
    /// before that it is gone is believed.
    pub(crate) fn has_point(
        &self,
        disk: DiskId,
        cycle: CycleNo,
        must_be_there: bool,
    ) -> Result<bool, VaultError> {
        let key = Piece::Point(cycle).of(disk);
        match self.judged(must_be_there, || self.len(&key)) {
            Ok(_) => Ok(true),
            Err(VaultError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The cycles of all objects among a disk's points, whatever the ledger says of them.
    pub(crate) fn point_objects(&self, disk: DiskId) -> Result<Vec<CycleNo>, VaultError> {
        let points = self.numbers(&DiskFolder::Points.of(disk))?;
        Ok(points.into_iter().map(CycleNo).collect())
    }

    /// Bytes of all segments of a disk.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn stored_bytes(&self, disk: DiskId) -> Result<u64, VaultError> {
        let segments = self.listed(&DiskFolder::Segments.of(disk))?;
        Ok(segments.iter().map(|(_, bytes)| bytes).sum())
    }

    /// A recovery point.
    ///
    /// # Errors
    /// If there is none, or it is damaged or not what its name says.
    pub fn manifest(&self, disk: DiskId, cycle: CycleNo) -> Result<Manifest, VaultError> {
        self.judged(false, || self.manifest_once(disk, cycle))
    }

    /// A recovery point that a list shows or the ledger names; `None` if it is gone, which is believed when it was
    /// asked for several times.
    ///
    /// # Errors
    /// As for [`Self::manifest`].
    pub fn listed_manifest(
        &self,
        disk: DiskId,
        cycle: CycleNo,
    ) -> Result<Option<Manifest>, VaultError> {
        match self.judged(true, || self.manifest_once(disk, cycle)) {
            Err(VaultError::NotFound { .. }) => Ok(None),
            point => point.map(Some),
        }
    }

    fn manifest_once(&self, disk: DiskId, cycle: CycleNo) -> Result<Manifest, VaultError> {
        let key = Piece::Point(cycle).of(disk);
        let bytes = self.get(&key, MANIFEST_BYTES_MAX + TRAILER_BYTES)?;
        let manifest = Manifest::decode(self.verified(&key, &bytes)?).within(&key)?;
        let manifest = self.is_at(&key, manifest)?;
        self.is_as_decided(&key, &manifest)?;
        Ok(manifest)
    }

    /// Deletes everything that the vault has of a disk: its points first, its record last, so that
    /// one that is killed half-way can be finished. When this returns, nothing is left of what a list shows or what
    /// anything names.
    ///
    /// # Errors
    /// If the vault cannot be listed or refuses to delete; [`VaultError::Inconsistent`] if something stays.
    pub fn remove_disk(&self, disk: DiskId) -> Result<(), VaultError> {
        let folder = Folder::Disk(disk);
        let record = Path::from(&Piece::Record.of(disk));
        let is_point = |path: &Path| path.prefix_matches(&Path::from(&DiskFolder::Points.of(disk)));
        // Before anything goes, what names the rest is asked for: a list may lag.
        let mut known: Vec<Path> = self.named_objects(disk)?.iter().map(Path::from).collect();
        let mut left = vec![];
        for _ in 0..REMOVALS_MAX {
            // Whatever else lies there goes, too.
            let mut paths = self.all_below(&folder)?;
            paths.append(&mut known);
            paths.sort_unstable();
            paths.dedup();
            paths.sort_by_key(|path| !is_point(path));
            let rest: Vec<Path> = paths.into_iter().filter(|path| *path != record).collect();
            for some in rest.chunks(DELETES) {
                self.delete_all(some.iter().cloned())?;
            }
            // A store that says it deleted something may be mistaken, and so may its list.
            left = self.all_below(&folder)?;
            for path in rest.into_iter().filter(is_point) {
                match ObjectKey::parse(path.as_ref()) {
                    Some(key) if self.has(&key)? => left.push(path),
                    _ => {}
                }
            }
            left.retain(|path| *path != record);
            if left.is_empty() {
                return self.delete(&Piece::Record.of(disk));
            }
            known = left.clone();
        }
        let reason = format!(
            "{} of its objects are still there after they were deleted, {} among them: its points are not deleted",
            left.len(),
            left.first().map_or("", Path::as_ref)
        );
        Err(VaultError::Inconsistent { object: folder.to_string(), reason })
    }

    /// Objects of a disk that are there whether a list shows them or not: its points, and the segments of the newest one.
    fn named_objects(&self, disk: DiskId) -> Result<Vec<ObjectKey>, VaultError> {
        let points = self.points(disk)?;
        let mut keys: Vec<_> = points.iter().map(|&cycle| Piece::Point(cycle).of(disk)).collect();
        if let Some(&newest) = points.last() {
            match self.listed_manifest(disk, newest) {
                Ok(point) => {
                    let segments = point.map(|point| point.segments).unwrap_or_default();
                    keys.extend(segments.iter().map(|segment| segment.id(disk).key()));
                }
                // It goes all the same.
                Err(e) if e.is_damage() => tracing::warn!("{e}"),
                Err(e) => return Err(e),
            }
        }
        Ok(keys)
    }

    /// All objects below a folder, as two lists show them that are asked for in different ways.
    fn all_below(&self, folder: &Folder) -> Result<Vec<Path>, VaultError> {
        let path = Path::from(folder);
        let of_store = |e| VaultError::of_store(folder, e);
        let listed = self.store().list(Some(&path)).try_collect::<Vec<_>>();
        let mut listed = self.block_on(listed).map_err(of_store)?;
        if !self.is_local() && !self.is_behind_gateway() {
            let first = Path::from(format!("{folder}/!"));
            let again = self.store().list_with_offset(Some(&path), &first).try_collect::<Vec<_>>();
            listed.append(&mut self.block_on(again).map_err(of_store)?);
        }
        let mut paths: Vec<Path> = listed.into_iter().map(|meta| meta.location).collect();
        paths.sort_unstable();
        paths.dedup();
        Ok(paths)
    }
}

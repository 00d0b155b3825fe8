//! What a replica is kept on: a file or block device that this process alone uses.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_format::superblock::BackingId;
use backstay_format::unfinished::UnfinishedRestore;
use backstay_front::backing::{self, AnyBacking, Engine, Seek, half_written};
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset, DiskName, SECTOR_BYTES, SectorRange};
use backstay_vault::read::RestoreTarget;
use nix::fcntl::{FallocateFlags, fallocate};

use super::error::{ReplicaError, on};
use super::record::{TargetRecord, hex_of};

/// What a target does that a backing does not.
pub trait Ground: Backing {
    /// The parts of a range that may hold something else than zero.
    fn data_within(&self, range: SectorRange) -> Vec<SectorRange> {
        vec![range]
    }
}

impl Ground for AnyBacking {
    fn data_within(&self, range: SectorRange) -> Vec<SectorRange> {
        let size = self.size();
        let end = range.end.byte_offset().0.min(size.0);
        let (mut at, mut found) = (range.start.byte_offset().0, vec![]);
        while at < end {
            let Ok(data) = self.seek(ByteOffset(at), Seek::Data) else { break };
            let hole = self.seek(data, Seek::Hole).map_or(end, |hole| hole.0);
            if data.0 >= end {
                break;
            }
            let piece = SectorRange::covering(data, ByteLen(hole.min(end).saturating_sub(data.0)));
            found.push(piece.intersect(range));
            at = hole.max(data.0 + 1);
        }
        // Ends of holes need not be those of sectors.
        found.dedup_by(|next, run| {
            let touches = next.start <= run.end;
            if touches {
                run.end = run.end.max(next.end);
            }
            touches
        });
        found
    }
}

/// A target, open.
pub struct Target {
    ground: Box<dyn Ground>,
    path: PathBuf,
    device: bool,
    /// While the rest is no whole point: what the first block becomes; the mark stands in its place.
    withheld: Mutex<Option<Vec<u8>>>,
}

impl Target {
    /// Opens a target for this process alone. A file that is not there is made if `make`.
    ///
    /// # Errors
    /// If it is missing, in use, mounted, or no disk.
    pub fn open(path: &Path, make: bool) -> Result<Self, ReplicaError> {
        let mut options = OpenOptions::new();
        options.write(true).mode(0o600);
        if make && !path.exists() {
            let made = options.create_new(true).open(path).and_then(|_| {
                // Its name is in its folder.
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
            });
            made.map_err(on("making", path))?;
        }
        backing::refuse_users(path)?;
        let ground = backing::open(path, Engine::Buffered)?;
        let device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        let path = fs::canonicalize(path).map_err(on("looking at", path))?;
        Ok(Self { ground: Box::new(ground), path, device, withheld: Mutex::new(None) })
    }

    /// Any backing as a target, under a name for messages.
    #[must_use]
    pub fn of(ground: Box<dyn Ground>, path: PathBuf, device: bool) -> Self {
        Self { ground, path, device, withheld: Mutex::new(None) }
    }

    /// Which it is.
    pub fn record(&self) -> Result<TargetRecord, ReplicaError> {
        let identity = self.identity()?;
        Ok(TargetRecord {
            path: self.path.clone(),
            identity: hex_of(identity),
            device: self.device,
        })
    }

    fn identity(&self) -> Result<Option<BackingId>, ReplicaError> {
        self.ground.identity().map_err(on("finding out which one is", &self.path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size now.
    pub fn size(&self) -> Result<ByteLen, ReplicaError> {
        self.ground.size_now().map_err(on("looking at", &self.path))
    }

    /// Whether it holds anything at all.
    pub fn holds_something(&self) -> Result<bool, ReplicaError> {
        let size = self.size()?;
        Ok(self.device || !self.ground.data_within(SectorRange::whole(size)).is_empty())
    }

    /// When it was written last, nanoseconds since 1970; 0 for a device.
    pub fn mtime(&self) -> Result<u64, ReplicaError> {
        self.ground.mtime_unix_ns().map_err(on("looking at", &self.path))
    }

    /// Why it is not the target that a record names, if it is not.
    pub fn objection(&self, name: &DiskName, record: &TargetRecord) -> Result<(), ReplicaError> {
        let now = self.record()?;
        if (&now.identity, now.device) == (&record.identity, record.device) {
            return Ok(());
        }
        Err(ReplicaError::Refused {
            name: name.clone(),
            reason: format!(
                "{} is not the {} this replica was kept on; give it back, or use it all the same with \
                 --to {} --seed compare --force",
                self.path.display(),
                if record.device { "device" } else { "file" },
                self.path.display()
            ),
        })
    }

    /// Whether a point of this size fits.
    pub fn fits(&self, size: ByteLen) -> Result<bool, ReplicaError> {
        Ok(!self.device || self.size()? >= size)
    }

    /// Takes the space for data, so that writing it cannot fail for want of it. Changes no byte
    /// inside the disk. Where the file system cannot, nothing is taken.
    pub fn reserve(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        if self.device {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(&self.path)?;
        let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&file, keep, offset.0 as i64, len.0 as i64) {
            Ok(()) | Err(nix::errno::Errno::EOPNOTSUPP) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives a file the size of a point; a device has its own.
    pub fn resize(&self, to: ByteLen) -> io::Result<()> {
        if self.device {
            return self.ground.grow(to);
        }
        if self.ground.size_now()? > to {
            // After a failover to a point from before the disk grew.
            let file = OpenOptions::new().write(true).open(&self.path)?;
            file.set_len(to.0)?;
            file.sync_all()?;
        }
        self.ground.grow(to)
    }

    /// Whether it carries the mark of what is half written.
    pub fn is_marked(&self) -> io::Result<bool> {
        half_written::is_marked(&*self.ground)
    }

    /// Marks it: from here on its first block is withheld, until [`Self::complete`].
    pub fn mark(&self, mark: &UnfinishedRestore) -> io::Result<()> {
        let mut withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner);
        if withheld.is_none() {
            let first = half_written::first_block(mark.size);
            half_written::mark(&*self.ground, mark, first)?;
            *withheld = Some(vec![0; first as usize]);
        }
        Ok(())
    }

    /// Whether its first block is withheld.
    pub fn withholds(&self) -> bool {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// All is there: the first block as it was written since the mark takes its place, if there is a mark.
    pub fn complete(&self) -> io::Result<()> {
        let withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner).take();
        withheld.map_or(Ok(()), |block| half_written::finish(&*self.ground, &block))
    }

    /// The first block, if this is larger than none.
    pub fn first_block(&self, size: ByteLen) -> io::Result<Vec<u8>> {
        let mut block = vec![0; half_written::first_block(size) as usize];
        let there = self.ground.size().0.min(block.len() as u64) as usize;
        self.ground.read_at(&mut block[..there], ByteOffset(0))?;
        Ok(block)
    }

    /// How much of a range, from its start, is in the first block while that is withheld; `put` gets that part.
    fn withhold(&self, offset: u64, len: u64, put: impl FnOnce(&mut [u8])) -> u64 {
        if offset >= half_written::FIRST_BLOCK_BYTES {
            return 0;
        }
        let mut withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(block) = withheld.as_mut() else { return 0 };
        let end = (offset + len).min(block.len() as u64);
        if offset >= end {
            return 0;
        }
        put(&mut block[offset as usize..end as usize]);
        end - offset
    }

    /// Writes data.
    pub fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let copy = |block: &mut [u8]| block.copy_from_slice(&data[..block.len()]);
        let done = self.withhold(offset.0, data.len() as u64, copy);
        match &data[done as usize..] {
            [] => Ok(()),
            rest => self.ground.write_at(rest, ByteOffset(offset.0 + done)),
        }
    }

    /// Makes a range read as zeroes and gives its space back.
    pub fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let done = self.withhold(offset.0, len.0, |block| block.fill(0));
        match len.0 - done {
            0 => Ok(()),
            rest => self.ground.punch(ByteOffset(offset.0 + done), ByteLen(rest)),
        }
    }

    /// Makes everything durable, of a file also the time it was written.
    pub fn sync(&self) -> io::Result<()> {
        self.ground.sync()?;
        if self.device {
            return Ok(());
        }
        fs::File::open(&self.path)?.sync_all()
    }

    /// Reads sectors; what lies past the end is zero.
    pub fn read(&self, range: SectorRange, buffer: &mut [u8]) -> io::Result<()> {
        let start = range.start.0 * SECTOR_BYTES;
        let there = self.ground.size().0.saturating_sub(start).min(buffer.len() as u64) as usize;
        buffer[there..].fill(0);
        self.ground.read_at(&mut buffer[..there], ByteOffset(start))
    }

    /// The parts of a range that may hold something else than zero.
    pub fn data_within(&self, range: SectorRange) -> Vec<SectorRange> {
        self.ground.data_within(range)
    }
}

impl RestoreTarget for Target {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.write_at(data, offset)
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.zero(offset, len)
    }
    fn sync(&self) -> io::Result<()> {
        self.sync()
    }
    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

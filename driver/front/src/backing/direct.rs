//! O_DIRECT through io_uring (see `ring`): past the page cache.
//!
//! Blocks that a request covers only in part are read, changed and written back while no other
//! write runs: POSIX promises that a write of a part of a block loses nothing of another write to
//! the same block, and a read-modify-write alone would.
//!
//! Nothing goes through the page cache: a page of it that is filled while a direct write runs may later be written
//! back over it, and a driver that needs pages may wait for those who write to its disk. So a disk whose size is
//! no multiple of what the file wants is refused, and zeroes for a part of a page are written as data. The
//! kernel drops cached pages around each direct write, so the sidecar's buffered reads see what was answered.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use backstay_format::control::BackingFaultKind;
use backstay_format::fingerprint::Fingerprint;
use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset, SECTOR_BYTES};

use super::Seek;
use super::buffered::{Buffered, ZEROES};
use super::ring::{Ring, can_read, with_ring};

/// What direct I/O is aligned to where whole sectors are not enough.
const PAGE_BYTES: u64 = 4096;

/// Numbers backings, for the threads' rings. (Descriptors are used again once closed.)
static BACKINGS: AtomicU64 = AtomicU64::new(0);

/// A backing that is read and written without the page cache.
pub struct Direct {
    /// For everything except data: lock, discards, flushes, times.
    buffered: Buffered,
    direct: File,
    number: u64,
    /// The alignment that a request needs to be passed on unchanged.
    align: u64,
    /// Held shared by writes of whole blocks, exclusively by all others.
    partial: RwLock<()>,
}

impl Direct {
    /// With a descriptor for direct I/O of what is open for all else.
    pub(super) fn new(buffered: Buffered, direct: File) -> Self {
        let align = if can_read(&direct, SECTOR_BYTES) { SECTOR_BYTES } else { PAGE_BYTES };
        Self {
            buffered,
            direct,
            number: BACKINGS.fetch_add(1, Ordering::Relaxed),
            align,
            partial: RwLock::new(()),
        }
    }

    pub(super) fn seek(&self, offset: ByteOffset, what: Seek) -> io::Result<ByteOffset> {
        self.buffered.seek(offset, what)
    }

    fn with_ring<T>(&self, work: impl FnOnce(&mut Ring) -> io::Result<T>) -> io::Result<T> {
        with_ring(self.number, &self.direct, work).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.buffered.shrunk(),
            _ => e,
        })
    }

    /// Writes a range that begins or ends inside a block. The caller holds the lock exclusively.
    fn write_partly(&self, ring: &mut Ring, data: &[u8], offset: u64) -> io::Result<()> {
        let mut at = 0;
        while at < data.len() {
            let here = offset + at as u64;
            let (rest, skip) = (&data[at..], (here % self.align) as usize);
            let whole = rest.len() / self.align as usize * self.align as usize;
            at += if skip == 0 && whole > 0 {
                ring.write(&rest[..whole], here)?;
                whole
            } else {
                let n = rest.len().min(self.align as usize - skip);
                ring.patch(here - skip as u64, self.align, skip, &rest[..n])?;
                n
            };
        }
        Ok(())
    }

    /// Makes a range read as zeroes: whole pages by `clear`, if the file system can, the rest as data. The caller
    /// is alone.
    fn clear(
        &self,
        offset: ByteOffset,
        len: ByteLen,
        clear: impl FnOnce(ByteOffset, ByteLen) -> io::Result<bool>,
    ) -> io::Result<()> {
        let end = offset.0 + len.0;
        let (first, last) = (offset.0.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
        if first >= last || !clear(ByteOffset(first), ByteLen(last - first))? {
            return self.write_zeroes(offset.0, end);
        }
        self.write_zeroes(offset.0, first)?;
        self.write_zeroes(last, end)
    }

    fn write_zeroes(&self, mut at: u64, end: u64) -> io::Result<()> {
        while at < end {
            let len = (end - at).min(ZEROES.len() as u64);
            self.with_ring(|ring| self.write_partly(ring, &ZEROES[..len as usize], at))?;
            at += len;
        }
        Ok(())
    }

    /// Why a size cannot be read and written past the page cache, if it cannot.
    pub(super) fn objection(&self, size: ByteLen) -> Option<String> {
        (!size.0.is_multiple_of(self.align)).then(|| {
            format!(
                "the engine direct needs a size that is a multiple of {} bytes, {size} are none: use --engine \
                 buffered, or extend the file",
                self.align
            )
        })
    }
}

impl Backing for Direct {
    fn size(&self) -> ByteLen {
        self.buffered.size()
    }

    fn size_now(&self) -> io::Result<ByteLen> {
        self.buffered.size_now()
    }

    fn grow(&self, to: ByteLen) -> io::Result<()> {
        // Exclusive, because a write at the end of the disk depends on the size.
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        match self.objection(to) {
            Some(objection) => Err(io::Error::new(io::ErrorKind::InvalidInput, objection)),
            None => self.buffered.grow(to),
        }
    }

    fn identity(&self) -> io::Result<Option<BackingId>> {
        self.buffered.identity()
    }

    fn mark(&self) -> io::Result<Option<Mark>> {
        self.buffered.mark()
    }

    fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        self.buffered.set_mark(mark)
    }

    fn open_to_read(&self) -> io::Result<Option<File>> {
        self.buffered.open_to_read()
    }

    fn fault(&self) -> Option<(BackingFaultKind, String)> {
        self.buffered.fault()
    }

    fn fingerprint(&self, boot_id: [u8; 16], size: ByteLen) -> io::Result<Option<Fingerprint>> {
        self.buffered.fingerprint(boot_id, size)
    }

    fn sector_bytes(&self) -> Option<u32> {
        self.buffered.sector_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        self.with_ring(|ring| ring.read(buf, offset.0, self.align))
    }

    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let end = offset.0 + data.len() as u64;
        if (offset.0 | end).is_multiple_of(self.align) {
            let _shared = self.partial.read().unwrap_or_else(PoisonError::into_inner);
            return self.with_ring(|ring| ring.write(data, offset.0));
        }
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.with_ring(|ring| self.write_partly(ring, data, offset.0))
    }

    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.clear(offset, len, |at, n| self.buffered.punch_pages(at, n))
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let _alone = self.partial.write().unwrap_or_else(PoisonError::into_inner);
        self.clear(offset, len, |at, n| self.buffered.zero_pages(at, n))
    }

    fn sync(&self) -> io::Result<()> {
        self.buffered.sync()
    }

    fn mtime_unix_ns(&self) -> io::Result<u64> {
        self.buffered.mtime_unix_ns()
    }
}

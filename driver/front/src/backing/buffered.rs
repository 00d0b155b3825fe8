//! pread and pwrite through the page cache.
//!
//! The page cache makes reads of the sidecar coherent by itself: it reads the same pages.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backstay_format::control::BackingFaultKind;
use backstay_format::fingerprint::Fingerprint;
use backstay_format::mark::Mark;
use backstay_format::superblock::BackingId;
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};

use super::open::{Own, size_of};
use super::watch::{Watch, reopen};
use super::{Seek, fingerprint, identity, mark};

const PUNCH: FallocateFlags =
    FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
const ZERO: FallocateFlags =
    FallocateFlags::FALLOC_FL_ZERO_RANGE.union(FallocateFlags::FALLOC_FL_KEEP_SIZE);
/// Zeroes to write where the file system cannot punch or zero.
pub(super) static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A backing read and written through the page cache.
pub struct Buffered {
    file: Own,
    watch: Watch,
    size_bytes: AtomicU64,
    device: bool,
    said_shrunk: AtomicBool,
}

impl Buffered {
    pub(super) fn new(file: Own, watch: Watch, size: ByteLen, device: bool) -> Self {
        let size_bytes = AtomicU64::new(size.0);
        Self { file, watch, size_bytes, device, said_shrunk: AtomicBool::new(false) }
    }

    /// Finds data or a hole. Devices are all data.
    pub(super) fn seek(&self, offset: ByteOffset, what: Seek) -> io::Result<ByteOffset> {
        let whence = match what {
            Seek::Data if self.device => return Ok(offset),
            Seek::Hole if self.device => return Ok(ByteOffset(self.size().0)),
            Seek::Data => Whence::SeekData,
            Seek::Hole => Whence::SeekHole,
        };
        // This moves the file position, which nothing else uses.
        Ok(ByteOffset(lseek(&*self.file, offset.0 as i64, whence)? as u64))
    }

    /// The error for a read that met the end of the file inside the disk. It is logged once, so that a guest
    /// that keeps reading cannot fill the log.
    pub(super) fn shrunk(&self) -> io::Error {
        if !self.said_shrunk.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the backing is shorter than the disk: it was truncated while in use. Reads \
                 behind its end fail"
            );
        }
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// Whether the file system could do it.
    fn fallocate(
        &self,
        flags: FallocateFlags,
        offset: ByteOffset,
        len: ByteLen,
    ) -> io::Result<bool> {
        loop {
            match fallocate(&*self.file, flags, offset.0 as i64, len.0 as i64) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                // Not supported there, or not at this alignment (devices want whole blocks).
                Err(Errno::EOPNOTSUPP | Errno::EINVAL) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Gives whole pages back; whether the file system could.
    pub(super) fn punch_pages(&self, offset: ByteOffset, len: ByteLen) -> io::Result<bool> {
        self.fallocate(PUNCH, offset, len)
    }

    /// Zeroes whole pages; whether the file system could.
    pub(super) fn zero_pages(&self, offset: ByteOffset, len: ByteLen) -> io::Result<bool> {
        self.fallocate(ZERO, offset, len)
    }

    fn fallocate_or_write(
        &self,
        flags: FallocateFlags,
        offset: ByteOffset,
        len: ByteLen,
    ) -> io::Result<()> {
        if self.fallocate(flags, offset, len)? {
            return Ok(());
        }
        let (mut at, end) = (offset.0, offset.0 + len.0);
        while at < end {
            let n = (end - at).min(ZEROES.len() as u64) as usize;
            self.file.write_all_at(&ZEROES[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }
}

impl Backing for Buffered {
    fn size(&self) -> ByteLen {
        ByteLen(self.size_bytes.load(Ordering::Acquire))
    }

    fn size_now(&self) -> io::Result<ByteLen> {
        size_of(&self.file, self.device)
    }

    fn grow(&self, to: ByteLen) -> io::Result<()> {
        let there = self.size_now()?;
        if there < to && self.device {
            return Err(io::Error::other(format!(
                "the device has {there} bytes, {to} were asked for: extend it first"
            )));
        }
        if there < to {
            self.file.set_len(to.0)?;
            // The length must be durable before anything depends on it.
            self.file.sync_all()?;
        }
        self.size_bytes.store(to.0, Ordering::Release);
        Ok(())
    }

    fn identity(&self) -> io::Result<Option<BackingId>> {
        identity::of(&self.file).map(Some)
    }

    fn mark(&self) -> io::Result<Option<Mark>> {
        mark::read(&self.file)
    }

    fn set_mark(&self, mark: &Mark) -> io::Result<()> {
        mark::write(&self.file, mark)
    }

    fn open_to_read(&self) -> io::Result<Option<File>> {
        reopen(&self.file).map(Some)
    }

    fn fault(&self) -> Option<(BackingFaultKind, String)> {
        self.watch.look(&self.file, self.size())
    }

    fn fingerprint(&self, boot_id: [u8; 16], size: ByteLen) -> io::Result<Option<Fingerprint>> {
        fingerprint::take(&self.file, self.device, size, boot_id).map(Some)
    }

    fn sector_bytes(&self) -> Option<u32> {
        if self.device { sector_bytes(&self.file).ok() } else { None }
    }

    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        self.file.read_exact_at(buf, offset.0).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => self.shrunk(),
            _ => e,
        })
    }

    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.file.write_all_at(data, offset.0)
    }

    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.fallocate_or_write(PUNCH, offset, len)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.fallocate_or_write(ZERO, offset, len)
    }

    /// After a failed sync the kernel marks the pages it could not write as clean. Reads would return their
    /// data until the kernel reclaims them, and then it would be lost. So drop them at once: from now on
    /// every reader sees what the backing really contains.
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| {
            let _ = posix_fadvise(&*self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        })
    }

    fn mtime_unix_ns(&self) -> io::Result<u64> {
        if self.device {
            return Ok(0);
        }
        let meta = self.file.metadata()?;
        Ok((meta.mtime() as u64).saturating_mul(1_000_000_000) + meta.mtime_nsec() as u64)
    }
}

/// The logical sector size of a device (`BLKSSZGET`), in bytes.
fn sector_bytes(device: &File) -> nix::Result<u32> {
    nix::ioctl_read_bad!(logical_block_size, 0x1268, libc::c_int);
    let mut bytes = 0;
    // SAFETY: the pointer is to an int of ours, which is what the kernel writes.
    unsafe { logical_block_size(device.as_raw_fd(), &raw mut bytes)? };
    u32::try_from(bytes).map_err(|_| Errno::EINVAL)
}

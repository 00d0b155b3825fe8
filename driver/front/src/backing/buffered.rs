//! pread and pwrite through the page cache.
//!
//! The page cache makes reads of the sidecar coherent by itself: it reads the same pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

use backstay_format::{ByteLen, ByteOffset};
use backstay_track::Backing;
use nix::fcntl::{FallocateFlags, Flock, fallocate};

/// Zeroes to write where the file system cannot punch or zero.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A backing read and written through the page cache.
pub struct Buffered {
    file: Flock<File>,
    size: ByteLen,
    device: bool,
}

impl Buffered {
    pub(super) fn new(file: Flock<File>, size: ByteLen, device: bool) -> Self {
        Self { file, size, device }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn fallocate_or_write(
        &self,
        flags: FallocateFlags,
        offset: ByteOffset,
        len: ByteLen,
    ) -> io::Result<()> {
        match fallocate(&*self.file, flags, offset.0 as i64, len.0 as i64) {
            Ok(()) => Ok(()),
            // Not supported there, or not at this alignment (devices want whole blocks).
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => {
                let (mut at, end) = (offset.0, offset.0 + len.0);
                while at < end {
                    let n = (end - at).min(ZEROES.len() as u64) as usize;
                    self.file.write_all_at(&ZEROES[..n], at)?;
                    at += n as u64;
                }
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }
}

impl Backing for Buffered {
    fn size(&self) -> ByteLen {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        self.file.read_exact_at(buf, offset.0).map_err(shrunk)
    }

    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.file.write_all_at(data, offset.0)
    }

    fn punch(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.fallocate_or_write(flags, offset, len)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.fallocate_or_write(flags, offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn mtime_unix_ns(&self) -> io::Result<u64> {
        if self.device {
            return Ok(0);
        }
        let meta = self.file.metadata()?;
        Ok((meta.mtime() as u64).saturating_mul(1_000_000_000) + meta.mtime_nsec() as u64)
    }
}

/// A read that meets the end of the file inside the disk: the backing was shortened under us.
pub(super) fn shrunk(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        tracing::error!("the backing is shorter than the disk: it was truncated while in use");
        return io::Error::from_raw_os_error(libc::EIO);
    }
    error
}

//! Where a point is restored to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_types::{ByteLen, ByteOffset};
use nix::fcntl::{FallocateFlags, fallocate};

/// Takes the bytes of a disk, in any order, from several threads.
pub trait RestoreTarget: Sync {
    /// Writes bytes whose checksum matched.
    ///
    /// # Errors
    /// What the system answered.
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()>;
    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// What the system answered.
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()>;
    /// Makes everything durable.
    ///
    /// # Errors
    /// What the system answered.
    fn sync(&self) -> io::Result<()>;
    /// What it is, for messages.
    fn name(&self) -> String;
}

/// A file or block device.
pub struct FileTarget {
    file: File,
    path: PathBuf,
    /// Nothing was there before, so zeroes need not be written.
    fresh: bool,
}

impl FileTarget {
    /// Makes or empties a file to restore `size` bytes to.
    ///
    /// # Errors
    /// What the system answered.
    pub fn open(path: &Path, size: ByteLen) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.set_len(size.0)?;
        Ok(Self::on(file, path.into(), true))
    }

    /// An open file or block device. Anyone who calls this knows that nobody else uses it, and that it has the
    /// size; `fresh`: that it reads as zeroes wherever nothing was restored to it.
    #[must_use]
    pub fn on(file: File, path: PathBuf, fresh: bool) -> Self {
        Self { file, path, fresh }
    }
}

impl RestoreTarget for FileTarget {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        self.file.write_all_at(data, offset.0)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        if self.fresh {
            return Ok(());
        }
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, offset.0 as i64, len.0 as i64) {
            Ok(()) => Ok(()),
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => {
                let zeroes = [0; 64 * 1024];
                let (mut at, end) = (offset.0, offset.0 + len.0);
                while at < end {
                    let n = (end - at).min(zeroes.len() as u64) as usize;
                    self.file.write_all_at(&zeroes[..n], at)?;
                    at += n as u64;
                }
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        if !self.fresh {
            return Ok(());
        }
        // A new file's name is in its directory.
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

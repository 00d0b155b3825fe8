//! File systems: which may be frozen, freezing and thawing.

use backstay_types::{Class, Classified};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use backstay_host::mounts;
use nix::errno::Errno;

use ioctl::{fi_freeze, fi_thaw};

/// From linux/fs.h.
mod ioctl {
    nix::ioctl_readwrite!(fi_freeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(fi_thaw, b'X', 120, libc::c_int);
}

/// Why a file system was not frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Nothing is mounted there: freezing the path would freeze another file system.
    #[error("{0} is not a mount point: is its file system mounted?")]
    NotAMountPoint(PathBuf),
    /// Writing there is what makes the cut, and the thaw.
    #[error(
        "{mount} is not frozen: {holds} lies on the same file system, and Backstay writes there"
    )]
    InTheWay {
        /// The file system.
        mount: PathBuf,
        /// What lies on it.
        holds: PathBuf,
    },
    /// It is frozen already.
    #[error("{0} was frozen by somebody else; see fsfreeze --unfreeze")]
    FrozenAlready(PathBuf),
    /// The file system knows no freezing.
    #[error("{0}: this file system cannot be frozen; leave it out, a sync in a pre hook may do")]
    Unsupported(PathBuf),
    /// It failed.
    #[error("freezing {mount}: {source}")]
    Io {
        /// The file system.
        mount: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

impl Classified for FreezeError {
    fn class(&self) -> Class {
        match self {
            Self::NotAMountPoint(_)
            | Self::InTheWay { .. }
            | Self::FrozenAlready(_)
            | Self::Unsupported(_) => Class::Person,
            Self::Io { source, .. } => source.class(),
        }
    }
}

/// A file system that we have frozen. Thawed at the latest when this is dropped.
#[derive(Debug)]
pub struct Frozen {
    mount: PathBuf,
    root: Option<File>,
}

impl Frozen {
    /// Checks that a file system may be frozen; its root.
    ///
    /// # Errors
    /// Why not.
    pub fn check(mount: &Path, avoid: &[PathBuf]) -> Result<File, FreezeError> {
        let failed = |source| FreezeError::Io { mount: mount.into(), source };
        let path = mount.canonicalize().map_err(failed)?;
        let table = mounts::read().map_err(failed)?;
        let Some(this) = mounts::at(&table, &path) else {
            return Err(FreezeError::NotAMountPoint(mount.into()));
        };
        for holds in avoid {
            // What is not there yet will be made in the folder that is.
            let there = holds.ancestors().find_map(|path| path.canonicalize().ok());
            // Subvolumes of one btrfs have numbers of their own (stat(2)) and freeze together; here they are the same.
            let there = there.and_then(|path| mounts::of(&table, &path));
            let same = there.is_some_and(|there| there.device == this.device);
            if same {
                let (mount, holds) = (mount.into(), holds.clone());
                return Err(FreezeError::InTheWay { mount, holds });
            }
        }
        File::open(&path).map_err(failed)
    }

    /// Freezes a file system: its dirty data is written, and it waits. Returns when that is done.
    ///
    /// # Errors
    /// If it may not be frozen, or cannot be; it is not then.
    pub fn new(mount: &Path, avoid: &[PathBuf]) -> Result<Self, FreezeError> {
        let root = Self::check(mount, avoid)?;
        let mut unused = 0;
        // SAFETY: the descriptor is open; the kernel does not use the argument.
        match unsafe { fi_freeze(root.as_raw_fd(), &raw mut unused) } {
            Ok(_) => Ok(Self { mount: mount.into(), root: Some(root) }),
            Err(Errno::EBUSY) => Err(FreezeError::FrozenAlready(mount.into())),
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY) => Err(FreezeError::Unsupported(mount.into())),
            Err(e) => Err(FreezeError::Io { mount: mount.into(), source: e.into() }),
        }
    }

    /// Thaws it.
    ///
    /// # Errors
    /// If it was no longer frozen, or cannot be thawed.
    pub fn thaw(mut self) -> Result<(), String> {
        let Some(root) = self.root.take() else { return Ok(()) };
        match thaw(&root) {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{} was thawed by somebody else", self.mount.display())),
            Err(e) => Err(format!("thawing {}: {e}", self.mount.display())),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            let _ = thaw(&root);
        }
    }
}

/// Thaws the file system of an open folder; whether it was frozen.
///
/// # Errors
/// If it cannot be thawed.
pub fn thaw(root: &File) -> io::Result<bool> {
    loop {
        let mut unused = 0;
        // SAFETY: the descriptor is open; the kernel does not use the argument.
        match unsafe { fi_thaw(root.as_raw_fd(), &raw mut unused) } {
            Ok(_) => return Ok(true),
            Err(Errno::EINVAL) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_a_mount_point_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = Frozen::check(dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("mounted?"), "{error}");
        let error = Frozen::check(Path::new("/no/such/folder"), &[]).unwrap_err();
        assert!(matches!(error, FreezeError::Io { .. }), "{error}");
    }

    /// Checked only: nothing is frozen here.
    #[test]
    fn a_file_system_we_write_to_is_refused() {
        let avoid = [PathBuf::from("/proc/no/such/file")];
        let error = Frozen::check(Path::new("/proc"), &avoid).unwrap_err();
        assert!(matches!(error, FreezeError::InTheWay { .. }), "{error}");
        Frozen::check(Path::new("/proc"), &["/dev/null".into()]).unwrap();
    }
}

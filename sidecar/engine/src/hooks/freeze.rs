//! File systems: which may be frozen, freezing and thawing.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

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
        let table = MountTable::read().map_err(failed)?;
        let Some(this) = table.mounted_at(&path) else {
            return Err(FreezeError::NotAMountPoint(mount.into()));
        };
        for holds in avoid {
            // What is not there yet will be made in the folder that is.
            let there = holds.ancestors().find_map(|path| path.canonicalize().ok());
            let same = there.is_some_and(|path| table.file_system_of(&path) == Some(this));
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

/// What is mounted where, and which file system each is. Subvolumes of one btrfs have different
/// device numbers of their own and freeze together; here they are the same.
struct MountTable {
    mounts: Vec<(PathBuf, FsNumber)>,
}

/// The device number of a file system.
type FsNumber = (u32, u32);

impl MountTable {
    fn read() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(text: &str) -> Self {
        let mount = |line: &str| {
            let mut fields = line.split(' ').skip(2);
            let (major, minor) = fields.next()?.split_once(':')?;
            let at = unescape(fields.nth(1)?);
            Some((at, (major.parse().ok()?, minor.parse().ok()?)))
        };
        Self { mounts: text.lines().filter_map(mount).collect() }
    }

    /// The file system mounted at a path: the one on top.
    fn mounted_at(&self, path: &Path) -> Option<FsNumber> {
        self.mounts.iter().rfind(|(at, _)| at == path).map(|(_, fs)| *fs)
    }

    /// The file system that a path lies on.
    fn file_system_of(&self, path: &Path) -> Option<FsNumber> {
        path.ancestors().find_map(|path| self.mounted_at(path))
    }
}

/// Blanks and the like stand as three octal digits.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut out = vec![];
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| {
            let digits = str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match (byte, code) {
            (b'\\', Some(code)) => {
                out.push(code);
                rest = &after[3..];
            }
            _ => {
                out.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn which_file_system_a_path_lies_on() {
        let table = MountTable::parse(
            "21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
             30 21 0:25 /@data /srv rw shared:1 - btrfs /dev/sdb rw\n\
             31 21 0:25 /@logs /var/log rw shared:2 - btrfs /dev/sdb rw\n\
             32 30 7:0 / /srv/a\\040b rw - ext4 /dev/loop0 rw\n\
             33 32 7:9 / /srv/a\\040b rw - xfs /dev/loop9 rw\n\
             not a mount\n",
        );
        let of = |path: &str| table.file_system_of(Path::new(path));
        assert_eq!(of("/etc/passwd"), Some((8, 1)));
        assert_eq!(of("/srv/x"), of("/var/log/x"), "subvolumes are one file system");
        assert_eq!(of("/srv/a b/c"), Some((7, 9)), "what is mounted over another");
        assert_eq!(table.mounted_at(Path::new("/srv/x")), None);
        assert_eq!(table.mounted_at(Path::new("/srv")), Some((0, 25)));
    }

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

    proptest! {
        #[test]
        fn any_text_is_a_table(text in "[0-9:/ \\\\a\n]{0,80}") {
            let _ = MountTable::parse(&text);
        }
    }
}

//! The file or device in question, by identity instead of by name.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::namespaces::Namespaces;
use crate::mounts::DRIVER_FS;
pub use crate::mounts::DeviceNo;

/// A file, by the numbers that different interfaces know it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    /// As stat(2) says; what loop devices say of their files.
    pub stat: (DeviceNo, u64),
    /// As the kernel's own tables say (locks, mounts, fdinfo). On btrfs and overlayfs they differ.
    pub kernel: (DeviceNo, u64),
}

/// A thing that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Item {
    /// A regular file.
    File(FileId),
    /// A block device.
    Device(DeviceNo),
    /// The disk that a driver serves, by the number of its file system. Its file is never looked at.
    Fuse(DeviceNo),
}

/// A file or block device.
#[derive(Debug, Clone)]
pub struct Subject {
    path: PathBuf,
    item: Item,
}

impl Subject {
    /// The file or device at a path; symbolic links are followed. One that a driver serves is told by its
    /// mount alone, so this does not wait for the driver.
    ///
    /// # Errors
    /// If nothing is there, or it is neither a file nor a block device.
    pub fn at(path: &Path) -> io::Result<Self> {
        let whole = std::path::absolute(path)?;
        if let Some(device) = served(&whole)? {
            return Ok(Self { path: whole, item: Item::Fuse(device) });
        }
        let flags = libc::O_PATH | libc::O_CLOEXEC;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&whole)?;
        // A link may have led to one.
        let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if let Some(device) = served(&real)? {
            return Ok(Self { path: whole, item: Item::Fuse(device) });
        }
        Self::of(whole, &file)
    }

    /// An open file or device; `path` is what it is called in messages.
    ///
    /// # Errors
    /// If it is neither a file nor a block device.
    pub fn of(path: PathBuf, file: &File) -> io::Result<Self> {
        let fd = file.as_raw_fd();
        let stat = Stat::of(&format!("/proc/self/fd/{fd}"))?;
        let item = match stat.kind {
            libc::S_IFBLK => Item::Device(stat.special),
            libc::S_IFREG => Item::File(file_id(fd, &stat)?),
            _ => {
                let what = format!("{} is neither a file nor a block device", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
        };
        Ok(Self { path, item })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn item(&self) -> Item {
        self.item
    }
}

/// The file system of a driver on which a path lies, by the table of mounts alone.
fn served(path: &Path) -> io::Result<Option<DeviceNo>> {
    let own = Namespaces::own()?;
    let mount = own.mount_of(path).filter(|mount| mount.kind == DRIVER_FS);
    Ok(mount.filter(|mount| path != mount.at).map(|mount| mount.device))
}

/// Both identities of an open file.
fn file_id(fd: i32, stat: &Stat) -> io::Result<FileId> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let field = |name: &str| -> Option<u64> {
        info.lines().find_map(|line| line.strip_prefix(name)).and_then(|v| v.trim().parse().ok())
    };
    let stat = (stat.device, stat.inode);
    let kernel = match (field("mnt_id:"), field("ino:")) {
        (Some(id), Some(inode)) => {
            let own = Namespaces::own()?;
            own.by_id(id).map(|mount| (mount.device, inode))
        }
        _ => None,
    };
    Ok(FileId { stat, kernel: kernel.unwrap_or(stat) })
}

/// What stat says of a file, from what the kernel has in memory: no server is asked.
pub(super) struct Stat {
    /// `S_IFMT` of its mode.
    pub kind: u32,
    /// The file system.
    pub device: DeviceNo,
    /// The inode.
    pub inode: u64,
    /// Of a device file: the device.
    pub special: DeviceNo,
}

impl Stat {
    /// Of a path that leads nowhere foreign, or of a link in /proc.
    pub fn of(path: &str) -> io::Result<Self> {
        Self::at(Path::new(path))
    }

    pub fn at(path: &Path) -> io::Result<Self> {
        let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
        let mut out = MaybeUninit::<libc::statx>::zeroed();
        // No field is asked for: what comes anyway is all that is needed, and no server is asked.
        let (flags, mask) = (libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT, 0);
        // SAFETY: the path ends with a zero and the buffer is large enough; both outlive the call.
        let done =
            unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, mask, out.as_mut_ptr()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: zeroed before, and filled by the kernel.
        let out = unsafe { out.assume_init() };
        Ok(Self {
            kind: u32::from(out.stx_mode) & libc::S_IFMT,
            device: DeviceNo { major: out.stx_dev_major, minor: out.stx_dev_minor },
            inode: out.stx_ino,
            special: DeviceNo { major: out.stx_rdev_major, minor: out.stx_rdev_minor },
        })
    }
}

//! Finds the file or device that finally stores the bytes of a path: its ground.
//!
//! The same bytes can be reached in many ways: through a hard link, a bind mount, a loop device over a
//! file, a partition, a device-mapper or md device. Two users on two ways destroy each other's data.
//! [`resolve`] follows a path down to its ground, so that paths can be compared:
//!
//! - a file is its inode, under any name;
//! - a loop device is the bytes of its file, shifted by its offset;
//! - a partition is the bytes of its disk, shifted by its start;
//! - a device-mapper or md device is itself, and *some* bytes of each device below it: only its table says
//!   which.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::loop_device::LoopDevice;
use crate::mounts::{self, Mount};

/// More layers than anybody stacks.
const LAYERS_MAX: usize = 64;

/// A thing that holds bytes on this host, under whatever name it is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ground {
    /// A file: number of its file system (`st_dev`) and of its inode.
    File {
        /// The file system.
        dev: u64,
        /// The inode.
        ino: u64,
    },
    /// A block device, by its number (`st_rdev`).
    Device(u64),
}

impl Ground {
    /// What an open file or device is.
    ///
    /// # Errors
    /// If it cannot be examined.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::of_metadata(&file.metadata()?))
    }

    /// What a file or device with these attributes is.
    #[must_use]
    pub fn of_metadata(meta: &fs::Metadata) -> Self {
        match meta.file_type().is_block_device() {
            true => Self::Device(meta.rdev()),
            false => Self::File { dev: meta.dev(), ino: meta.ino() },
        }
    }
}

impl fmt::Display for Ground {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { dev, ino } => {
                write!(f, "file-{}-{}-{ino}", libc::major(*dev), libc::minor(*dev))
            }
            Self::Device(n) => write!(f, "device-{}-{}", libc::major(*n), libc::minor(*n)),
        }
    }
}

/// One of the things that a way leads through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Which thing.
    pub ground: Ground,
    /// Where it is, as far as it is known; for people.
    pub path: PathBuf,
    /// First byte of it that is reached.
    pub start: u64,
    /// The byte after the last one; `u64::MAX` if it is reached up to its end.
    pub end: u64,
    /// Whether all these bytes are reached. If not, some of them are, and it is not known which.
    pub exact: bool,
    /// The mount point, if it is a file of a file system that a driver of Backstay serves.
    pub served_at: Option<PathBuf>,
}

impl Layer {
    /// Whether two layers may share a byte. Two that only reach *some* bytes are assumed to share none:
    /// so do the volumes of a volume group.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.ground == other.ground
            && (self.exact || other.exact)
            && self.start < other.end
            && other.start < self.end
    }
}

/// Follows an open file or device down to the ground. The first layer is what was given.
///
/// # Errors
/// If a layer cannot be examined: then it is not known what it stands on.
pub fn resolve(file: &File, path: &Path) -> io::Result<Vec<Layer>> {
    let mut layers = vec![];
    match Ground::of(file)? {
        ground @ Ground::File { dev, .. } => {
            let served_at = served_at(dev)?;
            let path = path.to_owned();
            layers.push(Layer { ground, path, start: 0, end: u64::MAX, exact: true, served_at });
        }
        Ground::Device(number) => {
            descend(number, Some(path), (0, u64::MAX), true, &mut layers)?;
        }
    }
    Ok(layers)
}

/// Follows a block device, by its number, down to the ground. The first layer is the device.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_device(number: u64) -> io::Result<Vec<Layer>> {
    let mut layers = vec![];
    descend(number, None, (0, u64::MAX), true, &mut layers)?;
    Ok(layers)
}

fn descend(
    number: u64,
    path: Option<&Path>,
    (start, end): (u64, u64),
    exact: bool,
    layers: &mut Vec<Layer>,
) -> io::Result<()> {
    if layers.len() >= LAYERS_MAX {
        return Err(io::Error::other("devices are stacked too deep"));
    }
    let dir = sysfs_dir(number)?;
    let node = || Path::new("/dev").join(dir.file_name().unwrap_or_default());
    let path = path.map_or_else(node, Path::to_path_buf);
    let ground = Ground::Device(number);
    layers.push(Layer { ground, path, start, end, exact, served_at: None });
    if dir.join("partition").exists() {
        let first = read_number(&dir.join("start"))?.saturating_mul(512);
        let bytes = read_number(&dir.join("size"))?.saturating_mul(512);
        let parent = dir.parent().map(|parent| parent.join("dev"));
        let parent = device_number(&parent.unwrap_or_default())?;
        let end = first.saturating_add(end.min(bytes));
        return descend(parent, None, (first.saturating_add(start), end), exact, layers);
    }
    if dir.join("loop").exists() {
        let name = dir.file_name().unwrap_or_default().to_owned();
        let Some(of) = LoopDevice::named(&name)? else { return Ok(()) };
        let (file_start, file_end) = of.range();
        layers.push(Layer {
            ground: of.ground,
            path: of.file,
            start: file_start.saturating_add(start),
            end: file_end.min(file_start.saturating_add(end)),
            exact,
            served_at: of.served_at,
        });
        return Ok(());
    }
    let Ok(below) = fs::read_dir(dir.join("slaves")) else { return Ok(()) };
    for slave in below {
        let slave = device_number(&slave?.path().join("dev"))?;
        descend(slave, None, (0, u64::MAX), false, layers)?;
    }
    Ok(())
}

/// The folder of a block device in sysfs, by its number.
///
/// # Errors
/// If the kernel knows no such device.
pub fn sysfs_dir(number: u64) -> io::Result<PathBuf> {
    let (major, minor) = (libc::major(number), libc::minor(number));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| unreadable(path))
}

/// The number in a `dev` file of sysfs, `8:1`.
fn device_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let numbers = text.trim().split_once(':');
    let parsed = numbers.and_then(|(a, b)| Some(libc::makedev(a.parse().ok()?, b.parse().ok()?)));
    parsed.ok_or_else(|| unreadable(path))
}

fn unreadable(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a number", path.display()))
}

/// Where a file system is mounted, if a driver of Backstay serves it.
pub(crate) fn served_at(dev: u64) -> io::Result<Option<PathBuf>> {
    // Real file systems have a major number; what has none may be FUSE.
    if libc::major(dev) != 0 {
        return Ok(None);
    }
    let found = mounts::read()?.into_iter().find(|mount| mount.device == dev.into());
    Ok(found.filter(Mount::is_driver).map(|mount| mount.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(start: u64, end: u64, exact: bool) -> Layer {
        let ground = Ground::Device(libc::makedev(8, 0));
        Layer { ground, path: "/dev/sda".into(), start, end, exact, served_at: None }
    }

    #[test]
    fn ways_that_share_bytes_overlap() {
        let whole = layer(0, u64::MAX, true);
        let (first, second) = (layer(0, 100, true), layer(100, 200, true));
        assert!(whole.overlaps(&first) && second.overlaps(&whole));
        assert!(!first.overlaps(&second));
        let (volume, other) = (layer(0, u64::MAX, false), layer(0, u64::MAX, false));
        assert!(!volume.overlaps(&other), "two volumes of a group");
        assert!(volume.overlaps(&whole) && first.overlaps(&volume));
        let elsewhere = Layer { ground: Ground::Device(libc::makedev(8, 16)), ..whole.clone() };
        assert!(!elsewhere.overlaps(&whole));
    }

    #[test]
    fn a_hard_link_is_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        fs::write(&one, b"x").unwrap();
        fs::hard_link(&one, &two).unwrap();
        let at = |path: &Path| resolve(&File::open(path).unwrap(), path).unwrap();
        let (a, b) = (at(&one), at(&two));
        assert_eq!(a.len(), 1);
        assert!(a[0].overlaps(&b[0]));
        assert_eq!(a[0].served_at, None);
    }
}

//! Where a vault in a directory is stored: the devices below it, and whether they are a protected disk.
//!
//! A vault on the disk that it protects is useless: it is lost with the disk, and writing a cycle to it
//! makes changes for the next cycle. A vault on the same physical disk or host is lost together with that
//! disk or host.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use backstay_host::mounts;
use backstay_host::stack::{self, Ground, Layer};
use backstay_vault::known;

use crate::health::{CauseId, ids};

/// Loop devices over files of file systems on loop devices, and so on: more than anybody stacks.
const DEPTH_MAX: usize = 16;
/// Types of file systems whose data are on another host.
const REMOTE: [&str; 12] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "9p",
    "virtiofs",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.rclone",
    "glusterfs",
    "lustre",
];

/// What a directory stands on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stands {
    /// Whether its data are on this host, as far as that can be told.
    pub here: bool,
    /// Block devices under it, by number, down to the ground.
    pub devices: BTreeSet<u64>,
    /// Mount points of disks that a driver of this host serves and that it stands on.
    pub served: Vec<PathBuf>,
}

/// The directory of a vault's URL, if it is in one.
#[must_use]
pub fn directory(url: &str) -> Option<PathBuf> {
    let url = known::canonical(url).ok()?;
    url.strip_prefix("file://").map(PathBuf::from)
}

/// What a directory stands on; the nearest one above it, if it is not there.
///
/// # Errors
/// If that cannot be found out.
pub fn of_directory(dir: &Path) -> io::Result<Stands> {
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let mut stands = Stands::default();
    file_system(fs::metadata(there)?.dev(), 0, &mut stands)?;
    Ok(stands)
}

/// What a backing file or device stands on.
///
/// # Errors
/// If that cannot be found out.
pub fn of_backing(path: &Path) -> io::Result<Stands> {
    let mut stands = Stands { here: true, ..Stands::default() };
    let layers = stack::resolve(&File::open(path)?, path)?;
    add(&layers, 0, &mut stands)?;
    Ok(stands)
}

impl Stands {
    /// Whether it stands on the disk that a driver serves as this file.
    #[must_use]
    pub fn is_on(&self, served: &Path) -> bool {
        self.served.iter().any(|at| served.starts_with(at))
    }

    /// Whether both stand on one device.
    #[must_use]
    pub fn shares_a_device(&self, other: &Self) -> bool {
        self.devices.intersection(&other.devices).next().is_some()
    }
}

/// How close a vault is to the disk that it protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// On the device that holds the backing.
    Device,
    /// On this host.
    Host,
}

impl Shared {
    /// The id of the cause for worry that it is.
    #[must_use]
    pub fn id(self) -> CauseId {
        match self {
            Self::Device => ids::VAULT_SAME_DISK,
            Self::Host => ids::VAULT_THIS_HOST,
        }
    }

    /// What is wrong with it, in words.
    #[must_use]
    pub fn reason(self, url: &str) -> String {
        match self {
            Self::Device => format!(
                "vault {url} is on the physical disk that holds the backing, and lost with it"
            ),
            Self::Host => format!("vault {url} is on this host, and lost with it"),
        }
    }
}

/// How close the vault of a URL is to a backing; none if it is elsewhere, or that cannot be told.
#[must_use]
pub fn shared(url: &str, backing: &Path) -> Option<Shared> {
    let vault = of_directory(&directory(url)?).ok().filter(|stands| stands.here)?;
    Some(match of_backing(backing) {
        Ok(backing) if vault.shares_a_device(&backing) => Shared::Device,
        _ => Shared::Host,
    })
}

/// Adds what a file system stands on.
fn file_system(dev: u64, depth: usize, stands: &mut Stands) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::other("file systems are stacked too deep"));
    }
    if libc::major(dev) != 0 {
        stands.here = true;
        return device(dev, depth, stands);
    }
    // One without a device number of its own: the table of mounts knows what it is made of.
    let Some(mount) = mounts::read()?.into_iter().find(|mount| mount.device == dev.into()) else {
        return Ok(());
    };
    if mount.is_driver() {
        stands.here = true;
        stands.served.push(mount.at);
        return Ok(());
    }
    stands.here |= !REMOTE.contains(&mount.kind.as_str());
    if mount.source.starts_with("/dev")
        && let Ok(meta) = fs::metadata(&mount.source)
    {
        return device(meta.rdev(), depth, stands);
    }
    Ok(())
}

fn device(number: u64, depth: usize, stands: &mut Stands) -> io::Result<()> {
    let layers = stack::resolve_device(number)?;
    add(&layers, depth, stands)
}

fn add(layers: &[Layer], depth: usize, stands: &mut Stands) -> io::Result<()> {
    for layer in layers {
        match (layer.ground, &layer.served_at) {
            (_, Some(at)) => stands.served.push(at.clone()),
            (Ground::Device(number), None) => drop(stands.devices.insert(number)),
            (Ground::File { dev, .. }, None) => file_system(dev, depth + 1, stands)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_and_a_file_in_it_stand_on_the_same() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = dir.path().join("disk.img");
        fs::write(&file, b"x").unwrap();
        let (vault, backing) =
            (of_directory(&dir.path().join("not/there")).unwrap(), of_backing(&file).unwrap());
        assert!(vault.here && vault.served.is_empty());
        assert_eq!(vault.devices, backing.devices);
        assert_eq!(directory("/a/b/"), Some("/a/b".into()));
        assert_eq!(directory("s3://b/x"), None);
    }
}

//! The mount tables of all mount namespaces that have a process.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use super::subject::{DeviceNo, Stat};
use crate::mounts::{self, Mount};

/// The device that is mounted, where the file system has a number of its own (btrfs).
pub(super) fn source_device(mount: &Mount) -> Option<DeviceNo> {
    if mount.device.major != 0 || mount.is_remote() || !mount.source.starts_with("/dev/") {
        return None;
    }
    let stat = Stat::at(&mount.source).ok()?;
    (stat.kind == libc::S_IFBLK).then_some(stat.special)
}

/// A mount namespace.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Its number.
    pub inode: u64,
    /// A process in it.
    pub pid: u32,
    /// That process's command.
    pub command: String,
    /// Whether it is the one of this process.
    pub is_ours: bool,
    /// Its mounts, those on top last.
    pub mounts: Vec<Mount>,
}

impl Namespace {
    /// The mount that a path leads to.
    #[must_use]
    pub fn mount_of(&self, path: &Path) -> Option<&Mount> {
        mounts::of(&self.mounts, path)
    }

    pub(super) fn by_id(&self, id: u64) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == id)
    }

    pub(super) fn foreign_pid(&self) -> Option<u32> {
        (!self.is_ours).then_some(self.pid)
    }

    pub(super) fn foreign_command(&self) -> Option<String> {
        (!self.is_ours).then(|| self.command.clone())
    }

    pub(super) fn foreign_inode(&self) -> Option<u64> {
        (!self.is_ours).then_some(self.inode)
    }
}

/// All mount namespaces that have a process, ours first.
#[derive(Debug)]
pub struct Namespaces {
    all: Vec<Namespace>,
    by_id: HashMap<u64, (usize, usize)>,
}

impl Namespaces {
    /// Reads all of them.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn read() -> io::Result<Self> {
        let mut all = vec![Self::own()?];
        let mut seen = HashSet::from([all[0].inode]);
        for pid in pids()? {
            // A thread may have a namespace of its own.
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for thread in threads {
                let dir = thread.path();
                let Some(inode) = namespace_of(&dir) else { continue };
                if !seen.insert(inode) {
                    continue;
                }
                let Ok(table) = fs::read(dir.join("mountinfo")) else {
                    seen.remove(&inode);
                    continue;
                };
                all.push(Namespace {
                    inode,
                    pid,
                    command: command_of(pid),
                    is_ours: false,
                    mounts: mounts::parse(&table),
                });
            }
        }
        let mut by_id = HashMap::new();
        for (space, namespace) in all.iter().enumerate() {
            for (at, mount) in namespace.mounts.iter().enumerate() {
                by_id.insert(mount.id, (space, at));
            }
        }
        Ok(Self { all, by_id })
    }

    /// Reads the one of this process.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn own() -> io::Result<Namespace> {
        Ok(Namespace {
            inode: namespace_of(Path::new("/proc/self")).unwrap_or_default(),
            pid: std::process::id(),
            command: String::new(),
            is_ours: true,
            mounts: mounts::read()?,
        })
    }

    /// All of them, ours first.
    #[must_use]
    pub fn all(&self) -> &[Namespace] {
        &self.all
    }

    /// Ours.
    pub(super) fn ours(&self) -> &Namespace {
        &self.all[0]
    }

    pub(super) fn of_inode(&self, inode: u64) -> Option<&Namespace> {
        self.all.iter().find(|space| space.inode == inode)
    }

    /// A mount by its number, in whatever namespace.
    pub(super) fn by_id(&self, id: u64) -> Option<&Mount> {
        let (space, at) = self.by_id.get(&id)?;
        self.all.get(*space)?.mounts.get(*at)
    }
}

/// All processes.
pub(super) fn pids() -> io::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// The number of the mount namespace of a process or thread, by its folder in `/proc`.
pub(super) fn namespace_of(dir: &Path) -> Option<u64> {
    let link = fs::read_link(dir.join("ns/mnt")).ok()?;
    link.to_str()?.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()
}

/// A process's command, short.
pub(super) fn command_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

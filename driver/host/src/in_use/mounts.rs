//! The tables of mounts of all mount namespaces that have a process.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::subject::{DeviceNo, Stat};

/// Kinds of file systems whose server may hang whoever asks it.
const REMOTE: [&str; 9] =
    ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "autofs", "virtiofs"];

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which no other mount of this host has.
    pub id: u64,
    /// The number of its file system.
    pub device: DeviceNo,
    /// Where it is.
    pub at: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// What is mounted.
    pub source: PathBuf,
}

impl Mount {
    /// Whether a server answers for it that may hang.
    pub(super) fn is_remote(&self) -> bool {
        self.kind.starts_with("fuse") || REMOTE.contains(&self.kind.as_str())
    }

    /// The device that is mounted, where the file system has a number of its own (btrfs).
    pub(super) fn source_device(&self) -> Option<DeviceNo> {
        if self.device.major != 0 || self.is_remote() || !self.source.starts_with("/dev/") {
            return None;
        }
        let stat = Stat::at(&self.source).ok()?;
        (stat.kind == libc::S_IFBLK).then_some(stat.special)
    }
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
        let of = |mount: &&Mount| path.starts_with(&mount.at);
        // Of those of one length the last is on top.
        self.mounts.iter().filter(of).max_by_key(|mount| mount.at.as_os_str().len())
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
                    mounts: parse(&table),
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
            mounts: parse(&fs::read("/proc/self/mountinfo")?),
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

fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

/// `36 35 7:0 / /mnt rw,noatime shared:1 - ext4 /dev/loop0 rw`: optional fields before the dash.
fn mount(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let mut fields = line.split(|&byte| byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?.parse().ok()?;
    let at = plain(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = text(fields.next()?)?;
    let source = plain(fields.next()?);
    Some(Mount { id, device, at, kind, source })
}

/// Blanks and such are written as `\040`.
pub(super) fn plain(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        let escaped = (first == b'\\').then(|| after.get(..3).and_then(octal)).flatten();
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let table =
            b"45 27 7:1 / /mnt/a\\040b rw,relatime shared:3 master:1 - ext4 /dev/loop1 rw\n\
            46 27 0:51 / /run/x rw - fuse.backstay backstay rw\nrubbish\n47 x\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].id, mounts[0].device.to_string()), (45, "7:1".into()));
        assert_eq!(mounts[0].at, Path::new("/mnt/a b"));
        assert!(mounts[1].is_remote() && !mounts[0].is_remote());
    }

    #[test]
    fn a_path_leads_to_the_mount_on_top() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 0:30 / /run rw - tmpfs tmpfs rw\n\
            3 2 0:51 / /run/db/mnt rw - fuse.backstay backstay rw\n\
            4 2 0:52 / /run/db/mnt rw - tmpfs tmpfs rw\n";
        let space = Namespace {
            inode: 1,
            pid: 1,
            command: String::new(),
            is_ours: true,
            mounts: parse(table),
        };
        let id = |path: &str| space.mount_of(Path::new(path)).unwrap().id;
        assert_eq!((id("/srv/x"), id("/run/db/mnt2"), id("/run/db/mnt/disk")), (1, 2, 4));
    }
}

//! Processes that have a file open or locked, from `/proc/PID/fd` and `fdinfo`. The kernel answers these
//! from memory, so that reading them never blocks.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Look;
use super::devices::{Node, Scope, Stack};
use super::namespaces::{Namespaces, command_of, namespace_of, pids};
use super::subject::{DeviceNo, Item, Stat};
use super::user::{User, UserKind};

/// What our programs' names begin with.
const OURS: &str = "backstay";
/// Where a disk's driver or replica has its lock: `STATE/NAME/lock`.
const LOCK_FILE: &str = "lock";
/// Kinds of locks. A lease is none: its holder only wants to be told.
const LOCKS: [&str; 3] = ["FLOCK", "POSIX", "OFDLCK"];

/// An open descriptor of a process.
pub(super) struct Open {
    pid: u32,
    number: String,
    link: PathBuf,
    /// `O_RDONLY` and such.
    mode: u32,
    mount: u64,
    inode: Option<u64>,
    /// Kinds of locks held through it: `FLOCK ADVISORY WRITE`.
    locks: Vec<String>,
    /// Of `/dev/fuse`: the connection, which is the minor number of its file system.
    fuse: Option<u32>,
}

/// What is looked for.
struct Wanted<'a> {
    files: HashMap<(DeviceNo, u64), &'a Node>,
    by_stat: HashMap<(DeviceNo, u64), &'a Node>,
    devices: HashMap<DeviceNo, &'a Node>,
    fuse: HashMap<DeviceNo, &'a Node>,
}

/// Everybody who has one of these things open, or locked; and whether somebody who is spared writes to
/// them, this process included.
pub(super) fn users(
    stack: &Stack,
    namespaces: &Namespaces,
    look: &Look,
) -> io::Result<(Vec<User>, bool)> {
    let wanted = Wanted::of(stack);
    let own = std::process::id();
    let (mut found, mut spared_writes) = (vec![], false);
    let mut seen_locks = HashSet::new();
    for pid in pids()? {
        let spared = pid == own || look.spare.contains(&pid);
        let mut uses: Option<(PathBuf, bool, bool)> = None;
        for open in descriptors(pid) {
            let Some(node) = wanted.find(&open, namespaces) else { continue };
            seen_locks.extend(open.locks.iter().map(|lock| (node.item, lock.clone())));
            let writes = open.mode & 3 != 0;
            if spared {
                spared_writes |= writes;
                continue;
            }
            // udev holds a shared lock for the moment in which it looks at a device.
            let is_device = matches!(node.item, Item::Device(_));
            let locks = open.locks.iter().any(|lock| !is_device || lock.contains(" WRITE"));
            // A driver of another partition locks what both stand on, so that no other host program takes it whole.
            // What it serves itself it has open for writing.
            let locks = locks
                && (writes || node.scope != Scope::Below || !command_of(pid).starts_with(OURS));
            if writes || locks || (look.readers && node.scope != Scope::Slave) {
                let (what, w, l) = uses.take().unwrap_or((node.label.clone(), false, false));
                uses = Some((what, w || writes, l || locks));
            }
        }
        let Some((what, writes, locks)) = uses else { continue };
        let command = command_of(pid);
        // A cycle that reads a disk ends by itself.
        if command.starts_with(OURS) && !writes && !locks {
            continue;
        }
        let kind = ours(pid, &command).unwrap_or(UserKind::Open { what, writes, locks });
        found.push(user(pid, command, kind, namespaces));
    }
    let known: HashSet<u32> = found.iter().filter_map(|user| user.pid).collect();
    for (pid, what) in locked_unseen(&wanted, &seen_locks) {
        let spared = pid.is_some_and(|pid| pid == own || look.spare.contains(&pid));
        if spared || pid.is_some_and(|pid| known.contains(&pid)) {
            continue;
        }
        let command = pid.map(command_of).filter(|command| !command.is_empty());
        found.push(User { kind: UserKind::Locked { what }, pid, command, namespace: None });
    }
    Ok((found, spared_writes))
}

/// Locks in the kernel's table that no descriptor that can be seen holds: by a process whose descriptors
/// may not be looked at, or by none (NFS).
fn locked_unseen(
    wanted: &Wanted<'_>,
    seen: &HashSet<(Item, String)>,
) -> Vec<(Option<u32>, PathBuf)> {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let lock = |line: &str| {
        // 1: FLOCK  ADVISORY  WRITE 4242 fd:00:1234 0 EOF; those that wait begin with "->".
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next().filter(|kind| LOCKS.contains(kind))?;
        let lock = format!("{kind} {} {}", words.next()?, words.next()?);
        let pid = words.next()?.parse::<u32>().ok();
        let mut at = words.next()?.split(':');
        let mut hex = || u32::from_str_radix(at.next()?, 16).ok();
        let device = DeviceNo { major: hex()?, minor: hex()? };
        let node = wanted.files.get(&(device, at.next()?.parse().ok()?))?;
        (!seen.contains(&(node.item, lock))).then(|| (pid, node.label.clone()))
    };
    table.lines().filter_map(lock).collect()
}

/// The driver that serves a file system.
pub(super) fn server_of(device: DeviceNo, namespaces: &Namespaces, look: &Look) -> Option<User> {
    if !look.spare.is_empty() {
        return None;
    }
    let at =
        namespaces.all().iter().find_map(|space| space.mounts.iter().find(|m| m.device == device));
    // RUNTIME/NAME/mnt
    let beside =
        at.and_then(|m| m.at.parent()?.file_name()).map(|n| n.to_string_lossy().into_owned());
    let mut guess = None;
    for pid in pids().unwrap_or_default() {
        let command = command_of(pid);
        if !command.starts_with(OURS) {
            continue;
        }
        let opens = descriptors(pid);
        let Some(fuse) = opens.iter().find(|open| open.link == Path::new("/dev/fuse")) else {
            continue;
        };
        let disk = disk_of(&opens);
        let is_it = fuse.fuse.map(|minor| minor == device.minor);
        let by_name = disk.is_some() && disk == beside;
        let user =
            || user(pid, command.clone(), UserKind::Driver { disk: disk.clone() }, namespaces);
        match is_it {
            Some(true) => return Some(user()),
            None if by_name => guess = Some(user()),
            _ => {}
        }
    }
    guess.or_else(|| {
        let kind = UserKind::Driver { disk: beside };
        at.map(|_| User { kind, pid: None, command: None, namespace: None })
    })
}

/// Every process at work in a file system.
pub(super) fn inside(device: DeviceNo, namespaces: &Namespaces) -> io::Result<Vec<User>> {
    let mut found = vec![];
    for pid in pids()? {
        if pid == std::process::id() {
            continue;
        }
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let Some(space) = namespace_of(&dir).and_then(|inode| namespaces.of_inode(inode)) else {
            continue;
        };
        let lies_in = |path: &Path| space.mount_of(path).is_some_and(|m| m.device == device);
        let places =
            ["cwd", "root", "exe"].into_iter().filter_map(|at| fs::read_link(dir.join(at)).ok());
        let at = places.into_iter().find(|path| lies_in(path)).or_else(|| {
            let of_device = |open: &Open| match namespaces.by_id(open.mount) {
                Some(mount) => mount.device == device,
                None => false,
            };
            descriptors(pid).into_iter().find(of_device).map(|open| open.link)
        });
        if let Some(what) = at {
            found.push(user(pid, command_of(pid), UserKind::Inside { what }, namespaces));
        }
    }
    Ok(found)
}

fn user(pid: u32, command: String, kind: UserKind, namespaces: &Namespaces) -> User {
    let inode = namespace_of(Path::new(&format!("/proc/{pid}")));
    let namespace = inode.filter(|inode| *inode != namespaces.ours().inode);
    User { kind, pid: Some(pid), command: Some(command), namespace }
}

/// What one of our programs has it for.
fn ours(pid: u32, command: &str) -> Option<UserKind> {
    if !command.starts_with(OURS) {
        return None;
    }
    let opens = descriptors(pid);
    let disk = disk_of(&opens);
    let serves = opens.iter().any(|open| open.link == Path::new("/dev/fuse"));
    match (serves, disk) {
        (true, disk) => Some(UserKind::Driver { disk }),
        (false, Some(disk)) => Some(UserKind::Ours { disk }),
        (false, None) => None,
    }
}

/// The name of the disk whose lock a process holds.
fn disk_of(opens: &[Open]) -> Option<String> {
    let lock = opens.iter().find(|open| {
        open.link.file_name().is_some_and(|name| name == LOCK_FILE)
            && open.locks.iter().any(|lock| lock.contains(" WRITE"))
    })?;
    Some(lock.link.parent()?.file_name()?.to_string_lossy().into_owned())
}

/// What a process has open, as far as it is files.
fn descriptors(pid: u32) -> Vec<Open> {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let entries = fs::read_dir(dir.join("fd")).into_iter().flatten().flatten();
    let open = |entry: fs::DirEntry| {
        let link = fs::read_link(entry.path()).ok().filter(|link| link.is_absolute())?;
        let info = fs::read_to_string(dir.join("fdinfo").join(entry.file_name())).ok()?;
        let number = entry.file_name().to_string_lossy().into_owned();
        let mut open =
            Open { pid, number, link, mode: 0, mount: 0, inode: None, locks: vec![], fuse: None };
        for line in info.lines() {
            let Some((field, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match field {
                "flags" => open.mode = u32::from_str_radix(value, 8).ok()?,
                "mnt_id" => open.mount = value.parse().ok()?,
                "ino" => open.inode = value.parse().ok(),
                "fuse_connection" => open.fuse = value.parse().ok(),
                // 1: OFDLCK  ADVISORY  READ -1 fd:00:1234 100 101
                "lock" => {
                    let words: Vec<&str> = value.split_whitespace().skip(1).take(3).collect();
                    if words.first().is_some_and(|kind| LOCKS.contains(kind)) {
                        open.locks.push(words.join(" "));
                    }
                }
                _ => {}
            }
        }
        // Opened only to be passed on: neither reads nor writes.
        (open.mode & libc::O_PATH as u32 == 0).then_some(open)
    };
    entries.filter_map(open).collect()
}

impl<'a> Wanted<'a> {
    fn of(stack: &'a Stack) -> Self {
        let mut wanted = Self {
            files: HashMap::new(),
            by_stat: HashMap::new(),
            devices: HashMap::new(),
            fuse: HashMap::new(),
        };
        for node in stack.nodes() {
            match node.item {
                Item::File(file) => {
                    wanted.files.insert(file.kernel, node);
                    wanted.by_stat.insert(file.stat, node);
                }
                Item::Device(device) => drop(wanted.devices.insert(device, node)),
                // Those who have the disk below an attached loop device are asked about by themselves.
                Item::Fuse(device) => drop(wanted.fuse.insert(device, node)),
            }
        }
        wanted
    }

    /// Which of these things a descriptor is.
    fn find(&self, open: &Open, namespaces: &Namespaces) -> Option<&'a Node> {
        let Some(mount) = namespaces.by_id(open.mount) else {
            // A mount that was taken out of sight, or one of the kernel's own.
            let stat = open.stat()?;
            let by_fuse = self.fuse.get(&stat.device).filter(|_| stat.kind == libc::S_IFREG);
            let by_stat = self.by_stat.get(&(stat.device, stat.inode));
            return by_fuse.or(by_stat).copied().or_else(|| self.device(&stat));
        };
        if let Some(node) = self.fuse.get(&mount.device) {
            // The root of the mount is a folder.
            return (open.link != mount.at).then_some(node);
        }
        if let Some(node) = open.inode.and_then(|inode| self.files.get(&(mount.device, inode))) {
            // On btrfs files of different subvolumes share numbers.
            let same = |stat: Stat| self.by_stat.contains_key(&(stat.device, stat.inode));
            return (mount.is_remote() || open.stat().is_none_or(same)).then_some(node);
        }
        if mount.is_remote() || self.devices.is_empty() {
            return None;
        }
        self.device(&open.stat()?)
    }

    fn device(&self, stat: &Stat) -> Option<&'a Node> {
        (stat.kind == libc::S_IFBLK).then(|| self.devices.get(&stat.special)).flatten().copied()
    }
}

impl Open {
    /// By the link in /proc: no name is looked up, no server is asked.
    fn stat(&self) -> Option<Stat> {
        Stat::of(&format!("/proc/{}/fd/{}", self.pid, self.number)).ok()
    }
}

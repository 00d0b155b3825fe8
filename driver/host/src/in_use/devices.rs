//! Devices on top of other devices: loop devices, partitions, device mapper, md, and swap.

use std::collections::HashSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::namespaces::Namespaces;
use super::subject::{DeviceNo, FileId, Item, Stat, Subject};
use super::user::{User, UserKind};
use crate::loop_device::loop_info;
use crate::mounts::unescape;

/// How a thing relates to what was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// It is that, or made of it: anyone who uses it uses that.
    Above,
    /// That is a part of it: anyone who uses it as a whole uses that.
    Below,
    /// That is made of it, among others.
    Slave,
}

/// A thing of the stack.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub item: Item,
    pub scope: Scope,
    /// What it is called in messages.
    pub label: PathBuf,
}

/// All things that share bytes with what was asked about.
#[derive(Debug)]
pub(super) struct Stack {
    nodes: Vec<Node>,
    seen: HashSet<Item>,
    found: Vec<User>,
    loops: Vec<Loop>,
    sysfs: Sysfs,
}

/// An attached loop device.
#[derive(Debug, Clone)]
struct Loop {
    device: DeviceNo,
    name: String,
    backing: Option<Item>,
    path: PathBuf,
    /// The part of its backing that it shows.
    start: u64,
    end: u64,
}

/// A part of a file or device.
#[derive(Debug, Clone, Copy)]
struct Part {
    start: u64,
    end: u64,
}

const WHOLE: Part = Part { start: 0, end: u64::MAX };

impl Stack {
    pub fn of(subject: &Subject, namespaces: &Namespaces) -> Self {
        let loops = loops(subject, namespaces);
        Self::with(subject.item(), subject.path(), loops, Sysfs::default())
    }

    fn with(item: Item, path: &Path, loops: Vec<Loop>, sysfs: Sysfs) -> Self {
        let label = match item {
            // By its own name, whatever link led there.
            Item::Device(device) => sysfs.name(device).map_or_else(|| path.into(), in_dev),
            _ => path.to_owned(),
        };
        let mut stack = Self { nodes: vec![], seen: HashSet::new(), found: vec![], loops, sysfs };
        stack.add(item, Scope::Above, label);
        stack.above(item, WHOLE, None);
        stack.below(item);
        stack
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Those who use it by being made of it.
    pub fn users(&self) -> Vec<User> {
        self.found.clone()
    }

    fn add(&mut self, item: Item, scope: Scope, label: PathBuf) -> bool {
        let new = self.seen.insert(item);
        if new {
            self.nodes.push(Node { item, scope, label });
        }
        new
    }

    /// Adds what is made of a part of this, but for one.
    fn above(&mut self, item: Item, part: Part, but: Option<DeviceNo>) {
        let on = |l: &&Loop| l.backing == Some(item) && Some(l.device) != but;
        let on_it = self.loops.iter().filter(on);
        let overlap = |l: &&Loop| l.start < part.end && part.start < l.end;
        for device in on_it.filter(overlap).cloned().collect::<Vec<_>>() {
            let path = in_dev(device.name.clone());
            self.user(UserKind::Loop { device: path.clone() });
            if self.add(Item::Device(device.device), Scope::Above, path) {
                self.above(Item::Device(device.device), WHOLE, None);
            }
        }
        let Item::Device(device) = item else { return };
        let label = self.sysfs.label(device);
        // Siblings of a part that was asked about are none of its users.
        let parts = if but.is_none() { self.sysfs.partitions(device) } else { vec![] };
        for part in parts {
            if self.add(Item::Device(part), Scope::Above, self.sysfs.label(part)) {
                self.above(Item::Device(part), WHOLE, None);
            }
        }
        for holder in names(&self.sysfs.of(device).join("holders")) {
            let shown = self.sysfs.holder(&holder);
            self.user(UserKind::Holder { device: label.clone(), holder: shown });
            if let Some(above) = self.sysfs.number(&holder)
                && self.add(Item::Device(above), Scope::Above, in_dev(holder))
            {
                self.above(Item::Device(above), WHOLE, None);
            }
        }
        if let Some(uuid) = self.sysfs.btrfs(device) {
            self.user(UserKind::Holder { device: label, holder: format!("btrfs {uuid}") });
        }
    }

    /// Adds what this is a part of, and who else uses the same part.
    fn below(&mut self, item: Item) {
        let Item::Device(device) = item else { return };
        if let Some(of) = self.loops.iter().find(|l| l.device == device).cloned() {
            let Some(backing) = of.backing else { return };
            if self.add(backing, Scope::Below, of.path.clone()) {
                self.above(backing, Part { start: of.start, end: of.end }, Some(device));
                self.below(backing);
            }
        } else if let Some((parent, part)) = self.sysfs.parent(device)
            && self.add(Item::Device(parent), Scope::Below, self.sysfs.label(parent))
        {
            self.above(Item::Device(parent), part, Some(device));
            self.below(Item::Device(parent));
        }
        for slave in names(&self.sysfs.of(device).join("slaves")) {
            if let Some(number) = self.sysfs.number(&slave) {
                self.add(Item::Device(number), Scope::Slave, in_dev(slave));
            }
        }
    }

    fn user(&mut self, kind: UserKind) {
        self.found.push(User { kind, pid: None, command: None, namespace: None });
    }
}

/// Swap areas among these things.
pub(super) fn swaps(stack: &Stack) -> Vec<User> {
    let table = fs::read("/proc/swaps").unwrap_or_default();
    let mut found = vec![];
    for line in table.split(|&byte| byte == b'\n').skip(1) {
        let Some(path) = line.split(|&byte| byte == b' ' || byte == b'\t').next() else { continue };
        let path = unescape(path);
        let Ok(stat) = Stat::at(&path) else { continue };
        let used = stack.nodes.iter().any(|node| match node.item {
            Item::Device(device) => stat.kind == libc::S_IFBLK && stat.special == device,
            Item::File(file) => file.stat == (stat.device, stat.inode),
            Item::Fuse(_) => false,
        });
        if used {
            let kind = UserKind::Swap { what: path };
            found.push(User { kind, pid: None, command: None, namespace: None });
        }
    }
    found
}

fn in_dev(name: impl AsRef<Path>) -> PathBuf {
    // A slash in a device's name is written so in sysfs.
    let name = name.as_ref().to_string_lossy().replace('!', "/");
    Path::new("/dev").join(name)
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What the kernel says of block devices; usually in `/sys`.
#[derive(Debug)]
pub(super) struct Sysfs(PathBuf);

impl Default for Sysfs {
    fn default() -> Self {
        Self("/sys".into())
    }
}

impl Sysfs {
    fn of(&self, device: DeviceNo) -> PathBuf {
        self.0.join(format!("dev/block/{device}"))
    }

    /// A device's name, as sysfs has it.
    fn name(&self, device: DeviceNo) -> Option<String> {
        let link = fs::read_link(self.of(device)).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// What a device is called in messages.
    fn label(&self, device: DeviceNo) -> PathBuf {
        self.name(device).map_or_else(|| device.to_string().into(), in_dev)
    }

    fn number(&self, name: &str) -> Option<DeviceNo> {
        read(&self.0.join("class/block").join(name).join("dev"))?.parse().ok()
    }

    /// `dm-3 (vg-root)`.
    fn holder(&self, name: &str) -> String {
        match read(&self.0.join("class/block").join(name).join("dm/name")) {
            Some(of) => format!("{name} ({of})"),
            None => name.to_owned(),
        }
    }

    fn partitions(&self, device: DeviceNo) -> Vec<DeviceNo> {
        let dir = self.of(device);
        let part = |name: &String| dir.join(name).join("partition").exists();
        let number = |name: String| read(&dir.join(name).join("dev"))?.parse().ok();
        names(&dir).into_iter().filter(part).filter_map(number).collect()
    }

    /// The disk that a partition is a part of, and which part in bytes.
    fn parent(&self, device: DeviceNo) -> Option<(DeviceNo, Part)> {
        let dir = fs::canonicalize(self.of(device)).ok()?;
        read(&dir.join("partition"))?;
        let sectors = |name: &str| read(&dir.join(name)).and_then(|text| text.parse::<u64>().ok());
        let (start, len) = (sectors("start")? * 512, sectors("size")? * 512);
        let of = read(&dir.parent()?.join("dev"))?.parse().ok()?;
        Some((of, Part { start, end: start + len }))
    }

    /// The btrfs that a device is part of: its own number says nothing of its devices.
    fn btrfs(&self, device: DeviceNo) -> Option<String> {
        let (name, all) = (self.name(device)?, self.0.join("fs/btrfs"));
        names(&all).into_iter().find(|uuid| all.join(uuid).join("devices").join(&name).exists())
    }
}

/// All attached loop devices.
fn loops(subject: &Subject, namespaces: &Namespaces) -> Vec<Loop> {
    let mut found = vec![];
    for name in names(Path::new("/sys/block")) {
        let dir = Path::new("/sys/block").join(&name);
        let Ok(path) = fs::read(dir.join("loop/backing_file")) else { continue };
        let path = path.strip_suffix(b"\n").unwrap_or(&path);
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        let number = |file: &str| {
            read(&dir.join("loop").join(file)).and_then(|text| text.parse::<u64>().ok())
        };
        let (start, limit) = (number("offset").unwrap_or(0), number("sizelimit").unwrap_or(0));
        let end = if limit == 0 { u64::MAX } else { start.saturating_add(limit) };
        let Some(device) = read(&dir.join("dev")).and_then(|text| text.parse().ok()) else {
            continue;
        };
        let backing = backing(&name, &path, subject, namespaces);
        found.push(Loop { device, name, backing, path, start, end });
    }
    found
}

/// What a loop device is attached to. The file of a driver is told by its mount; files of other FUSE and
/// network file systems only if that is asked about.
fn backing(name: &str, path: &Path, subject: &Subject, namespaces: &Namespaces) -> Option<Item> {
    let of_driver = |space: &super::Namespace| {
        let mount = space.mount_of(path)?;
        let is_file = path.parent() == Some(mount.at.as_path());
        (mount.kind == "fuse.backstay" && is_file).then_some(mount.device)
    };
    if let Some(device) = namespaces.all().iter().find_map(of_driver) {
        return Some(Item::Fuse(device));
    }
    let same = |device| match subject.item() {
        Item::File(file) => file.kernel.0 == device,
        _ => false,
    };
    if let Some(mount) = namespaces.ours().mount_of(path)
        && mount.is_remote()
        && !same(mount.device)
    {
        return None;
    }
    let status = loop_info(&in_dev(name)).ok().flatten();
    let (special, stat) = match &status {
        Some(status) => {
            (DeviceNo::from(status.lo_rdevice), (DeviceNo::from(status.lo_device), status.lo_inode))
        }
        None => {
            let stat = Stat::at(path).ok()?;
            (stat.special, (stat.device, stat.inode))
        }
    };
    // Of a file that is no device the kernel says the file system's number once more.
    let by_path = Stat::at(path).ok().filter(|now| (now.device, now.inode) == stat);
    let is_device = match &by_path {
        Some(now) => now.kind == libc::S_IFBLK,
        None => special != stat.0 && special.major != 0,
    };
    if is_device {
        return Some(Item::Device(special));
    }
    if let Item::File(file) = subject.item()
        && file.stat == stat
    {
        return Some(Item::File(file));
    }
    let whole = by_path.and_then(|_| Subject::at(path).ok());
    match whole.map(|whole| whole.item()) {
        Some(item @ Item::File(FileId { stat: found, .. })) if found == stat => Some(item),
        _ => Some(Item::File(FileId { stat, kernel: stat })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A volume group on a partition of a disk, as sysfs shows it.
    #[test]
    fn volumes_on_partitions_are_found_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            fs::write(at(name), text).unwrap();
        };
        for (name, number) in
            [("sdz", "8:96"), ("sdz/sdz1", "8:97"), ("sdz/sdz2", "8:98"), ("dm-3", "252:3")]
        {
            write(&format!("devices/{name}/dev"), number);
            let short = Path::new(name).file_name().unwrap().to_str().unwrap();
            for link in [format!("dev/block/{number}"), format!("class/block/{short}")] {
                fs::create_dir_all(at(&link).parent().unwrap()).unwrap();
                std::os::unix::fs::symlink(at(&format!("devices/{name}")), at(&link)).unwrap();
            }
        }
        for (part, start) in [("1", "2048"), ("2", "40960")] {
            write(&format!("devices/sdz/sdz{part}/partition"), part);
            write(&format!("devices/sdz/sdz{part}/start"), start);
            write(&format!("devices/sdz/sdz{part}/size"), "2048");
        }
        write("devices/dm-3/dm/name", "vg-db\n");
        write("devices/sdz/sdz2/holders/dm-3", "");
        write("devices/dm-3/slaves/sdz2", "");
        let of = |number: &str| {
            let item = Item::Device(number.parse().unwrap());
            Stack::with(item, Path::new("/dev/x"), vec![], Sysfs(dir.path().into()))
        };
        let said =
            |stack: &Stack| stack.users().iter().map(ToString::to_string).collect::<Vec<_>>();
        let labels = |stack: &Stack| {
            stack
                .nodes()
                .iter()
                .map(|node| (node.label.display().to_string(), node.scope))
                .collect::<Vec<_>>()
        };
        for number in ["8:96", "8:98"] {
            assert_eq!(said(&of(number)), ["/dev/sdz2 is part of dm-3 (vg-db)"]);
        }
        assert_eq!(said(&of("8:97")), Vec::<String>::new(), "its sibling is none of its users");
        let below = [("/dev/sdz1".into(), Scope::Above), ("/dev/sdz".into(), Scope::Below)];
        assert_eq!(labels(&of("8:97")), below);
        let volume = [("/dev/dm-3".into(), Scope::Above), ("/dev/sdz2".into(), Scope::Slave)];
        assert_eq!(labels(&of("252:3")), volume);
    }
}

//! The table of mounts (`/proc/PID/mountinfo`), read in one place.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The kind of the file system that a driver serves its disk in.
pub const DRIVER_FS: &str = "fuse.backstay";

/// Kinds of file systems whose server may hang anyone who asks it.
const REMOTE: [&str; 9] =
    ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "autofs", "virtiofs"];

/// The number of a device: of a block device, or the one of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNo {
    /// Its kind.
    pub major: u32,
    /// Which of its kind.
    pub minor: u32,
}

impl fmt::Display for DeviceNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl std::str::FromStr for DeviceNo {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.trim().split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(drop)?, minor: minor.parse().map_err(drop)? })
    }
}

impl From<u64> for DeviceNo {
    fn from(dev: u64) -> Self {
        Self { major: libc::major(dev), minor: libc::minor(dev) }
    }
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, which no other mount of this host has.
    pub id: u64,
    /// The number of its file system.
    pub device: DeviceNo,
    /// Which folder of the file system it shows.
    pub root: PathBuf,
    /// Where it is.
    pub at: PathBuf,
    /// How it is mounted here (`rw,noatime`).
    pub options: String,
    /// The kind of file system.
    pub kind: String,
    /// What is mounted.
    pub source: PathBuf,
    /// The options of the file system itself.
    pub of_file_system: String,
}

impl Mount {
    /// Whether a driver of Backstay serves it.
    #[must_use]
    pub fn is_driver(&self) -> bool {
        self.kind == DRIVER_FS
    }

    /// Whether a server answers for it that may hang.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.kind.starts_with("fuse") || REMOTE.contains(&self.kind.as_str())
    }
}

/// All mounts of this process's namespace, those on top last.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The mount on top of a folder, if something is mounted there.
#[must_use]
pub fn at<'a>(table: &'a [Mount], folder: &Path) -> Option<&'a Mount> {
    table.iter().rev().find(|mount| mount.at == folder)
}

/// The mount that a path leads to.
#[must_use]
pub fn of<'a>(table: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    path.ancestors().find_map(|folder| at(table, folder))
}

/// Reads a table; what is no line of one is left out.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|&byte| byte == b'\n').filter_map(mount).collect()
}

/// `36 35 7:0 / /mnt rw,noatime shared:1 - ext4 /dev/loop0 rw`: optional fields before the dash.
fn mount(line: &[u8]) -> Option<Mount> {
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let mut fields = line.split(|&byte| byte == b' ');
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?.parse().ok()?;
    let (root, at) = (unescape(fields.next()?), unescape(fields.next()?));
    let options = text(fields.next()?)?;
    fields.find(|field| *field == b"-")?;
    let (kind, source) = (text(fields.next()?)?, unescape(fields.next()?));
    let of_file_system = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
    Some(Mount { id, device, root, at, options, kind, source, of_file_system })
}

/// A field as it is: the kernel writes blanks, tabs, line ends and backslashes as three octal digits.
#[must_use]
pub fn unescape(field: &[u8]) -> PathBuf {
    let (mut out, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => (out.push(byte), rest = &after[3..]),
            None => (out.push(first), rest = after),
        };
    }
    OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let table =
            b"45 27 7:1 / /mnt/a\\040b rw,relatime shared:3 master:1 - ext4 /dev/loop1 rw,x\n\
            46 27 0:51 / /run/x rw - fuse.backstay backstay rw\n\
            47 27 0:52 / /mnt/s rw - fuse.sshfs x rw\nrubbish\n47 x\n";
        let mounts = parse(table);
        assert_eq!(mounts.len(), 3);
        let first = at(&mounts, Path::new("/mnt/a b")).unwrap();
        assert_eq!((first.id, first.device.to_string().as_str()), (45, "7:1"));
        assert_eq!(
            (first.source.as_path(), first.kind.as_str()),
            (Path::new("/dev/loop1"), "ext4")
        );
        assert_eq!(
            (first.options.as_str(), first.of_file_system.as_str()),
            ("rw,relatime", "rw,x")
        );
        assert!(mounts[1].is_driver() && !mounts[0].is_driver() && !mounts[2].is_driver());
        assert!(at(&mounts, Path::new("/mnt")).is_none());
    }

    #[test]
    fn a_path_leads_to_the_mount_on_top() {
        let mounts = parse(
            b"21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n\
            30 21 0:25 /@data /srv rw shared:1 - btrfs /dev/sdb rw\n\
            31 21 0:25 /@logs /var/log rw shared:2 - btrfs /dev/sdb rw\n\
            32 30 7:0 / /srv/a\\040b rw - ext4 /dev/loop0 rw\n\
            33 32 7:9 / /srv/a\\040b rw - xfs /dev/loop9 rw\n",
        );
        let device = |path: &str| of(&mounts, Path::new(path)).unwrap().device;
        assert_eq!(device("/etc/passwd").to_string(), "8:1");
        assert_eq!(device("/srv/x"), device("/var/log/x"), "subvolumes are one file system");
        assert_eq!(device("/srv/a b/c").to_string(), "7:9", "what is mounted over another");
    }

    /// Every table that is cut off, or has a byte changed, is read without a panic; what is escaped comes back.
    #[test]
    fn any_bytes_are_read() {
        let table = b"32 30 7:0 / /srv/a\\040b\\134 rw shared:1 - ext4 /dev/loop0 rw\n";
        for end in 0..table.len() {
            let _ = parse(&table[..end]);
            for byte in [0, b' ', b'\\', b'-', 0xff] {
                let mut other = table.to_vec();
                other[end] = byte;
                let _ = parse(&other);
            }
        }
        assert_eq!(parse(table)[0].at, Path::new("/srv/a b\\"));
        assert_eq!(unescape(b"a\\04"), Path::new("a\\04"));
    }
}

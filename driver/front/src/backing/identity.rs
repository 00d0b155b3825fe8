//! Which file or device a backing is.
//!
//! A file is told by its inode and the time it was made, which no copy of it shares; a device by what
//! it says of itself (volume id, world-wide name, serial number), or by its name if it says nothing.
//! A wrong "another one" costs a resync; a wrong "the same" would lose writes, so whatever may
//! differ between two backings goes into it, and nothing that a reboot changes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use backstay_format::superblock::BackingId;

/// Where devices say who they are, below their folder in sysfs, the surest first.
const SPEAKING: [&str; 7] =
    ["dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial", "device/cid"];

/// Which file or device this is.
pub(super) fn of(file: &File) -> io::Result<BackingId> {
    let meta = file.metadata()?;
    let text = if meta.file_type().is_block_device() {
        let (major, minor) = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
        let dir = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        of_device(&fs::canonicalize(dir)?)
    } else {
        let made = meta.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        format!("file {} {}", meta.ino(), made.map_or(0, |at| at.as_nanos()))
    };
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    Ok(BackingId(id))
}

/// What a device says of itself; `dir` is its folder in sysfs.
fn of_device(dir: &Path) -> String {
    let read = |name: &str| {
        let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    if let (Some(number), Some(parent)) = (read("partition"), dir.parent()) {
        let start = read("start").unwrap_or_default();
        return format!("partition {number} at {start} of {}", of_device(parent));
    }
    // A loop device is its file, whatever number it has today.
    if let Some(file) = read("loop/backing_file") {
        return format!("loop {file} at {}", read("loop/offset").unwrap_or_default());
    }
    for name in SPEAKING {
        if let Some(text) = read(name) {
            return format!("{name} {text}");
        }
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("name {} {name}", read("dm/name").unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_another_file_and_the_same_file_stays_itself() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), [7; 4096]).unwrap();
        fs::copy(at("a"), at("b")).unwrap();
        let id = |name: &str| of(&File::open(at(name)).unwrap()).unwrap();
        assert_ne!(id("a"), id("b"));
        let before = id("a");
        fs::write(at("a"), [8; 8192]).unwrap();
        backstay_host::atomic::rename(&at("a"), &at("c")).unwrap();
        assert_eq!(id("c"), before, "content, size and name do not matter");
    }

    #[test]
    fn devices_say_who_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make("sdx/device/wwid", "t10.ATA 123\n");
        make("sdx/sdx2/partition", "2\n");
        make("sdx/sdx2/start", "2048\n");
        make("dm-3/dm/uuid", "LVM-abc\n");
        make("dm-4/dm/uuid", "\n");
        make("dm-4/dm/name", "plain\n");
        make("loop7/loop/backing_file", "/srv/x.img\n");
        make("loop7/loop/offset", "0\n");
        let of = |name: &str| of_device(&dir.path().join(name));
        assert_eq!(of("sdx"), "device/wwid t10.ATA 123");
        assert_eq!(of("sdx/sdx2"), "partition 2 at 2048 of device/wwid t10.ATA 123");
        assert_eq!(of("dm-3"), "dm/uuid LVM-abc");
        assert_eq!(of("dm-4"), "name plain dm-4");
        assert_eq!(of("loop7"), "loop /srv/x.img at 0");
    }
}

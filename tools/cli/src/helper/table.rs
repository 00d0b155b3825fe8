//! The kernel's table of mounts (`/proc/self/mountinfo`).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The device's number, `7:0`.
    pub number: String,
    /// Where it is mounted.
    pub target: PathBuf,
    /// What is mounted.
    pub source: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// How it is mounted here (`rw,noatime`).
    pub options: String,
}

/// All mounts, those on top last.
pub fn read() -> std::io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// The mount on top of a folder.
pub fn at<'a>(table: &'a [Entry], target: &Path) -> Option<&'a Entry> {
    table.iter().rev().find(|entry| entry.target == target)
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|&byte| byte == b'\n').filter_map(entry).collect()
}

/// `36 35 7:0 / /mnt rw,noatime shared:1 - ext4 /dev/loop0 rw`: optional fields before the dash.
fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let number = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let target = plain(fields.nth(1)?);
    let options = String::from_utf8(fields.next()?.to_vec()).ok()?;
    fields.find(|field| *field == b"-")?;
    let kind = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let source = plain(fields.next()?);
    Some(Entry { number, target, source, kind, options })
}

/// Blanks and such are written as `\040`.
fn plain(field: &[u8]) -> PathBuf {
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

/// The file that a loop device is attached to; empty if it is none.
pub fn loop_file(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let file = Path::new("/sys/block").join(name).join("loop/backing_file");
    let bytes = std::fs::read(file).ok()?;
    let line = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(line)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_of_the_kernel() {
        let table =
            b"45 27 7:1 / /mnt/a\\040b rw,relatime shared:3 master:1 - ext4 /dev/loop1 rw\n\
            46 27 0:51 / /run/x rw - fuse.backstay backstay rw\nrubbish\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        let first = at(&entries, Path::new("/mnt/a b")).unwrap();
        assert_eq!(
            (first.number.as_str(), first.source.as_path()),
            ("7:1", Path::new("/dev/loop1"))
        );
        assert_eq!((first.kind.as_str(), first.options.as_str()), ("ext4", "rw,relatime"));
        assert!(at(&entries, Path::new("/mnt")).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            parse(&bytes);
        }

        #[test]
        fn escapes_are_undone(name in "[a-z \\\\\t]{1,20}") {
            let escaped: String = name
                .bytes()
                .map(|b| match b {
                    b' ' | b'\\' | b'\t' => format!("\\{b:03o}"),
                    b => char::from(b).to_string(),
                })
                .collect();
            prop_assert_eq!(plain(escaped.as_bytes()), PathBuf::from(name));
        }
    }
}

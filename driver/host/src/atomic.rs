//! Replacing a file as a whole: a reader sees the old content or the new one, never a part.
//!
//! The new content is written to a file of its own beside the old one, synced, and renamed over it;
//! then the folder is synced, because a rename lasts only once its folder is on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whether to wait until the new content would survive a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Wait for the disk: what the file says is relied upon.
    Durable,
    /// Do not wait: what is lost would be found out again.
    Relaxed,
}

/// Mode of records and other files of ours: their owner alone.
pub const PRIVATE: u32 = 0o600;

/// Replaces the content of a file that is readable by its owner alone.
///
/// # Errors
/// If the folder cannot be written. The old content is then untouched.
pub fn replace(path: &Path, content: &[u8], durability: Durability) -> io::Result<()> {
    replace_with_mode(path, content, durability, PRIVATE)
}

/// Replaces the content of a file; afterwards it has exactly this mode, whatever the umask says.
///
/// # Errors
/// If the folder cannot be written. The old content is then untouched.
pub fn replace_with_mode(
    path: &Path,
    content: &[u8],
    durability: Durability,
    mode: u32,
) -> io::Result<()> {
    let part = part_file(path)?;
    let written = write_part(&part, content, durability, mode).and_then(|()| rename(&part, path));
    if let Err(e) = written {
        let _ = fs::remove_file(&part);
        return Err(e);
    }
    match durability {
        Durability::Durable => sync_folder_of(path),
        Durability::Relaxed => Ok(()),
    }
}

/// Renames a file or folder. What must survive a power loss also needs [`sync_folder_of`].
///
/// # Errors
/// What rename(2) answers.
#[allow(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Waits until the folder that holds `path` is on the disk, and with it the file's name.
///
/// # Errors
/// If the folder cannot be opened or synced.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

fn write_part(part: &Path, content: &[u8], durability: Durability, mode: u32) -> io::Result<()> {
    // A killed process of the same number may have left one behind.
    let _ = fs::remove_file(part);
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(part)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    match durability {
        Durability::Durable => file.sync_all(),
        Durability::Relaxed => Ok(()),
    }
}

/// A name beside `path` that no other writer has: `.NAME.PID-N.new`.
fn part_file(path: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(format!(".{}-{}.new", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_as_a_whole_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        replace(&path, b"one", Durability::Durable).unwrap();
        replace(&path, b"two", Durability::Relaxed).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        replace_with_mode(&path, b"three", Durability::Durable, 0o666).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_fails_leaves_the_old_content_and_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", Durability::Durable).is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("none/x"), b"x", Durability::Durable).is_err());
        assert!(replace(Path::new("/"), b"x", Durability::Durable).is_err());
    }
}

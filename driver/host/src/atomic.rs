//! Replaces a file atomically: a reader sees the old content or the new content, never a part.
//!
//! The new content is written to a temporary file beside the old one, synced, and renamed over it. Then the
//! folder is synced, because a rename is durable only once its folder is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

/// Whether to wait until the new content would survive a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Wait for the disk: what the file says is relied upon.
    Durable,
    /// Do not wait: what is lost would be found out again.
    Relaxed,
}

/// A part that nobody has written to for so long belongs to a writer that is gone.
const LEFT_BEHIND: Duration = Duration::from_secs(3600);

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

/// Renames a file or folder to a name that nothing has yet.
///
/// # Errors
/// `AlreadyExists` if something has the name; else what renameat2(2) answers.
#[allow(clippy::disallowed_methods, reason = "the one place that renames")]
pub fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    let (here, flags) = (nix::fcntl::AT_FDCWD, nix::fcntl::RenameFlags::RENAME_NOREPLACE);
    Ok(nix::fcntl::renameat2(here, from, here, to, flags)?)
}

/// Renames a file or folder and waits until both folders have it on the disk.
///
/// # Errors
/// If it cannot be renamed; or synced, then it has its new name.
pub fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    rename(from, to)?;
    sync_folder_of(to)?;
    if from.parent() == to.parent() { Ok(()) } else { sync_folder_of(from) }
}

/// Removes what killed writers have left in a folder: parts that nobody has touched for an hour.
pub fn tidy(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| is_part(&entry.file_name().to_string_lossy())) {
        let touched = entry.metadata().and_then(|meta| meta.modified()).ok();
        let age = touched.and_then(|at| clock::now().duration_since(at).ok());
        if age.is_some_and(|age| age > LEFT_BEHIND) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_part(name: &str) -> bool {
    let numbers = name.strip_prefix('.').and_then(|name| name.strip_suffix(".new"));
    let numbers = numbers.and_then(|name| name.rsplit_once('.')?.1.split_once('-'));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(pid, count)| digits(pid) && digits(count))
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
    fn only_old_parts_are_tidied_away() {
        let dir = tempfile::tempdir().unwrap();
        let old = clock::now() - LEFT_BEHIND * 2;
        for name in ["record.json", ".record.json.12-0.new", ".a-b.new", ".x.1-.new"] {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(old).unwrap();
        }
        File::create(dir.path().join(".record.json.12-1.new")).unwrap();
        tidy(dir.path());
        let mut left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".a-b.new", ".record.json.12-1.new", ".x.1-.new", "record.json"]);
        assert!(is_part(
            part_file(&dir.path().join("x")).unwrap().file_name().unwrap().to_str().unwrap()
        ));
    }

    #[test]
    fn a_name_that_is_taken_stays_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a"), b"a").unwrap();
        fs::write(at("b"), b"b").unwrap();
        let error = rename_to_free_name(&at("a"), &at("b")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        rename_to_free_name(&at("a"), &at("c")).unwrap();
        rename_durably(&at("c"), &at("b")).unwrap();
        assert_eq!(fs::read(at("b")).unwrap(), b"a");
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

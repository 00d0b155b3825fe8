//! What a vault in a local directory needs to be durable, beyond what `object_store` does.
//!
//! With `with_fsync(true)` a put syncs the staged file, links it to its name, and syncs the name's
//! directory; whoever makes missing directories syncs those too. But a put that finds a directory
//! there syncs no more than it, although a killed process or another thread may have made it an
//! instant ago and not synced its name. So before the first put into a directory, every directory
//! from it up to the vault's root is synced here, once in the life of a process.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Directories that nobody but the vault's owner may enter.
const MODE: u32 = 0o700;

/// After this time without a write a staged file is nobody's: even a put that waits at a throttle writes
/// every second.
const STALE: Duration = Duration::from_secs(6 * 3600);

/// Makes the vault's own directory, durably, with all that is missing above it.
pub(crate) fn make_root(root: &Path) -> io::Result<()> {
    let mut missing: Vec<&Path> = root.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new().recursive(true).mode(MODE).create(root)?;
    // Somebody may have made the root and not synced it: its own name is synced in any case.
    if missing.is_empty() {
        missing.push(root);
    }
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        sync(parent)?;
    }
    Ok(())
}

/// The directories of a vault.
#[derive(Debug)]
pub(crate) struct Folders {
    root: PathBuf,
    /// Those whose names are durable, up to the root.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    pub fn below(root: &Path) -> Self {
        Self { root: root.into(), durable: Mutex::new(HashSet::new()) }
    }

    /// Makes the directory an object goes into, private and durable.
    pub fn prepare(&self, key: &str) -> io::Result<()> {
        let folder = self.folder(key);
        if self.durable().contains(&folder) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(MODE).create(&folder)?;
        self.sync_names(&folder)?;
        remove_stale(&folder, SystemTime::now());
        self.durable().insert(folder);
        Ok(())
    }

    /// Makes an object's name durable.
    pub fn settle(&self, key: &str) -> io::Result<()> {
        let folder = self.folder(key);
        sync(&folder)?;
        self.sync_names(&folder)
    }

    /// Removes what puts that were killed left in a folder of the vault: files `<name>#<number>`,
    /// which no listing shows, untouched for longer than any put takes. Returns how many.
    pub fn sweep(&self, folder: &str, untouched: Duration) -> io::Result<u64> {
        let mut swept = 0;
        let entries = match fs::read_dir(self.root.join(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let staged =
                name.to_str().and_then(|name| name.rsplit_once('#')).is_some_and(|(_, number)| {
                    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
                });
            // A time in the future is young.
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            if staged && age().is_some_and(|age| age > untouched) {
                fs::remove_file(entry.path())?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    fn sync_names(&self, folder: &Path) -> io::Result<()> {
        for dir in folder.ancestors().take_while(|dir| *dir != self.root) {
            if let Some(parent) = dir.parent() {
                sync(parent)?;
            }
        }
        Ok(())
    }

    /// The vault's own directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of an object.
    pub fn path(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn folder(&self, key: &str) -> PathBuf {
        let object = self.path(key);
        object.parent().map_or_else(|| self.root.clone(), Path::to_path_buf)
    }

    fn durable(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes what killed puts have left: staged files that nobody has written to for long. They are no
/// objects and would stay for ever. What cannot be removed does no harm.
fn remove_stale(folder: &Path, now: SystemTime) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let staged = name
            .to_str()
            .and_then(|name| name.rsplit_once('#'))
            .is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|digit| digit.is_ascii_digit()));
        let touched = || entry.metadata().and_then(|meta| meta.modified());
        // A clock that was set back makes it young, which is safe.
        let is_stale = |at| now.duration_since(at).is_ok_and(|age| age > STALE);
        if staged && touched().is_ok_and(is_stale) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_killed_puts_left_goes_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1-2-3", "1-2-3#1", "1-2-4#17", "1-2-4#x", "#", "1-2-5#"] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        remove_stale(dir.path(), SystemTime::now());
        assert_eq!(count(), 6, "somebody may be at them");
        remove_stale(dir.path(), SystemTime::now() + STALE * 2);
        assert_eq!(count(), 4);
        assert!(dir.path().join("1-2-3").exists(), "an object");
    }

    #[test]
    fn folders_are_made_private_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("x/y/vault");
        make_root(&root).unwrap();
        make_root(&root).unwrap();
        let folders = Folders::below(&root);
        folders.prepare("vault.json").unwrap();
        folders.prepare("disks/d/points/1").unwrap();
        folders.settle("disks/d/points/1").unwrap();
        for made in ["", "disks", "disks/d", "disks/d/points"] {
            let mode = std::fs::metadata(root.join(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE, "{made}");
        }
        assert!(folders.durable().contains(&root.join("disks/d/points")));
        assert!(folders.durable().contains(&root));
    }
    #[test]
    fn what_killed_puts_left_is_swept_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::below(dir.path());
        let in_it = dir.path().join("disks/d/segments");
        fs::create_dir_all(&in_it).unwrap();
        let day = Duration::from_secs(86_400);
        for (name, days) in [("1-a-0#1", 2), ("1-a-0#2", 0), ("1-a-0", 2), ("x#y", 2), ("x#", 2)] {
            let file = File::create(in_it.join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - day * days).unwrap();
        }
        assert_eq!(folders.sweep("disks/d/segments", day).unwrap(), 1);
        assert_eq!(folders.sweep("disks/d/absent", day).unwrap(), 0);
        assert!(!in_it.join("1-a-0#1").exists() && in_it.join("1-a-0#2").exists());
        assert_eq!(fs::read_dir(&in_it).unwrap().count(), 4);
    }
}

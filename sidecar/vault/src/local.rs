//! What a vault in a local directory needs to be durable, beyond what `object_store` does.
//!
//! With `with_fsync(true)` a put syncs the staged file, links it to its name, and syncs the name's
//! directory; whoever makes missing directories syncs those too. But a put that finds a directory
//! there syncs no more than it, although a killed process or another thread may have made it an
//! instant ago and not synced its name. So before the first put into a directory, every directory
//! from it up to the vault's root is synced here, once in the life of a process.

use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Directories that nobody but the vault's owner may enter.
const MODE: u32 = 0o700;

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
        self.durable().insert(folder);
        Ok(())
    }

    /// Makes an object's name durable.
    pub fn settle(&self, key: &str) -> io::Result<()> {
        let folder = self.folder(key);
        sync(&folder)?;
        self.sync_names(&folder)
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

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
}

//! A start that fails leaves nothing of a disk that is new here.

use std::fs;
use std::path::PathBuf;

use backstay_host::own_dir;
use backstay_types::DiskName;

use super::serve::lock_disk;
use crate::paths::DiskPaths;

/// The folders of a disk that were not there before.
pub struct Traces {
    name: DiskName,
    paths: DiskPaths,
    new: Vec<PathBuf>,
}

impl Traces {
    /// Before a start.
    #[must_use]
    pub fn before(name: &DiskName, paths: &DiskPaths) -> Self {
        let new = [&paths.state, &paths.runtime].into_iter().filter(|dir| !dir.exists()).cloned();
        Self { name: name.clone(), paths: paths.clone(), new: new.collect() }
    }

    /// After a start that failed: takes away the new folders, unless there is a disk in them by now.
    pub fn remove(self) {
        if !self.new.contains(&self.paths.state) || !self.paths.state.exists() {
            return;
        }
        // Another driver may have begun meanwhile.
        let Ok(_lock) = lock_disk(&self.name, &self.paths.lock_file()) else { return };
        if self.paths.state.join("super").exists() {
            return;
        }
        for dir in self.new {
            // A folder that is not ours was the reason to fail.
            if fs::symlink_metadata(&dir).is_ok_and(|meta| meta.is_dir())
                && let Err(e) = own_dir::remove(&dir)
            {
                tracing::warn!("{}: {e}", dir.display());
            }
        }
    }
}

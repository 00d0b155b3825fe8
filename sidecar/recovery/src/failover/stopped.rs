//! What a stopped disk proves about itself: the last word of a source before it hands over.

use backstay_format::superblock::{Base, Superblock};
use backstay_front::paths::DiskPaths;
use backstay_track::{FsEnv, Offline};
use backstay_types::{DiskId, DiskName};

use super::FailoverError;

/// The superblock of a disk of this host, served or not; none if it has none.
#[must_use]
pub fn superblock(paths: &DiskPaths) -> Option<Superblock> {
    Superblock::newest(&std::fs::read(paths.state.join("super")).ok()?).ok()
}

/// A stopped disk holds exactly its base: identity of the disk and the point.
///
/// # Errors
/// If it was not stopped cleanly, or anything was written since its last point.
pub fn exactly_at(name: &DiskName, paths: &DiskPaths) -> Result<(DiskId, Base), FailoverError> {
    let not = |reason: String| FailoverError::NotStopped { name: name.clone(), reason };
    let env = FsEnv::open(&paths.state, &paths.runtime)
        .map_err(|e| not(format!("its state cannot be opened: {e}")))?;
    let offline = Offline::open(&env).map_err(|e| not(e.to_string()))?;
    let mut dirty = 0u64;
    let whole = offline
        .saved(&env, |_, bits| dirty += u64::from(bits.count_ones()))
        .map_err(|e| not(e.to_string()))?;
    let superblock = offline.superblock();
    if let Some(resync) = superblock.resync {
        return Err(not(resync.explain().into()));
    }
    if !whole || dirty > 0 {
        return Err(not(format!("{dirty} sectors were written after its last recovery point")));
    }
    match superblock.base {
        Some(base) => Ok((superblock.disk, base)),
        None => Err(not("it has no recovery point".into())),
    }
}

/// How a disk's driver is named as a writer.
#[must_use]
pub fn writer(disk: DiskId) -> String {
    format!("source {disk}")
}

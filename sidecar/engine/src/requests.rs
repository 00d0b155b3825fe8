//! Requests from commands to a running sidecar: files in `<state>/.requests/`.
//!
//! All disks share one folder, so that a sidecar with a thousand disks reads one folder to find no request.
//! The file name says which disk, and whether an on-demand cycle is wanted. All other details are in the
//! disk's own state.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use backstay_host::own_dir::own_dir;
use backstay_types::DiskName;

const ON_DEMAND: &str = ".cycle";

/// What is asked for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A cycle now.
    Cycle(DiskName),
    /// To look at its state again: it was resumed, or a resync was asked for.
    Look(DiskName),
}

fn folder(state_root: &Path) -> PathBuf {
    state_root.join(".requests")
}

/// Asks.
///
/// # Errors
/// If the state directory cannot be written.
pub fn ask(state_root: &Path, asked: &Asked) -> io::Result<()> {
    let folder = folder(state_root);
    own_dir(&folder)?;
    let name = match asked {
        // A disk's name may have dots in it, but none at its start.
        Asked::Cycle(name) => format!("{ON_DEMAND}-{name}"),
        Asked::Look(name) => name.to_string(),
    };
    let mut file = OpenOptions::new();
    file.create(true).truncate(true).write(true).mode(0o600).open(folder.join(name)).map(drop)
}

/// Takes everything that is asked.
#[must_use]
pub fn take(state_root: &Path) -> Vec<Asked> {
    let Ok(entries) = fs::read_dir(folder(state_root)) else { return vec![] };
    let mut all = vec![];
    for entry in entries.flatten() {
        let name = entry.file_name();
        let asked = name.to_str().and_then(|name| match name.strip_prefix(".cycle-") {
            Some(name) => name.parse().ok().map(Asked::Cycle),
            None => name.parse().ok().map(Asked::Look),
        });
        // Taken before it is done: what is asked meanwhile is asked again.
        if fs::remove_file(entry.path()).is_ok() {
            all.extend(asked);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(take(dir.path()).is_empty());
        let (a, b) = ("a.b-c".parse().unwrap(), "cycle-a".parse().unwrap());
        for asked in [Asked::Cycle(a), Asked::Look(b)] {
            ask(dir.path(), &asked).unwrap();
            ask(dir.path(), &asked).unwrap();
            assert_eq!(take(dir.path()), [asked]);
        }
        assert!(take(dir.path()).is_empty());
    }
}

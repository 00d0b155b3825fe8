//! Detects whether a file has changed since it was read, so that settings and secrets are read again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells one content of a file from the next: which file it is, how long it is, and when it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamp of a file now; none if it is not there or cannot be looked at.
#[must_use]
pub fn of(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        bytes: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
        changed: (meta.ctime(), meta.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(of(&path), None);
        fs::write(&path, b"one").unwrap();
        let first = of(&path);
        assert_eq!(of(&path), first);
        crate::atomic::replace(&path, b"two", crate::atomic::Durability::Relaxed).unwrap();
        assert_ne!(of(&path), first);
    }
}

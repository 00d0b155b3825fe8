//! Folders that belong to us and to nobody else: state, runtime, caches.
//!
//! What lies in such a folder is believed, some of it is even executed (the hooks' thaw commands). So
//! a folder that somebody else made, may write, or has put a link in place of, is refused.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Why a folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum OwnDirError {
    /// A symbolic link or a file is in its place.
    #[error("{} is not a folder but {what}; it was left as it is", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
        /// What is there.
        what: &'static str,
    },
    /// Somebody else owns it.
    #[error(
        "the folder {} belongs to user {owner}, not to user {ours} who runs Backstay; check its \
         content, then remove it or change its owner",
        path.display()
    )]
    Owner {
        /// The path.
        path: PathBuf,
        /// User id of its owner.
        owner: u32,
        /// User id of this process.
        ours: u32,
    },
    /// Its group or everybody may write it.
    #[error(
        "the folder {} can be written by others (mode {mode:04o}); check its content, then run \
         \"chmod go-w\" on it",
        path.display()
    )]
    Writable {
        /// The path.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
}

/// Makes a folder (0700) and those above it that are missing, and checks that it is ours alone.
///
/// # Errors
/// If it cannot be made, is a link, belongs to another user, or may be written by others.
pub fn own_dir(path: &Path) -> Result<(), OwnDirError> {
    let failed = |source| OwnDirError::Io { path: path.into(), source };
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed(e)),
        _ => check(path),
    }
}

/// Checks that an existing folder is ours alone.
///
/// # Errors
/// As [`own_dir`].
pub fn check(path: &Path) -> Result<(), OwnDirError> {
    let meta = fs::symlink_metadata(path)
        .map_err(|source| OwnDirError::Io { path: path.into(), source })?;
    if meta.is_symlink() {
        return Err(OwnDirError::NotAFolder { path: path.into(), what: "a symbolic link" });
    }
    if !meta.is_dir() {
        return Err(OwnDirError::NotAFolder { path: path.into(), what: "a file" });
    }
    let ours = nix::unistd::geteuid().as_raw();
    if meta.uid() != ours {
        return Err(OwnDirError::Owner { path: path.into(), owner: meta.uid(), ours });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(OwnDirError::Writable { path: path.into(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn only_folders_that_are_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        own_dir(&at("a/b")).unwrap();
        assert_eq!(fs::metadata(at("a/b")).unwrap().mode() & 0o777, 0o700);
        own_dir(&at("a/b")).unwrap();
        std::os::unix::fs::symlink(at("a/b"), at("link")).unwrap();
        assert!(matches!(own_dir(&at("link")), Err(OwnDirError::NotAFolder { .. })));
        fs::write(at("file"), b"").unwrap();
        assert!(own_dir(&at("file")).is_err());
        fs::set_permissions(at("a/b"), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(own_dir(&at("a/b")), Err(OwnDirError::Writable { .. })));
        if nix::unistd::geteuid().is_root() {
            fs::create_dir(at("theirs")).unwrap();
            std::os::unix::fs::chown(at("theirs"), Some(12345), None).unwrap();
            assert!(matches!(own_dir(&at("theirs")), Err(OwnDirError::Owner { .. })));
        }
    }
}

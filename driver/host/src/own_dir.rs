//! Private folders for state, runtime files and caches.
//!
//! The content of such a folder is trusted, and some of it is executed (the thaw commands of hooks). So a
//! folder is refused if somebody else owns it or can write to it, or if it is a symbolic link.

use backstay_types::{Class, Classified, class};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// In a folder with this bit only its owner renames an entry.
const STICKY: u32 = 0o1000;

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
    /// Others can put another folder in its place.
    #[error(
        "the folder {} is not safe from others: {} {what}; choose another place, or mend that one",
        path.display(),
        above.display()
    )]
    Above {
        /// The path.
        path: PathBuf,
        /// The folder above it that is the trouble.
        above: PathBuf,
        /// What is wrong with that.
        what: String,
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

impl Classified for OwnDirError {
    fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => source.class(),
            Self::NotAFolder { .. }
            | Self::Owner { .. }
            | Self::Writable { .. }
            | Self::Above { .. } => Class::Refused,
        }
    }
}

impl From<OwnDirError> for io::Error {
    fn from(e: OwnDirError) -> Self {
        let kind = match &e {
            OwnDirError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::PermissionDenied,
        };
        class::as_io(kind, e)
    }
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

/// Removes a folder of ours and all in it; one that is not there is removed already. Its name is free at once: another
/// process that still writes there finds no folder, and can neither keep it from being removed nor leave files behind. What a
/// kill left of an earlier removal beside it goes, too.
///
/// # Errors
/// If it cannot be renamed or removed.
pub fn remove(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut removing = std::ffi::OsString::from(REMOVING);
    removing.push(name);
    let aside = above.join(removing);
    let absent_is_fine = |done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    };
    absent_is_fine(fs::remove_dir_all(&aside))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a folder is renamed to be removed, not to be published"
    )]
    absent_is_fine(fs::rename(path, &aside))?;
    absent_is_fine(fs::remove_dir_all(&aside))
}

/// What the name of a folder begins with that is being removed. No disk's name begins so.
const REMOVING: &str = ".removing-";

/// Checks that an existing folder is ours alone.
///
/// # Errors
/// As [`own_dir`].
pub fn check(path: &Path) -> Result<(), OwnDirError> {
    check_owner(path, |owner, ours| owner == ours)
}

/// Checks that what lies in a folder may be believed: it is ours or the system administrator's, and nobody
/// else can change it. One that is not there holds nothing.
///
/// # Errors
/// As [`own_dir`].
pub fn check_trusted(path: &Path) -> Result<(), OwnDirError> {
    match check_owner(path, |owner, ours| owner == ours || owner == 0) {
        Err(OwnDirError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        checked => checked,
    }
}

fn check_owner(path: &Path, may_own: impl Fn(u32, u32) -> bool) -> Result<(), OwnDirError> {
    let meta = fs::symlink_metadata(path)
        .map_err(|source| OwnDirError::Io { path: path.into(), source })?;
    if meta.is_symlink() {
        return Err(OwnDirError::NotAFolder { path: path.into(), what: "a symbolic link" });
    }
    if !meta.is_dir() {
        return Err(OwnDirError::NotAFolder { path: path.into(), what: "a file" });
    }
    let ours = nix::unistd::geteuid().as_raw();
    if !may_own(meta.uid(), ours) {
        return Err(OwnDirError::Owner { path: path.into(), owner: meta.uid(), ours });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(OwnDirError::Writable { path: path.into(), mode });
    }
    check_above(path, ours)
}

/// Checks the folders above: where everybody may make entries, nobody else must be able to rename ours.
fn check_above(path: &Path, ours: u32) -> Result<(), OwnDirError> {
    let failed = |source| OwnDirError::Io { path: path.into(), source };
    let real = fs::canonicalize(path).map_err(failed)?;
    let mut above: Vec<&Path> = real.ancestors().skip(1).collect();
    above.reverse();
    let mut is_shared = false;
    for folder in above {
        let meta = fs::metadata(folder).map_err(failed)?;
        let unsafe_because =
            |what| OwnDirError::Above { path: path.into(), above: folder.into(), what };
        if is_shared && ![0, ours].contains(&meta.uid()) {
            let owner = meta.uid();
            let what = format!("belongs to user {owner}, who may have put it there for us");
            return Err(unsafe_because(what));
        }
        if meta.mode() & 0o002 != 0 {
            if meta.mode() & STICKY == 0 {
                return Err(unsafe_because("can be written by everybody".into()));
            }
            is_shared = true;
        }
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
            assert!(matches!(check_trusted(&at("theirs")), Err(OwnDirError::Owner { .. })));
        }
        check_trusted(&at("not there")).unwrap();
    }

    #[test]
    fn nobody_else_can_exchange_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let shared = dir.path().join("shared");
        fs::create_dir(&shared).unwrap();
        let allow = |mode| fs::set_permissions(&shared, fs::Permissions::from_mode(mode)).unwrap();
        allow(0o777);
        let made = own_dir(&shared.join("a"));
        assert!(matches!(made, Err(OwnDirError::Above { .. })), "{made:?}");
        allow(0o1777);
        own_dir(&shared.join("a")).unwrap();
        if nix::unistd::geteuid().is_root() {
            // What a stranger prepared for us, as below /dev/shm.
            fs::create_dir(shared.join("theirs")).unwrap();
            std::os::unix::fs::chown(shared.join("theirs"), Some(12345), None).unwrap();
            let made = own_dir(&shared.join("theirs/disk"));
            assert!(matches!(made, Err(OwnDirError::Above { .. })), "{made:?}");
        }
    }
}

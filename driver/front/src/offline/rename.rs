//! Renaming a disk on its host: its state directory gets the new name.
//!
//! One rename(2) does it. Only after a clean stop: then nothing in the runtime directory counts, whose
//! files could not be renamed in the same step. The vault's part comes between [`Renaming::begin`] and
//! [`Renaming::finish`]: killed there, the vault knows the new name already and the host the old one;
//! both work, and the same command finishes.

use std::fs::{self, File};
use std::path::Path;

use backstay_format::superblock::Superblock;
use backstay_host::atomic;
use backstay_track::{FsEnv, Offline};
use backstay_types::{DiskId, DiskName};
use nix::fcntl::Flock;

use super::{OfflineError, io_error};
use crate::life::lock_disk;
use crate::paths::{DiskPaths, Roots};

/// How far a rename is.
#[derive(Debug)]
pub enum Stage {
    /// All checks passed; the disk is locked.
    Ready(Renaming),
    /// The state has the new name already: an earlier run got this far.
    Done(Superblock),
}

/// A disk that may be renamed; locked as long as this lives.
#[derive(Debug)]
pub struct Renaming {
    superblock: Superblock,
    old: DiskPaths,
    new: DiskPaths,
    _lock: Flock<File>,
}

impl Renaming {
    /// Checks that a disk can be renamed, and locks it.
    ///
    /// # Errors
    /// If it is served, was not stopped cleanly, or the new name is in use on this host.
    pub fn begin(roots: &Roots, old: &DiskName, new: &DiskName) -> Result<Stage, OfflineError> {
        if old == new {
            return Err(OfflineError::Refused(format!("disk {old} has that name")));
        }
        let (from, to) = (roots.disk(old), roots.disk(new));
        match (superblock(&from)?, superblock(&to)?) {
            (None, Some(there)) => return Ok(Stage::Done(there)),
            (None, None) => {
                let state = from.state.display().to_string();
                return Err(OfflineError::NoDisk { name: old.clone(), state });
            }
            (Some(_), Some(_)) => {
                let reason = format!("this host has another disk named {new}");
                return Err(OfflineError::Refused(reason));
            }
            (Some(_), None) => {}
        }
        if fs::read_dir(&to.state).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(OfflineError::Refused(format!(
                "{} is in the way: it holds no disk's state; move it away",
                to.state.display()
            )));
        }
        let lock = lock_disk(old, &from.lock_file()).map_err(OfflineError::Served)?;
        let env = FsEnv::open(&from.state, &from.runtime)
            .map_err(io_error(format!("opening the state of disk {old}")))?;
        let offline = Offline::open(&env)
            .map_err(|source| OfflineError::State { name: old.clone(), source })?;
        let superblock = offline.superblock().clone();
        Ok(Stage::Ready(Self { superblock, old: from, new: to, _lock: lock }))
    }

    /// The superblock of the disk.
    #[must_use]
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The disk's identity.
    #[must_use]
    pub fn disk(&self) -> DiskId {
        self.superblock.disk
    }

    /// Gives the state its new name, durably.
    ///
    /// # Errors
    /// If the system refuses; the disk has its old name then.
    pub fn finish(self) -> Result<(), OfflineError> {
        let (old, new) = (&self.old.state, &self.new.state);
        let doing = || format!("renaming {} to {}", old.display(), new.display());
        atomic::rename_durably(old, new).map_err(io_error(doing()))?;
        tidy(&self.old.runtime);
        Ok(())
    }
}

fn superblock(paths: &DiskPaths) -> Result<Option<Superblock>, OfflineError> {
    let path = paths.state.join("super");
    let shown = || format!("reading {}", path.display());
    match fs::read(&path) {
        Ok(bytes) => Superblock::newest(&bytes)
            .map(Some)
            .map_err(|e| io_error(shown())(std::io::Error::other(e))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(shown())(e)),
    }
}

/// Removes what a stopped driver left on tmpfs: its bits, its socket and an empty mount point. What
/// others keep there stays.
fn tidy(runtime: &Path) {
    let bits =
        |name: &str| ["dirty-", "preserved-", "shipped-"].iter().any(|p| name.starts_with(p));
    for entry in fs::read_dir(runtime).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let _ = match name.as_str() {
            "mnt" => fs::remove_dir(entry.path()),
            name if name == "control.sock" || bits(name) => fs::remove_file(entry.path()),
            _ => Ok(()),
        };
    }
    if let Err(e) = fs::remove_dir(runtime) {
        tracing::debug!("{}: {e}: left behind, nothing uses it", runtime.display());
    }
}

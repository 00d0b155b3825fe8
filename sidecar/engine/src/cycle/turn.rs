//! The *turn*: a lock that allows one cycle per disk, held from before the phase is recorded until the
//! result is.
//!
//! The driver's lease is not enough. It ends before the record is written, so a cycle run by a person and
//! one of the sidecar could overwrite each other's records.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use backstay_host::lock::exclusive;
use backstay_types::DiskName;
use nix::fcntl::Flock;

use crate::error::CycleError;

const FILE: &str = "cycle.lock";

/// A disk's turn, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _lock: Flock<File>,
}

impl Turn {
    /// Takes the turn of a disk, by its state directory; waits at most `wait` for another to end.
    ///
    /// # Errors
    /// [`CycleError::Busy`], with who has it; or the state directory cannot be written.
    pub fn take(state: &Path, name: &DiskName, wait: Duration) -> Result<Self, CycleError> {
        let path = state.join(FILE);
        let failed = |e: io::Error| CycleError::source(path.display().to_string())(e);
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let Some(mut lock) = exclusive(file.map_err(failed)?, wait).map_err(failed)? else {
            let by = fs::read_to_string(&path).unwrap_or_default();
            return Err(CycleError::Busy { name: name.clone(), by });
        };
        // Only for people: a full disk does not stop a cycle.
        let _ = lock.set_len(0).and_then(|()| write!(lock, "process {}", std::process::id()));
        Ok(Self { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let name: DiskName = "db".parse().unwrap();
        let first = Turn::take(dir.path(), &name, Duration::ZERO).unwrap();
        let refused = Turn::take(dir.path(), &name, Duration::ZERO).unwrap_err();
        assert!(refused.is_busy(), "{refused}");
        assert!(
            refused.to_string().contains(&format!("process {}", std::process::id())),
            "{refused}"
        );
        drop(first);
        Turn::take(dir.path(), &name, Duration::ZERO).unwrap();
    }
}

//! The durable state of a resync: the request, and the progress.
//!
//! Both are small files in the disk's state directory, replaced atomically. `backstay resync` writes the
//! *request*; the cycle that commits removes it. A running resync writes its *progress* after each stretch;
//! the next attempt continues from there after a kill.
//!
//! The stretches compared before the kill stay valid: from the first cut of the resync on, every write is
//! in the dirty set, and when the sidecar dies, the driver folds its epochs back. The next attempt ships
//! all dirty sectors and compares the remaining stretches. There are two exceptions, in which the resync
//! starts again: tracking has failed in between, which changes the driver's count of reasons for a resync
//! (`resync_no`), or the vault has another newest point.

use std::fs;
use std::io;
use std::path::Path;

use backstay_host::atomic::Durability;
use backstay_host::record::{self, RecordError};
use backstay_types::{CycleNo, DiskId, PointId};
use backstay_vault::SegmentRef;
use serde::{Deserialize, Serialize};

const REQUEST: &str = "resync-request.json";
const PROGRESS: &str = "resync-progress.json";

/// A resync that was asked for.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The point that the disk may follow although nothing proves it: a person said so.
    pub disk_is_right: Option<PointId>,
    /// Read the vault's data instead of relying on its checksums.
    pub deep: bool,
    /// Ship everything, compare nothing.
    pub full: bool,
    /// Do not wait for the resync window.
    pub now: bool,
    /// When it was asked for, nanoseconds since 1970.
    pub asked_unix_ns: u64,
}

/// How far a resync got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Progress {
    /// The disk in the vault.
    pub vault_disk: DiskId,
    /// The driver's own disk.
    pub disk: DiskId,
    /// The cycle it is for.
    pub cycle: CycleNo,
    /// The point that is compared with.
    pub newest: PointId,
    /// The driver's count of reasons when it began.
    pub resync_no: u64,
    /// Whether data is read from the vault.
    pub deep: bool,
    /// Segments of the point that were compared, newest first.
    pub seen: usize,
    /// What was shipped, stretch by stretch.
    pub stretches: Vec<Stretch>,
}

/// What one stretch shipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stretch {
    /// Digest of the set of sectors that had to move (I7).
    pub digest: [u8; 32],
    /// The segments that moved them.
    pub segments: Vec<SegmentRef>,
}

impl Request {
    /// The request of a disk, if there is one. One that cannot be read stays a request, for the most
    /// that can be done without a person's word: everything is compared, by the vault's data.
    #[must_use]
    pub fn load(state_dir: &Path) -> Option<Self> {
        record::load(&state_dir.join(REQUEST)).unwrap_or_else(|e| {
            tracing::warn!("{e}; the whole disk is compared");
            Some(Self { deep: true, ..Self::default() })
        })
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&state_dir.join(REQUEST), self, Durability::Durable)
    }
}

impl Progress {
    pub fn load(state_dir: &Path) -> Option<Self> {
        // Without it the resync begins again.
        record::load_shown(&state_dir.join(PROGRESS))
    }

    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&state_dir.join(PROGRESS), self, Durability::Durable)
    }
}

/// Whether a resync of a disk was begun and not ended.
#[must_use]
pub fn has_progress(state_dir: &Path) -> bool {
    state_dir.join(PROGRESS).exists()
}

/// The cycle is committed that answers a request, if it does: nothing of its resync is needed any more. What was asked for
/// while it ran is the next one's.
pub(super) fn forget(state_dir: &Path, answered: Option<&Request>) {
    if Request::load(state_dir).as_ref() == answered {
        remove(&state_dir.join(REQUEST));
    }
    remove(&state_dir.join(PROGRESS));
}

/// What a resync had done does not hold any more.
pub(super) fn forget_progress(state_dir: &Path) {
    remove(&state_dir.join(PROGRESS));
}

pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("removing {}: {e}", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_request_still_asks() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Request::load(dir.path()), None);
        let asked = Request { now: true, ..Request::default() };
        asked.save(dir.path()).unwrap();
        assert_eq!(Request::load(dir.path()), Some(asked));
        fs::write(dir.path().join(REQUEST), b"{").unwrap();
        assert!(Request::load(dir.path()).unwrap().deep);
        fs::write(dir.path().join(PROGRESS), b"{").unwrap();
        assert_eq!(Progress::load(dir.path()), None);
        forget(dir.path(), Request::load(dir.path()).as_ref());
        assert_eq!(Request::load(dir.path()), None);
        assert!(!has_progress(dir.path()));
    }

    #[test]
    fn what_was_asked_for_while_a_cycle_ran_stays_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (
            Request { now: true, asked_unix_ns: 1, ..Request::default() },
            Request { deep: true, asked_unix_ns: 2, ..Request::default() },
        );
        second.save(dir.path()).unwrap();
        forget(dir.path(), None);
        forget(dir.path(), Some(&first));
        assert_eq!(Request::load(dir.path()), Some(second.clone()));
        forget(dir.path(), Some(&second));
        assert_eq!(Request::load(dir.path()), None);
    }
}

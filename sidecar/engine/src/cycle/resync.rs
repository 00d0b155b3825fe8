//! What lasts of a resync: that it was asked for, and how far it got.
//!
//! Two small files in the disk's state directory, each replaced as a whole. The *request* is made by
//! `backstay resync` and removed by the cycle that commits. The *progress* is written by a running
//! resync after each stretch; one that was killed goes on from it.
//!
//! Why what was compared before the kill still holds: from its first cut on, every write is in the
//! dirty set, and when the sidecar dies the driver folds its epochs back, so nothing is forgotten.
//! The next attempt ships all that is dirty beside what it has not compared yet. That fails only if
//! tracking failed in between, and then the driver's count of reasons for a resync has changed
//! (`resync_no`); or if the vault's newest point is another one. In both cases it begins anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use backstay_types::{CycleNo, DiskId, PointId};
use backstay_vault::SegmentRef;
use serde::de::DeserializeOwned;
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
    /// The request of a disk, if there is one.
    #[must_use]
    pub fn load(state_dir: &Path) -> Option<Self> {
        load(&state_dir.join(REQUEST))
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        save(self, state_dir, REQUEST)
    }
}

impl Progress {
    pub fn load(state_dir: &Path) -> Option<Self> {
        load(&state_dir.join(PROGRESS))
    }

    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        save(self, state_dir, PROGRESS)
    }
}

/// Whether a resync of a disk was begun and not ended.
#[must_use]
pub fn has_progress(state_dir: &Path) -> bool {
    state_dir.join(PROGRESS).exists()
}

/// The cycle is committed: nothing of its resync is needed any more.
pub(super) fn forget(state_dir: &Path) {
    for name in [REQUEST, PROGRESS] {
        remove(&state_dir.join(name));
    }
}

/// What a resync had done does not hold any more.
pub(super) fn forget_progress(state_dir: &Path) {
    remove(&state_dir.join(PROGRESS));
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("removing {}: {e}", path.display());
        }
        _ => {}
    }
}

/// A file that cannot be read is as good as none: then the resync begins anew, or is asked for again.
fn load<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    let read = serde_json::from_slice(&bytes);
    read.inspect_err(|e| tracing::warn!("{}: {e}; it is not used", path.display())).ok()
}

fn save<T: Serialize>(value: &T, state_dir: &Path, name: &str) -> io::Result<()> {
    let new = state_dir.join(format!("{name}.{}", std::process::id()));
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&new, state_dir.join(name))?;
    File::open(state_dir)?.sync_all()
}

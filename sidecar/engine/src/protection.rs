//! The settings given to `backstay protect`. They are stored with the disk's state, and the configuration
//! file overrides them.

use std::path::{Path, PathBuf};

use backstay_host::atomic::Durability;
use backstay_host::record::{self, RecordError};
use serde::{Deserialize, Serialize};

const FILE: &str = "protection.json";
/// What says that a disk is a mounted point; written by anyone who mounts it.
pub const MOUNTED_POINT: &str = "mounted/point.json";

/// How a disk is protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// The backing file or device.
    pub backing: PathBuf,
    /// Where its recovery points go.
    pub vault: String,
    /// The policy it follows.
    pub policy: Option<String>,
    /// It is being ended: no cycle begins any more.
    #[serde(default)]
    pub ending: bool,
}

impl Protection {
    /// Of a disk, if it was protected by that command.
    ///
    /// # Errors
    /// If that was written down and cannot be read: then nobody knows where its points go, nor
    /// whether its protection is being ended.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, RecordError> {
        record::load(&state_dir.join(FILE))
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&state_dir.join(FILE), self, Durability::Durable)
    }
}

/// Whether a disk is a mounted recovery point that nobody has made a disk of: it is looked at, tried or
/// about to be committed, and no cycle of it is anybody's business. A failover's commit, or `protect`,
/// makes it one.
#[must_use]
pub fn is_only_looked_at(state_dir: &Path) -> bool {
    // Before its commit a failover writes down a protection that is being ended, so that no sidecar ships it.
    let is_disk = match Protection::load(state_dir) {
        Ok(protection) => protection.is_some_and(|protection| !protection.ending),
        Err(_) => true,
    };
    state_dir.join(MOUNTED_POINT).exists() && !is_disk
}

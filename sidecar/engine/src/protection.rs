//! What `backstay protect` was told of a disk: kept beside its state, below what the configuration
//! says.

use std::path::{Path, PathBuf};

use backstay_host::atomic::Durability;
use backstay_host::record::{self, RecordError};
use serde::{Deserialize, Serialize};

const FILE: &str = "protection.json";

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

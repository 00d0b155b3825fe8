//! What `backstay protect` was told of a disk: kept beside its state, below what the configuration
//! says.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

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
    #[must_use]
    pub fn load(state_dir: &Path) -> Option<Self> {
        let path = state_dir.join(FILE);
        let bytes = fs::read(&path).ok()?;
        let read = serde_json::from_slice(&bytes);
        read.inspect_err(|e| tracing::error!("{}: {e}; it is not used", path.display())).ok()
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        let new = state_dir.join(format!("{FILE}.{}", std::process::id()));
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&new, state_dir.join(FILE))?;
        File::open(state_dir)?.sync_all()
    }
}

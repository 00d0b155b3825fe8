//! What the sidecar remembers of a disk between cycles: one small file, replaced as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use backstay_vault::Class;
use serde::{Deserialize, Serialize};

use crate::cycle::CycleReport;
use crate::error::CycleError;

const FILE: &str = "sidecar.json";

/// How the last cycles of a disk went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The last cycle that was committed and verified.
    pub last: Option<CycleReport>,
    /// Where it went.
    pub vault: Option<String>,
    /// Failures since then.
    pub failures: u32,
    /// The last of them.
    pub failure: Option<Failure>,
}

/// A failed cycle.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub message: String,
    /// Whether a person must act.
    pub person_must_act: bool,
    /// When, nanoseconds since 1970.
    pub at_unix_ns: u64,
}

impl Record {
    /// Reads the record of a disk. One that cannot be read is as good as none: all it is for is to
    /// be shown.
    #[must_use]
    pub fn load(state_dir: &Path) -> Self {
        let Ok(bytes) = fs::read(state_dir.join(FILE)) else { return Self::default() };
        serde_json::from_slice(&bytes).unwrap_or_else(|e| {
            tracing::warn!("{}: {e}; starting a new one", state_dir.join(FILE).display());
            Self::default()
        })
    }

    /// Replaces the record of a disk, durably.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> io::Result<()> {
        let (path, new) = (state_dir.join(FILE), state_dir.join("sidecar.json.new"));
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(self).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(state_dir)?.sync_all()
    }

    /// Notes how a cycle went and saves that. Trouble with it is only worth a warning.
    pub fn note(&mut self, result: &Result<CycleReport, CycleError>, vault: &str, dir: &Path) {
        match result {
            Ok(report) => {
                self.last = Some(report.clone());
                self.vault = Some(vault.into());
                self.failures = 0;
                self.failure = None;
            }
            Err(e) => {
                self.failures += 1;
                self.failure = Some(Failure {
                    message: e.to_string(),
                    person_must_act: e.class() == Class::PersonMustAct,
                    at_unix_ns: SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .map_or(0, |d| d.as_nanos() as u64),
                });
            }
        }
        if let Err(e) = self.save(dir) {
            tracing::warn!("remembering the cycle in {}: {e}", dir.display());
        }
    }
}

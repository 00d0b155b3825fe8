//! What is remembered of where a disk's backing is: the file `backing.json` of its state directory.
//!
//! The superblock alone decides which backing is the disk's. This says where a person finds it, and
//! keeps the two backings of a move apart: what a move has not finished, and what one has left behind,
//! hold a disk that must not be taken for this one.

use std::fs;
use std::path::{Path, PathBuf};

use backstay_format::superblock::BackingId;
use backstay_host::atomic::Durability;
use backstay_host::record::{self, RecordError};
use serde::{Deserialize, Serialize};

const FILE: &str = "backing.json";

/// A backing: its last known path and its identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The path.
    pub path: PathBuf,
    /// The identity, in hex digits.
    pub identity: String,
}

/// The record of a disk's backing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackingRecord {
    /// The backing from which the disk was last mounted, or to which it was last moved.
    pub backing: Option<Seen>,
    /// The target of an unfinished move.
    pub moving_to: Option<Seen>,
    /// The old backing that the last move left behind.
    pub moved_from: Option<Seen>,
}

impl Seen {
    /// A backing that is open.
    #[must_use]
    pub fn new(path: &Path, identity: Option<BackingId>) -> Self {
        let hex = |id: BackingId| id.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.into());
        Self { path, identity: identity.map_or_else(String::new, hex) }
    }

    fn is(&self, identity: &str) -> bool {
        !identity.is_empty() && self.identity == identity
    }
}

impl BackingRecord {
    /// Reads the record of a disk. Returns an empty record if there is none.
    ///
    /// # Errors
    /// If the record cannot be read. That is no reason to continue without it: it may name a backing that a
    /// move has left behind, and without it the old backing would look like a changed disk.
    pub fn load(state_dir: &Path) -> Result<Self, RecordError> {
        Ok(record::load(&state_dir.join(FILE))?.unwrap_or_default())
    }

    /// Replaces the record of a disk, durably.
    ///
    /// # Errors
    /// If the state directory cannot be written.
    pub fn save(&self, state_dir: &Path) -> Result<(), RecordError> {
        record::save(&state_dir.join(FILE), self, Durability::Durable)
    }

    /// Why a backing must not be mounted as this disk.
    #[must_use]
    pub fn objection(&self, backing: &Seen) -> Option<String> {
        let of = |seen: &Option<Seen>| seen.as_ref().is_some_and(|s| s.is(&backing.identity));
        let now = self
            .backing
            .as_ref()
            .map_or_else(|| "its backing".into(), |s| s.path.display().to_string());
        let here = backing.path.display();
        if of(&self.backing) {
            None
        } else if of(&self.moving_to) {
            Some(format!(
                "{here} is what a move has not finished copying; mount {now}, or run the move again"
            ))
        } else if of(&self.moved_from) {
            Some(format!("the disk was moved from {here} to {now}: mount that"))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str, id: u8) -> Seen {
        Seen::new(Path::new(path), Some(BackingId([id; 16])))
    }

    #[test]
    fn the_backings_of_a_move_are_kept_apart() {
        let record = BackingRecord {
            backing: Some(seen("/b", 2)),
            moving_to: Some(seen("/c", 3)),
            moved_from: Some(seen("/a", 1)),
        };
        assert_eq!(record.objection(&seen("/b", 2)), None);
        assert_eq!(record.objection(&seen("/unknown", 9)), None, "the superblock's business");
        assert!(record.objection(&seen("/a", 1)).unwrap().contains("to /b"));
        assert!(record.objection(&seen("/c", 3)).unwrap().contains("not finished"));
        let dir = tempfile::tempdir().unwrap();
        record.save(dir.path()).unwrap();
        assert_eq!(BackingRecord::load(dir.path()).unwrap(), record);
        fs::write(dir.path().join(FILE), b"{").unwrap();
        assert!(BackingRecord::load(dir.path()).is_err(), "a damaged record is not no record");
    }
}

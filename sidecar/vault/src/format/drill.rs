//! What came of trying a recovery point.

use backstay_format::FormatError;
use backstay_types::{CycleNo, DiskId, PointId};
use serde::{Deserialize, Serialize};

use super::document::{Document, Object};
use super::key::{ObjectKey, Piece};

/// Longest texts in a verdict, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;

/// How a point was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DrillCheck {
    /// Its file systems were checked and mounted.
    Fsck,
    /// A command was run on it.
    Command,
    /// A machine was started from it.
    Boot,
    /// All that it needs was read back, by a scrub. No drill is made this way.
    Scrub,
}

impl DrillCheck {
    /// What a point is that passed it.
    #[must_use]
    pub fn proves(self) -> &'static str {
        match self {
            Self::Fsck => "mounts",
            Self::Command => "command",
            Self::Boot => "boots",
            Self::Scrub => "whole",
        }
    }
}

/// `disks/<id>/drills/<cycle>-<drill>`: a verdict on a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillRecord {
    /// The drill's identity, random.
    pub drill: uuid::Uuid,
    /// The disk.
    pub disk: DiskId,
    /// The point's cycle.
    pub cycle: CycleNo,
    /// The point's identity: a verdict on another point of that cycle says nothing.
    pub point: PointId,
    /// How it was tried.
    pub check: DrillCheck,
    /// Whether it passed.
    pub passed: bool,
    /// What was found. For people.
    pub message: String,
    /// Who tried it. For people.
    pub by: String,
    /// When it began, nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When it ended, nanoseconds since 1970.
    pub ended_unix_ns: u64,
}

impl Document for DrillRecord {
    const FORMAT: &'static str = "backstay-drill";
}

impl Object for DrillRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::Disk(self.disk, Piece::Drill(self.cycle, self.drill));
        (!same).then(|| {
            format!("verdict {} on point {} of disk {}", self.drill, self.cycle, self.disk)
        })
    }
}

impl DrillRecord {
    /// Whether it fits its limits.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        let wrong =
            |reason: &str| Err(FormatError::Text { what: Self::FORMAT, reason: reason.to_owned() });
        if self.message.len().max(self.by.len()) > TEXT_BYTES_MAX {
            return wrong("its texts are too long");
        }
        Ok(())
    }
}

/// The beginning of a text, as much as fits a verdict.
#[must_use]
pub fn shortened(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::document::{decode, encode};

    #[test]
    fn round_trip_and_golden() {
        let record = DrillRecord {
            drill: uuid::Uuid::from_bytes([3; 16]),
            disk: DiskId::from_bytes([7; 16]),
            cycle: CycleNo(17),
            point: PointId::from_bytes([9; 16]),
            check: DrillCheck::Fsck,
            passed: true,
            message: "ext4 on the whole disk: clean".into(),
            by: "process 1 on a host".into(),
            began_unix_ns: 1_700_000_000_000_000_000,
            ended_unix_ns: 1_700_000_001_000_000_000,
        };
        let bytes = encode(&record).unwrap();
        assert_eq!(decode::<DrillRecord>(&bytes).unwrap(), record);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            include_str!("../../tests/golden/drill.json")
        );
        assert!(record.check().is_ok());
        let long = DrillRecord { message: "ü".repeat(4096), ..record };
        assert!(long.check().is_err());
        let short = DrillRecord { message: shortened(&long.message), ..long };
        assert!(short.check().is_ok() && short.message.len() > 4000);
    }
}

//! A hold: points that must not be deleted, who says so, and until when.

use std::fmt;
use std::str::FromStr;

use backstay_format::FormatError;
use backstay_types::{CycleNo, DiskId};
use serde::{Deserialize, Serialize};

use super::document::{Document, Object};
use super::key::{ObjectKey, Piece};

/// The name of a hold: 1 to 64 of `a-z A-Z 0-9 . _ -`, starting with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HoldName(String);

impl HoldName {
    /// Longest name, in bytes.
    pub const LEN_MAX: usize = 64;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HoldName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let fine = text.len() <= Self::LEN_MAX
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(good);
        if fine {
            return Ok(Self(text.to_owned()));
        }
        Err(FormatError::Text {
            what: "name of a hold",
            reason: format!(
                "{text:?} is not one: use 1 to 64 letters, digits, '.', '_' or '-', starting with \
                 a letter or digit"
            ),
        })
    }
}

impl TryFrom<String> for HoldName {
    type Error = FormatError;
    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<HoldName> for String {
    fn from(name: HoldName) -> String {
        name.0
    }
}

impl fmt::Display for HoldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What holds points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldKind {
    /// A person.
    Pin,
    /// A point that is mounted.
    Mount,
    /// A replica that follows the points.
    Replica,
    /// A failover that runs from a point.
    Failover,
    /// A resync that compares with a point.
    Resync,
    /// A restore or verification.
    Read,
}

impl fmt::Display for HoldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pin => "pin",
            Self::Mount => "mount",
            Self::Replica => "replica",
            Self::Failover => "failover",
            Self::Resync => "resync",
            Self::Read => "read",
        })
    }
}

/// `disks/<id>/holds/<version>-<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// The disk. Not in older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskId>,
    /// Its name, unique on its disk.
    pub name: HoldName,
    /// Which version of it this is; each is used once, and the highest is the newest.
    pub version: u64,
    /// What holds.
    pub kind: HoldKind,
    /// Who: host, process, user. For people.
    pub holder: String,
    /// Why. For people.
    pub reason: String,
    /// The first cycle whose point is held.
    pub first_cycle: CycleNo,
    /// The last one.
    pub last_cycle: CycleNo,
    /// When this version was put, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// When it ends unless it is renewed, nanoseconds since 1970; `None`: never.
    pub until_unix_ns: Option<u64>,
}

impl Document for HoldRecord {
    const FORMAT: &'static str = "backstay-hold";
}

impl Object for HoldRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = matches!(key, ObjectKey::Disk(disk, Piece::Hold(version, name))
            if self.disk.is_none_or(|own| own == *disk)
                && (*version, name) == (self.version, &self.name));
        let of = self.disk.map_or_else(String::new, |disk| format!(" of disk {disk}"));
        (!same).then(|| format!("version {} of hold {}{of}", self.version, self.name))
    }
}

/// `disks/<id>/held/<cycle>-<number>`: from here on a hold needs the point of that cycle, or does not any more. Asked for by
/// name before a point is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRecord {
    /// The disk.
    pub disk: DiskId,
    /// The point's cycle.
    pub cycle: CycleNo,
    /// Its number among those of the point, from 1 without gaps.
    pub number: u64,
    /// The hold's name.
    pub name: HoldName,
    /// Whether it holds the point.
    pub holds: bool,
    /// Who put this. For people.
    pub by: String,
    /// When, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

impl Document for HeldRecord {
    const FORMAT: &'static str = "backstay-held";
}

impl Object for HeldRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::Disk(self.disk, Piece::Held(self.cycle, self.number));
        (!same).then(|| {
            format!("note {} of what holds point {} of disk {}", self.number, self.cycle, self.disk)
        })
    }
}

impl HoldRecord {
    /// Whether it covers the point of a cycle.
    #[must_use]
    pub fn covers(&self, cycle: CycleNo) -> bool {
        (self.first_cycle..=self.last_cycle).contains(&cycle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::document::{decode, encode};

    #[test]
    fn round_trip_and_golden() {
        let record = HoldRecord {
            disk: None,
            name: "before-upgrade".parse().unwrap(),
            version: 2,
            kind: HoldKind::Pin,
            holder: "root on db-host".into(),
            reason: "until the upgrade is proven".into(),
            first_cycle: CycleNo(17),
            last_cycle: CycleNo(17),
            since_unix_ns: 1_700_000_000_000_000_000,
            until_unix_ns: None,
        };
        let bytes = encode(&record).unwrap();
        assert_eq!(decode::<HoldRecord>(&bytes).unwrap(), record);
        assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("../../tests/golden/hold.json"));
        assert!(record.covers(CycleNo(17)) && !record.covers(CycleNo(18)));
    }

    #[test]
    fn what_is_held_round_trip_and_golden() {
        let record = HeldRecord {
            disk: DiskId::from_bytes([7; 16]),
            cycle: CycleNo(17),
            number: 2,
            name: "before-upgrade".parse().unwrap(),
            holds: true,
            by: "root on db-host".into(),
            since_unix_ns: 1_700_000_000_000_000_000,
        };
        let bytes = encode(&record).unwrap();
        assert_eq!(decode::<HeldRecord>(&bytes).unwrap(), record);
        let golden = include_str!("../../tests/golden/held.json");
        assert_eq!(String::from_utf8(bytes).unwrap(), golden);
    }

    #[test]
    fn names_cannot_leave_their_folder() {
        for bad in ["", ".", "..", "a/b", "-x", ".x", "a b", "ü", &"x".repeat(65)] {
            assert!(bad.parse::<HoldName>().is_err(), "{bad:?}");
        }
        assert!("pin-17".parse::<HoldName>().is_ok());
    }
}

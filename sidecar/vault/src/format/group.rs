//! Group points: one recovery point of each of many disks, cut at one instant.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use backstay_format::FormatError;
use backstay_types::{CycleNo, DiskId, DiskName, PointId};
use serde::{Deserialize, Serialize};

use super::document::{Document, Object};
use super::key::ObjectKey;

/// Most disks in a group: what fits a document with the longest names.
pub const MEMBERS_MAX: usize = 100;
/// Longest name of a host, in bytes.
pub const HOST_BYTES_MAX: usize = 255;

/// The name of a consistency group; the same rules as for a disk's, for the same reasons.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupName(DiskName);

impl GroupName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for GroupName {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        text.parse().map(Self).map_err(|_| FormatError::Text {
            what: "group name",
            reason: format!(
                "{text:?} is not a group name: use 1 to 64 letters, digits, '.', '_' or '-', \
                 starting with a letter or digit"
            ),
        })
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A point of a group in one vault. First: 1.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct GroupPointNo(pub u64);

impl fmt::Display for GroupPointNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `groups/<name>/points/<number>`: a group point exists exactly when this object does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPoint {
    /// The group.
    pub group: GroupName,
    /// Which of its points.
    pub number: GroupPointNo,
    /// The identity of this group point, made new for each.
    pub point: PointId,
    /// An instant at which every member was held, by the coordinator's clock; nanoseconds since
    /// 1970.
    pub cut_unix_ns: u64,
    /// When it was put, nanoseconds since 1970.
    pub committed_unix_ns: u64,
    /// One point of each disk, by the disk's identity.
    pub members: Vec<GroupMember>,
}

/// One disk's part of a group point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// The host that shipped it, as the coordinator knows it; none for the coordinator's own.
    pub host: Option<String>,
    /// The disk.
    pub disk: DiskId,
    /// Its name at the time.
    pub name: DiskName,
    /// The cycle of its recovery point.
    pub cycle: CycleNo,
    /// The identity of its recovery point.
    pub point: PointId,
    /// The instant of its cut by its own host's clock, nanoseconds since 1970.
    pub cut_unix_ns: u64,
}

impl Document for GroupPoint {
    const FORMAT: &'static str = "backstay-group-point";
}

impl Object for GroupPoint {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::GroupPoint(self.group.clone(), self.number.0);
        (!same).then(|| format!("point {} of group {}", self.number, self.group))
    }
}

impl GroupPoint {
    /// Checks what the fields by themselves do not say.
    ///
    /// # Errors
    /// No members or too many, one disk twice, or a host's name that is too long.
    pub fn check(&self) -> Result<(), FormatError> {
        let what = Self::FORMAT;
        if !(1..=MEMBERS_MAX).contains(&self.members.len()) {
            let value = self.members.len() as u64;
            return Err(FormatError::Bounds { what, field: "members", value });
        }
        let mut disks = BTreeSet::new();
        for member in &self.members {
            if !disks.insert(member.disk) {
                let reason = format!("disk {} is in it twice", member.disk);
                return Err(FormatError::Text { what, reason });
            }
            let len = member.host.as_ref().map_or(0, String::len);
            if len > HOST_BYTES_MAX {
                return Err(FormatError::Bounds { what, field: "host", value: len as u64 });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::document::{DOCUMENT_BYTES_MAX, decode, encode};
    use proptest::prelude::*;

    fn member(n: u8) -> GroupMember {
        GroupMember {
            host: (n > 1).then(|| "web1.example".into()),
            disk: DiskId::from_bytes([n; 16]),
            name: format!("disk{n}").parse().unwrap(),
            cycle: CycleNo(40 + u64::from(n)),
            point: PointId::from_bytes([0x80 + n; 16]),
            cut_unix_ns: 1_700_000_000_000_000_000 + u64::from(n),
        }
    }

    fn sample() -> GroupPoint {
        GroupPoint {
            group: "shop".parse().unwrap(),
            number: GroupPointNo(7),
            point: PointId::from_bytes([9; 16]),
            cut_unix_ns: 1_700_000_000_000_000_003,
            committed_unix_ns: 1_700_000_001_000_000_000,
            members: vec![member(1), member(2)],
        }
    }

    #[test]
    fn round_trip_and_golden() {
        let bytes = encode(&sample()).unwrap();
        assert_eq!(decode::<GroupPoint>(&bytes).unwrap(), sample());
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text, include_str!("../../tests/golden/group-point.json"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(sample().check().is_ok());
        let none = GroupPoint { members: vec![], ..sample() };
        assert!(matches!(none.check(), Err(FormatError::Bounds { field: "members", .. })));
        let twice = GroupPoint { members: vec![member(1), member(1)], ..sample() };
        assert!(matches!(twice.check(), Err(FormatError::Text { .. })));
        assert!("../x".parse::<GroupName>().is_err());
    }

    #[test]
    fn the_largest_group_fits_a_document() {
        let long = |n: usize| GroupMember {
            host: Some("h".repeat(HOST_BYTES_MAX)),
            disk: DiskId::from_bytes([n as u8; 16]),
            name: "n".repeat(DiskName::LEN_MAX).parse().unwrap(),
            cycle: CycleNo(u64::MAX),
            point: PointId::from_bytes([n as u8; 16]),
            cut_unix_ns: u64::MAX,
        };
        let members = (0..MEMBERS_MAX).map(long).collect();
        let largest = GroupPoint { members, ..sample() };
        largest.check().unwrap();
        let bytes = encode(&largest).unwrap();
        assert!(bytes.len() <= DOCUMENT_BYTES_MAX, "{}", bytes.len());
    }

    proptest! {
        #[test]
        fn any_changed_digit_is_seen(at: prop::sample::Index, digit in b'0'..=b'9') {
            let mut bytes = encode(&sample()).unwrap();
            let digits: Vec<usize> =
                (0..bytes.len()).filter(|&i| bytes[i].is_ascii_digit()).collect();
            let at = digits[at.index(digits.len())];
            prop_assume!(bytes[at] != digit);
            bytes[at] = digit;
            prop_assert!(decode::<GroupPoint>(&bytes).is_err());
        }
    }
}

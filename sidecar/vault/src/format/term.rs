//! Who writes a disk: `disks/<id>/terms/<term>`, and `disks/<id>/handovers/<term>`, with which a
//! writer lays down its term.

use backstay_format::FormatError;
use backstay_types::{CycleNo, DiskId, PointId, Term};
use serde::{Deserialize, Serialize};

use super::document::{Document, Object};
use super::key::{ObjectKey, Piece};

/// `disks/<id>/terms/<term>`: who may write from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermRecord {
    /// The disk. Not in older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskId>,
    /// The term.
    pub term: Term,
    /// Who writes in it.
    pub writer: String,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// The point that the writer goes on from. Not in a disk's first term, nor in one that was
    /// taken by a source which says that its disk is right: these go on from the newest point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<TermFrom>,
}

/// A point that a term goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TermFrom {
    /// Its cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// The term it was made in.
    pub term: Term,
}

/// `disks/<id>/handovers/<term>`: the writer of this term has stopped; its last point has all that was
/// ever written. It holds as long as its term is the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverRecord {
    /// The disk.
    pub disk: DiskId,
    /// The term that is laid down.
    pub term: Term,
    /// Who wrote in it.
    pub writer: String,
    /// The last point's cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

impl TermRecord {
    /// Numbers count from 1, and nobody goes on from the future.
    pub(crate) fn checked(self) -> Result<Self, FormatError> {
        let bounds = |field, value| FormatError::Bounds { what: Self::FORMAT, field, value };
        if self.term.0 == 0 {
            return Err(bounds("term", 0));
        }
        match self.from {
            Some(from) if from.cycle.0 == 0 => Err(bounds("from.cycle", 0)),
            Some(from) if from.term >= self.term => Err(bounds("from.term", from.term.0)),
            _ => Ok(self),
        }
    }
}

impl Document for TermRecord {
    const FORMAT: &'static str = "backstay-term";
}
impl Document for HandoverRecord {
    const FORMAT: &'static str = "backstay-handover";
}

impl Object for TermRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = matches!(key, ObjectKey::Disk(disk, Piece::Term(term))
            if self.disk.is_none_or(|own| own == *disk) && *term == self.term);
        let of = self.disk.map_or_else(String::new, |disk| format!(" of disk {disk}"));
        (!same).then(|| format!("term {}{of}", self.term))
    }
}
impl Object for HandoverRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::Disk(self.disk, Piece::Handover(self.term));
        (!same).then(|| format!("the handover of term {} of disk {}", self.term, self.disk))
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::{decode, encode};
    use super::*;

    fn term() -> TermRecord {
        TermRecord {
            disk: None,
            term: Term(2),
            writer: "source 0707".into(),
            since_unix_ns: 1_700_000_000_000_000_000,
            from: Some(TermFrom {
                cycle: CycleNo(17),
                point: PointId::from_bytes([9; 16]),
                term: Term(1),
            }),
        }
    }

    #[test]
    fn terms_round_trip_and_golden() {
        let bytes = encode(&term()).unwrap();
        assert_eq!(decode::<TermRecord>(&bytes).unwrap(), term());
        assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("../../tests/golden/term.json"));
        // As the first terms of disks are, and all were before there was a failover.
        let first = TermRecord { from: None, ..term() };
        let bytes = encode(&first).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("from"));
        assert_eq!(decode::<TermRecord>(&bytes).unwrap(), first);
    }

    #[test]
    fn handovers_round_trip_and_golden() {
        let handover = HandoverRecord {
            disk: DiskId::from_bytes([7; 16]),
            term: Term(1),
            writer: "source 0707".into(),
            cycle: CycleNo(17),
            point: PointId::from_bytes([9; 16]),
            since_unix_ns: 1_700_000_000_000_000_000,
        };
        let bytes = encode(&handover).unwrap();
        assert_eq!(decode::<HandoverRecord>(&bytes).unwrap(), handover);
        let golden = include_str!("../../tests/golden/handover.json");
        assert_eq!(String::from_utf8(bytes).unwrap(), golden);
    }

    #[test]
    fn a_term_that_cannot_be_is_refused() {
        assert!(term().checked().is_ok());
        assert!(TermRecord { term: Term(0), from: None, ..term() }.checked().is_err());
        assert!(TermRecord { term: Term(1), ..term() }.checked().is_err());
        let from = term().from.map(|from| TermFrom { cycle: CycleNo(0), ..from });
        assert!(TermRecord { from, ..term() }.checked().is_err());
    }
}

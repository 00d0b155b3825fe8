//! Keys of a vault's objects, as types: what is not one of them cannot be asked for.
//!
//! A key is parsed into what it means, and written again from that; only if both are the same, to the
//! byte, it is a key. So there is one way to name an object, and a path that leads anywhere else (`..`, `//`,
//! `%2e`, an absolute one) cannot be represented.

use std::fmt;

use backstay_types::{CycleNo, DiskId, DiskName, Term};
use uuid::Uuid;

use super::group::GroupName;
use super::hold::HoldName;
use super::segment::SegmentId;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectKey {
    /// `vault.json`
    Vault,
    /// `keys/<revision>`
    Keyring(u64),
    /// `keys/bounds-<digest>` and `keys/writer-<public half>`: what belongs to the keyring
    KeyNote(KeyNote, String),
    /// `proofs/<slot>/<time>`
    Proof(u32, u64),
    /// `names/<name>/<number>`
    Name(DiskName, u64),
    /// `groups/<name>/points/<number>`
    GroupPoint(GroupName, u64),
    /// `disks/<disk>/…`
    Disk(DiskId, Piece),
}

/// What belongs to a keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyNote {
    /// What was there when a writer was removed.
    Bounds,
    /// That a writer's key was made.
    Writer,
}

impl KeyNote {
    fn name(self) -> &'static str {
        match self {
            Self::Bounds => "bounds",
            Self::Writer => "writer",
        }
    }

    /// Which one a name below `keys/` is, and its 32 bytes in hexadecimal.
    fn parse(name: &str) -> Option<ObjectKey> {
        let (kind, of) = name.split_once('-')?;
        let note = [Self::Bounds, Self::Writer].into_iter().find(|note| note.name() == kind)?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (of.len() == 64 && of.bytes().all(hex)).then(|| ObjectKey::KeyNote(note, of.into()))
    }
}

/// What an object is of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// `disk.json`
    Record,
    /// `terms/<term>`
    Term(Term),
    /// `handovers/<term>`
    Handover(Term),
    /// `segments/<cycle>-<attempt>-<number>`
    Segment(SegmentId),
    /// `points/<cycle>`
    Point(CycleNo),
    /// `ledger/<revision>`
    Ledger(u64),
    /// `holds/<version>-<name>`
    Hold(u64, HoldName),
    /// `held/<cycle>-<number>`
    Held(CycleNo, u64),
    /// `drills/<cycle>-<uuid>`
    Drill(CycleNo, Uuid),
}

impl ObjectKey {
    /// What a key means; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > KEY_BYTES_MAX {
            return None;
        }
        let parts: Vec<&str> = text.split('/').collect();
        let key = match parts[..] {
            ["vault.json"] => Self::Vault,
            ["keys", note] if note.contains('-') => KeyNote::parse(note)?,
            ["keys", revision] => Self::Keyring(revision.parse().ok()?),
            ["proofs", slot, at] => Self::Proof(slot.parse().ok()?, at.parse().ok()?),
            ["names", name, number] => Self::Name(name.parse().ok()?, number.parse().ok()?),
            ["groups", group, "points", number] => {
                Self::GroupPoint(group.parse().ok()?, number.parse().ok()?)
            }
            ["disks", disk, ref piece @ ..] => {
                let disk = DiskId(Uuid::parse_str(disk).ok()?);
                Self::Disk(disk, Piece::parse(disk, piece)?)
            }
            _ => return None,
        };
        (key.to_string() == text).then_some(key)
    }

    /// The disk that it is of.
    #[must_use]
    pub fn disk(&self) -> Option<DiskId> {
        match self {
            Self::Disk(disk, _) => Some(*disk),
            _ => None,
        }
    }
}

impl Piece {
    fn parse(disk: DiskId, parts: &[&str]) -> Option<Self> {
        let number = |text: &str| text.parse::<u64>().ok();
        Some(match *parts {
            ["disk.json"] => Self::Record,
            ["terms", term] => Self::Term(Term(number(term)?)),
            ["handovers", term] => Self::Handover(Term(number(term)?)),
            ["points", cycle] => Self::Point(CycleNo(number(cycle)?)),
            ["ledger", revision] => Self::Ledger(number(revision)?),
            ["holds", hold] => {
                let (version, name) = hold.split_once('-')?;
                Self::Hold(number(version)?, name.parse().ok()?)
            }
            ["held", held] => {
                let (cycle, n) = held.split_once('-')?;
                Self::Held(CycleNo(number(cycle)?), number(n)?)
            }
            ["drills", drill] => {
                let (cycle, drill) = drill.split_once('-')?;
                Self::Drill(CycleNo(number(cycle)?), Uuid::parse_str(drill).ok()?)
            }
            ["segments", segment] => {
                let mut parts = segment.splitn(3, '-');
                let (cycle, attempt, number) = (parts.next()?, parts.next()?, parts.next()?);
                Self::Segment(SegmentId {
                    disk,
                    cycle: CycleNo(cycle.parse().ok()?),
                    attempt: u64::from_str_radix(attempt, 16).ok()?,
                    number: number.parse().ok()?,
                })
            }
            _ => return None,
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vault => f.write_str("vault.json"),
            Self::Keyring(revision) => write!(f, "keys/{revision:020}"),
            Self::KeyNote(note, of) => write!(f, "keys/{}-{of}", note.name()),
            Self::Proof(slot, at) => write!(f, "proofs/{slot:010}/{at:020}"),
            Self::Name(name, number) => write!(f, "names/{name}/{number:020}"),
            Self::GroupPoint(group, number) => write!(f, "groups/{group}/points/{number:020}"),
            Self::Disk(disk, piece) => write!(f, "disks/{disk}/{piece}"),
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record => f.write_str("disk.json"),
            Self::Term(term) => write!(f, "terms/{:020}", term.0),
            Self::Handover(term) => write!(f, "handovers/{:020}", term.0),
            Self::Point(cycle) => write!(f, "points/{:020}", cycle.0),
            Self::Ledger(revision) => write!(f, "ledger/{revision:020}"),
            Self::Hold(version, name) => write!(f, "holds/{version:020}-{name}"),
            Self::Held(cycle, number) => write!(f, "held/{:020}-{number:010}", cycle.0),
            Self::Drill(cycle, drill) => write!(f, "drills/{:020}-{drill}", cycle.0),
            Self::Segment(SegmentId { cycle, attempt, number, .. }) => {
                write!(f, "segments/{:020}-{attempt:016x}-{number}", cycle.0)
            }
        }
    }
}

/// What a list is asked of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything.
    All,
    /// `disks`
    Disks,
    /// `names`
    Names,
    /// `keys`, `proofs` or those of one slot.
    Keys,
    /// `names/<name>`
    NamesOf(DiskName),
    /// `groups`, or one group, or its points.
    Groups,
    /// `disks/<disk>`, or one of its folders.
    Disk(DiskId),
}

/// The folders of a disk.
const FOLDERS: [&str; 8] =
    ["terms", "handovers", "points", "segments", "ledger", "holds", "held", "drills"];

impl Scope {
    /// What a prefix means; `None` if it is none.
    #[must_use]
    pub fn parse(prefix: &str) -> Option<Self> {
        if prefix.len() > KEY_BYTES_MAX {
            return None;
        }
        let parts: Vec<&str> = prefix.split('/').collect();
        let group = |name: &str| name.parse::<GroupName>().ok();
        Some(match parts[..] {
            [""] => Self::All,
            ["disks"] => Self::Disks,
            ["names"] => Self::Names,
            ["keys"] | ["proofs"] => Self::Keys,
            ["proofs", slot] => {
                let number: u32 = slot.parse().ok()?;
                (format!("{number:010}") == slot).then_some(Self::Keys)?
            }
            ["names", name] => Self::NamesOf(name.parse().ok()?),
            ["groups"] => Self::Groups,
            ["groups", name] | ["groups", name, "points"] => group(name).map(|_| Self::Groups)?,
            ["disks", disk, ref folder @ ..] => {
                let id = DiskId(Uuid::parse_str(disk).ok()?);
                let known = match folder {
                    [] => true,
                    [folder] => FOLDERS.contains(folder),
                    _ => false,
                };
                (known && id.to_string() == disk).then_some(Self::Disk(id))?
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: &str = "0b0b0b0b-0000-4000-8000-0123456789ab";

    #[test]
    fn every_piece_of_the_layout() {
        let numbered = |what: &str| format!("disks/{DISK}/{what}/{:020}", 7);
        for key in [
            "vault.json".into(),
            format!("keys/{:020}", 2),
            format!("proofs/{:010}/{:020}", 1, 7),
            format!("names/db.1/{:020}", 3),
            format!("groups/shop/points/{:020}", 1),
            format!("disks/{DISK}/disk.json"),
            numbered("terms"),
            numbered("handovers"),
            numbered("points"),
            numbered("ledger"),
            format!("disks/{DISK}/segments/{:020}-00000000000000ff-0", 7),
            format!("disks/{DISK}/holds/{:020}-failover-term-2", 7),
            format!("disks/{DISK}/held/{:020}-{:010}", 7, 1),
            format!("disks/{DISK}/drills/{:020}-{DISK}", 7),
        ] {
            let parsed = ObjectKey::parse(&key).unwrap_or_else(|| panic!("{key}"));
            assert_eq!(parsed.to_string(), key);
        }
    }

    #[test]
    fn what_is_no_key() {
        for key in [
            "",
            "/",
            "vault.json/",
            "/vault.json",
            "../vault.json",
            "names/../vault.json",
            "names/db/1",
            "names/db/00000000000000000001/x",
            "names/.db/00000000000000000001",
            "names//00000000000000000001",
            "names/d%62/00000000000000000001",
            "names/db/+0000000000000000001",
            "names/db/99999999999999999999",
            "probes/0b0b0b0b-0000-4000-8000-0123456789ab",
            "disks/0B0B0B0B-0000-4000-8000-0123456789AB/disk.json",
            "disks/0b0b0b0b00004000800001234567 89ab/disk.json",
            "disks/{0b0b0b0b-0000-4000-8000-0123456789ab}/disk.json",
            "disks/0b0b0b0b-0000-4000-8000-0123456789ab/points/1",
            "disks/0b0b0b0b-0000-4000-8000-0123456789ab/points/../disk.json",
            "disks/0b0b0b0b-0000-4000-8000-0123456789ab/segments/00000000000000000007-ff-0",
            "disks/0b0b0b0b-0000-4000-8000-0123456789ab/segments/00000000000000000007-00000000000000FF-0",
            "disks/0b0b0b0b-0000-4000-8000-0123456789ab/segments/00000000000000000007-00000000000000ff-00",
            "disks/0b0b0b0b-0000-4000-8000-0123456789ab/segments/00000000000000000007-00000000000000ff-0#1",
        ] {
            assert_eq!(ObjectKey::parse(key), None, "{key}");
        }
    }

    #[test]
    fn scopes() {
        let disk = || DiskId(Uuid::parse_str(DISK).unwrap());
        assert_eq!(Scope::parse(""), Some(Scope::All));
        assert_eq!(Scope::parse("names/db"), Some(Scope::NamesOf("db".parse().unwrap())));
        assert_eq!(Scope::parse(&format!("disks/{DISK}/points")), Some(Scope::Disk(disk())));
        assert_eq!(Scope::parse(&format!("disks/{DISK}")), Some(Scope::Disk(disk())));
        for wrong in ["/", "disks/", "disks/..", "disk", "names/../x", "probes"] {
            assert_eq!(Scope::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Scope::parse(&format!("disks/{DISK}/points/x")), None);
    }

    proptest! {
        #[test]
        fn a_key_is_what_it_says_or_nothing(text in "(disks/|names/|groups/)?[a-z0-9./%-]{0,60}") {
            if let Some(key) = ObjectKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text.clone());
                prop_assert!(!text.contains("..") || text.split('/').all(|part| part != ".."));
            }
            let _ = Scope::parse(&text);
        }
    }
}

//! Keys of a vault's objects, as types: what is not one of them cannot be asked for.
//!
//! A key is parsed into what it means, and written again from that; only if both are the same, to the
//! byte, it is a key. So there is one way to name an object, and a path that leads anywhere else (`..`, `//`,
//! `%2e`, an absolute one) cannot be represented.

use std::fmt;

use backstay_types::{CycleNo, DiskId, DiskName, Term};
use object_store::path::Path;
use uuid::Uuid;

use super::group::GroupName;
use super::hold::HoldName;
use super::segment::SegmentId;
use crate::encrypt::secret::{hex, unhex32};

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// `vault.json`
    Vault,
    /// `keys/<revision>`
    Keyring(u64),
    /// `keys/bounds-<digest>` and `keys/writer-<public half>`: what belongs to the keyring
    KeyNote(KeyNote, [u8; 32]),
    /// `proofs/<slot>/<time>`
    Proof(u32, u64),
    /// `names/<name>/<number>`
    Name(DiskName, u64),
    /// `groups/<name>/points/<number>`
    GroupPoint(GroupName, u64),
    /// `probes/<uuid>`: there only while a store is tried
    Probe(Uuid),
    /// `disks/<disk>/…`
    Disk(DiskId, Piece),
}

/// What belongs to a keyring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyNote {
    /// What was there when a writer was removed.
    Bounds,
    /// That a writer's key was made.
    Writer,
}

impl KeyNote {
    const ALL: [Self; 2] = [Self::Bounds, Self::Writer];

    fn name(self) -> &'static str {
        match self {
            Self::Bounds => "bounds",
            Self::Writer => "writer",
        }
    }
}

/// What an object is of a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Piece {
    /// `disk.json`
    Record,
    /// `terms/<term>`
    Term(Term),
    /// `handovers/<term>`
    Handover(Term),
    /// `segments/<cycle>-<attempt>-<number>`
    Segment {
        /// The cycle that put it.
        cycle: CycleNo,
        /// Which attempt at that cycle.
        attempt: u64,
        /// Which one of the attempt's.
        number: u32,
    },
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
        let (folder, name) = text.rsplit_once('/').unwrap_or_default();
        let name = if folder.is_empty() { text } else { name };
        let number = || name.parse().ok();
        let key = match Folder::parse(folder)? {
            Folder::All => Self::Vault,
            Folder::Keys => match name.split_once('-') {
                None => Self::Keyring(number()?),
                Some((note, of)) => {
                    let note = KeyNote::ALL.into_iter().find(|known| known.name() == note)?;
                    Self::KeyNote(note, unhex32(of)?)
                }
            },
            Folder::ProofsOf(slot) => Self::Proof(slot, number()?),
            Folder::NamesOf(name) => Self::Name(name, number()?),
            Folder::GroupPoints(group) => Self::GroupPoint(group, number()?),
            Folder::Probes => Self::Probe(name.parse().ok()?),
            Folder::Disk(disk) => Piece::Record.of(disk),
            Folder::In(disk, folder) => Piece::parse(folder, name)?.of(disk),
            _ => return None,
        };
        (key.to_string() == text).then_some(key)
    }

    /// The folder that it is in.
    #[must_use]
    pub fn folder(&self) -> Folder {
        match self {
            Self::Vault => Folder::All,
            Self::Keyring(_) | Self::KeyNote(..) => Folder::Keys,
            Self::Proof(slot, _) => Folder::ProofsOf(*slot),
            Self::Name(name, _) => Folder::NamesOf(name.clone()),
            Self::GroupPoint(group, _) => Folder::GroupPoints(group.clone()),
            Self::Probe(_) => Folder::Probes,
            Self::Disk(disk, piece) => match piece {
                Piece::Record => Folder::Disk(*disk),
                Piece::Term(_) => DiskFolder::Terms.of(*disk),
                Piece::Handover(_) => DiskFolder::Handovers.of(*disk),
                Piece::Segment { .. } => DiskFolder::Segments.of(*disk),
                Piece::Point(_) => DiskFolder::Points.of(*disk),
                Piece::Ledger(_) => DiskFolder::Ledger.of(*disk),
                Piece::Hold(..) => DiskFolder::Holds.of(*disk),
                Piece::Held(..) => DiskFolder::Held.of(*disk),
                Piece::Drill(..) => DiskFolder::Drills.of(*disk),
            },
        }
    }

    /// Its number, where objects are numbered.
    #[must_use]
    pub fn number(&self) -> Option<u64> {
        match *self {
            Self::Keyring(number)
            | Self::Proof(_, number)
            | Self::Name(_, number)
            | Self::GroupPoint(_, number)
            | Self::Disk(
                _,
                Piece::Term(Term(number))
                | Piece::Handover(Term(number))
                | Piece::Point(CycleNo(number))
                | Piece::Ledger(number),
            ) => Some(number),
            _ => None,
        }
    }

    /// The segment that it is.
    #[must_use]
    pub fn segment(&self) -> Option<SegmentId> {
        match *self {
            Self::Disk(disk, Piece::Segment { cycle, attempt, number }) => {
                Some(SegmentId { disk, cycle, attempt, number })
            }
            _ => None,
        }
    }
}

impl Piece {
    /// The key of it of a disk.
    #[must_use]
    pub const fn of(self, disk: DiskId) -> ObjectKey {
        ObjectKey::Disk(disk, self)
    }

    fn parse(folder: DiskFolder, name: &str) -> Option<Self> {
        let number = || name.parse().ok();
        let pair = || name.split_once('-');
        let cycle = |text: &str| text.parse().ok().map(CycleNo);
        Some(match folder {
            DiskFolder::Terms => Self::Term(Term(number()?)),
            DiskFolder::Handovers => Self::Handover(Term(number()?)),
            DiskFolder::Points => Self::Point(CycleNo(number()?)),
            DiskFolder::Ledger => Self::Ledger(number()?),
            DiskFolder::Holds => Self::Hold(pair()?.0.parse().ok()?, pair()?.1.parse().ok()?),
            DiskFolder::Held => Self::Held(cycle(pair()?.0)?, pair()?.1.parse().ok()?),
            DiskFolder::Drills => Self::Drill(cycle(pair()?.0)?, pair()?.1.parse().ok()?),
            DiskFolder::Segments => {
                let (attempt, number) = pair()?.1.split_once('-')?;
                let attempt = u64::from_str_radix(attempt, 16).ok()?;
                Self::Segment { cycle: cycle(pair()?.0)?, attempt, number: number.parse().ok()? }
            }
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.folder() {
            Folder::All => {}
            folder => write!(f, "{folder}/")?,
        }
        if let Some(number) = self.number() {
            return write!(f, "{number:020}");
        }
        match self {
            Self::KeyNote(note, of) => write!(f, "{}-{}", note.name(), hex(of)),
            Self::Probe(probe) => write!(f, "{probe}"),
            Self::Disk(_, Piece::Record) => f.write_str("disk.json"),
            Self::Disk(_, Piece::Hold(version, name)) => write!(f, "{version:020}-{name}"),
            Self::Disk(_, Piece::Held(cycle, number)) => write!(f, "{:020}-{number:010}", cycle.0),
            Self::Disk(_, Piece::Drill(cycle, drill)) => write!(f, "{:020}-{drill}", cycle.0),
            Self::Disk(_, Piece::Segment { cycle, attempt, number }) => {
                write!(f, "{:020}-{attempt:016x}-{number}", cycle.0)
            }
            _ => f.write_str("vault.json"),
        }
    }
}

impl From<&ObjectKey> for String {
    fn from(key: &ObjectKey) -> Self {
        key.to_string()
    }
}

impl From<ObjectKey> for String {
    fn from(key: ObjectKey) -> Self {
        key.to_string()
    }
}

impl From<&ObjectKey> for Path {
    fn from(key: &ObjectKey) -> Self {
        Self::from(key.to_string())
    }
}

/// What a list is asked of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Folder {
    /// Everything.
    All,
    /// `disks`
    Disks,
    /// `names`
    Names,
    /// `groups`
    Groups,
    /// `keys`
    Keys,
    /// `proofs`
    Proofs,
    /// `probes`
    Probes,
    /// `proofs/<slot>`
    ProofsOf(u32),
    /// `names/<name>`
    NamesOf(DiskName),
    /// `groups/<name>`
    Group(GroupName),
    /// `groups/<name>/points`
    GroupPoints(GroupName),
    /// `disks/<disk>`
    Disk(DiskId),
    /// `disks/<disk>/…`
    In(DiskId, DiskFolder),
}

/// A folder of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFolder {
    /// `terms`
    Terms,
    /// `handovers`
    Handovers,
    /// `points`
    Points,
    /// `segments`
    Segments,
    /// `ledger`
    Ledger,
    /// `holds`
    Holds,
    /// `held`
    Held,
    /// `drills`
    Drills,
}

impl DiskFolder {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Terms,
        Self::Handovers,
        Self::Points,
        Self::Segments,
        Self::Ledger,
        Self::Holds,
        Self::Held,
        Self::Drills,
    ];

    /// The folder of a disk.
    #[must_use]
    pub const fn of(self, disk: DiskId) -> Folder {
        Folder::In(disk, self)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Terms => "terms",
            Self::Handovers => "handovers",
            Self::Points => "points",
            Self::Segments => "segments",
            Self::Ledger => "ledger",
            Self::Holds => "holds",
            Self::Held => "held",
            Self::Drills => "drills",
        }
    }
}

impl Folder {
    /// What a prefix means; `None` if it is none.
    #[must_use]
    pub fn parse(prefix: &str) -> Option<Self> {
        if prefix.len() > KEY_BYTES_MAX {
            return None;
        }
        let parts: Vec<&str> = prefix.split('/').collect();
        let folder = match parts[..] {
            [""] => Self::All,
            ["disks"] => Self::Disks,
            ["names"] => Self::Names,
            ["groups"] => Self::Groups,
            ["keys"] => Self::Keys,
            ["proofs"] => Self::Proofs,
            ["probes"] => Self::Probes,
            ["proofs", slot] => Self::ProofsOf(slot.parse().ok()?),
            ["names", name] => Self::NamesOf(name.parse().ok()?),
            ["groups", group] => Self::Group(group.parse().ok()?),
            ["groups", group, "points"] => Self::GroupPoints(group.parse().ok()?),
            ["disks", disk] => Self::Disk(DiskId(disk.parse().ok()?)),
            ["disks", disk, folder] => {
                let folder = DiskFolder::ALL.into_iter().find(|known| known.name() == folder)?;
                folder.of(DiskId(disk.parse().ok()?))
            }
            _ => return None,
        };
        (folder.to_string() == prefix).then_some(folder)
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Disks => f.write_str("disks"),
            Self::Names => f.write_str("names"),
            Self::Groups => f.write_str("groups"),
            Self::Keys => f.write_str("keys"),
            Self::Proofs => f.write_str("proofs"),
            Self::Probes => f.write_str("probes"),
            Self::ProofsOf(slot) => write!(f, "proofs/{slot:010}"),
            Self::NamesOf(name) => write!(f, "names/{name}"),
            Self::Group(group) => write!(f, "groups/{group}"),
            Self::GroupPoints(group) => write!(f, "groups/{group}/points"),
            Self::Disk(disk) => write!(f, "disks/{disk}"),
            Self::In(disk, folder) => write!(f, "disks/{disk}/{}", folder.name()),
        }
    }
}

impl From<&Folder> for String {
    fn from(folder: &Folder) -> Self {
        folder.to_string()
    }
}

impl From<&Folder> for Path {
    fn from(folder: &Folder) -> Self {
        Self::from(folder.to_string())
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
            format!("keys/writer-{}", "0f".repeat(32)),
            format!("probes/{DISK}"),
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
            "probes/0B0B0B0B-0000-4000-8000-0123456789AB",
            "keys/writer-00",
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
    fn folders() {
        let disk = DiskId(Uuid::parse_str(DISK).unwrap());
        assert_eq!(Folder::parse(""), Some(Folder::All));
        assert_eq!(Folder::parse("names/db"), Some(Folder::NamesOf("db".parse().unwrap())));
        let points = Folder::parse(&format!("disks/{DISK}/points"));
        assert_eq!(points, Some(DiskFolder::Points.of(disk)));
        assert_eq!(Folder::parse(&format!("disks/{DISK}")), Some(Folder::Disk(disk)));
        for wrong in ["/", "disks/", "disks/..", "disk", "names/../x", "proofs/1"] {
            assert_eq!(Folder::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Folder::parse(&format!("disks/{DISK}/points/x")), None);
    }

    fn ids() -> impl Strategy<Value = Uuid> {
        any::<u128>().prop_map(Uuid::from_u128)
    }

    /// A name as long as any may be, or shorter.
    const NAME: &str = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";

    fn pieces() -> impl Strategy<Value = Piece> {
        let cycles = any::<u64>().prop_map(CycleNo);
        prop_oneof![
            Just(Piece::Record),
            any::<u64>().prop_map(|n| Piece::Term(Term(n))),
            any::<u64>().prop_map(|n| Piece::Handover(Term(n))),
            (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(|(cycle, attempt, number)| {
                Piece::Segment { cycle: CycleNo(cycle), attempt, number }
            }),
            any::<u64>().prop_map(|n| Piece::Point(CycleNo(n))),
            any::<u64>().prop_map(Piece::Ledger),
            (any::<u64>(), NAME).prop_map(|(n, name)| Piece::Hold(n, name.parse().unwrap())),
            (any::<u64>(), any::<u64>()).prop_map(|(c, n)| Piece::Held(CycleNo(c), n)),
            (cycles, ids()).prop_map(|(cycle, id)| Piece::Drill(cycle, id)),
        ]
    }

    fn keys() -> impl Strategy<Value = ObjectKey> {
        let notes = prop_oneof![Just(KeyNote::Bounds), Just(KeyNote::Writer)];
        prop_oneof![
            Just(ObjectKey::Vault),
            any::<u64>().prop_map(ObjectKey::Keyring),
            (notes, any::<[u8; 32]>()).prop_map(|(note, of)| ObjectKey::KeyNote(note, of)),
            (any::<u32>(), any::<u64>()).prop_map(|(slot, at)| ObjectKey::Proof(slot, at)),
            (NAME, any::<u64>()).prop_map(|(name, n)| ObjectKey::Name(name.parse().unwrap(), n)),
            (NAME, any::<u64>())
                .prop_map(|(name, n)| ObjectKey::GroupPoint(name.parse().unwrap(), n)),
            ids().prop_map(ObjectKey::Probe),
            (ids(), pieces()).prop_map(|(disk, piece)| piece.of(DiskId(disk))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_what_is_read(key in keys()) {
            let text = key.to_string();
            prop_assert_eq!(ObjectKey::parse(&text), Some(key), "{}", text);
            prop_assert!(text.len() <= KEY_BYTES_MAX);
            // The folder that it is in is one that can be listed, and a store takes the key as it is.
            let (folder, _) = text.rsplit_once('/').unwrap_or_default();
            let parsed = Folder::parse(folder).map(|folder| folder.to_string());
            prop_assert_eq!(parsed.as_deref(), Some(folder));
            let path = Path::from(text.as_str());
            prop_assert_eq!(path.as_ref(), text);
        }

        #[test]
        fn a_key_is_what_it_says_or_nothing(
            text in "(disks/|names/|groups/|keys/|probes/)?[a-z0-9./%-]{0,60}"
        ) {
            if let Some(key) = ObjectKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text.clone());
                prop_assert!(text.split('/').all(|part| part != ".."));
            }
            if let Some(folder) = Folder::parse(&text) {
                prop_assert_eq!(folder.to_string(), text);
            }
        }
    }
}

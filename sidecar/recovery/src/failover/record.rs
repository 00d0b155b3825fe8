//! What a host is doing about a failover: one document a name, replaced as a whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use backstay_format::superblock::Base;
use backstay_host::atomic::{self, Durability};
pub use backstay_host::clock::now_unix_ns;
use backstay_host::own_dir::own_dir;
use backstay_host::record;
use backstay_types::{CycleNo, DiskId, DiskName, PointId, Term};
use backstay_vault::format::document::{DOCUMENT_BYTES_MAX, Document, decode, encode};
use backstay_vault::{GroupName, GroupPointNo, Manifest, TermFrom};
use serde::{Deserialize, Serialize};

use super::FailoverError;

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A point is tried, isolated.
    Test,
    /// The source has stopped and handed over.
    Planned,
    /// The source is gone.
    Unplanned,
    /// This is the source that hands over.
    Source,
    /// An old source takes its disk back.
    Failback,
}

/// How far it is; docs/explanation/failover.md has the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The point is being mounted.
    Starting,
    /// It is served here, read-write, and not replicated.
    Up,
    /// What is here of it is being removed.
    Removing,
    /// The next term is being taken.
    Committing,
    /// The disk is this host's.
    Committed,
    /// The disk is being stopped, and its last point made.
    HandingOver,
    /// It was handed over.
    HandedOver,
    /// The handover is being withdrawn.
    TakingBack,
    /// The backing is brought to what the other side has.
    Seeding,
    /// The backing becomes a protected disk again.
    TakingOver,
}

/// All states, for tests and for the picture.
pub const STATES: [State; 10] = [
    State::Starting,
    State::Up,
    State::Removing,
    State::Committing,
    State::Committed,
    State::HandingOver,
    State::HandedOver,
    State::TakingBack,
    State::Seeding,
    State::TakingOver,
];

impl State {
    /// Whether one state may follow another. To be gone is no state.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use State::*;
        match self {
            Starting => matches!(next, Up | Removing),
            Up => matches!(next, Removing | Committing),
            // Changed to another point.
            Removing => next == Starting,
            // Another host was faster: it is served as before.
            Committing => matches!(next, Committed | Up | TakingOver),
            Committed | TakingBack => next == HandingOver,
            HandingOver => matches!(next, HandedOver | TakingBack | Seeding),
            HandedOver => matches!(next, TakingBack | Seeding | Removing),
            Seeding => next == TakingOver,
            TakingOver => next == Committing,
        }
    }

    /// Whether a record may be removed in this state: nothing is left that it would have to tell.
    #[must_use]
    pub fn may_end(self) -> bool {
        matches!(self, Self::Removing | Self::TakingBack | Self::Seeding | Self::Committed)
    }

    /// In words.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::Starting => "being brought up",
            Self::Up => "up, not committed",
            Self::Removing => "being removed",
            Self::Committing => "being committed",
            Self::Committed => "committed",
            Self::HandingOver => "being handed over",
            Self::HandedOver => "handed over",
            Self::TakingBack => "being taken back",
            Self::Seeding => "being brought back",
            Self::TakingOver => "being taken over",
        }
    }
}

/// A recovery point, as a record names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRef {
    /// Its cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// The term it was made in.
    pub term: Term,
}

impl From<&Manifest> for PointRef {
    fn from(point: &Manifest) -> Self {
        Self { cycle: point.cycle, point: point.point, term: point.term }
    }
}

impl PointRef {
    /// As a term's record names it.
    #[must_use]
    pub fn as_from(self) -> TermFrom {
        TermFrom { cycle: self.cycle, point: self.point, term: self.term }
    }

    /// Whether a disk counts from it.
    #[must_use]
    pub fn is(self, base: Option<Base>) -> bool {
        base.is_some_and(|base| (base.cycle, base.point) == (self.cycle, self.point))
    }
}

/// A group's point that a test is a part of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfGroup {
    /// The group.
    pub group: GroupName,
    /// The number of its point.
    pub number: GroupPointNo,
}

/// What a host does about one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// The disk's name on this host.
    pub name: DiskName,
    /// What is being done.
    pub kind: Kind,
    /// How far it is.
    pub state: State,
    /// Where its points are.
    pub vault: String,
    /// Which disk it is there.
    pub disk: DiskId,
    /// Its name there.
    pub disk_name: DiskName,
    /// The point that is mounted, handed over or taken over; none before that is known.
    pub point: Option<PointRef>,
    /// The newest term that was seen: a commit takes the one after it.
    pub after: Term,
    /// The file or device, of a source and of a failback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<PathBuf>,
    /// The point to go on with after what is mounted was removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<PointRef>,
    /// The group's point it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<OfGroup>,
    /// Since when it is in this state, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

impl Document for FailoverRecord {
    const FORMAT: &'static str = "backstay-failover";
}

fn folder(state_root: &Path) -> PathBuf {
    state_root.join(".failover")
}

/// Makes the folder of the records and locks, durably.
pub(super) fn make_folder(state_root: &Path) -> io::Result<PathBuf> {
    let folder = folder(state_root);
    if !folder.exists() {
        own_dir(&folder)?;
        atomic::sync_folder_of(&folder)?;
    }
    Ok(folder)
}

fn path(state_root: &Path, name: &DiskName) -> PathBuf {
    folder(state_root).join(format!("{name}.json"))
}

impl FailoverRecord {
    /// The record of a name, if there is one.
    ///
    /// # Errors
    /// If it cannot be read or is damaged: then nobody knows what was being done.
    pub fn load(state_root: &Path, name: &DiskName) -> Result<Option<Self>, FailoverError> {
        let path = path(state_root, name);
        let unreadable = |source| FailoverError::State { path: path.clone(), source };
        let bytes = record::read(&path, DOCUMENT_BYTES_MAX as u64);
        let Some(bytes) = bytes.map_err(|e| unreadable(e.into()))? else { return Ok(None) };
        let record: Self = decode(&bytes).map_err(|e| unreadable(io::Error::other(e)))?;
        if record.name == *name {
            return Ok(Some(record));
        }
        let source = io::Error::other(format!("it is of disk {}", record.name));
        Err(FailoverError::State { path, source })
    }

    /// All records of a host, by name.
    ///
    /// # Errors
    /// If one is damaged, or they cannot be listed.
    pub fn all(state_root: &Path) -> Result<Vec<Self>, FailoverError> {
        let folder = folder(state_root);
        let unreadable = |source| FailoverError::State { path: folder.clone(), source };
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(unreadable)?,
        };
        let mut names: Vec<DiskName> = vec![];
        for entry in entries {
            let entry = entry.map_err(unreadable)?.file_name();
            let name = entry.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(name.and_then(|name| name.parse().ok()));
        }
        names.sort();
        names.iter().filter_map(|name| Self::load(state_root, name).transpose()).collect()
    }

    /// Writes a first record, durably.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn begin(&self, state_root: &Path) -> Result<(), FailoverError> {
        super::step();
        self.save(state_root)
    }

    /// Writes a record of another kind in this one's place, in one step.
    ///
    /// # Errors
    /// If its state may not follow, or it cannot be written.
    pub fn become_another(self, state_root: &Path, next: &Self) -> Result<(), FailoverError> {
        if !self.state.may_become(next.state) {
            let (name, state, next) = (self.name, self.state, next.state);
            return Err(FailoverError::Illegal { name, state, next });
        }
        next.begin(state_root)
    }

    /// Enters the next state, durably, before what it announces is done.
    ///
    /// # Errors
    /// If the state may not follow, or it cannot be written.
    pub fn enter(&mut self, state_root: &Path, next: State) -> Result<(), FailoverError> {
        if next != self.state {
            if !self.state.may_become(next) {
                return Err(FailoverError::Illegal {
                    name: self.name.clone(),
                    state: self.state,
                    next,
                });
            }
            (self.state, self.since_unix_ns) = (next, now_unix_ns());
        }
        super::step();
        self.save(state_root)
    }

    /// Removes the record, durably: all it told of is done or undone.
    ///
    /// # Errors
    /// If that is not so in its state, or it cannot be removed.
    pub fn end(self, state_root: &Path) -> Result<(), FailoverError> {
        if !self.state.may_end() {
            let (name, state) = (self.name, self.state);
            return Err(FailoverError::Illegal { name, state, next: state });
        }
        self.remove(state_root)
    }

    /// Removes the record, durably, whatever its state: nothing is left that it could tell of.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn give_up(self, state_root: &Path) -> Result<(), FailoverError> {
        self.remove(state_root)
    }

    fn remove(self, state_root: &Path) -> Result<(), FailoverError> {
        super::step();
        let path = path(state_root, &self.name);
        let removed = match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        };
        let synced = removed.and_then(|()| File::open(folder(state_root))?.sync_all());
        synced.map_err(|source| FailoverError::State { path, source })
    }

    fn save(&self, state_root: &Path) -> Result<(), FailoverError> {
        let path = path(state_root, &self.name);
        let replaced = make_folder(state_root).and_then(|_| {
            let bytes = encode(self).map_err(io::Error::other)?;
            atomic::replace(&path, &bytes, Durability::Durable)
        });
        replaced.map_err(|source| FailoverError::State { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> FailoverRecord {
        let point = |cycle: u64| PointRef {
            cycle: CycleNo(cycle),
            point: PointId::from_bytes([cycle as u8; 16]),
            term: Term(1),
        };
        FailoverRecord {
            name: "db".parse().unwrap(),
            kind: Kind::Unplanned,
            state: State::Removing,
            vault: "file:///mnt/vault".into(),
            disk: DiskId::from_bytes([7; 16]),
            disk_name: "db".parse().unwrap(),
            point: Some(point(17)),
            after: Term(1),
            backing: None,
            next: Some(point(12)),
            group: None,
            since_unix_ns: 1_700_000_000_000_000_000,
        }
    }

    #[test]
    fn round_trip_and_golden() {
        let bytes = encode(&sample()).unwrap();
        assert_eq!(decode::<FailoverRecord>(&bytes).unwrap(), sample());
        let golden = include_str!("../../tests/golden/failover.json");
        assert_eq!(String::from_utf8(bytes).unwrap(), golden);
    }

    #[test]
    fn it_is_kept_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let mut record = sample();
        assert_eq!(FailoverRecord::load(root, &record.name).unwrap(), None);
        assert!(FailoverRecord::all(root).unwrap().is_empty());
        record.begin(root).unwrap();
        assert_eq!(FailoverRecord::all(root).unwrap(), [record.clone()]);
        assert!(record.enter(root, State::Committed).is_err());
        record.enter(root, State::Starting).unwrap();
        assert_eq!(FailoverRecord::load(root, &record.name).unwrap(), Some(record.clone()));
        assert!(record.clone().end(root).is_err(), "something may be mounted");
        record.enter(root, State::Removing).unwrap();
        let name = record.name.clone();
        record.end(root).unwrap();
        assert_eq!(FailoverRecord::load(root, &name).unwrap(), None);
        fs::write(path(root, &name), b"{").unwrap();
        assert!(FailoverRecord::load(root, &name).is_err(), "a damaged record is not no record");
    }

    /// What the picture in docs/explanation/failover.md says.
    #[test]
    fn the_picture() {
        use State::*;
        let legal: [(State, &[State]); 10] = [
            (Starting, &[Up, Removing]),
            (Up, &[Removing, Committing]),
            (Removing, &[Starting]),
            (Committing, &[Up, Committed, TakingOver]),
            (Committed, &[HandingOver]),
            (HandingOver, &[HandedOver, TakingBack, Seeding]),
            (HandedOver, &[TakingBack, Seeding, Removing]),
            (TakingBack, &[HandingOver]),
            (Seeding, &[TakingOver]),
            (TakingOver, &[Committing]),
        ];
        for (state, may) in legal {
            for next in STATES {
                assert_eq!(state.may_become(next), may.contains(&next), "{state:?} {next:?}");
            }
        }
        // What is served or handed over is never forgotten.
        for state in [Up, Starting, Committing, HandedOver, HandingOver, TakingOver] {
            assert!(!state.may_end());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>) {
            let _ = decode::<FailoverRecord>(&bytes);
        }
    }
}

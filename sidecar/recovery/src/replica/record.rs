//! What lasts of a replica: `replica.json`, replaced as a whole (docs/explanation/format.md).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use backstay_format::FormatError;
use backstay_format::superblock::{BackingId, Base};
use backstay_host::atomic::{self, Durability};
use backstay_host::own_dir::own_dir;
use backstay_host::record;
use backstay_types::{ByteLen, CycleNo, DiskId, DiskName, PointId, Term};
use backstay_vault::Manifest;
use backstay_vault::format::document::{DOCUMENT_BYTES_MAX, Document, decode, encode};
use serde::{Deserialize, Serialize};

use super::error::{ReplicaError, on};

const FILE: &str = "replica.json";

/// A recovery point, as far as a replica has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRef {
    /// Its cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// The term of its writer.
    pub term: Term,
    /// The disk's size.
    pub size_bytes: ByteLen,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
}

impl From<&Manifest> for PointRef {
    fn from(point: &Manifest) -> Self {
        Self {
            cycle: point.cycle,
            point: point.point,
            term: point.term,
            size_bytes: point.size,
            cut_unix_ns: point.cut_unix_ns,
        }
    }
}

impl PointRef {
    /// The point as the base of a disk.
    #[must_use]
    pub fn base(&self, vault_disk: DiskId) -> Base {
        Base { vault_disk, cycle: self.cycle, point: self.point }
    }
}

/// How a replica begins on a target of which nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seed {
    /// Checksums are compared, what differs is fetched.
    Compare,
    /// Everything is fetched.
    Full,
}

/// A redo log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRef {
    /// Its file in the replica's folder.
    pub file: String,
    /// Bytes of it that count.
    pub bytes: u64,
    /// Records in them.
    pub records: u64,
    /// BLAKE3 of the headers, in hex digits.
    pub digest: String,
}

/// A set of sectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRef {
    /// Its file in the replica's folder.
    pub file: String,
    /// BLAKE3 of the file, in hex digits.
    pub digest: String,
}

/// What the target holds, and how it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "standing", rename_all = "kebab-case")]
pub enum ReplicaState {
    /// A point, whole.
    At {
        /// The point.
        point: PointRef,
        /// When the target was last written, nanoseconds since 1970; 0 for a device.
        mtime_unix_ns: u64,
    },
    /// Still the point before; the log of the next is complete.
    Ready {
        /// What it holds.
        from: Option<PointRef>,
        /// What the log makes of it.
        to: PointRef,
        /// The log.
        log: LogRef,
    },
    /// A mixture; the log makes a point of it.
    Applying {
        /// What it held.
        from: Option<PointRef>,
        /// What the log makes of it.
        to: PointRef,
        /// The log.
        log: LogRef,
    },
    /// A point but for some sectors. Records call it `but`.
    #[serde(rename = "but")]
    Partial {
        /// The point.
        point: PointRef,
        /// The sectors that may hold anything.
        sectors: SetRef,
        /// Where it was going.
        toward: Option<PointRef>,
        /// Segments of that point from which all of the set was written, newest first.
        seen: usize,
    },
    /// Nothing is known.
    Seeding {
        /// What it is going to be.
        to: PointRef,
        /// How.
        how: Seed,
        /// Segments of that point that are done, newest first.
        seen: usize,
    },
    /// A disk's backing.
    TakenOver {
        /// What it held when it became one.
        point: PointRef,
    },
}

impl ReplicaState {
    /// The point that the target holds, or can be made to hold without the vault.
    #[must_use]
    pub fn whole(&self) -> Option<PointRef> {
        match self {
            Self::At { point, .. } => Some(*point),
            Self::Ready { to, .. } | Self::Applying { to, .. } => Some(*to),
            Self::TakenOver { point } => Some(*point),
            Self::Partial { .. } | Self::Seeding { .. } => None,
        }
    }

    /// The points it needs in the vault to go on.
    pub(super) fn needs(&self) -> Vec<CycleNo> {
        match self {
            Self::At { point, .. } | Self::TakenOver { point } => vec![point.cycle],
            Self::Ready { from, to, .. } | Self::Applying { from, to, .. } => {
                from.iter().map(|from| from.cycle).chain([to.cycle]).collect()
            }
            Self::Partial { point, toward, .. } => {
                toward.iter().map(|to| to.cycle).chain([point.cycle]).collect()
            }
            Self::Seeding { to, .. } => vec![to.cycle],
        }
    }

    /// In words, for a person.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            Self::At { point, .. } => format!("at point {}", point.cycle),
            Self::Ready { to, .. } | Self::Applying { to, .. } => {
                format!("applying point {} from its log; the vault is not needed", to.cycle)
            }
            Self::Partial { point, toward, .. } => format!(
                "between point {} and {}; the vault is needed to finish it",
                point.cycle,
                toward.map_or_else(|| "the newest".into(), |to| to.cycle.to_string())
            ),
            Self::Seeding { to, how: Seed::Compare, .. } => {
                format!("being compared with point {}; the vault is needed to finish it", to.cycle)
            }
            Self::Seeding { to, how: Seed::Full, .. } => {
                format!("being filled with point {}; the vault is needed to finish it", to.cycle)
            }
            Self::TakenOver { point } => format!("taken over at point {}", point.cycle),
        }
    }
}

/// Which target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRecord {
    /// Where it was.
    pub path: PathBuf,
    /// Which it is, in hex digits; empty if it cannot be told from others.
    pub identity: String,
    /// Whether it is a block device.
    pub device: bool,
}

/// A replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRecord {
    /// The replica's own identity, for the names of its holds.
    pub replica: uuid::Uuid,
    /// The disk in the vault.
    pub disk: DiskId,
    /// Its name.
    pub name: DiskName,
    /// The vault.
    pub vault: String,
    /// What it is kept on.
    pub target: TargetRecord,
    /// What that holds.
    #[serde(flatten)]
    pub standing: ReplicaState,
}

impl Document for ReplicaRecord {
    const FORMAT: &'static str = "backstay-replica";
}

impl ReplicaRecord {
    /// The record in a folder, if there is one.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn load(dir: &Path) -> Result<Option<Self>, ReplicaError> {
        let path = dir.join(FILE);
        let bytes = record::read(&path, DOCUMENT_BYTES_MAX as u64);
        let bytes = bytes.map_err(|e| on("reading", &path)(e.into()))?;
        let Some(bytes) = bytes else { return Ok(None) };
        Self::decode(&bytes).map(Some).map_err(|source| ReplicaError::State { path, source })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// Anything but a whole record whose files are in its own folder.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let record: Self = decode(bytes)?;
        let is_one = |file: &str| {
            let (what, number) = file.split_once('-').unwrap_or_default();
            matches!(what, "redo" | "sectors")
                && !number.is_empty()
                && number.bytes().all(|byte| byte.is_ascii_digit())
        };
        match record.named() {
            Some(file) if !is_one(file) => Err(FormatError::Text {
                what: Self::FORMAT,
                reason: format!("{file:?} is no file of a replica"),
            }),
            _ => Ok(record),
        }
    }

    /// Makes it durable: a crash leaves the one before or this one.
    pub(super) fn save(&self, dir: &Path) -> Result<(), ReplicaError> {
        let path = dir.join(FILE);
        let bytes =
            encode(self).map_err(|source| ReplicaError::State { path: path.clone(), source })?;
        atomic::replace(&path, &bytes, Durability::Durable).map_err(on("writing", &path))
    }

    /// Files of the folder that it names.
    fn named(&self) -> Option<&str> {
        match &self.standing {
            ReplicaState::Ready { log, .. } | ReplicaState::Applying { log, .. } => Some(&log.file),
            ReplicaState::Partial { sectors, .. } => Some(&sectors.file),
            _ => None,
        }
    }

    /// Removes logs and sets that nothing names any more.
    pub(super) fn tidy(&self, dir: &Path) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let ours = name.starts_with("redo-") || name.starts_with("sectors-");
            if ours
                && self.named() != Some(&name)
                && let Err(e) = fs::remove_file(entry.path())
            {
                tracing::warn!("{}: {e}: left behind, nothing uses it", entry.path().display());
            }
        }
    }
}

/// Makes the folder of a replica, durably.
pub(super) fn make_dir(dir: &Path) -> Result<(), ReplicaError> {
    let make = || {
        own_dir(dir)?;
        atomic::tidy(dir);
        for parent in dir.ancestors().skip(1).take(2) {
            File::open(parent)?.sync_all()?;
        }
        Ok(())
    };
    make().map_err(on("making", dir))
}

/// A name in the folder that no file has.
pub(super) fn new_file(dir: &Path, what: &str) -> String {
    (1u64..)
        .map(|n| format!("{what}-{n}"))
        .find(|name| !dir.join(name).exists())
        .unwrap_or_else(|| format!("{what}-0"))
}

/// An identity in hex digits.
pub(super) fn hex_of(identity: Option<BackingId>) -> String {
    identity.map_or_else(String::new, |id| hex(&id.0))
}

/// Bytes in hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! What a host keeps of a mounted point beside its bytes: which one it is, what is wanted of it, and how it
//! is now.

use std::io;
use std::path::{Path, PathBuf};

use backstay_format::superblock::Base;
use backstay_front::paths::DiskPaths;
use backstay_host::atomic::{self, Durability};
use backstay_host::record;
use backstay_types::{ByteLen, CycleNo, DiskId, DiskName, PointId};
use backstay_vault::format::document::{DOCUMENT_BYTES_MAX, Document, decode, encode};
use serde::{Deserialize, Serialize};

use super::MountError;

/// The folder of a mounted point in the state directory of its disk.
pub(crate) const FOLDER: &str = "mounted";
const RECORD: &str = "point.json";
const WANTED: &str = "wanted.json";
const STATUS: &str = "mounted.json";

/// Which point a disk of this host is of. RemoteBacking once, never changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountedPoint {
    /// Where the vault is.
    pub vault: String,
    /// The disk in the vault.
    pub disk: DiskId,
    /// Its name there when it was mounted.
    pub disk_name: DiskName,
    /// The point's cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// Its size.
    pub size_bytes: ByteLen,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Where the overlay is, if it is not with the rest.
    pub overlay: Option<PathBuf>,
    /// The name of its hold in the vault.
    pub hold: String,
    /// Most bytes of the cache.
    pub cache_bytes: ByteLen,
    /// The overlay file's identity, in hex digits.
    pub overlay_identity: String,
}

impl Document for MountedPoint {
    const FORMAT: &'static str = "backstay-mounted-point";
}

impl MountedPoint {
    /// Which point a disk of this host is of; `None` if it is no mounted point.
    ///
    /// # Errors
    /// If that cannot be read.
    pub fn load(name: &DiskName, paths: &DiskPaths) -> Result<Option<Self>, MountError> {
        let path = folder(paths).join(RECORD);
        let bytes = record::read(&path, DOCUMENT_BYTES_MAX as u64);
        let Some(bytes) = bytes.map_err(|e| MountError::io(&path)(e.into()))? else {
            return Ok(None);
        };
        let damaged = |e| MountError::Damaged {
            name: name.clone(),
            what: format!("{}: {e}", path.display()),
        };
        decode(&bytes).map(Some).map_err(damaged)
    }

    /// Writes it into a folder, durably.
    pub(crate) fn save(&self, folder: &Path) -> Result<(), MountError> {
        let path = folder.join(RECORD);
        let bytes = encode(self).map_err(io::Error::other);
        bytes
            .and_then(|bytes| atomic::replace(&path, &bytes, Durability::Durable))
            .map_err(MountError::io(path))
    }

    /// What the disk's tracking counts from.
    #[must_use]
    pub fn base(&self) -> Base {
        Base { vault_disk: self.disk, cycle: self.cycle, point: self.point }
    }
}

/// The folder of a disk's mounted point.
pub(crate) fn folder(paths: &DiskPaths) -> PathBuf {
    paths.state.join(FOLDER)
}

/// Whether a mounted point is to be hydrated: all of it fetched in the background.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hydration {
    /// It is.
    pub wanted: bool,
    /// No faster than this many bytes a second.
    #[serde(default)]
    pub limit_bytes: Option<ByteLen>,
}

impl Hydration {
    /// What is wanted of a mounted point; nothing if that cannot be read: its status then says so.
    #[must_use]
    pub fn load(paths: &DiskPaths) -> Self {
        record::load_shown(&folder(paths).join(WANTED)).unwrap_or_default()
    }

    /// Says what is wanted; its driver sees it within a second, or when it is started.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, paths: &DiskPaths) -> Result<(), MountError> {
        let path = folder(paths).join(WANTED);
        record::save(&path, self, Durability::Durable).map_err(|e| MountError::io(&path)(e.into()))
    }
}

/// How far hydration is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HydrationStatus {
    /// Nobody wants it.
    NotWanted,
    /// It is at work.
    Running,
    /// Something is in its way; it tries again.
    Waiting {
        /// What.
        reason: String,
    },
    /// The whole disk is local: the vault is not needed any more.
    Done,
}

/// What it took to serve the first byte that was not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstRead {
    /// Requests of the vault since the command began.
    pub requests: u64,
    /// How many of them were for what nobody waited for.
    pub in_background: u64,
    /// Bytes that came with all of them.
    pub fetched_bytes: ByteLen,
    /// How long that one read waited.
    pub waited_ms: u64,
}

/// How a mounted point is, as its driver says every second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// The process that says so.
    pub pid: u32,
    /// Bytes of the disk that are in the overlay.
    pub local_bytes: ByteLen,
    /// Bytes in the cache of fetched blocks.
    pub cache_bytes: ByteLen,
    /// The most there may be.
    pub cache_limit_bytes: ByteLen,
    /// Everything before this byte of the disk is local.
    pub hydrated_bytes: ByteLen,
    /// How far hydration is.
    pub hydration: HydrationStatus,
    /// Indexes of segments that are here, of all.
    pub indexes: (usize, usize),
    /// What the first byte took; none if everything read was here.
    #[serde(default)]
    pub first_read: Option<FirstRead>,
    /// What the vault last said, if it could not be reached.
    pub vault_trouble: Option<String>,
    /// Whether the point is held in the vault.
    pub held: bool,
}

impl Mounted {
    /// How the mounted point is that a disk's driver serves. What a dead driver left is none.
    #[must_use]
    pub fn load(paths: &DiskPaths) -> Option<Self> {
        let status: Self = record::load_shown(&paths.runtime.join(STATUS))?;
        Path::new(&format!("/proc/{}", status.pid)).exists().then_some(status)
    }

    pub(crate) fn save(&self, paths: &DiskPaths) {
        if let Err(e) = record::save(&paths.runtime.join(STATUS), self, Durability::Relaxed) {
            tracing::debug!("writing the status: {e}");
        }
    }
}

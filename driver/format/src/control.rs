//! The control protocol between a driver and its clients (the sidecar, `backstay status`).
//!
//! A unix stream socket. Each message is a 20-byte header (magic, version, length, checksum) and
//! a JSON body of at most 64 KiB; the client asks, the driver answers, one at a time. A client
//! that wants to run cycles takes the disk's *lease*; it ends with the connection, and an open
//! cut is then folded back, so a dead sidecar leaves nothing behind.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::framing::Framing;
pub use crate::framing::HEADER_BYTES;
use crate::superblock::{Base, Resync};
use backstay_types::DiskName;
use backstay_types::units::{ByteLen, ByteOffset, DiskId, EpochNo};

/// Longest time that a cut may hold writes, in nanoseconds: 5 s.
pub const HOLD_NS_MAX: u64 = 5_000_000_000;

/// Longest body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// The bytes of its messages.
pub const FRAMING: Framing = Framing {
    what: "control message",
    magic: b"BSTYCTRL",
    version: 1,
    body_bytes_max: BODY_BYTES_MAX,
};

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask", deny_unknown_fields)]
pub enum Request {
    /// How the driver and its disk are. Needs no lease.
    Status,
    /// Become the one client that may cut this disk, until the connection closes.
    Lease {
        /// Who asks, shown to anyone who comes second.
        client: String,
    },
    /// Close the current epoch (I2).
    Cut {
        /// Whether the closed epoch must stay as it is at the cut.
        mode: CutMode,
    },
    /// Make ahead what the next point-in-time cut needs, so that the cut itself takes no time.
    PrepareCut,
    /// A point-in-time cut after which no write begins: until [`Request::Thaw`], or until the time
    /// has passed, or the connection ends, whichever comes first.
    CutAndHold {
        /// The longest hold in nanoseconds, from the cut; at most [`HOLD_NS_MAX`].
        hold_ns: u64,
    },
    /// End the hold of a cut.
    Thaw {
        /// The epoch that was closed.
        epoch: EpochNo,
    },
    /// All sectors were read or preserved: end copy-before-write, fix the preserved log's length.
    Seal {
        /// The closed epoch.
        epoch: EpochNo,
    },
    /// The cycle is about to be committed as this point. Durable when it is answered: whatever
    /// happens to the sidecar then, the disk knows the point as its own when it meets it again.
    Announce {
        /// The point.
        point: Base,
    },
    /// The cycle is committed: forget every closed epoch.
    Release {
        /// The newest closed epoch.
        epoch: EpochNo,
        /// The point that the dirty set is counted from now on.
        base: Base,
    },
    /// The cycle failed: every closed epoch's sectors are dirty again.
    FoldBack {
        /// The newest closed epoch.
        epoch: EpochNo,
    },
    /// Everything must be shipped or compared again. Durable.
    RequireResync {
        /// Why.
        reason: Resync,
    },
    /// Set limits while running.
    SetLimits {
        /// Most bytes of preserved blocks in the change log.
        change_log: ByteLen,
    },
    /// Give the disk a larger size; not while a cycle is open. Asked once more it does nothing.
    Grow {
        /// The size, to which a backing file is extended; none: what the backing has by now.
        size: Option<ByteLen>,
    },
    /// The file or device that the driver itself has open, to read from it: a descriptor comes with the
    /// answer. Needs no lease.
    OpenBacking,
    /// Stop cleanly, if nobody has the disk open; else [`ErrorCode::Busy`], and nothing is changed. Needs no
    /// lease.
    Stop,
    /// Stop although the disk is open: its users get errors. Needs no lease.
    Abort,
}

/// How an epoch is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutMode {
    /// Copy-before-write keeps the disk of the cut readable until the seal.
    PointInTime,
    /// No copy-before-write: what is read may be newer than the cut. A point-in-time cut must
    /// follow before anything can be committed; until then the epoch stays closed beside it.
    Fuzzy,
}

/// What the driver answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Response {
    /// To [`Request::Status`].
    Status(Box<DriverStatus>),
    /// To [`Request::Lease`].
    Leased {
        /// The state of the disk when the lease was given.
        status: Box<DriverStatus>,
    },
    /// To [`Request::Cut`] and [`Request::CutAndHold`].
    Cut(Box<CutReply>),
    /// To [`Request::Seal`].
    Sealed {
        /// Where the preserved log ends, in bytes from the file's start.
        log_end: ByteOffset,
        /// If set, the epoch lost its point in time and the cycle must fail, for this reason.
        lost: Option<String>,
    },
    /// To [`Request::Grow`]; the sizes are the same if there was nothing to do.
    Grown {
        /// The size before.
        from: ByteLen,
        /// The size now.
        to: ByteLen,
    },
    /// To [`Request::OpenBacking`].
    Backing {
        /// Whether a read-only descriptor of it comes with this message (SCM_RIGHTS). If not, the disk's
        /// bytes are together nowhere but in the file that is served.
        handed: bool,
        /// The number of the file system of the file that is served.
        served_on: u64,
    },
    /// To [`Request::Thaw`].
    Thawed {
        /// Whether the hold lasted until the request came: no write began since the cut. If not, it
        /// had ended by itself.
        in_force: bool,
        /// How long writes were held, in nanoseconds.
        held_ns: u64,
    },
    /// Done: to prepare, announce, release, fold back, limits, stop, resync.
    Done,
    /// Refused or failed.
    Error(ControlError),
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What failed and what to do, for a person.
    pub message: String,
}

/// Kinds of failures of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// Another client holds the lease.
    Busy,
    /// The request needs a lease, or an epoch that is not the closed one.
    Order,
    /// The driver could not do it (disk full, I/O error); the guest is not affected.
    Failed,
    /// The request was not understood.
    Malformed,
    /// The client had given up before its turn came; nothing was done.
    Expired,
}

/// The answer to a cut: where the closed epoch is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutReply {
    /// The epoch that was closed.
    pub epoch: EpochNo,
    /// How it was closed.
    pub mode: CutMode,
    /// The instant of the cut, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// How long writes were held.
    pub held_ns: u64,
    /// If set, every sector must move, whatever the bitmap says.
    pub whole_disk: Option<Resync>,
    /// Dirty sectors in the bitmap.
    pub dirty_sectors: u64,
    /// Bytes the guest wrote in the epoch (for the folding ratio).
    pub written: ByteLen,
    /// The dirty bitmap (see [`crate::bitmap`]).
    pub dirty: PathBuf,
    /// Sectors preserved so far; written by the driver only. Point-in-time cuts only.
    pub preserved: Option<PathBuf>,
    /// Sectors that need no preserving any more; written by the sidecar only.
    pub shipped: Option<PathBuf>,
    /// The preserved blocks (see [`crate::preserved`]).
    pub log: Option<PathBuf>,
}

/// What a driver says of itself and its disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriverStatus {
    /// The disk's name.
    pub name: DiskName,
    /// Its identity.
    pub disk: DiskId,
    /// The driver's process id.
    pub pid: u32,
    /// The backing file or device.
    pub backing: PathBuf,
    /// The file that is served.
    pub served: PathBuf,
    /// The disk's size.
    pub size: ByteLen,
    /// What the driver found when it started.
    pub found: FoundState,
    /// When it started, nanoseconds since 1970.
    pub started_unix_ns: u64,
    /// How the backing is read and written.
    pub engine: String,
    /// The epoch that is being written.
    pub epoch: EpochNo,
    /// Set while a cycle is open.
    pub open_cut: Option<OpenCut>,
    /// Who holds the lease.
    pub lease: Option<String>,
    /// The point the dirty set is counted from.
    pub base: Option<Base>,
    /// The point that was about to be committed last, if that was never confirmed.
    pub announced: Option<Base>,
    /// Points that were about to be committed before that one, since the base, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub announced_before: Vec<Base>,
    /// The dirty set holds whole regions of which only the write intents are known.
    #[serde(default, skip_serializing_if = "is_false")]
    pub coarse: bool,
    /// Set while changes cannot be tracked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untracked: Option<Untracked>,
    /// The last error that the guest got from the backing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_trouble: Option<IoTrouble>,
    /// The request of the guest that has been waiting for the backing for longest, if that is a second or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_waits: Option<IoWait>,
    /// If set, every sector counts as dirty.
    pub resync: Option<Resync>,
    /// Counts the reasons for a resync as they came up.
    pub resync_no: u64,
    /// Why the last cycle lost its point in time, until one is released.
    pub lost_point_in_time: Option<String>,
    /// Sectors that the next cycle ships (all, if `resync` is set).
    pub dirty_sectors: u64,
    /// Most bytes of preserved blocks.
    pub change_log_limit: ByteLen,
    /// Bytes of preserved blocks now.
    pub change_log_used: ByteLen,
    /// Sums since the driver started.
    pub counters: Counters,
    /// If set, something is wrong that a person should know, in words.
    pub warning: Option<String>,
    /// What is wrong with the backing now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing_fault: Option<BackingFault>,
    /// Whether the driver answers [`Request::OpenBacking`]; those of earlier versions do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hands_out_backing: bool,
    /// Whether the driver takes a deadline with each request ([`crate::asked`]); those of earlier versions do not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_deadlines: bool,
    /// What the backing device must be addressed in, in bytes; none for a file and if not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sector_bytes: Option<u32>,
}

/// What is wrong with the backing of a disk that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingFault {
    /// What kind of fault.
    pub kind: BackingFaultKind,
    /// When the driver saw it first, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What is wrong, for a person.
    pub message: String,
}

/// Kinds of faults of a backing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackingFaultKind {
    /// Its path leads to another file or device.
    Replaced,
    /// Its path leads nowhere.
    Moved,
    /// It was deleted: it ends with the driver.
    Deleted,
    /// It is shorter than the disk.
    Shortened,
    /// A file became longer than the disk.
    Grown,
    /// A device became larger than the disk, as when its volume was extended.
    Extended,
    /// It cannot be examined.
    Unreadable,
    /// A kind of a later version.
    #[serde(other)]
    Other,
}

impl BackingFaultKind {
    /// Whether no recovery point may be made of it. A larger device is how a disk begins to grow.
    #[must_use]
    pub fn spoils_points(self) -> bool {
        self != Self::Extended
    }
}

impl BackingFault {
    /// What to do about it, for a person.
    #[must_use]
    pub fn advice(&self, name: &DiskName) -> String {
        match self.kind {
            BackingFaultKind::Replaced | BackingFaultKind::Moved => format!(
                "move the right file back to its path; or, if another one is to be the disk: backstay \
                 detach {name}, then attach that one"
            ),
            BackingFaultKind::Deleted => format!(
                "copy the disk from the file that is served while its driver runs; what is in it is \
                 lost once it stops. Then: backstay detach {name} --force, and attach the copy"
            ),
            BackingFaultKind::Shortened => format!(
                "what was cut off is lost: give the backing its size again, then restore the newest point of \
                 disk {name} to it; or, only if that loss is accepted, compare it (backstay resync {name} --now)"
            ),
            BackingFaultKind::Extended => {
                format!("to give the disk the new size: backstay grow {name}")
            }
            BackingFaultKind::Grown => format!(
                "if the disk is to grow: backstay grow {name}; else give the backing its size again"
            ),
            BackingFaultKind::Unreadable | BackingFaultKind::Other => {
                "repair what it says".to_owned()
            }
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

impl DriverStatus {
    /// Every point that proves what the dirty set is counted from, the base first.
    pub fn proofs(&self) -> impl Iterator<Item = Base> + '_ {
        self.base.iter().chain(&self.announced_before).chain(&self.announced).copied()
    }
}

/// Changes go on that are not tracked; every sector counts as dirty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untracked {
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What stands in the way, in words.
    pub error: String,
    /// Where that is written down, for the next start.
    pub noted: Noted,
}

/// Where it is written down that changes are not tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noted {
    /// In the state directory.
    State,
    /// In the backing's mark; the state directory cannot be written.
    Backing,
    /// Nowhere: the state directory cannot be written, and the backing carries no mark. A start after
    /// a reboot compares the whole disk.
    Nowhere,
}

/// Errors that a guest got from the backing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoTrouble {
    /// What failed last: `read`, `write`, `discard` or `flush`.
    pub what: String,
    /// The error number that the guest got.
    pub errno: i32,
    /// When, nanoseconds since 1970.
    pub at_unix_ns: u64,
    /// Failed reads since the driver started.
    pub reads: u64,
    /// Failed writes and discards.
    pub writes: u64,
    /// Failed flushes.
    pub flushes: u64,
}

/// A request of the guest that the backing does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoWait {
    /// What it is: `read`, `write` (also a discard) or `flush`.
    pub what: String,
    /// Since when it waits, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

/// Sums since a driver started.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub discarded_bytes: u64,
    pub io_errors: u64,
    pub intent_commits: u64,
    pub preserved_sectors: u64,
    pub cuts: u64,
    pub cut_held_ns_last: u64,
    pub cut_held_ns_max: u64,
}

/// A cycle in progress, as the driver sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenCut {
    /// The newest closed epoch.
    pub epoch: EpochNo,
    /// When it was closed, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Its dirty sectors.
    pub dirty_sectors: u64,
    /// If set, it lost its point in time, for this reason.
    pub lost: Option<String>,
}

/// What a driver found when it opened a disk's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundState {
    /// Nothing: a new disk.
    New,
    /// A clean stop: the saved bitmap is exact.
    Clean,
    /// The driver died in this boot: the mmap'd bitmap is exact.
    SameBoot,
    /// The machine went down: regions with intents are dirty.
    OtherBoot,
    /// What was found could not be trusted: everything is dirty.
    Damaged,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FormatError;

    #[test]
    fn round_trip() {
        for ask in [
            Request::Status,
            Request::Lease { client: "sidecar".into() },
            Request::Cut { mode: CutMode::Fuzzy },
            Request::CutAndHold { hold_ns: 200_000_000 },
            Request::Thaw { epoch: EpochNo(3) },
            Request::Seal { epoch: EpochNo(3) },
        ] {
            let bytes = FRAMING.encode(&ask).unwrap();
            let (len, crc) = FRAMING.decode_header(&bytes).unwrap();
            assert_eq!(len, bytes.len() - HEADER_BYTES);
            assert_eq!(FRAMING.decode_body::<Request>(&bytes[HEADER_BYTES..], crc).unwrap(), ask);
        }
    }

    #[test]
    fn long_bodies_are_refused_before_they_are_read() {
        let mut bytes = FRAMING.encode(&Request::Status).unwrap();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(FRAMING.decode_header(&bytes), Err(FormatError::Bounds { .. })));
    }
}

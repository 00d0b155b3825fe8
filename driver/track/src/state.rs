//! The state of a protected disk. The operations on it are in other files: the write path in `disk`,
//! the first half of a cut in `prepare`, the life of a cycle in `cut`, growth in `grow`.

use backstay_format::control::{FoundState, Untracked};
use backstay_format::superblock::{Base, Geometry, Resync, Superblock};
use backstay_types::{ByteLen, DiskId, EpochNo};

use crate::Backing;
use crate::closed::{Closed, Stripes};
use crate::env::Env;
use crate::epoch::Epoch;
use crate::meta::Meta;
use crate::sums::Sums;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, RwLock, RwLockReadGuard, shared};
use crate::witness::Witness;

/// How to open a disk.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// log2 of the sectors in a region. Only used for a new disk.
    pub region_shift: u8,
    /// Limit for preserved blocks, in bytes. Default: half the disk.
    pub change_log_limit: Option<ByteLen>,
    /// Off only to measure the cost of tracking: nothing is recorded, so nothing can be shipped.
    pub tracking: bool,
    /// Accept a backing that is larger than the disk: the disk grows.
    pub grow: bool,
    /// Treat every sector as dirty, because somebody may have written to the backing directly.
    pub compare: bool,
    /// Only for a new disk: the recovery point that the backing equals byte for byte. With it nothing
    /// is dirty; without it everything is.
    pub base: Option<Base>,
    /// The size of the disk at that point. Sectors of the backing beyond that size are dirty.
    pub base_size: Option<ByteLen>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            region_shift: Geometry::REGION_SHIFT_DEFAULT,
            change_log_limit: None,
            tracking: true,
            grow: false,
            compare: false,
            base: None,
            base_size: None,
        }
    }
}

/// The epochs in use. The gate guards them.
pub(crate) struct Live<E: Env> {
    /// Every write is marked here.
    pub current: Arc<Epoch<E>>,
    /// The epoch that a cycle ships, as it was at its cut.
    pub closed: Option<Arc<Closed<E>>>,
}

/// A disk whose writes are tracked.
pub struct ProtectedDisk<E: Env, B: Backing> {
    pub(crate) env: E,
    pub(crate) backing: B,
    pub(crate) id: DiskId,
    /// Only grows, under `admin`. So an offset below a size read earlier stays valid.
    pub(crate) size_bytes: AtomicU64,
    pub(crate) region_shift: u8,
    pub(crate) found: FoundState,
    pub(crate) started_unix_ns: u64,
    pub(crate) tracking: bool,
    pub(crate) stripes: Arc<Stripes>,
    pub(crate) gate: RwLock<Live<E>>,
    pub(crate) admin: Mutex<Admin<E>>,
    pub(crate) change_log_limit: AtomicU64,
    pub(crate) stopped: AtomicBool,
    pub(crate) sums: Sums,
}

/// Everything that a cut needs and that takes time to make. The superblock already names the next
/// epoch. While that epoch is empty it adds no dirty sectors; only after a crash do the regions with
/// intents made in advance count as dirty.
pub(crate) struct Prepared<E: Env> {
    /// The epoch that the cut will close.
    pub closing: EpochNo,
    pub next: Epoch<E>,
    /// Only for point-in-time cuts.
    pub closed: Option<Closed<E>>,
}

/// The state that control operations change, one operation at a time.
pub(crate) struct Admin<E: Env> {
    pub meta: Meta<E::File>,
    /// Epochs closed by fuzzy cuts, kept until the cycle ends.
    pub fuzzy: Vec<Arc<Epoch<E>>>,
    /// A cut that was prepared in advance.
    pub prepared: Option<Prepared<E>>,
    /// Why every sector counts as dirty in the current epoch.
    pub resync_current: Option<Resync>,
    /// Why every sector counted as dirty when the open cycle was cut.
    pub resync_closed: Option<Resync>,
    /// Why the last cycle lost its point in time. Cleared when a later cycle is released.
    pub lost_last: Option<String>,
    /// Counts the reasons for a resync, including those that could not be written to the superblock.
    pub resync_no: u64,
    /// The last epoch whose tracking failed. Set once the failure is recorded as durably as possible.
    pub distrusted: Option<EpochNo>,
    /// Set while changes are not tracked.
    pub untracked: Option<Untracked>,
    /// Records on the backing that changes are not tracked, when the superblock cannot be written.
    pub witness: Witness,
}

impl<E: Env> Admin<E> {
    pub fn new(meta: Meta<E::File>, witness: Witness) -> Self {
        let (resync_current, resync_no) = (meta.get().resync, meta.get().resync_no);
        Self {
            meta,
            fuzzy: vec![],
            prepared: None,
            resync_current,
            resync_closed: None,
            lost_last: None,
            resync_no,
            distrusted: None,
            untracked: None,
            witness,
        }
    }

    /// From now on every sector counts as dirty. The first reason is kept. Call [`Self::record`] to
    /// make this durable.
    pub fn raise(&mut self, reason: Resync) {
        self.resync_current = self.resync_current.or(Some(reason));
        self.resync_no += 1;
    }

    /// Writes the next generation of the superblock. It always includes the reason for a resync,
    /// because an earlier attempt to write that reason may have failed.
    pub fn record(&mut self, change: impl FnOnce(&mut Superblock)) -> std::io::Result<()> {
        let (resync, resync_no) = (self.resync_current.or(self.resync_closed), self.resync_no);
        self.meta.change(|sb| {
            sb.resync = resync;
            sb.resync_no = resync_no;
            change(sb);
        })
    }
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// The state that was found when the disk was opened.
    pub fn found(&self) -> FoundState {
        self.found
    }

    /// The disk's identity.
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// The disk's size.
    pub fn size(&self) -> ByteLen {
        ByteLen(self.size_bytes.load(Ordering::Acquire))
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry { size: self.size(), region_shift: self.region_shift }
    }

    /// The backing, for operations that need no tracking, such as finding data and holes.
    pub fn backing(&self) -> &B {
        &self.backing
    }

    pub(crate) fn live(&self) -> RwLockReadGuard<'_, Live<E>> {
        shared(&self.gate)
    }

    pub(crate) fn newest_closed(&self, admin: &Admin<E>) -> Option<EpochNo> {
        let pointed = self.live().closed.as_ref().map(|closed| closed.epoch.no);
        pointed.or(admin.fuzzy.last().map(|epoch| epoch.no))
    }
}

//! What a protected disk is made of. What is done with it is in the files beside this one: the write path in
//! `disk`, the first half of a cut in `prepare`, the life of a cycle in `cut`, growth in `grow`.

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

/// How a disk is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// log2 of the sectors in a region; only for a new disk.
    pub region_shift: u8,
    /// Most bytes of preserved blocks; half the disk if not given.
    pub change_log_limit: Option<ByteLen>,
    /// Off only to measure what tracking costs: nothing is recorded, nothing can be shipped.
    pub tracking: bool,
    /// Accept a backing that is larger than the disk: the disk grows.
    pub grow: bool,
    /// Take every sector for dirty, whatever is known: somebody may have written to the backing.
    pub compare: bool,
    /// Only for a new disk: the recovery point that the backing holds, byte for byte. Nothing is dirty
    /// then; without, everything is.
    pub base: Option<Base>,
    /// The size of that point's disk. What the backing has beyond it is dirty.
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

/// The epochs in use. Guarded by the gate.
pub(crate) struct Live<E: Env> {
    /// Takes the marks of every write.
    pub current: Arc<Epoch<E>>,
    /// Is being shipped as of its cut.
    pub closed: Option<Arc<Closed<E>>>,
}

/// A disk whose writes are tracked.
pub struct ProtectedDisk<E: Env, B: Backing> {
    pub(crate) env: E,
    pub(crate) backing: B,
    pub(crate) id: DiskId,
    /// Changed by growth only, under `admin`; a size that was read stays inside the disk.
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

/// What a cut needs, made before it. The superblock names the next epoch already: as long as it is
/// empty that makes nothing dirty but the regions declared ahead, and those only after a crash.
pub(crate) struct Prepared<E: Env> {
    /// The epoch it was made to close.
    pub closing: EpochNo,
    pub next: Epoch<E>,
    /// For point-in-time cuts.
    pub closed: Option<Closed<E>>,
}

/// What control operations share, one at a time.
pub(crate) struct Admin<E: Env> {
    pub meta: Meta<E::File>,
    /// Epochs closed by fuzzy cuts, waiting for the cycle's end.
    pub fuzzy: Vec<Arc<Epoch<E>>>,
    /// What the next cut needs, if it was made ahead.
    pub prepared: Option<Prepared<E>>,
    /// Why every sector counts as dirty in the current epoch.
    pub resync_current: Option<Resync>,
    /// Why every sector counted as dirty when the open cycle was cut.
    pub resync_closed: Option<Resync>,
    /// Why the last cycle lost its point in time, until one is released.
    pub lost_last: Option<String>,
    /// Counts the reasons for a resync, also while they cannot be written down.
    pub resync_no: u64,
    /// The last epoch whose tracking failed, once that was noted as durably as it can be.
    pub distrusted: Option<EpochNo>,
    /// Set while changes are not tracked.
    pub untracked: Option<Untracked>,
    /// Says what the superblock could not be made to say.
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

    /// From now on every sector counts as dirty; the first reason stays. Not durable yet.
    pub fn raise(&mut self, reason: Resync) {
        self.resync_current = self.resync_current.or(Some(reason));
        self.resync_no += 1;
    }

    /// Writes the superblock's next generation. Why everything counts as dirty is always written
    /// along: an earlier attempt to write it may have failed.
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
    /// What was found when the disk was opened.
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

    /// The backing, for what is not tracked (finding data and holes).
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

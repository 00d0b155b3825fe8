//! An epoch: the changes tracked from one cut to the next.

use std::io;
use std::ops::Range;

use backstay_format::superblock::Geometry;
use backstay_types::{DiskId, EpochNo, Region, SectorRange};

use crate::bitmap::{Bitmap, RegionBits};
use crate::env::Env;
use crate::intents::Intents;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Names of an epoch's files.
pub(crate) mod names {
    use backstay_types::EpochNo;

    pub fn dirty(epoch: EpochNo) -> String {
        format!("dirty-{epoch}")
    }
    pub fn preserved(epoch: EpochNo) -> String {
        format!("preserved-{epoch}")
    }
    pub fn shipped(epoch: EpochNo) -> String {
        format!("shipped-{epoch}")
    }
    pub fn intents(epoch: EpochNo) -> String {
        format!("intents-{epoch}")
    }
    pub fn log(epoch: EpochNo) -> String {
        format!("log-{epoch}")
    }
    /// The epoch a file's name ends with.
    pub fn epoch_of(name: &str) -> Option<EpochNo> {
        let (kind, number) = name.rsplit_once('-')?;
        ["dirty", "preserved", "shipped", "intents", "log"].contains(&kind).then_some(())?;
        number.parse().ok().map(EpochNo)
    }
}

/// Dirty bitmap and intents of one epoch.
pub(crate) struct Epoch<E: Env> {
    pub no: EpochNo,
    pub dirty: Bitmap<E::Bits>,
    pub intents: Intents<E::File>,
    dirty_sectors: AtomicU64,
    written_bytes: AtomicU64,
}

/// Why a region could not be made ready. If both apply, the intent is reported.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// Its intent could not be made durable.
    Intent(io::Error),
    /// There was no memory for its bits.
    Memory(io::Error),
}

impl<E: Env> Epoch<E> {
    /// Makes a new epoch that is ready for the regions in `declared`: their intents are durable on return.
    pub fn create(
        env: &E,
        disk: DiskId,
        no: EpochNo,
        geometry: Geometry,
        declared: &RegionBits,
    ) -> io::Result<Self> {
        let dirty = Bitmap::create(env, &names::dirty(no), disk, no, geometry)?;
        dirty.reserve_like(declared)?;
        let intents = Intents::create(env, &names::intents(no), disk, no, geometry, declared)?;
        Ok(Self {
            no,
            dirty,
            intents,
            dirty_sectors: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
        })
    }

    /// Whether a write to these regions may proceed: they have durable intents and memory for their bits.
    pub fn ready(&self, regions: Range<u32>) -> bool {
        self.intents.has_all(regions.clone()) && self.dirty.reserved().has_all(regions)
    }

    /// Makes regions ready. Waits for the state directory, so it must not be called inside the gate.
    pub fn make_ready(&self, regions: Range<u32>) -> Result<(), NotReady> {
        // Memory first: a region with an intent but no memory would stay not ready.
        let memory = self.dirty.reserve(regions.clone());
        self.intents.declare(regions).map_err(NotReady::Intent)?;
        memory.map_err(NotReady::Memory)
    }

    /// Marks sectors dirty. Their regions must be ready.
    pub fn mark(&self, range: SectorRange) {
        self.dirty_sectors.fetch_add(self.dirty.set(range), Ordering::Relaxed);
        self.written_bytes.fetch_add(range.bytes().0, Ordering::Relaxed);
    }

    /// Marks only the sectors whose bits have memory. Used after [`NotReady`], when the whole disk counts
    /// as dirty anyway.
    pub fn mark_what_can_be(&self, range: SectorRange) {
        self.dirty_sectors.fetch_add(self.dirty.set_where_reserved(range), Ordering::Relaxed);
        self.written_bytes.fetch_add(range.bytes().0, Ordering::Relaxed);
    }

    /// Marks sectors dirty without counting them as written by the guest. Their regions must be ready.
    pub fn add_dirty(&self, range: SectorRange) {
        self.dirty_sectors.fetch_add(self.dirty.set(range), Ordering::Relaxed);
    }

    /// Adds a word of another epoch's bitmap. Its region must be ready.
    pub fn mark_word(&self, word: u64, bits: u64) {
        self.dirty_sectors.fetch_add(self.dirty.or_word(word, bits), Ordering::Relaxed);
    }

    /// Adds the dirty sectors of another epoch.
    pub fn fold_in(&self, other: &Self) -> Result<(), NotReady> {
        let mut trouble = Ok(());
        for run in other.dirty.reserved().runs() {
            // At most 4096 regions at a time, to keep the group commits of intents short.
            let mut at = run.start;
            while at < run.end {
                let end = run.end.min(at + 4096);
                trouble = trouble.and(self.make_ready(at..end));
                at = end;
            }
        }
        other.dirty.for_each_word(|word, bits| {
            let sectors = SectorRange::new(word * 64, word * 64 + 64);
            if self.dirty.reserved().has_all(sectors.regions(self.region_shift())) {
                self.mark_word(word, bits);
            }
        });
        self.written_bytes.fetch_add(other.written_bytes(), Ordering::Relaxed);
        trouble
    }

    fn region_shift(&self) -> u8 {
        self.dirty.geometry().region_shift
    }

    /// Regions with at least one dirty sector. They are likely to be written again.
    pub fn hot_regions(&self) -> RegionBits {
        let hot = RegionBits::new(self.dirty.geometry().regions());
        for region in self.dirty.reserved().runs().flatten() {
            if self.dirty.any_in(Region(region)) {
                hot.set(region);
            }
        }
        hot
    }

    /// Dirty sectors.
    pub fn dirty_sectors(&self) -> u64 {
        self.dirty_sectors.load(Ordering::Relaxed)
    }

    /// Bytes that the guest wrote.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }
}

/// Removes all files of an epoch.
pub(crate) fn remove_files<E: Env>(env: &E, epoch: EpochNo) {
    let bits = [names::dirty(epoch), names::preserved(epoch), names::shipped(epoch)];
    let files = [names::intents(epoch), names::log(epoch)];
    for (name, removed) in bits
        .iter()
        .map(|name| (name, env.remove_bits(name)))
        .chain(files.iter().map(|name| (name, env.remove(name))))
    {
        if let Err(e) = removed {
            // Harmless: the superblock does not name the epoch, and the next start removes the file.
            tracing::warn!("could not remove {name}: {e}");
        }
    }
}

//! Opens a disk's state after any kind of stop, and finds the sectors that may have changed.
//!
//! | what is found | what is dirty |
//! |---|---|
//! | no superblock | everything (never shipped); nothing if the options name a point that the backing equals |
//! | a clean stop | the saved bitmap |
//! | same boot | the sectors in the bitmaps of all live epochs: exact |
//! | other boot, and the backing's mark says that every change was tracked | the regions with intents in all live epochs |
//! | other boot, and the backing has no mark | everything |
//! | damaged or contradictory state | everything |
//!
//! The dirty sectors go into a new epoch. Its intents are durable before the superblock names it in
//! place of the old epochs. A crash before that leaves the old epochs for the next start.
//!
//! If the backing became larger, the disk grows in the same step. Old epochs are read with the new
//! geometry, the new sectors are dirty, and one superblock write names the new epoch and the new size.

use std::cmp::Ordering;
use std::ops::Range;

use backstay_format::control::FoundState;
use backstay_format::intents;
use backstay_format::superblock::{BackingId, Geometry, Resync, Superblock};
use backstay_types::{ByteLen, DiskId, EpochNo, SectorRange};

use crate::bitmap::{Bitmap, RegionBits};
use crate::env::{Env, SharedBits, StateFile};
use crate::epoch::{Epoch, names, remove_files};
use crate::error::Doing;
use crate::grow::grown_sectors;
use crate::meta::Meta;
use crate::state::OpenOptions;
use crate::sync::Arc;
use crate::witness::{self, Testimony, Witness};
use crate::{Backing, TrackError, clean};

/// A disk's state, ready for writes.
pub(crate) struct Opened<E: Env> {
    pub meta: Meta<E::File>,
    pub current: Arc<Epoch<E>>,
    pub found: FoundState,
    pub witness: Witness,
}

/// The sectors that may differ from the last recovery point.
struct Dirty<B> {
    found: FoundState,
    resync: Option<Resync>,
    /// How many reasons for a resync this start has found.
    raised: u64,
    /// Bitmaps of live epochs of this boot.
    bits: Vec<B>,
    /// Regions that are dirty as a whole.
    regions: RegionBits,
    /// For some regions only the intents are known, not the sectors.
    coarse: bool,
    /// The bitmap saved by a clean stop must be added.
    saved: bool,
}

pub(crate) fn open<E: Env, B: Backing>(
    env: &E,
    backing: &B,
    options: &OpenOptions,
) -> Result<Opened<E>, TrackError> {
    match Meta::open(env)? {
        None => create(env, backing, options),
        Some(meta) => reopen(env, backing, options, meta),
    }
}

fn create<E: Env, B: Backing>(
    env: &E,
    backing: &B,
    options: &OpenOptions,
) -> Result<Opened<E>, TrackError> {
    let size = backing.size();
    if size.0 == 0 || size > Geometry::SIZE_MAX {
        return Err(TrackError::Unfit(size));
    }
    assert!(options.region_shift >= Geometry::REGION_SHIFT_MIN);
    let geometry = Geometry { size, region_shift: options.region_shift };
    let (disk, no) = (DiskId::random(), EpochNo(1));
    // The disk at the base point may be smaller than the backing.
    let held = options.base.and(options.base_size).unwrap_or(size);
    if held > size {
        return Err(TrackError::Size { expected: held, found: size });
    }
    let grown = grown_sectors(Geometry { size: held, ..geometry }, geometry);
    // The runtime directory may hold bitmaps of an earlier disk whose state was removed.
    clean_up(env, None);
    let regions = RegionBits::new(geometry.regions());
    grown.regions(geometry.region_shift).for_each(|region| regions.set(region));
    let current =
        Epoch::create(env, disk, no, geometry, &regions).doing("making the first epoch")?;
    for piece in grown.split_at_multiples(1 << geometry.region_shift) {
        current.add_dirty(piece);
    }
    let resync = options.base.is_none().then_some(Resync::NeverShipped);
    let first = Superblock {
        generation: 1,
        disk,
        geometry,
        boot_id: env.boot_id(),
        clean: None,
        live: vec![no],
        resync,
        base: options.base,
        announced: vec![],
        coarse: false,
        resync_no: resync.iter().count() as u64,
        growing_to: None,
        backing: identity(backing)?,
    };
    let meta = Meta::create(env, first)?;
    env.reserve(reserve_bytes(geometry));
    let witness = Witness::swear(backing, meta.get());
    Ok(Opened { meta, current: Arc::new(current), found: FoundState::New, witness })
}

fn reopen<E: Env, B: Backing>(
    env: &E,
    backing: &B,
    options: &OpenOptions,
    mut meta: Meta<E::File>,
) -> Result<Opened<E>, TrackError> {
    let sb = meta.get().clone();
    let geometry = geometry_now(&sb, backing.size(), options)?;
    let grown = grown_sectors(sb.geometry, geometry);
    let identity = identity(backing)?;
    let mut dirty = find(env, backing, &sb, identity, geometry)?;
    if options.compare && dirty.resync.is_none() {
        tracing::warn!("a full comparison was requested: every sector counts as dirty");
        dirty.raise(Resync::BackingChanged);
    }
    let newest = sb.live.iter().chain(&newest_files(env)?).copied().max();
    let no = newest.unwrap_or_default().next();

    // Collect the regions first: before a bit is set, its region needs a durable intent and memory.
    for bits in &dirty.bits {
        for run in bits.touched().doing("reading the dirty bitmap")? {
            for word in run.filter(|&word| bits.load(word) != 0) {
                word_regions(geometry, word).for_each(|region| dirty.regions.set(region));
            }
        }
    }
    grown.regions(geometry.region_shift).for_each(|region| dirty.regions.set(region));
    let whole_regions =
        if dirty.bits.is_empty() && !dirty.saved { dirty.regions.runs().collect() } else { vec![] };
    if let Some(stop) = sb.clean.filter(|_| dirty.saved) {
        clean::load(env, sb.disk, sb.geometry, stop, |word, _| {
            word_regions(geometry, word).for_each(|region| dirty.regions.set(region));
        })?;
    }
    let mut made = Epoch::create(env, sb.disk, no, geometry, &dirty.regions);
    if made.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::StorageFull)
        && env.use_reserve()
    {
        tracing::warn!("no space left to start: using the reserved space");
        made = Epoch::create(env, sb.disk, no, geometry, &dirty.regions);
    }
    let current = match made {
        Ok(epoch) => epoch,
        Err(e)
            if e.raw_os_error() == Some(libc::ENOSPC)
                || e.kind() == std::io::ErrorKind::OutOfMemory =>
        {
            // No memory for the bitmap. If there is no space for the intents either, the attempt below
            // fails as well.
            tracing::error!("no space for the dirty bitmap ({e}): the disk will be resynced");
            dirty.raise(Resync::NoMemory);
            dirty.bits.clear();
            dirty.saved = false;
            let none = RegionBits::new(geometry.regions());
            Epoch::create(env, sb.disk, no, geometry, &none).doing("making an epoch")?
        }
        Err(e) => return Err(e).doing("making an epoch"),
    };
    let in_memory = |word| current.dirty.reserved().has_all(word_regions(geometry, word));
    for bits in &dirty.bits {
        for run in bits.touched().doing("reading the dirty bitmap")? {
            for word in run.filter(|&word| bits.load(word) != 0 && in_memory(word)) {
                current.mark_word(word, bits.load(word));
            }
        }
    }
    for region in whole_regions.into_iter().flatten() {
        if current.dirty.reserved().has(region) {
            current.add_dirty(geometry.region_sectors(backstay_types::Region(region)));
        }
    }
    if let Some(stop) = sb.clean.filter(|_| dirty.saved) {
        clean::load(env, sb.disk, sb.geometry, stop, |word, bits| {
            if in_memory(word) {
                current.mark_word(word, bits);
            }
        })?;
    }
    for piece in grown.split_at_multiples(1 << geometry.region_shift) {
        if current.dirty.reserved().has_all(piece.regions(geometry.region_shift)) {
            current.add_dirty(piece);
        }
    }
    let (resync, raised, boot_id) = (dirty.resync, dirty.raised, env.boot_id());
    let coarse = dirty.coarse;
    meta.change(|sb| {
        sb.live = vec![no];
        sb.boot_id = boot_id;
        sb.clean = None;
        sb.resync = resync;
        sb.resync_no += raised;
        sb.coarse |= coarse;
        sb.geometry = geometry;
        sb.growing_to = None;
        sb.backing = identity;
    })
    .doing("writing the superblock")?;
    clean_up(env, Some(no));
    env.reserve(reserve_bytes(geometry));
    // Only now: before this write, the old mark may say something that the superblock does not know.
    let witness = Witness::swear(backing, meta.get());
    Ok(Opened { meta, current: Arc::new(current), found: dirty.found, witness })
}

/// Space to reserve for the next start: for the intents in the state directory and an empty bitmap in
/// the runtime directory, with a margin.
fn reserve_bytes(geometry: Geometry) -> u64 {
    intents::IntentHeader::file_bytes(geometry.regions()) + (256 << 10)
}

/// The geometry that the disk has from now on.
fn geometry_now(
    sb: &Superblock,
    found: ByteLen,
    options: &OpenOptions,
) -> Result<Geometry, TrackError> {
    let expected = sb.geometry.size;
    match found.cmp(&expected) {
        Ordering::Equal => Ok(sb.geometry),
        Ordering::Less => Err(TrackError::Size { expected, found }),
        // A growth that a crash interrupted is finished without a new request.
        Ordering::Greater if options.grow || sb.growing_to == Some(found) => {
            sb.geometry.with_size(found).map_err(|_| TrackError::Unfit(found))
        }
        Ordering::Greater => Err(TrackError::Larger { expected, found }),
    }
}

fn identity<B: Backing>(backing: &B) -> Result<Option<BackingId>, TrackError> {
    backing
        .identity()
        .map_err(|source| TrackError::Backing { doing: "reading its identity", source })
}

/// Finds the sectors that may have changed since the last recovery point.
fn find<E: Env, B: Backing>(
    env: &E,
    backing: &B,
    sb: &Superblock,
    identity: Option<BackingId>,
    geometry: Geometry,
) -> Result<Dirty<E::Bits>, TrackError> {
    let regions = RegionBits::new(geometry.regions());
    let mut dirty = Dirty {
        found: FoundState::Clean,
        resync: sb.resync,
        raised: 0,
        bits: vec![],
        regions,
        coarse: false,
        saved: false,
    };
    if let (Some(was), Some(is)) = (sb.backing, identity)
        && was != is
    {
        // The tracked changes are those of the other backing.
        dirty.damaged("the disk has another backing than before", Resync::BackingChanged);
        return Ok(dirty);
    }
    let testimony = witness::ask(backing, sb);
    if let Testimony::Denies(reason, what) = testimony {
        dirty.damaged(what, reason);
        return Ok(dirty);
    }
    if let Some(stop) = sb.clean {
        dirty.saved = true;
        if !clean::load(env, sb.disk, sb.geometry, stop, |_, _| {})? {
            dirty.damaged("the saved bitmap is damaged", Resync::ChangeLogDamaged);
        } else if let Some(why) = clean::difference(env, backing, stop)? {
            let what = format!("the backing was changed after the clean stop: {why}");
            dirty.damaged(&what, Resync::BackingChanged);
        }
        return Ok(dirty);
    }
    let same_boot = sb.boot_id == env.boot_id();
    dirty.found = if same_boot { FoundState::SameBoot } else { FoundState::OtherBoot };
    for &epoch in &sb.live {
        if same_boot {
            let bits = Bitmap::open(env, &names::dirty(epoch), sb.disk, epoch, geometry);
            if let Ok(Some(bits)) = bits {
                dirty.bits.push(bits);
                continue;
            }
        }
        add_intents(env, sb, epoch, geometry, &mut dirty)?;
    }
    // Some epochs have only intents left. Their regions must count as dirty as a whole, and bitmaps
    // cannot be mixed with whole regions: use the intents of every epoch.
    if same_boot && dirty.bits.len() < sb.live.len() && dirty.found != FoundState::Damaged {
        dirty.bits.clear();
        dirty.found = FoundState::OtherBoot;
        for &epoch in &sb.live {
            add_intents(env, sb, epoch, geometry, &mut dirty)?;
        }
    }
    if dirty.found == FoundState::OtherBoot {
        dirty.coarse = dirty.regions.runs().next().is_some();
        if testimony == Testimony::Silent {
            tracing::warn!("{}: the disk will be compared", Resync::Unproven.explain());
            dirty.raise(Resync::Unproven);
        }
    }
    Ok(dirty)
}

/// Adds the regions that have intents in one epoch.
fn add_intents<E: Env>(
    env: &E,
    sb: &Superblock,
    epoch: EpochNo,
    geometry: Geometry,
    dirty: &mut Dirty<E::Bits>,
) -> Result<(), TrackError> {
    let regions = geometry.regions();
    let mut content = vec![];
    if let Some(file) = env.open(&names::intents(epoch)).doing("opening the intent map")? {
        let want = intents::IntentHeader::file_bytes(regions);
        content.resize(file.len_bytes().doing("reading the intent map")?.min(want) as usize, 0);
        if let Err(e) = file.read_at(&mut content, 0) {
            tracing::error!("intent map of epoch {epoch}: {e}");
            content.clear();
        }
    }
    let set = |region: backstay_types::Region| dirty.regions.set(region.0);
    match intents::read_all(&content, sb.disk, epoch, regions, set) {
        Ok(found) if found.damaged_blocks > 0 => tracing::warn!(
            "intent map of epoch {epoch}: {} torn or damaged blocks, their regions count as dirty",
            found.damaged_blocks
        ),
        Ok(_) => {}
        Err(e) => dirty.damaged(&format!("epoch {epoch}: {e}"), Resync::ChangeLogDamaged),
    }
    Ok(())
}

impl<B> Dirty<B> {
    fn damaged(&mut self, what: &str, reason: Resync) {
        tracing::error!("{what}: every sector counts as dirty, the disk will be resynced");
        self.found = FoundState::Damaged;
        self.raise(reason);
        self.bits.clear();
        self.saved = false;
    }

    fn raise(&mut self, reason: Resync) {
        self.resync = self.resync.or(Some(reason));
        self.raised += 1;
    }
}

fn word_regions(geometry: Geometry, word: u64) -> Range<u32> {
    let end = geometry.sectors();
    SectorRange::new((word * 64).min(end), (word * 64 + 64).min(end)).regions(geometry.region_shift)
}

fn newest_files<E: Env>(env: &E) -> Result<Option<EpochNo>, TrackError> {
    let files = env.list().doing("listing the state directory")?;
    let bits = env.list_bits().doing("listing the runtime directory")?;
    Ok(files.iter().chain(&bits).filter_map(|name| names::epoch_of(name)).max())
}

/// Removes the files of every epoch but `keep`, and a saved bitmap. The superblock names none of them.
fn clean_up<E: Env>(env: &E, keep: Option<EpochNo>) {
    let names = env.list().unwrap_or_default();
    let bits = env.list_bits().unwrap_or_default();
    for name in names.iter().chain(&bits) {
        if let Some(epoch) = names::epoch_of(name).filter(|&epoch| Some(epoch) != keep) {
            remove_files(env, epoch);
        }
    }
    for name in [clean::FILE, clean::FINGERPRINT] {
        if let Err(e) = env.remove(name) {
            tracing::warn!("could not remove {name} of the last clean stop: {e}");
        }
    }
}

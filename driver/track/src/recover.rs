//! Opening a disk's state after a stop of any kind, and finding what may have changed.
//!
//! | what is found | what is dirty |
//! |---|---|
//! | no superblock | everything (never shipped), or nothing if the backing is said to hold a point |
//! | a clean stop | the saved bitmap |
//! | same boot | the bitmaps of all live epochs: exact |
//! | other boot, and the backing's mark says that all was tracked | the regions with intents in all live epochs |
//! | anything that cannot be trusted | everything |
//!
//! What is found goes into a fresh epoch, whose intents are durable before the superblock names it
//! in place of the old ones; a crash in the middle leaves the old ones to be found again.
//!
//! A disk whose backing became larger takes its new size in the same step: epochs of the old size
//! are read with it, the new sectors are dirty, and one superblock names both new.

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

/// What may differ from the last recovery point.
struct Dirty<B> {
    found: FoundState,
    resync: Option<Resync>,
    /// Reasons for a resync that came up now.
    raised: u64,
    /// Bits of this boot's live epochs.
    bits: Vec<B>,
    /// Whole regions.
    regions: RegionBits,
    /// Some of them are known by their intents only.
    coarse: bool,
    /// The saved bitmap is to be added.
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
    // The disk that the backing is said to hold may be smaller than it.
    let held = options.base.and(options.base_size).unwrap_or(size);
    if held > size {
        return Err(TrackError::Size { expected: held, found: size });
    }
    let grown = grown_sectors(Geometry { size: held, ..geometry }, geometry);
    // A runtime directory may hold bits of a disk whose state was removed: not ours.
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
        tracing::warn!("a comparison was asked for: every sector counts as dirty");
        dirty.raise(Resync::BackingChanged);
    }
    let newest = sb.live.iter().chain(&newest_files(env)?).copied().max();
    let no = newest.unwrap_or_default().next();

    // Regions first: their intents must be durable and their memory taken before bits are set.
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
        tracing::warn!("no room for a start: what was kept for it is used");
        made = Epoch::create(env, sb.disk, no, geometry, &dirty.regions);
    }
    let current = match made {
        Ok(epoch) => epoch,
        Err(e)
            if e.raw_os_error() == Some(libc::ENOSPC)
                || e.kind() == std::io::ErrorKind::OutOfMemory =>
        {
            // No memory for the bits (or no room for the intents, which then fails below).
            tracing::error!("no room for what was dirty ({e}): the disk will be resynced");
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
    // Not before: until then the state does not know what the mark may have said.
    let witness = Witness::swear(backing, meta.get());
    Ok(Opened { meta, current: Arc::new(current), found: dirty.found, witness })
}

/// What a start needs in the state directory, with some to spare; and in the runtime directory for an
/// empty bitmap and then some.
fn reserve_bytes(geometry: Geometry) -> u64 {
    intents::IntentHeader::file_bytes(geometry.regions()) + (256 << 10)
}

/// The size that the disk has from now on.
fn geometry_now(
    sb: &Superblock,
    found: ByteLen,
    options: &OpenOptions,
) -> Result<Geometry, TrackError> {
    let expected = sb.geometry.size;
    match found.cmp(&expected) {
        Ordering::Equal => Ok(sb.geometry),
        Ordering::Less => Err(TrackError::Size { expected, found }),
        // A growth that a crash interrupted is finished without being asked for again.
        Ordering::Greater if options.grow || sb.growing_to == Some(found) => {
            sb.geometry.with_size(found).map_err(|_| TrackError::Unfit(found))
        }
        Ordering::Greater => Err(TrackError::Larger { expected, found }),
    }
}

fn identity<B: Backing>(backing: &B) -> Result<Option<BackingId>, TrackError> {
    backing
        .identity()
        .map_err(|source| TrackError::Backing { doing: "finding out which one it is", source })
}

/// Looks for what may have changed since the last recovery point.
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
        // What is tracked says what changed on the other one.
        dirty.damaged("this is not the backing it was", Resync::BackingChanged);
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
    // Bits of one epoch and intents of another: the intents' regions are dirty as a whole, which
    // only the intents can say; so do without the bits.
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

/// Adds the regions with intents of one epoch.
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

/// Removes the files of every epoch but one, and a saved bitmap: the superblock names none of them.
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

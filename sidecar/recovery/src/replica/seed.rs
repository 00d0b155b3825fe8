//! To the first point: comparing a target with the vault, filling it, or starting from what a stopped
//! disk knows of its backing.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use backstay_front::backing::{Engine, open};
use backstay_front::paths::DiskPaths;
use backstay_host::atomic;
use backstay_track::{Binding, FsEnv, Offline, OpenOptions, ProtectedDisk, TrackError};
use backstay_types::{DiskId, DiskName, SECTOR_BYTES, SectorRange};
use backstay_vault::read::Fetch;
use backstay_vault::read::compare::{Comparison, Disk};
use backstay_vault::{Manifest, SectorSet, Vault, VaultError};

use super::error::{ReplicaError, on};
use super::record::{PointRef, ReplicaRecord, ReplicaState, Seed, new_file};
use super::{Activity, Limits, Moved, Replica, Target, Watch, folder, has_a_disk, lock, set};

/// How a replica begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeedChoice {
    /// Fill what is empty, compare what is not.
    Auto,
    /// Compare checksums, fetch what differs.
    Compare,
    /// Fetch everything.
    Full,
}

/// A replica to be begun.
pub struct Begin<'a> {
    /// Where its state is.
    pub paths: &'a DiskPaths,
    /// Its name.
    pub name: &'a DiskName,
    /// The disk in the vault.
    pub disk: DiskId,
    /// What to keep it on.
    pub to: &'a Path,
    /// Whether what is there may be overwritten, and a replica of the name be begun again.
    pub force: bool,
    /// Bounds of its work.
    pub limits: Limits,
}

impl Begin<'_> {
    /// A record for a target; the hold's name stays if there was a replica of this disk.
    fn record(
        &self,
        vault: &Vault,
        target: &Target,
        standing: ReplicaState,
    ) -> Result<ReplicaRecord, ReplicaError> {
        let before = ReplicaRecord::load(&folder(self.paths)).ok().flatten();
        let replica = before.filter(|before| before.disk == self.disk);
        Ok(ReplicaRecord {
            replica: replica.map_or_else(uuid::Uuid::new_v4, |before| before.replica),
            disk: self.disk,
            name: self.name.clone(),
            vault: vault.url().into(),
            target: target.record()?,
            standing,
        })
    }

    fn refused(&self, reason: String) -> ReplicaError {
        ReplicaError::Refused { name: self.name.clone(), reason }
    }
}

impl Replica {
    /// Begins a replica that will first be at `point`. Nothing is written to the target yet.
    ///
    /// # Errors
    /// If the target is in use, too small, or holds something that may not be overwritten; or there
    /// is a replica or a disk of this name.
    pub fn create(
        vault: &Vault,
        point: &Manifest,
        seed: SeedChoice,
        begin: Begin<'_>,
    ) -> Result<Self, ReplicaError> {
        let dir = folder(begin.paths);
        let lock = lock(begin.paths, begin.name)?;
        if begin.paths.state.join("super").exists() {
            return Err(has_a_disk(begin.name));
        }
        if ReplicaRecord::load(&dir)?.is_some() && !begin.force {
            let reason =
                "there is one already; without --to it goes on, with --force it is begun again";
            return Err(begin.refused(reason.into()));
        }
        let target = Target::open(begin.to, true)?;
        let shown = target.path().display();
        if !target.fits(point.size)? {
            let (there, needed) = (target.size()?, point.size);
            let reason = format!("{shown} has {there} bytes, the disk {needed}; use a larger one");
            return Err(begin.refused(reason));
        }
        let holds_something = target.holds_something()?;
        if holds_something && !begin.force {
            let reason = format!(
                "{shown} holds something and would be overwritten; use --force if it may be"
            );
            return Err(begin.refused(reason));
        }
        let how = match seed {
            SeedChoice::Compare => Seed::Compare,
            SeedChoice::Full => Seed::Full,
            SeedChoice::Auto if holds_something => Seed::Compare,
            SeedChoice::Auto => Seed::Full,
        };
        let standing = ReplicaState::Seeding { to: point.into(), how, seen: 0 };
        let record = begin.record(vault, &target, standing)?;
        record.save(&dir)?;
        Self::with(dir, record, target, begin.limits, Some(lock))
    }

    /// Makes a replica of the backing of a disk that is stopped: it holds the disk's base but for the
    /// dirty sectors. From then on there is no such disk on this host. If the disk does not know what
    /// its backing holds, nothing is known of it, and it will be compared with `point`.
    ///
    /// # Errors
    /// If the disk is served, or the backing is not its own.
    pub fn from_stopped_disk(
        vault: &Vault,
        point: &Manifest,
        begin: Begin<'_>,
    ) -> Result<Self, ReplicaError> {
        let dir = folder(begin.paths);
        let lock = lock(begin.paths, begin.name)?;
        let superblock = begin.paths.state.join("super");
        if !superblock.exists() {
            let reason = format!(
                "there is no stopped disk of that name on this host (no superblock in {})",
                begin.paths.state.display()
            );
            return Err(begin.refused(reason));
        }
        let known = known(vault, &begin)?;
        let target = Target::open(begin.to, false)?;
        if !target.fits(point.size)? {
            let (there, needed) = (target.size()?, point.size);
            let shown = target.path().display();
            let reason = format!("{shown} has {there} bytes, the disk {needed}; extend it first");
            return Err(begin.refused(reason));
        }
        let seam = begin.limits.seam.clone();
        let standing = match &known {
            Some((base, dirty)) => {
                let name = new_file(&dir, "sectors");
                let sectors =
                    set::save(dirty, &dir, &name).map_err(on("writing", &dir.join(&name)))?;
                ReplicaState::Partial { point: *base, sectors, toward: None, seen: 0 }
            }
            None => ReplicaState::Seeding { to: point.into(), how: Seed::Compare, seen: 0 },
        };
        seam.step("set saved")?;
        let record = begin.record(vault, &target, standing)?;
        record.save(&dir)?;
        seam.step("standing said")?;
        // The step that counts: no driver takes the backing for what its state says any more. Until
        // now not a byte of it has changed, and with the superblock there the standing counts for
        // nothing.
        let aside = begin.paths.state.join("super.before-replica");
        let ended = atomic::rename_durably(&superblock, &aside);
        ended.map_err(on("putting aside", &superblock))?;
        seam.step("superblock put aside")?;
        Self::with(dir, record, target, begin.limits, Some(lock))
    }

    /// Goes on with a seed.
    pub(super) fn seed(
        &mut self,
        vault: &Vault,
        point: &Manifest,
        how: Seed,
        seen: usize,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        if !self.target.fits(point.size)? {
            return Err(ReplicaError::TooSmall {
                path: self.target.path().into(),
                there: self.target.size()?,
                cycle: point.cycle,
                needed: point.size,
            });
        }
        self.resize(point.size)?;
        self.limits.seam.step("resized")?;
        let marked = self.target.is_marked().map_err(on("reading", self.target.path()))?;
        if how == Seed::Full || marked {
            self.mark(&point.into())?;
            self.limits.seam.step("marked")?;
        }
        match how {
            Seed::Full => self.fill(vault, point, seen, watch, moved)?,
            Seed::Compare => self.compare(vault, point, seen, watch, moved)?,
        }
        if self.target.withholds() {
            self.fetch_first_block(vault, point)?;
            self.complete()?;
            self.limits.seam.step("completed")?;
        }
        self.arrive(point.into())
    }

    fn fill(
        &mut self,
        vault: &Vault,
        point: &Manifest,
        seen: usize,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        let mut fetch = Fetch::whole(vault, point, seen)?;
        let done = AtomicU64::new(0);
        let progress = |now: u64, all| {
            done.store(now, Ordering::Relaxed);
            (watch.progress)(Activity::Applying, now, all);
        };
        let (threads, stretch) = (self.limits.threads, self.limits.stretch_sectors);
        while fetch.step(&self.target, threads, stretch, &progress, watch.stop)? {
            self.note(vault, point, Seed::Full, fetch.seen())?;
        }
        moved.written.0 += done.load(Ordering::Relaxed);
        fetch.finish()?;
        Ok(())
    }

    fn compare(
        &mut self,
        vault: &Vault,
        point: &Manifest,
        seen: usize,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        let mut comparison = Comparison::new(vault, point, seen, false)?;
        let compared = AtomicU64::new(0);
        loop {
            let side = TargetSide {
                target: &self.target,
                all: SectorRange::whole(point.size).sectors(),
                compared: &compared,
                differs: Mutex::new(SectorSet::new()),
                watch,
            };
            let (threads, stretch) = (self.limits.threads, self.limits.stretch_sectors);
            let more = comparison.step(&side, threads, stretch)?;
            let differs = side.differs.into_inner().unwrap_or_else(PoisonError::into_inner);
            self.limits.seam.step("stretch compared")?;
            if differs.count() > 0 {
                self.mark(&point.into())?;
            }
            let mut fetch = Fetch::part(vault, point, &differs, 0)?;
            fetch.step(&self.target, threads, u64::MAX, &|_, _| {}, watch.stop)?;
            fetch.finish()?;
            moved.written.0 += differs.count() * SECTOR_BYTES;
            if !more {
                comparison.finish()?;
                return Ok(());
            }
            self.note(vault, point, Seed::Compare, comparison.seen())?;
        }
    }

    /// Makes durable how far a seed is.
    fn note(
        &mut self,
        vault: &Vault,
        point: &Manifest,
        how: Seed,
        seen: usize,
    ) -> Result<(), ReplicaError> {
        self.limits.seam.step("stretch written")?;
        self.target.sync().map_err(on("making durable", self.target.path()))?;
        self.set(ReplicaState::Seeding { to: point.into(), how, seen })?;
        self.limits.seam.step("stretch noted")?;
        self.hold(vault, Some(point.cycle))?;
        Ok(())
    }
}

/// What a stopped disk knows of its backing: the point, and the sectors that may differ from it.
fn known(vault: &Vault, begin: &Begin<'_>) -> Result<Option<(PointRef, SectorSet)>, ReplicaError> {
    let paths = begin.paths;
    let env = || {
        FsEnv::open(&paths.state, &paths.runtime).map_err(on("opening the state in", &paths.state))
    };
    let track = |source| ReplicaError::Track { name: begin.name.clone(), source };
    let offline = match Offline::open(&env()?) {
        Err(TrackError::Order(_)) => {
            // As a driver would: what is dirty is recovered, and saved by a clean stop.
            let backing = open(begin.to, Engine::Buffered)?;
            let disk =
                ProtectedDisk::open(env()?, backing, OpenOptions::default()).map_err(track)?;
            disk.close().map_err(track)?;
            drop(disk);
            Offline::open(&env()?).map_err(track)?
        }
        offline => offline.map_err(track)?,
    };
    let backing = open(begin.to, Engine::Buffered)?;
    let sb = offline.superblock().clone();
    if offline.binding(&env()?, &backing).map_err(track)? == Binding::Other {
        if sb.backing.is_some()
            && sb.backing
                != backstay_track::Backing::identity(&backing)
                    .map_err(on("finding out which one is", begin.to))?
        {
            return Err(begin.refused(format!(
                "{} is not the backing of this disk; give its own",
                begin.to.display()
            )));
        }
        tracing::warn!("{} was changed after the clean stop", begin.to.display());
        return Ok(None);
    }
    let Some(base) = sb.base.filter(|base| base.vault_disk == begin.disk && sb.resync.is_none())
    else {
        return Ok(None);
    };
    let point = match vault.manifest(begin.disk, base.cycle) {
        Ok(point) if point.point == base.point => PointRef::from(&point),
        Ok(_) | Err(VaultError::NotFound { .. }) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut dirty = SectorSet::new();
    let whole =
        offline.saved(&env()?, |word, bits| dirty.insert_bits(word, bits)).map_err(track)?;
    // A disk that has grown since is dirty there.
    Ok(whole.then_some((
        PointRef { size_bytes: sb.geometry.size.max(point.size_bytes), ..point },
        dirty,
    )))
}

/// The target's side of a comparison.
struct TargetSide<'a> {
    target: &'a Target,
    all: u64,
    compared: &'a AtomicU64,
    differs: Mutex<SectorSet>,
    watch: Watch<'a>,
}

impl Disk<ReplicaError> for TargetSide<'_> {
    fn read(&self, range: SectorRange, buffer: &mut [u8]) -> io::Result<()> {
        self.target.read(range, buffer)
    }

    fn data_within(&self, range: SectorRange) -> Vec<SectorRange> {
        self.target.data_within(range)
    }

    fn differs(&self, range: SectorRange, _: &[u8]) -> Result<(), ReplicaError> {
        self.differs.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
        Ok(())
    }

    fn compared(&self, sectors: u64) -> Result<(), ReplicaError> {
        let done = self.compared.fetch_add(sectors, Ordering::Relaxed) + sectors;
        (self.watch.progress)(Activity::Comparing, done * SECTOR_BYTES, self.all * SECTOR_BYTES);
        self.watch.go_on()
    }
}

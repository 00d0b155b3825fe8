//! From one point to another, so that a kill at any instant leaves a whole point or what makes one.

use std::fs;
use std::sync::atomic::Ordering;

use backstay_format::unfinished::UnfinishedRestore;
use backstay_types::{ByteLen, ByteOffset, SECTOR_BYTES, SectorRange};
use backstay_vault::read::{Fetch, RestoreTarget as _};
use backstay_vault::{Manifest, SectorSet, Vault, VaultError};

use super::difference::{between, point_of};
use super::error::{ReplicaError, on};
use super::first_block::FirstBlock;
use super::log::{LogHeader, LogWriter};
use super::record::{LogRef, PointRef, ReplicaState, Seed, new_file};
use super::{Activity, Moved, Replica, Watch, set};

impl Replica {
    /// Brings the target to a point, from whatever it holds.
    ///
    /// # Errors
    /// If the vault or the target fails or it was told to stop. What the target holds then is in the
    /// standing; the same call goes on from there.
    pub fn bring_to(
        &mut self,
        vault: &Vault,
        to: &Manifest,
        watch: Watch<'_>,
    ) -> Result<Moved, ReplicaError> {
        let (mut moved, fetched) = (Moved::default(), vault.fetched());
        let done = self.go_to(vault, to, watch, &mut moved);
        moved.fetched = ByteLen(vault.fetched().0 - fetched.0);
        // What a stop looks like from inside a step.
        match done {
            Err(_) if watch.stop.load(Ordering::Relaxed) => Err(ReplicaError::Stopped),
            done => done.map(|()| moved),
        }
    }

    fn go_to(
        &mut self,
        vault: &Vault,
        to: &Manifest,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        loop {
            let standing = self.record.standing.clone();
            // Who is there is there, whatever was told meanwhile.
            if !matches!(&standing, ReplicaState::At { point, .. } if point.point == to.point) {
                watch.go_on()?;
            }
            match standing {
                ReplicaState::TakenOver { .. } => {
                    return Err(ReplicaError::TakenOver(self.record.name.clone()));
                }
                ReplicaState::Ready { .. } | ReplicaState::Applying { .. } => {
                    match self.finish_with(watch, moved) {
                        // The standing says now how to go on without it.
                        Err(ReplicaError::Log { path, source }) => {
                            tracing::error!("redo log {}: {source}", path.display());
                        }
                        done => done?,
                    }
                }
                ReplicaState::At { point, .. } if point.point == to.point => {
                    self.hold(vault, None)?;
                    return Ok(());
                }
                ReplicaState::At { point, .. } => {
                    self.must_hold(vault, to)?;
                    match between(vault, self.record.disk, &point, to)? {
                        Some(sectors) => {
                            self.change(vault, point, true, &sectors, to, watch, moved)?
                        }
                        None => self.forget(to, "its point is gone from the vault")?,
                    }
                }
                ReplicaState::Partial { point, sectors, toward, seen } => {
                    let sizes =
                        [Some(point.size_bytes), Some(to.size), toward.map(|t| t.size_bytes)];
                    let largest = sizes.into_iter().flatten().max().unwrap_or_default();
                    let sectors = set::load(&self.dir, &sectors, SectorRange::whole(largest));
                    let begun = self.begun(vault, toward.filter(|_| seen > 0))?;
                    let mut sectors = match sectors {
                        Ok(sectors) => sectors,
                        Err(e) => {
                            self.forget(to, &format!("its set of sectors: {e}"))?;
                            continue;
                        }
                    };
                    if let Some(begun) = begun {
                        self.must_hold(vault, &begun)?;
                        self.write_directly(vault, &sectors, &begun, seen, watch, moved)?;
                        continue;
                    }
                    self.must_hold(vault, to)?;
                    match between(vault, self.record.disk, &point, to)? {
                        Some(more) => {
                            more.runs().for_each(|run| {
                                sectors.insert(run);
                            });
                            let sectors = clipped(sectors, to);
                            self.change(vault, point, false, &sectors, to, watch, moved)?;
                        }
                        None => self.forget(to, "its point is gone from the vault")?,
                    }
                }
                ReplicaState::Seeding { to: was, how, seen } => {
                    let point = match was.point == to.point {
                        true => Some(to.clone()),
                        // What was begun is finished first, if that can be.
                        false => self.begun(vault, Some(was))?,
                    };
                    match point {
                        Some(point) if self.hold(vault, Some(point.cycle))? => {
                            self.seed(vault, &point, how, seen, watch, moved)?;
                        }
                        _ if was.point == to.point => {
                            return Err(VaultError::Retired(to.cycle).into());
                        }
                        _ => self.set(ReplicaState::Seeding { to: to.into(), how, seen: 0 })?,
                    }
                }
            }
        }
    }

    /// A point that was begun, if the vault still has it.
    fn begun(
        &self,
        vault: &Vault,
        point: Option<PointRef>,
    ) -> Result<Option<Manifest>, ReplicaError> {
        Ok(match point {
            Some(point) => point_of(vault, self.record.disk, &point)?,
            None => None,
        })
    }

    fn must_hold(&self, vault: &Vault, to: &Manifest) -> Result<(), ReplicaError> {
        match self.hold(vault, Some(to.cycle))? {
            true => Ok(()),
            false => Err(VaultError::Retired(to.cycle).into()),
        }
    }

    /// From here on nothing is known of the target but by comparing.
    fn forget(&mut self, to: &Manifest, why: &str) -> Result<(), ReplicaError> {
        tracing::warn!(
            "replica {}: {why}; {} is compared with point {}",
            self.record.name,
            self.target.path().display(),
            to.cycle
        );
        self.set(ReplicaState::Seeding { to: to.into(), how: Seed::Compare, seen: 0 })
    }

    /// Fetches some sectors and makes the target `to` with them. `whole`: the target holds `from`
    /// everywhere.
    #[allow(clippy::too_many_arguments, reason = "a step of bring_to")]
    fn change(
        &mut self,
        vault: &Vault,
        from: PointRef,
        whole: bool,
        sectors: &SectorSet,
        to: &Manifest,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        if !self.target.fits(to.size)? {
            return Err(ReplicaError::TooSmall {
                path: self.target.path().into(),
                there: self.target.size()?,
                cycle: to.cycle,
                needed: to.size,
            });
        }
        let seam = self.limits.seam.clone();
        let Some(log) = self.fetch_log(vault, sectors, to, watch)? else {
            return self.change_directly(vault, from, sectors, to, watch, moved);
        };
        seam.step("log synced")?;
        if whole {
            self.set(ReplicaState::Ready { from: Some(from), to: to.into(), log })?;
        } else {
            // What is reserved changes no byte of the disk, so the set still says all.
            if let Err(e) = self.reserve(&log, &to.into()) {
                self.remove(&log.file);
                return Err(e);
            }
            seam.step("reserved")?;
            self.set(ReplicaState::Applying { from: Some(from), to: to.into(), log })?;
        }
        seam.step("standing said")?;
        self.finish_with(watch, moved)?;
        // The hold moves; that it could not is no reason to fail.
        if let Err(e) = self.hold(vault, None) {
            tracing::warn!("replica {}: moving its hold: {e}", self.record.name);
        }
        Ok(())
    }

    /// Fetches sectors into a new log; `None` if they are more than it may hold.
    fn fetch_log(
        &self,
        vault: &Vault,
        sectors: &SectorSet,
        to: &Manifest,
        watch: Watch<'_>,
    ) -> Result<Option<LogRef>, ReplicaError> {
        let name = new_file(&self.dir, "redo");
        let path = self.dir.join(&name);
        let header = LogHeader::of(self.record.disk, &to.into());
        let writer = LogWriter::create(&self.dir, &name, &header, self.limits.log)
            .map_err(on("making", &path))?;
        self.limits.seam.step("log begun")?;
        let begun = self.first_block_to(vault, to, &writer);
        if let Err(e) = begun {
            let over = writer.is_over();
            drop(writer);
            self.remove(&name);
            return if over { Ok(None) } else { Err(e) };
        }
        let mut fetch = Fetch::part(vault, to, sectors, 0)?;
        let progress = |done, all| (watch.progress)(Activity::Fetching, done, all);
        let fetched = fetch
            .step(&writer, self.limits.threads, u64::MAX, &progress, watch.stop)
            .and_then(|_| fetch.finish());
        match fetched {
            Ok(()) => {}
            Err(_) if writer.is_over() => {
                drop(writer);
                self.remove(&name);
                return Ok(None);
            }
            Err(e) => {
                drop(writer);
                self.remove(&name);
                return Err(e.into());
            }
        }
        self.limits.seam.step("log written")?;
        writer.finish(&name).map(Some).map_err(on("syncing", &path))
    }

    /// The whole first block into a log, before what changes in it: while the log is applied, the mark of what is
    /// half written stands in its place.
    fn first_block_to(
        &self,
        vault: &Vault,
        to: &Manifest,
        log: &LogWriter,
    ) -> Result<(), ReplicaError> {
        let path = self.target.path();
        let mut block = self.target.first_block(to.size).map_err(on("reading", path))?;
        if UnfinishedRestore::is_mark(&block) {
            block = FirstBlock::of(vault, to)?;
        }
        if block.is_empty() {
            return Ok(());
        }
        log.write_at(&block, ByteOffset(0)).map_err(on("writing the redo log of", path))
    }

    /// The first block of a point to the target, which withholds it.
    pub(super) fn fetch_first_block(
        &self,
        vault: &Vault,
        to: &Manifest,
    ) -> Result<(), ReplicaError> {
        let block = FirstBlock::of(vault, to)?;
        let path = self.target.path();
        match block.is_empty() {
            true => Ok(()),
            false => self.target.write_at(&block, ByteOffset(0)).map_err(on("writing", path)),
        }
    }

    /// Writes sectors straight from the vault: the target is no point until that is done.
    fn change_directly(
        &mut self,
        vault: &Vault,
        from: PointRef,
        sectors: &SectorSet,
        to: &Manifest,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        let seam = self.limits.seam.clone();
        tracing::info!(
            "replica {}: {} bytes differ, more than a log may hold: they are written straight from \
             the vault, which is needed until that is done",
            self.record.name,
            sectors.count() * SECTOR_BYTES
        );
        let name = new_file(&self.dir, "sectors");
        let saved =
            set::save(sectors, &self.dir, &name).map_err(on("writing", &self.dir.join(&name)))?;
        seam.step("set saved")?;
        let (toward, seen) = (Some(to.into()), 0);
        self.set(ReplicaState::Partial { point: from, sectors: saved, toward, seen })?;
        self.record.tidy(&self.dir);
        seam.step("standing said")?;
        self.write_directly(vault, sectors, to, 0, watch, moved)
    }

    /// Goes on with what [`Self::change_directly`] began.
    fn write_directly(
        &mut self,
        vault: &Vault,
        sectors: &SectorSet,
        to: &Manifest,
        seen: usize,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        let seam = self.limits.seam.clone();
        self.resize(to.size)?;
        let mut fetch = Fetch::part(vault, to, sectors, seen)?;
        let progress = |done, all| (watch.progress)(Activity::Applying, done, all);
        let (threads, stretch) = (self.limits.threads, self.limits.stretch_sectors);
        let begun = fetch.done();
        self.mark(&to.into())?;
        seam.step("marked")?;
        while fetch.step(&self.target, threads, stretch, &progress, watch.stop)? {
            seam.step("stretch written")?;
            self.target.sync().map_err(on("making durable", self.target.path()))?;
            if let ReplicaState::Partial { point, sectors, toward, .. } =
                self.record.standing.clone()
            {
                self.set(ReplicaState::Partial { point, sectors, toward, seen: fetch.seen() })?;
            }
            seam.step("stretch noted")?;
            self.hold(vault, Some(to.cycle))?;
        }
        moved.written.0 += (fetch.done() - begun) * SECTOR_BYTES;
        fetch.finish()?;
        seam.step("written")?;
        self.fetch_first_block(vault, to)?;
        self.complete()?;
        seam.step("completed")?;
        self.arrive(to.into())
    }

    fn remove(&self, file: &str) {
        if let Err(e) = fs::remove_file(self.dir.join(file)) {
            tracing::warn!("{}: {e}: left behind", self.dir.join(file).display());
        }
    }
}

/// What of a set is inside a point's disk.
fn clipped(set: SectorSet, to: &Manifest) -> SectorSet {
    let whole = SectorRange::whole(to.size);
    let mut clipped = SectorSet::new();
    for run in set.runs_within(whole, true) {
        clipped.insert(run);
    }
    clipped
}

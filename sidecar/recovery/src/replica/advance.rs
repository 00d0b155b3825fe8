//! From one point to another, so that a kill at any instant leaves a whole point or what makes one.

use std::fs;
use std::io;
use std::sync::atomic::Ordering;

use backstay_format::{ByteLen, ByteOffset, SECTOR_BYTES, SectorRange};
use backstay_vault::read::Fetch;
use backstay_vault::{Manifest, SectorSet, Vault, VaultError};

use super::difference::{between, point_of};
use super::error::{ReplicaError, io_error, on};
use super::log::{self, LogError, LogHeader, LogWriter};
use super::record::{LogRef, PointRef, Seed, Standing, new_file};
use super::{Doing, Moved, Replica, Watch, set};

/// Records applied between two steps of a test.
const RECORDS_A_STEP: u64 = 16;

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
            watch.go_on()?;
            match self.record.standing.clone() {
                Standing::TakenOver { .. } => {
                    return Err(ReplicaError::TakenOver(self.record.name.clone()));
                }
                Standing::Ready { .. } | Standing::Applying { .. } => {
                    match self.finish_with(watch, moved) {
                        // The standing says now how to go on without it.
                        Err(ReplicaError::Log { path, source }) => {
                            tracing::error!("redo log {}: {source}", path.display());
                        }
                        done => done?,
                    }
                }
                Standing::At { point, .. } if point.point == to.point => {
                    self.hold(vault, None)?;
                    return Ok(());
                }
                Standing::At { point, .. } => {
                    self.must_hold(vault, to)?;
                    match between(vault, self.record.disk, &point, to)? {
                        Some(sectors) => {
                            self.change(vault, point, true, &sectors, to, watch, moved)?
                        }
                        None => self.forget(to, "its point is gone from the vault")?,
                    }
                }
                Standing::But { point, sectors, toward, seen } => {
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
                Standing::Seeding { to: was, how, seen } => {
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
                        _ => self.set(Standing::Seeding { to: to.into(), how, seen: 0 })?,
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
        self.set(Standing::Seeding { to: to.into(), how: Seed::Compare, seen: 0 })
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
            self.set(Standing::Ready { from: Some(from), to: to.into(), log })?;
        } else {
            // What is reserved changes no byte of the disk, so the set still says all.
            if let Err(e) = self.reserve(&log, &to.into()) {
                self.remove(&log.file);
                return Err(e);
            }
            seam.step("reserved")?;
            self.set(Standing::Applying { from: Some(from), to: to.into(), log })?;
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
        let mut fetch = Fetch::part(vault, to, sectors, 0)?;
        let progress = |done, all| (watch.progress)(Doing::Fetching, done, all);
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
        self.set(Standing::But { point: from, sectors: saved, toward, seen })?;
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
        let progress = |done, all| (watch.progress)(Doing::Applying, done, all);
        let (threads, stretch) = (self.limits.threads, self.limits.stretch_sectors);
        let begun = fetch.done();
        while fetch.step(&self.target, threads, stretch, &progress, watch.stop)? {
            seam.step("stretch written")?;
            self.target.sync().map_err(on("making durable", self.target.path()))?;
            if let Standing::But { point, sectors, toward, .. } = self.record.standing.clone() {
                self.set(Standing::But { point, sectors, toward, seen: fetch.seen() })?;
            }
            seam.step("stretch noted")?;
            self.hold(vault, Some(to.cycle))?;
        }
        moved.written.0 += (fetch.done() - begun) * SECTOR_BYTES;
        fetch.finish()?;
        seam.step("written")?;
        self.arrive(to.into())
    }

    /// The target is written: it is at a point once that is durable.
    pub(super) fn arrive(&mut self, point: PointRef) -> Result<(), ReplicaError> {
        self.target.sync().map_err(on("making durable", self.target.path()))?;
        self.limits.seam.step("target synced")?;
        let mtime_unix_ns = self.target.mtime()?;
        self.set(Standing::At { point, mtime_unix_ns })?;
        self.limits.seam.step("arrived")?;
        self.record.tidy(&self.dir);
        Ok(())
    }

    pub(super) fn resize(&self, size: ByteLen) -> Result<(), ReplicaError> {
        self.target.resize(size).map_err(on("changing the size of", self.target.path()))
    }

    /// Brings the target to a whole point with what is on this host, if there is anything to do.
    ///
    /// # Errors
    /// If the target fails, or the log is damaged; nothing of a damaged log is written.
    pub fn finish(&mut self) -> Result<Moved, ReplicaError> {
        let never = std::sync::atomic::AtomicBool::new(false);
        let watch = Watch { progress: &|_, _, _| {}, stop: &never };
        let mut moved = Moved::default();
        self.finish_with(watch, &mut moved)?;
        Ok(moved)
    }

    pub(super) fn finish_with(
        &mut self,
        watch: Watch<'_>,
        moved: &mut Moved,
    ) -> Result<(), ReplicaError> {
        let seam = self.limits.seam.clone();
        if let Standing::Ready { from, to, log } = self.record.standing.clone() {
            if let Err(e) = self.check(&log, &to).and_then(|()| self.reserve(&log, &to)) {
                // Not a byte of the target was written; taking space may have changed its times.
                if let Some(point) = from {
                    self.arrive(point)?;
                }
                return Err(e);
            }
            seam.step("reserved")?;
            self.set(Standing::Applying { from, to, log })?;
            seam.step("applying")?;
        }
        let Standing::Applying { to, log, .. } = self.record.standing.clone() else {
            return Ok(());
        };
        if let Err(e) = self.check(&log, &to) {
            if matches!(e, ReplicaError::Log { .. }) {
                // What it would have written is not known any more.
                self.set(Standing::Seeding { to, how: Seed::Compare, seen: 0 })?;
                self.record.tidy(&self.dir);
            }
            return Err(e);
        }
        self.resize(to.size_bytes)?;
        seam.step("resized")?;
        moved.written.0 += self.apply(&log, &to, watch)?;
        seam.step("written")?;
        self.arrive(to)
    }

    /// Checks all of a log.
    fn check(&self, log: &LogRef, to: &PointRef) -> Result<(), ReplicaError> {
        self.each_record(log, to, |_, _| Ok(()))
    }

    /// Takes the space on the target that the data in a log needs.
    fn reserve(&self, log: &LogRef, to: &PointRef) -> Result<(), ReplicaError> {
        let mut open: Option<(u64, u64)> = None;
        let take = |run: Option<(u64, u64)>| match run {
            Some((at, end)) => self
                .target
                .reserve(ByteOffset(at), ByteLen(end - at))
                .map_err(on("taking space on", self.target.path())),
            None => Ok(()),
        };
        self.each_record(log, to, |record, _| {
            let (at, end) = (record.offset.0, record.offset.0 + record.len.0);
            match &mut open {
                _ if !record.data => {}
                Some(run) if run.1 == at => run.1 = end,
                _ => take(open.replace((at, end)))?,
            }
            Ok(())
        })?;
        take(open)
    }

    /// Writes what a log says; the bytes written.
    fn apply(&self, log: &LogRef, to: &PointRef, watch: Watch<'_>) -> Result<u64, ReplicaError> {
        let (mut written, mut records, mut read) = (0, 0u64, 0);
        self.each_record(log, to, |record, data| {
            let done = match record.data {
                true => self.target.write_at(data, record.offset),
                false => self.target.zero(record.offset, record.len),
            };
            done.map_err(on("writing", self.target.path()))?;
            written += record.len.0;
            records += 1;
            read += data.len() as u64;
            (watch.progress)(Doing::Applying, read, log.bytes);
            match records % RECORDS_A_STEP {
                1 => self.limits.seam.step("record written"),
                _ => Ok(()),
            }
        })?;
        Ok(written)
    }

    fn each_record(
        &self,
        log: &LogRef,
        to: &PointRef,
        each: impl FnMut(&log::Record, &[u8]) -> Result<(), ReplicaError>,
    ) -> Result<(), ReplicaError> {
        let path = self.dir.join(&log.file);
        let header = LogHeader::of(self.record.disk, to);
        let input = match log::open(&self.dir, log) {
            Ok(input) => input,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let reason = "it is gone".into();
                let source = backstay_format::FormatError::Text { what: "redo log", reason };
                return Err(ReplicaError::Log { path, source });
            }
            Err(e) => return Err(on("reading", &path)(e)),
        };
        log::read(input, (&header, log), to.size_bytes, each).map_err(|e| match e {
            LogError::Format(source) => ReplicaError::Log { path: path.clone(), source },
            LogError::Io(e) => io_error(format!("reading {}", path.display()))(e),
            LogError::Apply(e) => e,
        })
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

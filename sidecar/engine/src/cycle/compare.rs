//! The pass of a resync: compares the disk with the newest point, and ships the differences.
//!
//! It runs after a fuzzy cut, while the guest writes. A sector that changes after its comparison is dirty
//! in the next epoch, and the point-in-time pass ships it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use backstay_format::control::CutReply;
use backstay_types::{ByteLen, SectorRange};
use backstay_vault::read::compare::{Comparison, Disk};
use backstay_vault::read::read_index;
use backstay_vault::{Manifest, Pass, SectorSet, VaultError};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::pass::Scope;
use super::resync::{Progress, Stretch, forget_progress};
use super::{Run, Stage};
use crate::error::CycleError;
use crate::pipeline::{Beside, Feed, ship_beside};
use crate::source::extents::{self, Run as DiskRun};

/// Sectors after which what was done is written down (8 GiB).
const STRETCH_SECTORS: u64 = 16 << 20;
/// The same for tests, which have small disks.
const STRETCH_VARIABLE: &str = "BACKSTAY_TEST_STRETCH";

impl Run<'_> {
    /// Compares with the newest point and ships what differs; goes on where an attempt before this
    /// one was ended.
    pub(super) fn compare(
        &mut self,
        cut: &CutReply,
        newest: &Manifest,
        deep: bool,
        resync_no: u64,
    ) -> Result<Vec<Pass>, CycleError> {
        let mut progress = Progress {
            vault_disk: self.vault_disk,
            disk: self.source.disk,
            cycle: self.cycle,
            newest: newest.point,
            resync_no,
            deep,
            seen: 0,
            stretches: vec![],
        };
        let mut passes = vec![];
        match self.resumed(&progress) {
            Some((found, done)) => {
                tracing::info!(
                    "disk {}: the resync goes on after {} of {} segments",
                    self.source.disk,
                    found.seen,
                    newest.segments.len()
                );
                progress = found;
                passes = done;
                // What was written since it began; the compared rest still holds.
                passes.push(self.pass(cut, Scope::Dirty, Stage::Resync)?);
            }
            None => forget_progress(self.job.state),
        }
        let (disk, all) = (self.compared()?, self.source.size.0);
        let mut comparison = Comparison::new(self.job.vault, newest, progress.seen, deep)?;
        let count = Count::new(self.job.progress, Stage::Resync, all);
        let stretch = std::env::var(STRETCH_VARIABLE).ok().and_then(|sectors| sectors.parse().ok());
        let stretch = stretch.unwrap_or(STRETCH_SECTORS);
        loop {
            let mut more = false;
            let threads = self.job.ship.compress_threads();
            let to = self.shipment();
            let stop = self.job.stop;
            let beside = Beside { went: &|bytes| count.went(bytes), ..Beside::default() };
            let shipped = ship_beside(to, beside, |feed| {
                let side = Side { disk: &disk, feed, count: &count, stop };
                more = comparison.step(&side, threads, stretch)?;
                Ok(())
            });
            self.put.extend_from_slice(&shipped.segments);
            shipped.result?;
            let must_move = disk.take_differs();
            progress.seen = comparison.seen();
            let digest = must_move.digest();
            progress.stretches.push(Stretch { digest, segments: shipped.segments.clone() });
            if more {
                let saved = progress.save(self.job.state);
                saved.map_err(|e| CycleError::source("the progress of the resync")(e.into()))?;
                // From here on they are needed by the next attempt.
                self.put_kept = self.put.len();
            }
            passes.push(Pass { must_move, segments: shipped.segments });
            if !more {
                comparison.finish()?;
                return Ok(passes);
            }
        }
    }

    /// Compares what a closed epoch says is dirty with the newest point and ships what differs. For a
    /// disk that went down with its machine: of most regions that were touched only that is known.
    pub(super) fn compare_dirty(
        &mut self,
        cut: &CutReply,
        newest: &Manifest,
    ) -> Result<Pass, CycleError> {
        let dirty = self.must_move(cut, SectorRange::whole(self.source.size))?;
        let (disk, all) = (self.compared()?, dirty.count() * 512);
        let mut comparison = Comparison::new(self.job.vault, newest, 0, false)?.within(dirty);
        let count = Count::new(self.job.progress, Stage::Resync, all);
        let threads = self.job.ship.compress_threads();
        let (to, stop) = (self.shipment(), self.job.stop);
        let noting = self.noting();
        let went = |bytes| count.went(bytes);
        let beside = Beside { put: &noting, went: &went, ..Beside::default() };
        let shipped = ship_beside(to, beside, |feed| {
            let side = Side { disk: &disk, feed, count: &count, stop };
            while comparison.step(&side, threads, u64::MAX)? {}
            Ok(())
        });
        drop(noting);
        self.put.extend_from_slice(&shipped.segments);
        shipped.result?;
        comparison.finish()?;
        Ok(Pass { must_move: disk.take_differs(), segments: shipped.segments })
    }

    /// The disk, to be compared. To be asked for after the cut: what becomes data later is dirty.
    pub(super) fn compared(&self) -> Result<Compared, CycleError> {
        let size = self.source.size;
        let file = self.source.file.try_clone().map_err(CycleError::source("the backing"))?;
        let runs = extents::runs(&file, size)
            .map_err(CycleError::source("where the backing holds data"))?
            .into_iter();
        let data = |run| if let DiskRun::Data(run) = run { Some(run) } else { None };
        let data = runs.filter_map(data).collect();
        Ok(Compared { file, size, data, differs: Mutex::default() })
    }

    /// What an attempt before this one did, if it still holds, as passes.
    fn resumed(&mut self, now: &Progress) -> Option<(Progress, Vec<Pass>)> {
        let found = Progress::load(self.job.state)?;
        let same = Progress { seen: 0, stretches: vec![], ..found.clone() };
        if same != *now {
            return None;
        }
        let passes: Result<Vec<Pass>, VaultError> = found
            .stretches
            .iter()
            .map(|stretch| {
                let mut must_move = SectorSet::new();
                for segment in &stretch.segments {
                    let (disk, size) = (self.vault_disk, self.source.size);
                    for extent in read_index(self.job.vault, disk, size, segment)?.extents {
                        must_move.insert(extent.range);
                    }
                }
                // I7: what the vault has is what had to move then.
                if must_move.digest() == stretch.digest {
                    return Ok(Pass { must_move, segments: stretch.segments.clone() });
                }
                Err(VaultError::Inconsistent {
                    object: format!("a resync of disk {}", self.vault_disk),
                    reason: "its segments hold other sectors than were shipped".into(),
                })
            })
            .collect();
        match passes {
            Ok(passes) => Some((found, passes)),
            Err(e) => {
                tracing::warn!("disk {}: the resync begins again: {e}", self.source.disk);
                None
            }
        }
    }
}

/// The disk while it is compared with a point, and what was found.
pub(super) struct Compared {
    file: File,
    size: ByteLen,
    /// Where the backing held data, in order.
    data: Vec<SectorRange>,
    differs: Mutex<SectorSet>,
}

impl Compared {
    /// What differs so far.
    pub fn take_differs(&self) -> SectorSet {
        std::mem::take(&mut self.differs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How far a pass is that compares: what was found equal is done, and what differs when it has gone to the vault.
pub(super) struct Count<'a> {
    progress: &'a (dyn Fn(Stage, u64, u64) + Sync),
    stage: Stage,
    all: u64,
    /// Bytes that are done; what differs is taken off before it is counted as compared.
    done: AtomicI64,
}

impl<'a> Count<'a> {
    pub fn new(progress: &'a (dyn Fn(Stage, u64, u64) + Sync), stage: Stage, all: u64) -> Self {
        progress(stage, 0, all);
        Self { progress, stage, all, done: AtomicI64::new(0) }
    }

    /// Some of what differs is in the vault.
    pub fn went(&self, bytes: u64) {
        self.add(bytes as i64);
    }

    fn compared(&self, sectors: u64) {
        self.add((sectors * 512) as i64);
    }

    fn differs(&self, sectors: u64) {
        self.done.fetch_sub((sectors * 512) as i64, Ordering::Relaxed);
    }

    fn add(&self, bytes: i64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(self.stage, (done.max(0) as u64).min(self.all), self.all);
    }
}

/// The disk's side of a comparison; what differs goes into the pipeline.
pub(super) struct Side<'a> {
    pub disk: &'a Compared,
    pub feed: &'a Feed<'a>,
    pub count: &'a Count<'a>,
    pub stop: &'a AtomicBool,
}

impl Disk<CycleError> for Side<'_> {
    fn read(&self, range: SectorRange, buffer: &mut [u8]) -> io::Result<()> {
        let start = range.start.byte_offset().0;
        let there = range.bytes().0.min(self.disk.size.0 - start) as usize;
        buffer[there..].fill(0);
        self.disk.file.read_exact_at(&mut buffer[..there], start)
    }

    fn will_read(&self, range: SectorRange) {
        let (start, len) = (range.start.byte_offset().0 as i64, range.bytes().0 as i64);
        // Only makes it faster.
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        let _ = posix_fadvise(&self.disk.file, start, len, advice);
    }

    fn data_within(&self, range: SectorRange) -> Vec<SectorRange> {
        let first = self.disk.data.partition_point(|run| run.end <= range.start);
        let inside = self.disk.data[first..].iter().take_while(|run| run.start < range.end);
        inside.map(|run| run.intersect(range)).collect()
    }

    fn differs(&self, range: SectorRange, bytes: &[u8]) -> Result<(), CycleError> {
        let mut chunk = self.feed.chunk()?;
        chunk.push(range, bytes);
        self.disk.differs.lock().unwrap_or_else(PoisonError::into_inner).insert(range);
        self.count.differs(range.sectors());
        self.feed.send(chunk)
    }

    fn compared(&self, sectors: u64) -> Result<(), CycleError> {
        self.count.compared(sectors);
        if self.stop.load(Ordering::Relaxed) { Err(CycleError::Stopped) } else { Ok(()) }
    }
}

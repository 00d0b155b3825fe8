//! Restoring a point or a part of one: several threads fetch, decompress, check and write at once.
//!
//! Memory is bounded by the threads and the set of sectors already planned, whatever the disk's size:
//! segments are planned one at a time, newest first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use backstay_types::{ByteLen, SECTOR_BYTES, SectorRange};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::Progress;
use super::frames::{BULK_GAP_BYTES_MAX, Decompressor, check, fetch, requests};
use super::plan::{Layer, Layers};
use super::target::RestoreTarget;
use super::verify::check_list;
use crate::error::VaultError;
use crate::format::manifest::Manifest;
use crate::sectors::SectorSet;
use crate::store::Vault;

/// A request's worth of frames of a segment.
struct Job {
    layer: Arc<Layer>,
    frames: Vec<u32>,
}

/// What the threads share.
struct Shared<'a> {
    vault: &'a Vault,
    target: &'a dyn RestoreTarget,
    size: ByteLen,
    stop: &'a AtomicBool,
    failed: AtomicBool,
    error: Mutex<Option<VaultError>>,
    done_sectors: AtomicU64,
    /// Of what is fetched.
    all_bytes: u64,
    progress: Progress<'a>,
}

/// Restores a recovery point. Nothing is written whose checksum did not match (I6); when this
/// returns, everything is durable.
///
/// # Errors
/// If the vault cannot be read or is damaged, or the target cannot be written; what was written
/// until then is right but not all.
pub fn restore(
    vault: &Vault,
    point: &Manifest,
    target: &dyn RestoreTarget,
    threads: usize,
    progress: Progress<'_>,
) -> Result<(), VaultError> {
    let mut fetch = Fetch::whole(vault, point, 0)?;
    fetch.step(target, threads, u64::MAX, progress, &AtomicBool::new(false))?;
    fetch.finish()?;
    target.sync().map_err(|source| VaultError::Target {
        what: format!("making {} durable", target.name()),
        source,
    })
}

/// A point, or a part of it, that is fetched in steps.
pub struct Fetch<'a> {
    vault: &'a Vault,
    point: &'a Manifest,
    layers: Layers<'a>,
    /// What to fetch; `None`: everything.
    wanted: Option<&'a SectorSet>,
    /// Sectors that were given to the target.
    done: u64,
}

impl<'a> Fetch<'a> {
    /// Fetches all of a point, from its segment number `seen` on (newest first; 0 for all).
    ///
    /// # Errors
    /// If the vault cannot be read or is damaged.
    pub fn whole(vault: &'a Vault, point: &'a Manifest, seen: usize) -> Result<Self, VaultError> {
        Self::from(vault, point, None, seen)
    }

    /// Fetches some sectors of a point, all of which must lie inside its disk, from its segment number
    /// `seen` on.
    ///
    /// # Errors
    /// If the vault cannot be read or is damaged.
    pub fn part(
        vault: &'a Vault,
        point: &'a Manifest,
        wanted: &'a SectorSet,
        seen: usize,
    ) -> Result<Self, VaultError> {
        Self::from(vault, point, Some(wanted), seen)
    }

    fn from(
        vault: &'a Vault,
        point: &'a Manifest,
        wanted: Option<&'a SectorSet>,
        seen: usize,
    ) -> Result<Self, VaultError> {
        check_list(vault, point)?;
        let layers = Layers::new(vault, point);
        let mut fetch = Self { vault, point, layers, wanted, done: 0 };
        while fetch.seen() < seen
            && let Some(layer) = fetch.next()?
        {
            fetch.done += layer.sectors();
        }
        Ok(fetch)
    }

    /// What is wanted of the next segment.
    fn next(&mut self) -> Result<Option<Layer>, VaultError> {
        let Some((_, layer)) = self.layers.next()? else { return Ok(None) };
        Ok(Some(match self.wanted {
            Some(wanted) => layer.within(wanted),
            None => layer,
        }))
    }

    /// Sectors that were fetched so far, those of segments before the first counted.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Segments fetched from so far; all of what was wanted of them is with the target after a step.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.layers.seen()
    }

    /// Sectors to fetch in all.
    fn all(&self) -> u64 {
        match self.wanted {
            Some(wanted) => wanted.count(),
            None => SectorRange::whole(self.point.size).sectors(),
        }
    }

    /// Fetches until the target got at least `sectors` or all is done; whether there is more. Nothing
    /// is made durable.
    ///
    /// # Errors
    /// If the vault cannot be read or is damaged, the target cannot be written, or it was told to
    /// `stop` ([`VaultError::Stopped`]); what the target got until then is right but not all.
    pub fn step(
        &mut self,
        target: &dyn RestoreTarget,
        threads: usize,
        sectors: u64,
        progress: Progress<'_>,
        stop: &AtomicBool,
    ) -> Result<bool, VaultError> {
        let all = self.all();
        let shared = Shared {
            vault: self.vault,
            target,
            size: self.point.size,
            stop,
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
            done_sectors: AtomicU64::new(self.done),
            all_bytes: (all * SECTOR_BYTES).min(self.point.size.0),
            progress,
        };
        let until = self.done.saturating_add(sectors);
        let (jobs, queue) = bounded::<Job>(threads * 2);
        let more = thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                let (queue, shared) = (queue.clone(), &shared);
                scope.spawn(move || shared.work(&queue));
            }
            drop(queue);
            let planned = self.plan(until, all, &shared, &jobs);
            drop(jobs);
            planned.unwrap_or_else(|e| {
                shared.fail(e);
                false
            })
        });
        match shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(more),
        }
    }

    /// Cuts layers into jobs until enough was planned; whether there is more.
    fn plan(
        &mut self,
        until: u64,
        all: u64,
        shared: &Shared<'_>,
        jobs: &Sender<Job>,
    ) -> Result<bool, VaultError> {
        while self.done < until {
            if shared.failed.load(Ordering::Acquire) {
                return Ok(false);
            }
            shared.go_on()?;
            // The rest of the segments holds nothing that is wanted.
            if self.wanted.is_some() && self.done == all {
                return Ok(false);
            }
            let Some(layer) = self.next()? else { return Ok(false) };
            self.done += layer.sectors();
            let layer = Arc::new(layer);
            shared.zero_extents(&layer)?;
            let mut frames: Vec<u32> = layer.of_frame.keys().copied().collect();
            frames.sort_unstable();
            for group in requests(&layer.index, &frames, BULK_GAP_BYTES_MAX) {
                let job = Job { layer: Arc::clone(&layer), frames: frames[group].to_vec() };
                if shared.failed.load(Ordering::Relaxed) || jobs.send(job).is_err() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Checks, after the last step, that the point held all that was wanted.
    ///
    /// # Errors
    /// If it did not.
    pub fn finish(self) -> Result<(), VaultError> {
        let all = self.all();
        match self.wanted {
            None => self.layers.finish(),
            Some(_) if self.done == all => Ok(()),
            Some(_) => Err(VaultError::Inconsistent {
                object: format!("recovery point {} of disk {}", self.point.cycle, self.point.disk),
                reason: format!("its segments hold {} of {all} sectors", self.done),
            }),
        }
    }
}

impl Shared<'_> {
    fn work(&self, queue: &Receiver<Job>) {
        let mut decompressor = match Decompressor::new() {
            Ok(decompressor) => decompressor,
            Err(e) => return self.fail(e),
        };
        for job in queue {
            if self.failed.load(Ordering::Relaxed) {
                // Empties the queue, so that the planner is not stuck on it.
                continue;
            }
            if let Err(e) = self.go_on().and_then(|()| self.do_job(&job, &mut decompressor)) {
                self.fail(e);
            }
        }
    }

    fn do_job(&self, job: &Job, decompressor: &mut Decompressor) -> Result<(), VaultError> {
        let layer = &job.layer;
        for (frame, stored) in fetch(self.vault, &layer.key, &layer.index, &job.frames)? {
            let raw =
                decompressor.open(&layer.key, &layer.index.frames[frame as usize], &stored)?;
            for (number, runs) in layer.needed_of(frame) {
                let extent = &layer.index.extents[*number];
                let Some(place) = &extent.place else { continue };
                let bytes = check(&layer.key, extent, place, raw)?;
                for run in runs {
                    let from = ((run.start.0 - extent.range.start.0) * SECTOR_BYTES) as usize;
                    self.write(*run, &bytes[from..from + run.bytes().0 as usize])?;
                }
            }
        }
        Ok(())
    }

    fn zero_extents(&self, layer: &Layer) -> Result<(), VaultError> {
        for (number, runs) in &layer.needed {
            if layer.index.extents[*number].place.is_none() {
                for run in runs {
                    let (offset, len) = (run.start.byte_offset(), self.bytes_on_disk(*run));
                    self.target.zero(offset, len).map_err(|e| self.target_error(*run, e))?;
                    self.count(*run);
                }
            }
        }
        Ok(())
    }

    fn write(&self, run: SectorRange, bytes: &[u8]) -> Result<(), VaultError> {
        // The disk's last sector may be partial.
        let there = self.bytes_on_disk(run).0 as usize;
        self.target
            .write_at(&bytes[..there], run.start.byte_offset())
            .map_err(|e| self.target_error(run, e))?;
        self.count(run);
        Ok(())
    }

    fn bytes_on_disk(&self, run: SectorRange) -> ByteLen {
        ByteLen(run.bytes().0.min(self.size.0 - run.start.byte_offset().0))
    }

    fn count(&self, run: SectorRange) {
        let done = self.done_sectors.fetch_add(run.sectors(), Ordering::Relaxed) + run.sectors();
        (self.progress)((done * SECTOR_BYTES).min(self.all_bytes), self.all_bytes);
    }

    /// An error if somebody wants this to stop.
    fn go_on(&self) -> Result<(), VaultError> {
        match self.stop.load(Ordering::Relaxed) {
            true => {
                Err(VaultError::Stopped { object: format!("reading for {}", self.target.name()) })
            }
            false => Ok(()),
        }
    }

    fn target_error(&self, run: SectorRange, source: std::io::Error) -> VaultError {
        VaultError::Target { what: format!("writing {run} of {}", self.target.name()), source }
    }

    fn fail(&self, error: VaultError) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        // After the error, so that who sees this one finds that one.
        self.failed.store(true, Ordering::Release);
    }
}

impl Layer {
    /// What is needed of a frame.
    fn needed_of(&self, frame: u32) -> impl Iterator<Item = &(usize, Vec<SectorRange>)> {
        self.of_frame.get(&frame).into_iter().flatten().map(|&at| &self.needed[at])
    }
}

//! Restoring a point: several threads fetch, decompress, check and write at once.
//!
//! Memory is bounded by the threads and the set of sectors already planned, whatever the disk's size:
//! segments are planned one at a time, newest first.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use backstay_format::{ByteLen, SECTOR_BYTES, SectorRange};
use crossbeam_channel::{Receiver, bounded};

use super::Progress;
use super::frames::{Decompressor, check, fetch, requests};
use super::plan::{Layer, for_each_layer};
use super::target::RestoreTarget;
use crate::error::VaultError;
use crate::format::manifest::Manifest;
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
    failed: AtomicBool,
    error: Mutex<Option<VaultError>>,
    done_sectors: AtomicU64,
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
    let shared = Shared {
        vault,
        target,
        size: point.size,
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        done_sectors: AtomicU64::new(0),
        progress,
    };
    let (jobs, queue) = bounded::<Job>(threads * 2);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (queue, shared) = (queue.clone(), &shared);
            scope.spawn(move || shared.work(&queue));
        }
        drop(queue);
        let planned = for_each_layer(vault, point, |_, layer| {
            if shared.failed.load(Ordering::Acquire) {
                // Ends the planning; the error that is told is the first one.
                let source = std::io::ErrorKind::Interrupted.into();
                return Err(VaultError::Target { what: "restoring".into(), source });
            }
            let layer = Arc::new(layer);
            shared.zero_extents(&layer)?;
            let mut frames: Vec<u32> = layer.of_frame.keys().copied().collect();
            frames.sort_unstable();
            for group in requests(&layer.index, &frames) {
                let job = Job { layer: Arc::clone(&layer), frames: frames[group].to_vec() };
                if shared.failed.load(Ordering::Relaxed) || jobs.send(job).is_err() {
                    break;
                }
            }
            Ok(())
        });
        drop(jobs);
        if let Err(e) = planned {
            shared.fail(e);
        }
    });
    match shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => target.sync().map_err(|source| VaultError::Target {
            what: format!("making {} durable", target.name()),
            source,
        }),
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
            if let Err(e) = self.do_job(&job, &mut decompressor) {
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
        (self.progress)((done * SECTOR_BYTES).min(self.size.0), self.size.0);
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

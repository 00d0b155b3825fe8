//! Comparing a disk with a recovery point: what a resync is made of.
//!
//! The point's segments are gone through newest first, as for a restore. Where a segment's checksum
//! of a whole chunk still holds (no later segment has a part of it), the disk's chunk is hashed and
//! compared: nothing of the data is read from the vault. All else is fetched, checked and compared
//! byte by byte; with `deep`, everything is. Where a segment says zero, the disk is looked at only
//! where it holds data at all.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use backstay_types::{SECTOR_BYTES, SectorRange};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::frames::{BULK_GAP_BYTES_MAX, Decompressor, check, fetch, requests};
use super::plan::{Layer, Layers};
use crate::error::VaultError;
use crate::format::manifest::Manifest;
use crate::format::segment::{FRAME_SECTORS_MAX, chunk_sum};
use crate::frame::is_zero;
use crate::remote::Role;
use crate::sectors::SectorSet;
use crate::store::Vault;

/// Most sectors of the disk in one job (1 MiB).
const JOB_SECTORS_MAX: u64 = 2048;
/// Jobs for each thread that wait, read ahead from the disk.
const JOBS_AHEAD: usize = 8;
/// Granularity of comparing bytes, in sectors.
const BLOCK_SECTORS: u64 = 8;

/// The disk that a point is compared with.
pub trait Disk<E>: Sync {
    /// Reads sectors. What lies past the disk's end is zero.
    ///
    /// # Errors
    /// What the system answered.
    fn read(&self, range: SectorRange, buffer: &mut [u8]) -> io::Result<()>;
    /// Told of a range that will be read soon.
    fn will_read(&self, range: SectorRange) {
        let _ = range;
    }
    /// The parts of a range that may hold something else than zero.
    fn data_within(&self, range: SectorRange) -> Vec<SectorRange>;
    /// Takes sectors that differ from the point, at most a frame of them.
    ///
    /// # Errors
    /// Whatever ends the comparison.
    fn differs(&self, range: SectorRange, bytes: &[u8]) -> Result<(), E>;
    /// Told of sectors that were compared.
    ///
    /// # Errors
    /// Whatever ends the comparison.
    fn compared(&self, sectors: u64) -> Result<(), E>;
}

/// A comparison that can be done in steps.
pub struct Comparison<'a> {
    vault: &'a Vault,
    layers: Layers<'a>,
    /// Only these sectors are compared; all, if not given.
    within: Option<SectorSet>,
    deep: bool,
    /// The gateway lets us read no data: what checksums do not tell is taken for different.
    blind: bool,
}

/// A piece of work for a thread.
enum Job {
    /// Chunks that follow each other, with their checksums.
    Sums(SectorRange, Vec<[u8; 16]>),
    /// Frames to fetch, with the runs to compare of each extent.
    Frames(Arc<Layer>, Vec<u32>),
    /// Sectors that should be zero.
    Zeroes(SectorRange),
}

impl<'a> Comparison<'a> {
    /// Compares with a point, from its segment number `seen` on (newest first; 0 for all). The
    /// indexes of those before are read all the same: they say what is not needed of older ones.
    ///
    /// # Errors
    /// If the vault cannot be read or is damaged.
    pub fn new(
        vault: &'a Vault,
        point: &'a Manifest,
        seen: usize,
        deep: bool,
    ) -> Result<Self, VaultError> {
        let blind = vault.role()? == Some(Role::Source);
        if blind && deep {
            let reason = "a source may not read data back through a gateway: compare with the \
                          checksums (without --deep), or from a host with a recovery certificate";
            return Err(VaultError::Url { url: vault.url().into(), reason: reason.into() });
        }
        let mut layers = Layers::new(vault, point);
        while layers.seen() < seen && layers.next()?.is_some() {}
        Ok(Self { vault, layers, within: None, deep, blind })
    }

    /// Compares only these sectors: what lies outside of them is known not to differ.
    #[must_use]
    pub fn within(self, sectors: SectorSet) -> Self {
        Self { within: Some(sectors), ..self }
    }

    /// Segments compared so far.
    #[must_use]
    pub fn seen(&self) -> usize {
        self.layers.seen()
    }

    /// Compares until at least `sectors` were compared or all is done; whether there is more.
    ///
    /// # Errors
    /// The vault's, the disk's, or what [`Disk::differs`] returned.
    pub fn step<E>(&mut self, disk: &dyn Disk<E>, threads: usize, sectors: u64) -> Result<bool, E>
    where
        E: From<VaultError> + Send,
    {
        let shared = Shared {
            vault: self.vault,
            disk,
            blind: self.blind,
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        };
        let (jobs, queue) = bounded::<Job>(threads * JOBS_AHEAD);
        let more = thread::scope(|scope| {
            for _ in 0..threads.max(1) {
                let (queue, shared) = (queue.clone(), &shared);
                scope.spawn(move || shared.work(&queue));
            }
            drop(queue);
            let mut done = 0;
            while done < sectors && !shared.failed.load(Ordering::Acquire) {
                match self.layers.next() {
                    Ok(Some((_, layer))) => {
                        let layer = match &self.within {
                            Some(sectors) => layer.within(sectors),
                            None => layer,
                        };
                        match send_jobs(layer, self.deep, disk, &jobs) {
                            Ok(sectors) => done += sectors,
                            Err(e) => {
                                shared.fail(e);
                                return false;
                            }
                        }
                    }
                    Ok(None) => return false,
                    Err(e) => {
                        shared.fail(e.into());
                        return false;
                    }
                }
            }
            drop(jobs);
            true
        });
        match shared.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(more),
        }
    }

    /// Checks, after the last step, that the point was a whole disk.
    ///
    /// # Errors
    /// If it was not.
    pub fn finish(self) -> Result<(), VaultError> {
        self.layers.finish()
    }
}

/// Cuts a layer into jobs; how many sectors it has.
fn send_jobs<E>(
    layer: Layer,
    deep: bool,
    disk: &dyn Disk<E>,
    jobs: &Sender<Job>,
) -> Result<u64, E> {
    let mut needed: Vec<SectorRange> =
        layer.needed.iter().flat_map(|(_, runs)| runs.iter().copied()).collect();
    let sectors = needed.iter().map(|run| run.sectors()).sum();
    needed.sort_unstable_by_key(|run| run.start);
    join(&mut needed);
    let by_sum = if deep { vec![] } else { whole_chunks(&layer, &needed) };
    for group in by_sum.chunk_by(|(a, _), (b, _)| a.end == b.start) {
        let most = (JOB_SECTORS_MAX >> layer.index.chunk_shift).max(1) as usize;
        for part in group.chunks(most) {
            let range = SectorRange { start: part[0].0.start, end: part[part.len() - 1].0.end };
            disk.will_read(range);
            // Nobody takes jobs any more if the threads are gone; then an error is noted.
            let _ = jobs.send(Job::Sums(range, part.iter().map(|(_, sum)| *sum).collect()));
        }
    }
    let mut summed: Vec<SectorRange> = by_sum.iter().map(|(range, _)| *range).collect();
    join(&mut summed);
    let mut rest = Layer { needed: vec![], of_frame: Default::default(), ..layer };
    for (number, runs) in layer.needed {
        let left: Vec<SectorRange> = runs.iter().flat_map(|run| without(*run, &summed)).collect();
        match rest.index.extents[number].place {
            _ if left.is_empty() => {}
            Some(place) => {
                rest.of_frame.entry(place.frame).or_default().push(rest.needed.len());
                rest.needed.push((number, left));
            }
            None => {
                for run in left {
                    let data = disk.data_within(run);
                    let held: u64 = data.iter().map(|run| run.sectors()).sum();
                    disk.compared(run.sectors() - held)?;
                    for piece in data.iter().flat_map(|run| run.split_at_multiples(JOB_SECTORS_MAX))
                    {
                        disk.will_read(piece);
                        let _ = jobs.send(Job::Zeroes(piece));
                    }
                }
            }
        }
    }
    let mut frames: Vec<u32> = rest.of_frame.keys().copied().collect();
    frames.sort_unstable();
    let rest = Arc::new(rest);
    for group in requests(&rest.index, &frames, BULK_GAP_BYTES_MAX) {
        let _ = jobs.send(Job::Frames(Arc::clone(&rest), frames[group].to_vec()));
    }
    Ok(sectors)
}

/// The chunks of a layer whose checksums say all: none of their sectors is hidden by a later
/// segment.
fn whole_chunks(layer: &Layer, needed: &[SectorRange]) -> Vec<(SectorRange, [u8; 16])> {
    let mut chunks: Vec<_> = layer
        .index
        .sums
        .iter()
        .map(|sum| (layer.index.chunk(sum), sum.sum))
        .filter(|(chunk, _)| {
            let after = needed.partition_point(|run| run.end < chunk.end);
            needed.get(after).is_some_and(|run| run.start <= chunk.start)
        })
        .collect();
    chunks.sort_unstable_by_key(|(chunk, _)| chunk.start);
    chunks.dedup_by_key(|(chunk, _)| chunk.start);
    chunks
}

/// Joins runs that touch; they must be sorted.
fn join(runs: &mut Vec<SectorRange>) {
    runs.dedup_by(|next, run| {
        let touches = next.start <= run.end;
        if touches {
            run.end = run.end.max(next.end);
        }
        touches
    });
}

/// What is left of a run without others, which are sorted and do not touch.
fn without(run: SectorRange, others: &[SectorRange]) -> Vec<SectorRange> {
    let (mut left, mut at) = (vec![], run.start);
    let first = others.partition_point(|other| other.end <= run.start);
    for other in others[first..].iter().take_while(|other| other.start < run.end) {
        if other.start > at {
            left.push(SectorRange { start: at, end: other.start });
        }
        at = at.max(other.end);
    }
    if at < run.end {
        left.push(SectorRange { start: at, end: run.end });
    }
    left
}

/// What the threads share.
struct Shared<'a, E> {
    vault: &'a Vault,
    disk: &'a dyn Disk<E>,
    blind: bool,
    failed: AtomicBool,
    error: Mutex<Option<E>>,
}

impl<E: From<VaultError> + Send> Shared<'_, E> {
    fn work(&self, queue: &Receiver<Job>) {
        let mut decompressor = match Decompressor::new() {
            Ok(decompressor) => decompressor,
            Err(e) => return self.fail(e.into()),
        };
        let mut buffer = vec![];
        for job in queue {
            if self.failed.load(Ordering::Relaxed) {
                // Empties the queue, so that the planner is not stuck on it.
                continue;
            }
            let done = match &job {
                Job::Sums(range, sums) => self.compare_sums(*range, sums, &mut buffer),
                Job::Zeroes(range) => self.compare_zeroes(*range, &mut buffer),
                Job::Frames(layer, frames) if self.blind => {
                    self.take_for_different(layer, frames, &mut buffer)
                }
                Job::Frames(layer, frames) => {
                    self.compare_frames(layer, frames, &mut decompressor, &mut buffer)
                }
            };
            if let Err(e) = done {
                self.fail(e);
            }
        }
    }

    fn read<'b>(&self, range: SectorRange, buffer: &'b mut Vec<u8>) -> Result<&'b [u8], E> {
        buffer.resize(range.bytes().0 as usize, 0);
        self.disk.read(range, buffer).map_err(|source| {
            E::from(VaultError::Target { what: format!("reading {range} of the disk"), source })
        })?;
        Ok(buffer)
    }

    fn compare_sums(
        &self,
        range: SectorRange,
        sums: &[[u8; 16]],
        buffer: &mut Vec<u8>,
    ) -> Result<(), E> {
        let bytes = self.read(range, buffer)?;
        let chunk = range.sectors() / sums.len() as u64;
        let differ = |at: u64, part: &[u8]| chunk_sum(part) != sums[(at / chunk) as usize];
        self.report(range, bytes, chunk, differ)
    }

    fn compare_zeroes(&self, range: SectorRange, buffer: &mut Vec<u8>) -> Result<(), E> {
        let bytes = self.read(range, buffer)?;
        self.report(range, bytes, BLOCK_SECTORS, |_, part| !is_zero(part))
    }

    fn take_for_different(
        &self,
        layer: &Layer,
        frames: &[u32],
        buffer: &mut Vec<u8>,
    ) -> Result<(), E> {
        for at in frames.iter().filter_map(|frame| layer.of_frame.get(frame)).flatten() {
            for run in &layer.needed[*at].1 {
                let bytes = self.read(*run, buffer)?;
                self.report(*run, bytes, FRAME_SECTORS_MAX, |_, _| true)?;
            }
        }
        Ok(())
    }

    /// The same of frames that the vault has lost.
    fn take_for_lost(
        &self,
        why: &VaultError,
        layer: &Layer,
        frames: &[u32],
        buffer: &mut Vec<u8>,
    ) -> Result<(), E> {
        tracing::warn!("{why}: it is shipped again");
        self.take_for_different(layer, frames, buffer)
    }

    fn compare_frames(
        &self,
        layer: &Layer,
        frames: &[u32],
        decompressor: &mut Decompressor,
        buffer: &mut Vec<u8>,
    ) -> Result<(), E> {
        // What is damaged in the vault differs from the disk: it is shipped again, over it.
        let fetched = match fetch(self.vault, &layer.key, &layer.index, frames) {
            Err(e) if e.is_loss() => return self.take_for_lost(&e, layer, frames, buffer),
            fetched => fetched?,
        };
        for (frame, stored) in fetched {
            let opened =
                decompressor.open(&layer.key, &layer.index.frames[frame as usize], &stored);
            let raw = match opened {
                Err(e) if e.is_loss() => {
                    self.take_for_lost(&e, layer, &[frame], buffer)?;
                    continue;
                }
                raw => raw?,
            };
            for &at in layer.of_frame.get(&frame).into_iter().flatten() {
                let (number, runs) = &layer.needed[at];
                let extent = &layer.index.extents[*number];
                let Some(place) = &extent.place else { continue };
                let held = match check(&layer.key, extent, place, raw) {
                    Err(e) if e.is_loss() => {
                        tracing::warn!("{e}: it is shipped again");
                        for run in runs {
                            let bytes = self.read(*run, buffer)?;
                            self.report(*run, bytes, FRAME_SECTORS_MAX, |_, _| true)?;
                        }
                        continue;
                    }
                    held => held?,
                };
                for run in runs {
                    let from = ((run.start.0 - extent.range.start.0) * SECTOR_BYTES) as usize;
                    let held = &held[from..from + run.bytes().0 as usize];
                    let bytes = self.read(*run, buffer)?;
                    self.report(*run, bytes, BLOCK_SECTORS, |at, part| {
                        let at = (at * SECTOR_BYTES) as usize;
                        part != &held[at..at + part.len()]
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Asks for each piece of a range whether it differs (by its first sector, counted from the
    /// range's start) and reports those that do, joined up to a frame. Pieces end at multiples of
    /// their size on the disk, so that a difference reports no more than the piece it is in.
    fn report(
        &self,
        range: SectorRange,
        bytes: &[u8],
        piece: u64,
        differ: impl Fn(u64, &[u8]) -> bool,
    ) -> Result<(), E> {
        let byte = |sector: u64| ((sector - range.start.0) * SECTOR_BYTES) as usize;
        let mut open: Option<SectorRange> = None;
        let mut at = range.start.0;
        while at < range.end.0 {
            let part = SectorRange::new(at, ((at / piece + 1) * piece).min(range.end.0));
            at = part.end.0;
            let differs =
                differ(part.start.0 - range.start.0, &bytes[byte(part.start.0)..byte(at)]);
            let joined =
                open.filter(|run| differs && run.sectors() + part.sectors() <= FRAME_SECTORS_MAX);
            if let (Some(run), None) = (open, joined) {
                self.disk.differs(run, &bytes[byte(run.start.0)..byte(run.end.0)])?;
            }
            open = differs.then(|| SectorRange { start: joined.unwrap_or(part).start, ..part });
        }
        if let Some(run) = open {
            self.disk.differs(run, &bytes[byte(run.start.0)..byte(run.end.0)])?;
        }
        self.disk.compared(range.sectors())
    }

    fn fail(&self, error: E) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        // After the error, so that who sees this one finds that one.
        self.failed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_without_others() {
        let run = SectorRange::new;
        let others = [run(0, 4), run(8, 12), run(20, 30)];
        assert_eq!(without(run(2, 25), &others), [run(4, 8), run(12, 20)]);
        assert_eq!(without(run(4, 8), &others), [run(4, 8)]);
        assert_eq!(without(run(9, 10), &others), []);
        let mut runs = vec![run(0, 4), run(4, 6), run(5, 7), run(9, 10)];
        join(&mut runs);
        assert_eq!(runs, [run(0, 7), run(9, 10)]);
    }
}

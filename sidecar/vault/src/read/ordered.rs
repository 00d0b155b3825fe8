//! A point from its first byte to its last, for pipes: bounded memory, several threads, every block
//! checked before it is handed on (I6).
//!
//! First a map of the disk is made: which segment holds which run, the newest that has it. If it
//! gets too large the rest of the disk is left for a second round, so memory does not depend on the
//! disk. Then windows of the disk are read by several threads and handed on in their order.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::thread;

use backstay_types::{ByteLen, SECTOR_BYTES, SectorRange};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::Progress;
use super::cache::Recent;
use super::frames::{BULK_GAP_BYTES_MAX, Decompressor, check, fetch, requests};
use super::read_index;
use crate::error::VaultError;
use crate::format::key::ObjectKey;
use crate::format::manifest::Manifest;
use crate::format::segment::{Extent, Index};
use crate::sectors::NewestWins;
use crate::store::Vault;

/// Runs in the map: 64 MiB of it.
const MAP_RUNS_MAX: usize = 1 << 20;
/// Sectors a thread reads at a time (4 MiB).
const WINDOW_SECTORS: u64 = 8192;
/// Bytes of indexes that are kept.
const INDEXES_MAX: usize = 128 << 20;
/// Bytes of decompressed frames that are kept: a frame of scattered runs is wanted many times.
const FRAMES_MAX: usize = 32 << 20;
/// In place of a segment's number in the map: zeroes.
const ZERO: u32 = u32::MAX;

/// Takes a disk's bytes from the first to the last.
pub trait InOrder {
    /// Takes bytes whose checksum matched.
    ///
    /// # Errors
    /// What the system answered.
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Takes as many zeroes.
    ///
    /// # Errors
    /// What the system answered.
    fn zero(&mut self, len: ByteLen) -> io::Result<()>;
    /// What it is, for messages.
    fn name(&self) -> String;
}

/// Hands on a recovery point in order.
///
/// # Errors
/// If the vault cannot be read or is damaged, or the taker fails; what was handed on until then is
/// right but not all.
pub fn in_order(
    vault: &Vault,
    point: &Manifest,
    out: &mut dyn InOrder,
    threads: usize,
    progress: Progress<'_>,
) -> Result<(), VaultError> {
    in_rounds(vault, point, out, threads, progress, MAP_RUNS_MAX)
}

/// The same with another limit of the map, for tests.
#[doc(hidden)]
pub fn in_rounds(
    vault: &Vault,
    point: &Manifest,
    out: &mut dyn InOrder,
    threads: usize,
    progress: Progress<'_>,
    runs_max: usize,
) -> Result<(), VaultError> {
    let source =
        Source { vault, point, indexes: Recent::new(INDEXES_MAX), frames: Recent::new(FRAMES_MAX) };
    let whole = SectorRange::whole(point.size);
    let mut spans: Vec<_> = point.segments.iter().map(|segment| segment.bounds.span()).collect();
    let mut from = 0;
    while from < whole.end.0 {
        let map = source.map(from, whole.end.0, &mut spans, runs_max)?;
        from = map.newest.part().end.0;
        source.hand_on(&map, out, threads.max(1), progress)?;
    }
    Ok(())
}

/// Which segment holds what, of a part of the disk.
struct Map {
    newest: NewestWins,
    /// First sector → sector after the last, segment.
    runs: BTreeMap<u64, (u64, u32)>,
    runs_max: usize,
}

impl Map {
    fn new(part: SectorRange, runs_max: usize) -> Self {
        Self { newest: NewestWins::within(part), runs: BTreeMap::new(), runs_max }
    }

    /// Where nothing newer is, this is it. What is too much for the map is left out at its end.
    fn lay_under(&mut self, range: SectorRange, segment: u32) {
        for run in self.newest.show(range) {
            self.insert(run.start.0, run.end.0, segment);
        }
        while self.runs.len() > self.runs_max {
            if let Some((start, _)) = self.runs.pop_last() {
                self.newest.end_at(start);
            }
        }
    }

    fn insert(&mut self, start: u64, end: u64, segment: u32) {
        if let Some((_, (before, of))) = self.runs.range_mut(..start).next_back()
            && (*before, *of) == (start, segment)
        {
            *before = end;
            return;
        }
        self.runs.insert(start, (end, segment));
    }
}

/// What is handed on next.
enum Next {
    Zero(SectorRange),
    Data(SectorRange, Receiver<Result<Vec<u8>, VaultError>>),
}

/// A window, the runs in it, and whom its bytes go to.
struct Job {
    window: SectorRange,
    runs: Vec<(SectorRange, u32)>,
    done: Sender<Result<Vec<u8>, VaultError>>,
}

/// A run of a frame that is wanted: from the frame, to the window.
type Piece = (Extent, SectorRange);

struct Source<'a> {
    vault: &'a Vault,
    point: &'a Manifest,
    /// Extents sorted by their start.
    indexes: Recent<u32, Index>,
    frames: Recent<(u32, u32), Vec<u8>>,
}

impl Source<'_> {
    fn key(&self, segment: u32) -> ObjectKey {
        self.point.segments[segment as usize].id(self.point.disk).key()
    }

    fn index(&self, segment: u32) -> Result<std::sync::Arc<Index>, VaultError> {
        if let Some(index) = self.indexes.get(&segment) {
            return Ok(index);
        }
        let entry = &self.point.segments[segment as usize];
        let mut index = read_index(self.vault, self.point.disk, self.point.size, entry)?;
        index.sums = vec![];
        index.extents.sort_unstable_by_key(|extent| extent.range.start);
        let bytes = size_of_val(&*index.extents) + size_of_val(&*index.frames);
        Ok(self.indexes.put(segment, index, bytes))
    }

    fn map(
        &self,
        from: u64,
        to: u64,
        spans: &mut [Option<SectorRange>],
        runs_max: usize,
    ) -> Result<Map, VaultError> {
        let mut map = Map::new(SectorRange::new(from, to), runs_max);
        for (number, span) in spans.iter_mut().enumerate().rev() {
            if span.is_some_and(|span| span.intersect(map.newest.part()).is_empty()) {
                continue;
            }
            let index = self.index(number as u32)?;
            *span = index.span();
            for extent in &index.extents {
                let segment = if extent.place.is_some() { number as u32 } else { ZERO };
                map.lay_under(extent.range, segment);
            }
        }
        match map.newest.holes().first() {
            None => Ok(map),
            Some(hole) => Err(VaultError::Inconsistent {
                object: format!("recovery point {} of disk {}", self.point.cycle, self.point.disk),
                reason: format!("none of its segments holds {hole}"),
            }),
        }
    }

    fn hand_on(
        &self,
        map: &Map,
        out: &mut dyn InOrder,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<(), VaultError> {
        let (jobs, queue) = bounded::<Job>(threads);
        let (order, ordered) = bounded::<Next>(threads * 2);
        thread::scope(|scope| {
            for _ in 0..threads {
                let queue = queue.clone();
                scope.spawn(move || self.work(&queue));
            }
            drop(queue);
            scope.spawn(move || plan(map, &jobs, &order));
            for next in ordered {
                let range = match &next {
                    Next::Zero(range) | Next::Data(range, _) => *range,
                };
                let len = self.bytes_on_disk(range);
                let taken = match next {
                    Next::Zero(_) => out.zero(len),
                    Next::Data(_, bytes) => {
                        let bytes = bytes.recv().unwrap_or_else(|_| {
                            let source = io::Error::other("a reading thread is gone");
                            Err(VaultError::Target { what: format!("reading {range}"), source })
                        })?;
                        out.data(&bytes[..len.0 as usize])
                    }
                };
                // Anyone who leaves here drops the channel; planner and threads end by that.
                taken.map_err(|source| VaultError::Target {
                    what: format!("writing {range} to {}", out.name()),
                    source,
                })?;
                progress((range.end.0 * SECTOR_BYTES).min(self.point.size.0), self.point.size.0);
            }
            Ok(())
        })
    }

    fn bytes_on_disk(&self, range: SectorRange) -> ByteLen {
        ByteLen(range.bytes().0.min(self.point.size.0 - range.start.byte_offset().0))
    }

    fn work(&self, queue: &Receiver<Job>) {
        let mut decompressor = Decompressor::new();
        for job in queue {
            let bytes = match &mut decompressor {
                Ok(decompressor) => self.read(&job, decompressor),
                Err(e) => Err(VaultError::Target {
                    what: "starting zstd".into(),
                    source: io::Error::other(e.to_string()),
                }),
            };
            // Nobody takes it any more if something failed before.
            let _ = job.done.send(bytes);
        }
    }

    /// The bytes of a window.
    fn read(&self, job: &Job, decompressor: &mut Decompressor) -> Result<Vec<u8>, VaultError> {
        let mut bytes = vec![0; job.window.bytes().0 as usize];
        let mut of_segment: BTreeMap<u32, Vec<SectorRange>> = BTreeMap::new();
        for &(run, segment) in job.runs.iter().filter(|(_, segment)| *segment != ZERO) {
            of_segment.entry(segment).or_default().push(run);
        }
        for (segment, runs) in of_segment {
            let index = self.index(segment)?;
            let mut of_frame: BTreeMap<u32, Vec<Piece>> = BTreeMap::new();
            for run in runs {
                let first = index.extents.partition_point(|extent| extent.range.end <= run.start);
                for extent in index.extents[first..].iter() {
                    let part = extent.range.intersect(run);
                    if part.is_empty() {
                        break;
                    }
                    if let Some(place) = extent.place {
                        of_frame.entry(place.frame).or_default().push((*extent, part));
                    }
                }
            }
            self.copy(segment, &index, &of_frame, decompressor, job.window, &mut bytes)?;
        }
        Ok(bytes)
    }

    fn copy(
        &self,
        segment: u32,
        index: &Index,
        of_frame: &BTreeMap<u32, Vec<Piece>>,
        decompressor: &mut Decompressor,
        window: SectorRange,
        bytes: &mut [u8],
    ) -> Result<(), VaultError> {
        let key = self.key(segment);
        let put = |raw: &[u8], frame: u32, bytes: &mut [u8]| {
            for (extent, part) in of_frame.get(&frame).into_iter().flatten() {
                let Some(place) = &extent.place else { continue };
                let held = check(&key, extent, place, raw)?;
                let range = |from: SectorRange| -> Range<usize> {
                    let at = ((part.start.0 - from.start.0) * SECTOR_BYTES) as usize;
                    at..at + part.bytes().0 as usize
                };
                bytes[range(window)].copy_from_slice(&held[range(extent.range)]);
            }
            Ok::<(), VaultError>(())
        };
        let mut missing = vec![];
        for &frame in of_frame.keys() {
            match self.frames.get(&(segment, frame)) {
                Some(raw) => put(&raw, frame, bytes)?,
                None => missing.push(frame),
            }
        }
        for group in requests(index, &missing, BULK_GAP_BYTES_MAX) {
            for (frame, stored) in fetch(self.vault, &key, index, &missing[group])? {
                let raw = decompressor.open(&key, &index.frames[frame as usize], &stored)?;
                put(raw, frame, bytes)?;
                self.frames.put((segment, frame), raw.to_vec(), raw.len());
            }
        }
        Ok(())
    }
}

/// Cuts a map into windows: long runs of zeroes as they are, everything else 4 MiB at a time.
fn plan(map: &Map, jobs: &Sender<Job>, order: &Sender<Next>) {
    let mut open: Option<(SectorRange, Vec<(SectorRange, u32)>)> = None;
    let send = |open: &mut Option<(SectorRange, Vec<(SectorRange, u32)>)>| {
        let Some((window, runs)) = open.take() else { return true };
        let (done, bytes) = bounded(1);
        order.send(Next::Data(window, bytes)).is_ok()
            && jobs.send(Job { window, runs, done }).is_ok()
    };
    for (&start, &(end, segment)) in &map.runs {
        let run = SectorRange::new(start, end);
        if segment == ZERO && run.sectors() >= WINDOW_SECTORS {
            if !send(&mut open) || order.send(Next::Zero(run)).is_err() {
                return;
            }
            continue;
        }
        for piece in run.split_at_multiples(WINDOW_SECTORS) {
            let same = open.as_ref().is_some_and(|(window, _)| {
                window.start.0 / WINDOW_SECTORS == piece.start.0 / WINDOW_SECTORS
            });
            if !same && !send(&mut open) {
                return;
            }
            match &mut open {
                Some((window, runs)) => {
                    window.end = piece.end;
                    runs.push((piece, segment));
                }
                None => open = Some((piece, vec![(piece, segment)])),
            }
        }
    }
    send(&mut open);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Layers laid under each other, newest first, against an array of sectors.
        #[test]
        fn the_map_is_what_layers_are(
            layers in prop::collection::vec(prop::collection::vec((0u64..200, 1u64..40), 1..6), 1..6),
            runs_max in 1usize..40,
        ) {
            let mut map = Map::new(SectorRange::new(20, 180), runs_max);
            let mut sectors = [None; 240];
            for (segment, layer) in layers.iter().enumerate() {
                for &(start, len) in layer {
                    map.lay_under(SectorRange::new(start, start + len), segment as u32);
                    for sector in &mut sectors[start as usize..(start + len) as usize] {
                        sector.get_or_insert(segment as u32);
                    }
                }
            }
            prop_assert!(map.runs.len() <= runs_max && (20..=180).contains(&map.newest.part().end.0));
            let mut found = [None; 240];
            for (&start, &(end, segment)) in &map.runs {
                for sector in &mut found[start as usize..end as usize] {
                    prop_assert!(sector.replace(segment).is_none());
                }
            }
            let (from, to) = (20, map.newest.part().end.0 as usize);
            prop_assert_eq!(&found[from..to], &sectors[from..to]);
            prop_assert!(found[..from].iter().chain(&found[to..]).all(Option::is_none));
        }
    }
}

//! Merging segments: many that follow each other in the newest point's list become few that mean the
//! same.
//!
//! The new segments are put first, read back and counted, and then named in the ledger; the next
//! delta has them in its list. Points that exist keep theirs. Everything is checked on the way (I6):
//! stored bytes, then each run of sectors after decompression.
//!
//! The disk is gone through in windows, the newest segment first, so memory depends on the window and
//! not on the disk.

use std::collections::BTreeMap;

use backstay_types::{ByteLen, CycleNo, DiskId, PointId, SECTOR_BYTES, SectorRange};

use super::ledger::{Advanced, blank};
use super::tiers::{Due, Run, due, runs};
use super::{Job, ROUNDS_MAX};
use crate::error::VaultError;
use crate::format::ledger::{Ledger, Merge};
use crate::format::manifest::{Manifest, SegmentRef};
use crate::format::segment::{FRAME_BYTES_MAX, Index};
use crate::frame::{Chunk, Compressor, SegmentBuilder};
use crate::read::frames::{BULK_GAP_BYTES_MAX, Decompressor, check, fetch, requests};
use crate::read::read_index;
use crate::sectors::NewestWins;
use crate::store::Vault;

/// Sectors of the disk gone through at a time: 64 GiB, whose set has 16 MiB at most.
const WINDOW_SECTORS: u64 = 64 << 21;
/// Extents after which a segment is ended whatever its size, so that its index stays small.
const EXTENTS_MAX: usize = 1 << 20;

/// What was merged.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Merged {
    /// Entries in the newest point's list.
    pub entries: u64,
    /// Those that were replaced.
    pub replaced: u64,
    /// Bytes of their objects.
    pub replaced_bytes: u64,
    /// Segments that stand for them.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// The newest point's list as the next delta will inherit it, and what of it is due.
struct Plan {
    base: Ledger,
    newest: Manifest,
    list: Vec<SegmentRef>,
    /// Merges of the ledger that the next delta will apply.
    fit: Vec<bool>,
    /// The first entry to merge; all after it go with it.
    from: Option<usize>,
}

fn plan(job: &Job<'_>) -> Result<Option<Plan>, VaultError> {
    let base = job.vault.ledger(job.disk)?.unwrap_or_else(|| blank(job.disk));
    let Some(&newest) = job.vault.point_objects(job.disk)?.last() else { return Ok(None) };
    let newest = job.vault.manifest(job.disk, newest)?;
    let (list, fit) = base.merged(&newest.segments);
    let runs = runs(&list);
    let whole = SectorRange::whole(newest.size);
    let from = match due(&runs, whole.sectors()) {
        Due::Nothing => None,
        Due::From(run) => Some(run),
        Due::FromOrAll(run) => {
            let from = runs.get(run).map_or(list.len(), |run| run.entries.start);
            Some(if much_is_dead(job, &newest, &list, from)? { 0 } else { run })
        }
    };
    let from = from.and_then(|run| runs.get(run)).map(|run: &Run| run.entries.start);
    Ok(Some(Plan { base, newest, list, fit, from }))
}

/// Whether the entries before `from`, which would not be merged, hold more than half as many sectors of
/// data that are dead as are alive in all.
fn much_is_dead(
    job: &Job<'_>,
    newest: &Manifest,
    list: &[SegmentRef],
    from: usize,
) -> Result<bool, VaultError> {
    let (mut dead, mut alive) = (0u64, 0u64);
    let mut walk = Walk::new(job, newest.size, list);
    for window in SectorRange::whole(newest.size).split_at_multiples(WINDOW_SECTORS) {
        walk.window(window, |at, index, needed| {
            let data = |number: &usize| index.extents[*number].place.is_some();
            for (number, runs) in needed.iter().filter(|(number, _)| data(number)) {
                let there = index.extents[*number].range.intersect(window).sectors();
                let shown: u64 = runs.iter().map(|run| run.sectors()).sum();
                alive += shown;
                dead += if at < from { there - shown } else { 0 };
            }
            Ok(())
        })?;
    }
    Ok(dead > alive / 2)
}

pub(super) fn compact(job: &Job<'_>) -> Result<Merged, VaultError> {
    for _ in 0..ROUNDS_MAX {
        job.go_on()?;
        let Some(Plan { base, newest, list, fit, from }) = plan(job)? else {
            return Ok(Merged::default());
        };
        let mut done = Merged { entries: list.len() as u64, ..Merged::default() };
        let Some(old) = from.map(|from| &list[from..]) else { return Ok(done) };
        let mut output = Output::new(job, old);
        let merged = merge(job, newest.size, old, &mut output);
        let counted = merged.and_then(|sectors| output.counted(newest.size, sectors));
        if let Err(e) = counted {
            output.forget();
            return Err(match e {
                VaultError::Full { .. } => VaultError::NoRoomToMerge {
                    url: job.vault.url().into(),
                    bytes: ByteLen(old.iter().map(|entry| entry.object.0).sum()),
                    free: job.vault.free(),
                    points: 0,
                    freed: ByteLen(0),
                },
                e => e,
            });
        }
        let merge = Merge::of(old, output.put.clone()).filter(|merge| !merge.segments.is_empty());
        let Some(merge) = merge else { return Ok(done) };
        (done.replaced, done.segments) = (old.len() as u64, merge.segments.len() as u64);
        done.replaced_bytes = old.iter().map(|entry| entry.object.0).sum();
        done.bytes = merge.segments.iter().map(|segment| segment.object.0).sum();
        // What does not fit any more is left out: the points that could have had it have it.
        let still = base.merges.iter().zip(fit).filter(|(_, fit)| *fit).map(|(merge, _)| merge);
        let merges = still.cloned().chain([merge]).collect();
        match job.vault.advance(Ledger { merges, ..base })? {
            Advanced::Holds => return Ok(done),
            Advanced::Lost => output.forget(),
            // Somebody may have built on it: the new segments stay; collecting knows.
            Advanced::Overtaken => {}
        }
    }
    Err(VaultError::Contended { disk: job.disk })
}

pub(super) fn preview(job: &Job<'_>) -> Result<Merged, VaultError> {
    let Some(Plan { list, from, .. }) = plan(job)? else { return Ok(Merged::default()) };
    let old = from.map_or(&[][..], |from| &list[from..]);
    Ok(Merged {
        entries: list.len() as u64,
        replaced: old.len() as u64,
        replaced_bytes: old.iter().map(|entry| entry.object.0).sum(),
        ..Merged::default()
    })
}

/// Puts the newest version of each sector of these entries; how many sectors those are.
fn merge(
    job: &Job<'_>,
    size: ByteLen,
    old: &[SegmentRef],
    output: &mut Output<'_>,
) -> Result<u64, VaultError> {
    let mut decompressor = Decompressor::new()?;
    let mut walk = Walk::new(job, size, old);
    for window in SectorRange::whole(size).split_at_multiples(WINDOW_SECTORS) {
        walk.window(window, |at, index, needed| {
            let key = old[at].id(job.disk).key();
            let mut of_frame: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (at, (number, runs)) in needed.iter().enumerate() {
                match index.extents[*number].place {
                    Some(place) => of_frame.entry(place.frame).or_default().push(at),
                    None => runs.iter().try_for_each(|&run| output.zero(run))?,
                }
            }
            let frames: Vec<u32> = of_frame.keys().copied().collect();
            for group in requests(index, &frames, BULK_GAP_BYTES_MAX) {
                job.go_on()?;
                for (frame, stored) in fetch(job.vault, &key, index, &frames[group])? {
                    let raw = decompressor.open(&key, &index.frames[frame as usize], &stored)?;
                    for (number, runs) in of_frame[&frame].iter().map(|&at| &needed[at]) {
                        let extent = &index.extents[*number];
                        let Some(place) = &extent.place else { continue };
                        let bytes = check(&key, extent, place, raw)?;
                        for &run in runs {
                            let from = (run.start.0 - extent.range.start.0) * SECTOR_BYTES;
                            let to = from + run.bytes().0;
                            output.data(run, &bytes[from as usize..to as usize])?;
                        }
                    }
                }
            }
            Ok(())
        })?;
    }
    output.end()?;
    Ok(walk.sectors)
}

/// Goes through entries, the newest first, window by window.
struct Walk<'a> {
    job: &'a Job<'a>,
    size: ByteLen,
    entries: &'a [SegmentRef],
    /// From which sector to which each entry reaches: by its bounds, exactly once it was read.
    spans: Vec<Option<SectorRange>>,
    /// Sectors found so far.
    sectors: u64,
}

/// Runs needed, by the number of their extent.
type Needed = Vec<(usize, Vec<SectorRange>)>;

impl<'a> Walk<'a> {
    fn new(job: &'a Job<'a>, size: ByteLen, entries: &'a [SegmentRef]) -> Self {
        let spans = entries.iter().map(|entry| entry.bounds.span()).collect();
        Self { job, size, entries, spans, sectors: 0 }
    }

    /// Calls for each entry, by its number, with every extent that reaches into the window, and which of its
    /// sectors no newer entry holds.
    fn window(
        &mut self,
        window: SectorRange,
        mut each: impl FnMut(usize, &Index, Needed) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut newest = NewestWins::within(window);
        for (at, (entry, span)) in self.entries.iter().zip(&mut self.spans).enumerate().rev() {
            if span.is_some_and(|span| span.intersect(window).is_empty()) {
                continue;
            }
            self.job.go_on()?;
            let index = read_index(self.job.vault, self.job.disk, self.size, entry)?;
            *span = index.span();
            let reach = index.extents.iter().map(|extent| extent.range).enumerate();
            let reach = reach.filter(|(_, range)| !range.intersect(window).is_empty());
            let needed = reach.map(|(number, range)| (number, newest.show(range))).collect();
            each(at, &index, needed)?;
        }
        self.sectors += newest.held().count();
        Ok(())
    }
}

/// Segments in the making.
struct Output<'a> {
    vault: &'a Vault,
    disk: DiskId,
    cycle: CycleNo,
    attempt: u64,
    segment_bytes: u64,
    level: i32,
    compressor: Option<Compressor>,
    chunk: Chunk,
    builder: SegmentBuilder,
    put: Vec<SegmentRef>,
}

impl<'a> Output<'a> {
    fn new(job: &Job<'a>, old: &[SegmentRef]) -> Self {
        // What is merged shows the disk of the last cycle in it, under a name nobody has.
        let cycle = old.last().map_or(CycleNo(1), |entry| entry.cycle);
        let random = PointId::random().to_bytes();
        let attempt = random[..8].iter().fold(0, |all, &byte| all << 8 | u64::from(byte));
        Self {
            vault: job.vault,
            disk: job.disk,
            cycle,
            attempt,
            segment_bytes: job.policy.segment_bytes,
            level: job.policy.zstd_level,
            compressor: None,
            chunk: Chunk::with_room(),
            builder: SegmentBuilder::new(job.disk, cycle, attempt, 0),
            put: vec![],
        }
    }

    fn compressor(&mut self) -> Result<&mut Compressor, VaultError> {
        if self.compressor.is_none() {
            self.compressor = Some(Compressor::new(self.level).map_err(zstd)?);
        }
        self.compressor.as_mut().ok_or_else(|| zstd(std::io::ErrorKind::Other.into()))
    }

    fn data(&mut self, run: SectorRange, bytes: &[u8]) -> Result<(), VaultError> {
        debug_assert!(bytes.len() <= FRAME_BYTES_MAX);
        if self.chunk.room() < bytes.len() {
            self.seal()?;
        }
        self.chunk.push(run, bytes);
        Ok(())
    }

    fn zero(&mut self, run: SectorRange) -> Result<(), VaultError> {
        self.builder.push_zero(run);
        self.end_if_full()
    }

    fn seal(&mut self) -> Result<(), VaultError> {
        let mut chunk = std::mem::take(&mut self.chunk);
        let frame = self.compressor()?.seal(&mut chunk).map_err(zstd)?;
        self.chunk = chunk;
        self.builder.push(frame);
        self.end_if_full()
    }

    fn end_if_full(&mut self) -> Result<(), VaultError> {
        let full = self.builder.stored_bytes() >= self.segment_bytes
            || self.builder.extents() >= EXTENTS_MAX;
        if full { self.put_segment() } else { Ok(()) }
    }

    fn put_segment(&mut self) -> Result<(), VaultError> {
        let number = self.put.len() as u32 + 1;
        let next = SegmentBuilder::new(self.disk, self.cycle, self.attempt, number);
        let full = std::mem::replace(&mut self.builder, next);
        let sealed = full.finish(self.compressor()?).map_err(zstd)?;
        self.put.push(self.vault.put_segment(sealed)?);
        Ok(())
    }

    fn end(&mut self) -> Result<(), VaultError> {
        self.seal()?;
        if self.builder.is_empty() { Ok(()) } else { self.put_segment() }
    }

    /// Reads back what the vault holds: as many sectors as went in, no more and no fewer.
    fn counted(&self, size: ByteLen, sectors: u64) -> Result<(), VaultError> {
        let mut there = 0;
        for segment in &self.put {
            let (data, zero) = read_index(self.vault, self.disk, size, segment)?.sectors();
            there += data + zero;
        }
        if there == sectors {
            return Ok(());
        }
        Err(VaultError::Inconsistent {
            object: format!("the merge of segments of disk {} at cycle {}", self.disk, self.cycle),
            reason: format!("{there} sectors came out of {sectors}; nothing was changed"),
        })
    }

    /// Deletes what was put, as far as that is possible: nothing names it.
    fn forget(&self) {
        for segment in &self.put {
            if let Err(e) = self.vault.delete(&segment.id(self.disk).key()) {
                tracing::debug!("{e}: collected by the next maintenance");
            }
        }
    }
}

fn zstd(source: std::io::Error) -> VaultError {
    VaultError::Target { what: "compressing merged segments".into(), source }
}

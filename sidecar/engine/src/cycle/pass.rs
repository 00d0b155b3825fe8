//! One pass over a closed epoch: from its dirty bitmap to segments.
//!
//! In a point-in-time pass the order is essential (I2): read the backing first, then check the preserved
//! bits. If a bit is set, the driver has preserved the old content and may have overwritten the sector. The
//! data just read is discarded, and the old content is read from the preserved log after the seal. If the
//! bit is clear, the data is the content of the cut, and the shipped bit is set.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use backstay_format::control::{CutMode, CutReply, Request, Response};
use backstay_front::control::ClientError;
use backstay_types::{ByteLen, DiskId, SectorRange};
use backstay_vault::format::segment::FRAME_SECTORS_MAX;
use backstay_vault::frame::Chunk;
use backstay_vault::{Pass, SectorSet, SegmentRef};

use super::lost::until_lost;
use super::{Run, Stage};
use crate::error::CycleError;
use crate::pipeline::{Beside, Feed, Shipment, ship_beside};
use crate::source::bits::SharedBitmap;
use crate::source::extents::{self, Run as DiskRun};
use crate::source::preserved::{LogError, for_each_record};
use crate::source::reader::{DEPTH, Reader, Wanted};

/// The disk being shipped.
pub(super) struct Source {
    pub file: File,
    pub disk: DiskId,
    pub size: ByteLen,
}

impl From<LogError> for CycleError {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Io(e) => Self::source("the preserved blocks")(e),
            LogError::Format(e) => Self::Preserved(e),
        }
    }
}

/// Which sectors a pass ships.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Every one.
    Whole,
    /// Those that the closed epoch's bitmap names.
    Dirty,
}

/// Bits that decide what of a point-in-time pass may be shipped from the backing.
pub(super) struct Shared {
    preserved: SharedBitmap,
    shipped: SharedBitmap,
}

impl<'a> Run<'a> {
    /// Ships a closed epoch.
    pub(super) fn pass(
        &mut self,
        cut: &CutReply,
        scope: Scope,
        stage: Stage,
    ) -> Result<Pass, CycleError> {
        let must_move = self.scope(cut, scope)?;
        let shared = self.shared(cut, SectorRange::whole(self.source.size))?;
        let mut work = self.work()?;
        let (to, driver) = (self.shipment(), &mut self.driver);
        let kept = self.kept.as_ref();
        let noting = |segment: &SegmentRef| kept.iter().for_each(|kept| kept.note(segment));
        let went = counted(self.job.progress, stage, must_move.count() * 512);
        // Nothing that is shipped for a point in time that is lost is of any use.
        let watch = shared.as_ref().map(|_| until_lost(self.job.socket, cut.epoch));
        let beside = Beside { put: &noting, went: &went, watch };
        let shipped = ship_beside(to, beside, |feed| {
            match (scope, &shared) {
                (Scope::Whole, None) => work.whole_disk(&self.source, feed)?,
                (Scope::Dirty, None) => work.dirty(&must_move, feed, None)?,
                // Only dirty sectors are preserved: the rest may be newer than the cut (I2).
                (Scope::Whole, Some(_)) => {
                    return Err(CycleError::Broken("a point in time of the whole disk"));
                }
                (Scope::Dirty, Some(shared)) => {
                    work.dirty(&must_move, feed, Some(shared))?;
                    let end = seal(driver, cut)?;
                    work.preserved(cut, &self.source, &must_move, end, feed)?;
                }
            }
            Ok(())
        });
        self.put.extend_from_slice(&shipped.segments);
        shipped.result?;
        Ok(Pass { must_move, segments: shipped.segments })
    }

    /// The sectors of a scope.
    pub(super) fn scope(&self, cut: &CutReply, scope: Scope) -> Result<SectorSet, CycleError> {
        let whole = SectorRange::whole(self.source.size);
        match scope {
            Scope::Whole => {
                let mut set = SectorSet::new();
                set.insert(whole);
                Ok(set)
            }
            Scope::Dirty => self.must_move(cut, whole),
        }
    }

    /// The reading end of a pass.
    pub(super) fn work(&self) -> Result<PassReader, CycleError> {
        let file = self.source.file.try_clone().map_err(CycleError::source("the backing"))?;
        let reader =
            Reader::new(file, self.source.size).map_err(CycleError::source("the backing"))?;
        Ok(PassReader { reader, arrived: SectorSet::new() })
    }

    /// Where the next segments go.
    pub(super) fn shipment(&self) -> Shipment<'a> {
        Shipment {
            vault: self.job.vault,
            disk: self.vault_disk,
            cycle: self.cycle,
            attempt: self.attempt,
            first_segment: self.put.len() as u32,
            ship: self.job.ship,
            throttle: self.job.throttle,
            stop: self.job.stop,
        }
    }

    /// The sectors that a closed epoch says must move.
    pub(super) fn must_move(
        &self,
        cut: &CutReply,
        whole: SectorRange,
    ) -> Result<SectorSet, CycleError> {
        let mut set = SectorSet::new();
        let dirty = self.bitmap(&cut.dirty, cut, whole)?;
        let touched = dirty.touched().map_err(CycleError::source("the dirty bitmap"))?;
        let last = whole.end.0;
        for word in touched.into_iter().flatten().take_while(|word| word * 64 < last) {
            let beyond = (word * 64 + 64).saturating_sub(last);
            set.insert_bits(word, dirty.load(word) & (u64::MAX >> beyond));
        }
        if set.count() == cut.dirty_sectors {
            return Ok(set);
        }
        // The driver counted while it set the bits: a difference means the bits were changed.
        Err(CycleError::Source {
            what: "the dirty bitmap".into(),
            source: std::io::Error::other(format!(
                "{} sectors are set, the driver counted {}",
                set.count(),
                cut.dirty_sectors
            )),
        })
    }

    fn bitmap(
        &self,
        path: &std::path::Path,
        cut: &CutReply,
        whole: SectorRange,
    ) -> Result<SharedBitmap, CycleError> {
        SharedBitmap::open(path, self.source.disk, cut.epoch, whole.sectors())
            .map_err(CycleError::source(path.display().to_string()))
    }

    fn shared(&self, cut: &CutReply, whole: SectorRange) -> Result<Option<Shared>, CycleError> {
        match (cut.mode, &cut.preserved, &cut.shipped) {
            (CutMode::Fuzzy, ..) => Ok(None),
            (CutMode::PointInTime, Some(preserved), Some(shipped)) => Ok(Some(Shared {
                preserved: self.bitmap(preserved, cut, whole)?,
                shipped: self.bitmap(shipped, cut, whole)?,
            })),
            _ => Err(ClientError::Confused.into()),
        }
    }
}

/// Tells how far a stage over so many bytes is, from its beginning on. What counts is what has gone to the vault: how long the
/// rest takes follows from that, and not from what was read ahead.
pub(super) fn counted<'a>(
    progress: &'a (dyn Fn(Stage, u64, u64) + Sync),
    stage: Stage,
    all: u64,
) -> impl Fn(u64) + Sync + 'a {
    let done = AtomicU64::new(0);
    progress(stage, 0, all);
    move |bytes| progress(stage, done.fetch_add(bytes, Ordering::Relaxed) + bytes, all)
}

/// Ends copy-before-write; where the preserved log ends.
fn seal(
    driver: &mut backstay_front::control::ControlClient,
    cut: &CutReply,
) -> Result<backstay_types::ByteOffset, CycleError> {
    match driver.ask(&Request::Seal { epoch: cut.epoch })? {
        Response::Sealed { lost: Some(reason), .. } => Err(CycleError::Lost(reason)),
        Response::Sealed { log_end, lost: None } => Ok(log_end),
        _ => Err(ClientError::Confused.into()),
    }
}

/// Dirty runs from this length on are looked up as holes before they are read (1 MiB).
const HOLE_SECTORS_MIN: u64 = 2048;

/// The reading end of a pass.
pub(super) struct PassReader {
    reader: Reader,
    /// Sectors that went into the pipeline.
    arrived: SectorSet,
}

impl PassReader {
    /// Every sector, holes without reading them.
    fn whole_disk(&mut self, source: &Source, feed: &Feed<'_>) -> Result<(), CycleError> {
        let runs = extents::runs(&source.file, source.size)
            .map_err(CycleError::source("where the backing holds data"))?;
        for run in runs {
            match run {
                DiskRun::Hole(range) => {
                    feed.zero(range)?;
                }
                DiskRun::Data(range) => {
                    for piece in range.split_at_multiples(FRAME_SECTORS_MAX) {
                        let mut batch = Batch::default();
                        batch.push(piece);
                        self.read_and_send(&batch, feed, None)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The dirty sectors: scattered ones are gathered to whole frames.
    pub(super) fn dirty(
        &mut self,
        must_move: &SectorSet,
        feed: &Feed<'_>,
        shared: Option<&Shared>,
    ) -> Result<(), CycleError> {
        let mut batch = Batch::default();
        for run in must_move.runs() {
            if run.sectors() >= HOLE_SECTORS_MIN
                && self.reader.is_hole(run).map_err(CycleError::source("the backing"))?
            {
                self.send_hole(run, feed, shared)?;
                continue;
            }
            for piece in run.split_at_multiples(FRAME_SECTORS_MAX) {
                if batch.sectors + piece.sectors() > FRAME_SECTORS_MAX
                    || batch.wanted.len() == DEPTH
                {
                    self.read_and_send(&batch, feed, shared)?;
                    batch = Batch::default();
                }
                batch.push(piece);
            }
        }
        self.read_and_send(&batch, feed, shared)
    }

    /// Dirty sectors that the backing has nothing of: a disk that grew, or a large discard. That it was
    /// seen to be a hole is a read like any other.
    fn send_hole(
        &mut self,
        run: SectorRange,
        feed: &Feed<'_>,
        shared: Option<&Shared>,
    ) -> Result<(), CycleError> {
        // I2: as for a read.
        fence(Ordering::SeqCst);
        let parts = match shared {
            None => vec![run],
            Some(shared) => shared.preserved.parts(run, false),
        };
        for part in parts {
            if let Some(shared) = shared {
                shared.shipped.set(part);
                self.arrived.insert(part);
            }
            feed.zero(part)?;
        }
        Ok(())
    }

    fn read_and_send(
        &mut self,
        batch: &Batch,
        feed: &Feed<'_>,
        shared: Option<&Shared>,
    ) -> Result<(), CycleError> {
        if batch.wanted.is_empty() {
            return Ok(());
        }
        let mut chunk = feed.chunk()?;
        chunk.data.resize(batch.sectors as usize * 512, 0);
        self.reader
            .read(&batch.wanted, &mut chunk.data)
            .map_err(CycleError::source("the backing"))?;
        // I2: the reads are complete before the preserved bits are looked at.
        fence(Ordering::SeqCst);
        match shared {
            None => chunk.runs.extend(batch.wanted.iter().map(|want| want.range)),
            Some(shared) => keep_unpreserved(&mut chunk, &batch.wanted, &shared.preserved),
        }
        if let Some(shared) = shared {
            for &run in &chunk.runs {
                shared.shipped.set(run);
                self.arrived.insert(run);
            }
        }
        feed.send(chunk)
    }

    /// What was overwritten during the pass, from the preserved log.
    fn preserved(
        &mut self,
        cut: &CutReply,
        source: &Source,
        must_move: &SectorSet,
        end: backstay_types::ByteOffset,
        feed: &Feed<'_>,
    ) -> Result<(), CycleError> {
        let Some(log) = &cut.log else { return Err(ClientError::Confused.into()) };
        let mut chunk = feed.chunk()?;
        let whole = SectorRange::whole(source.size);
        for_each_record(log, source.disk, cut.epoch, whole, end, |range, data| {
            for wanted in must_move.runs_within(range, true) {
                for run in self.arrived.runs_within(wanted, false) {
                    let from = ((run.start.0 - range.start.0) * 512) as usize;
                    let bytes = &data[from..from + run.bytes().0 as usize];
                    if bytes.len() > chunk.room() {
                        feed.send(std::mem::replace(&mut chunk, feed.chunk()?))?;
                    }
                    chunk.push(run, bytes);
                    self.arrived.insert(run);
                }
            }
            Ok::<(), CycleError>(())
        })?;
        feed.send(chunk)
    }
}

/// Runs to be read together into one chunk.
#[derive(Default)]
struct Batch {
    wanted: Vec<Wanted>,
    sectors: u64,
}

impl Batch {
    fn push(&mut self, range: SectorRange) {
        self.wanted.push(Wanted { range, at: self.sectors as usize * 512 });
        self.sectors += range.sectors();
    }
}

/// Keeps what the driver has not preserved, moving it together.
fn keep_unpreserved(chunk: &mut Chunk, wanted: &[Wanted], preserved: &SharedBitmap) {
    let mut to = 0;
    for want in wanted {
        for part in preserved.parts(want.range, false) {
            let from = want.at + ((part.start.0 - want.range.start.0) * 512) as usize;
            let len = part.bytes().0 as usize;
            if from != to {
                chunk.data.copy_within(from..from + len, to);
            }
            chunk.runs.push(part);
            to += len;
        }
    }
    chunk.data.truncate(to);
}

//! Hydration: all of the point fetched in the background, from the start of the disk to its end, standing
//! back for anyone who waits for the vault meanwhile.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_engine::jobs::{JobBook, JobHandle, JobKind};
use backstay_front::paths::DiskPaths;
use backstay_host::clock;
use backstay_types::{CycleNo, DiskName, SECTOR_BYTES, SectorRange};

use super::Trouble;
use super::backing::Point;
use super::record::{Hydration, HydrationStatus};

/// Sectors fetched as one: 4 MiB.
const STEP_SECTORS: u64 = 8192;
/// How often what is wanted is looked at, and the mark is made durable.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const MARK_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for others in one go.
const STAND_BACK: Duration = Duration::from_millis(50);

pub(crate) struct Hydrator {
    point: Arc<Point>,
    paths: DiskPaths,
    /// The disk on this host, and the point that is fetched, as the job shows them.
    name: DiskName,
    cycle: CycleNo,
    status: Mutex<HydrationStatus>,
}

impl Hydrator {
    pub fn new(point: Arc<Point>, paths: DiskPaths, name: DiskName, cycle: CycleNo) -> Self {
        let status = match point.overlay.is_whole() {
            true => HydrationStatus::Done,
            false => HydrationStatus::NotWanted,
        };
        Self { point, paths, name, cycle, status: Mutex::new(status) }
    }

    pub fn status(&self) -> HydrationStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Works until the disk is whole or closed.
    pub fn run(&self) {
        let mut marked = clock::monotonic();
        let mut looked: Option<(Instant, Hydration)> = None;
        let book = JobBook::below(self.paths.state.parent().unwrap_or(&self.paths.state));
        // The job, and where it began.
        let mut job: Option<(JobHandle, u64)> = None;
        while !self.point.stop.load(Ordering::Acquire) {
            if self.point.overlay.is_whole() {
                match self.point.overlay.sync() {
                    Ok(()) => {
                        if let Some((job, _)) = job.take() {
                            job.end(Ok(self.cycle));
                        }
                        self.say(HydrationStatus::Done);
                        tracing::info!("hydrated: the vault is not needed any more");
                        return;
                    }
                    Err(e) => self.wait(&format!("the overlay cannot be written: {e}")),
                }
                continue;
            }
            let wanted = match looked {
                Some((at, wanted)) if clock::since(at) < LOOK_EVERY => wanted,
                _ => looked.insert((clock::monotonic(), Hydration::load(&self.paths))).1,
            };
            if !wanted.wanted {
                if let Some((job, _)) = job.take() {
                    let name = &self.name;
                    job.end(Err(format!("stopped by hand; to go on: backstay hydrate {name}")));
                }
                self.say(HydrationStatus::NotWanted);
                clock::sleep(LOOK_EVERY);
                continue;
            }
            let begun = clock::monotonic();
            let from = self.done();
            let (job, began_at) =
                job.get_or_insert_with(|| (book.begin(&self.name, JobKind::Hydration), from));
            let tell = |stage: &str| {
                let (done, all) = (self.done() - *began_at, self.point.size.0 - *began_at);
                job.progress(stage, done, all);
            };
            match self.step() {
                Ok(fetched) => {
                    tell("fetching");
                    self.say(HydrationStatus::Running);
                    if clock::since(marked) > MARK_EVERY {
                        if let Err(e) = self.point.overlay.sync() {
                            self.wait(&format!("the overlay cannot be written: {e}"));
                        }
                        marked = clock::monotonic();
                    }
                    self.stand_back();
                    if let Some(limit) = wanted.limit_bytes {
                        let due = fetched as f64 / (limit.0.max(1) as f64);
                        self.sleep(
                            Duration::from_secs_f64(due).saturating_sub(clock::since(begun)),
                        );
                    }
                }
                Err(trouble) => {
                    tell(&format!("waiting: {trouble}"));
                    self.wait(&trouble.to_string());
                }
            }
        }
    }

    /// Bytes of the disk from its start that are here.
    fn done(&self) -> u64 {
        (self.point.overlay.whole_to() * SECTOR_BYTES).min(self.point.size.0)
    }

    /// Makes the next stretch local; bytes fetched for it.
    fn step(&self) -> Result<u64, Trouble> {
        let Point { overlay, source, size, .. } = &*self.point;
        let (from, end) = (overlay.whole_to(), SectorRange::whole(*size).end.0);
        let local =
            |e: std::io::Error| Trouble::Local(format!("the overlay cannot be written: {e}"));
        let zero_to = source.zero_from(from)?;
        if zero_to > from {
            overlay.clear_next(SectorRange::new(from, zero_to)).map_err(local)?;
            return Ok(0);
        }
        let run = SectorRange::new(from, (from + STEP_SECTORS).min(end));
        let mut bytes = vec![0; run.bytes().0 as usize];
        let mut fetched = 0;
        for absent in overlay.runs(run, false) {
            let at = ((absent.start.0 - from) * SECTOR_BYTES) as usize;
            let len = absent.bytes().0 as usize;
            source.read_through(absent, &mut bytes[at..at + len])?;
            fetched += len as u64;
        }
        overlay.fill_next(run, &bytes).map_err(local)?;
        Ok(fetched)
    }

    /// While somebody waits for the vault, for a moment.
    fn stand_back(&self) {
        let until = clock::monotonic() + STAND_BACK;
        while self.point.waiting.load(Ordering::Relaxed) > 0 && clock::monotonic() < until {
            clock::sleep(Duration::from_millis(2));
        }
    }

    fn wait(&self, reason: &str) {
        self.say(HydrationStatus::Waiting { reason: reason.into() });
        self.sleep(Duration::from_secs(1));
    }

    fn sleep(&self, long: Duration) {
        let until = clock::monotonic() + long;
        while !self.point.stop.load(Ordering::Acquire) {
            let left = until.saturating_duration_since(clock::monotonic());
            if left.is_zero() {
                return;
            }
            clock::sleep(left.min(Duration::from_millis(100)));
        }
    }

    fn say(&self, status: HydrationStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

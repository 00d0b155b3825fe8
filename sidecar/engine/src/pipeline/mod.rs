//! The shipping pipeline: four stages of threads over bounded channels.
//!
//! ```text
//!   reader (the caller) ──chunks──▶ compress ×N ──frames──▶ assemble ──segments──▶ upload ×M
//!        ▲                              │
//!        └────── empty chunks ──────────┘
//! ```
//!
//! Memory is bounded by the channels. With N compressors and M uploads and segments of S bytes:
//! chunks 256 KiB × (3 N + 2), frames at most as much again, segments S × (M + 2). With the defaults
//! on two processors (N = 2, M = 2, S = 32 MiB) that is 2 + 2 + 128 MiB.
//!
//! An error anywhere is kept (the first one counts), every stage goes on taking what it is sent and
//! throws it away, and so all threads end, in order, without anyone waiting for a reader that left.

mod beside;
mod feed;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use backstay_types::{CycleNo, DiskId, SectorRange};
use backstay_vault::frame::{Chunk, Compressor, EncodedFrame, FinishedSegment, SegmentBuilder};
use backstay_vault::{SegmentRef, Vault, VaultError};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::config::Ship;
use crate::error::CycleError;
use crate::throttle::Throttle;

pub use beside::{Beside, Watch};
pub use feed::Feed;

use beside::{Counted, LOOK_EVERY};

/// Extents after which a segment is ended whatever its size, so that its index stays small.
const SEGMENT_EXTENTS_MAX: usize = 1 << 20;

/// Where a shipment goes.
#[derive(Clone, Copy)]
pub struct Shipment<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// The disk.
    pub disk: DiskId,
    /// The cycle.
    pub cycle: CycleNo,
    /// The attempt at the cycle.
    pub attempt: u64,
    /// The number of the first segment.
    pub first_segment: u32,
    /// How to ship.
    pub ship: &'a Ship,
    /// How fast.
    pub throttle: &'a Throttle,
    /// Set from outside to end it.
    pub stop: &'a AtomicBool,
}

/// What was put until it ended, well or not.
#[derive(Debug)]
pub struct Shipped {
    /// The segments in the vault.
    pub segments: Vec<SegmentRef>,
    /// Why it ended early, if it did.
    pub result: Result<(), CycleError>,
}

/// What goes from compressors and reader to the assembler.
enum Part {
    Frame(EncodedFrame),
    Zero(SectorRange),
}

/// The first error of any stage.
pub(crate) struct Trouble<'a> {
    failed: AtomicBool,
    error: Mutex<Option<CycleError>>,
    stop: &'a AtomicBool,
}

impl Trouble<'_> {
    fn report(&self, error: CycleError) {
        self.failed.store(true, Ordering::Relaxed);
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn is_over(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) && !self.failed.load(Ordering::Relaxed) {
            self.report(CycleError::Stopped);
        }
        self.failed.load(Ordering::Relaxed)
    }
}

/// Ships what `read` feeds. `read` runs on the calling thread.
pub fn ship(
    to: Shipment<'_>,
    read: impl FnOnce(&mut Feed<'_>) -> Result<(), CycleError>,
) -> Shipped {
    ship_beside(to, Beside::default(), read)
}

/// The same, with somebody who looks on.
pub fn ship_beside(
    to: Shipment<'_>,
    beside: Beside<'_>,
    read: impl FnOnce(&mut Feed<'_>) -> Result<(), CycleError>,
) -> Shipped {
    let threads = to.ship.compress_threads();
    let trouble =
        Trouble { failed: AtomicBool::new(false), error: Mutex::new(None), stop: to.stop };
    let segments = Mutex::new(vec![]);
    let (full, chunks) = bounded::<Chunk>(threads * 2);
    let (empty, spare) = bounded::<Chunk>(threads * 3 + 2);
    let (parts, assembly) = bounded::<Part>(threads * 2);
    let (done, uploads) = bounded::<FinishedSegment>(1);
    let (at_work, all_ended) = bounded::<()>(0);
    let Beside { put, went, watch } = beside;
    for _ in 0..threads * 3 + 2 {
        let _ = empty.try_send(Chunk::default());
    }
    thread::scope(|scope| {
        for _ in 0..threads {
            let (chunks, empty, parts) = (chunks.clone(), empty.clone(), parts.clone());
            let trouble = &trouble;
            scope.spawn(move || compress(to.ship, &chunks, &empty, &parts, trouble));
        }
        scope.spawn(|| assemble(to, assembly, done, &trouble));
        for _ in 0..to.ship.upload_parallel.clamp(1, 16) {
            let (uploads, at_work) = (uploads.clone(), at_work.clone());
            let (trouble, segments) = (&trouble, &segments);
            scope.spawn(move || {
                upload(to, put, went, &uploads, segments, trouble);
                drop(at_work);
            });
        }
        drop((chunks, empty, uploads, at_work));
        if let Some(watch) = watch {
            let trouble = &trouble;
            scope.spawn(move || look_on(watch, &all_ended, trouble));
        }
        let mut feed = Feed::new(full, spare, parts, &trouble);
        if let Err(e) = read(&mut feed) {
            trouble.report(e);
        }
        // Dropping the feed ends the stages one after the other.
    });
    let mut segments = segments.into_inner().unwrap_or_else(PoisonError::into_inner);
    segments.sort_by_key(|segment: &SegmentRef| segment.number);
    let error = trouble.error.into_inner().unwrap_or_else(PoisonError::into_inner);
    Shipped { segments, result: error.map_or(Ok(()), Err) }
}

fn compress(
    ship: &Ship,
    chunks: &Receiver<Chunk>,
    empty: &Sender<Chunk>,
    parts: &Sender<Part>,
    trouble: &Trouble<'_>,
) {
    let mut compressor = Compressor::new(ship.zstd_level)
        .map(|compressor| compressor.with_chunks(ship.chunk_shift()))
        .map_err(|e| trouble.report(CycleError::Compress(e)));
    for mut chunk in chunks {
        if let (Ok(compressor), false) = (&mut compressor, trouble.is_over()) {
            match compressor.seal(&mut chunk) {
                Ok(frame) => drop(parts.send(Part::Frame(frame))),
                Err(e) => trouble.report(CycleError::Compress(e)),
            }
        }
        chunk.clear();
        let _ = empty.try_send(chunk);
    }
}

fn assemble(
    to: Shipment<'_>,
    parts: Receiver<Part>,
    done: Sender<FinishedSegment>,
    trouble: &Trouble<'_>,
) {
    let mut compressor = match Compressor::new(to.ship.zstd_level) {
        Ok(compressor) => compressor,
        Err(e) => return trouble.report(CycleError::Compress(e)),
    };
    let mut number = to.first_segment;
    let start = |number| SegmentBuilder::new(to.disk, to.cycle, to.attempt, number);
    let mut segment = start(number);
    let mut finish = |segment: SegmentBuilder| match segment.finish(&mut compressor) {
        Ok(sealed) => drop(done.send(sealed)),
        Err(e) => trouble.report(CycleError::Compress(e)),
    };
    for part in parts {
        if trouble.is_over() {
            continue;
        }
        match part {
            Part::Frame(frame) => segment.push(frame),
            Part::Zero(range) => segment.push_zero(range),
        }
        if segment.stored_bytes() >= to.ship.segment_size.as_u64()
            || segment.extents() >= SEGMENT_EXTENTS_MAX
        {
            number += 1;
            finish(std::mem::replace(&mut segment, start(number)));
        }
    }
    if !segment.is_empty() && !trouble.is_over() {
        finish(segment);
    }
}

/// Looks again and again, until the uploads have ended or there is nothing more to ship for.
fn look_on(mut watch: Watch<'_>, all_ended: &Receiver<()>, trouble: &Trouble<'_>) {
    while all_ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
        if let Some(error) = watch() {
            return trouble.report(error);
        }
    }
}

fn upload(
    to: Shipment<'_>,
    put: &(dyn Fn(&SegmentRef) + Sync),
    went: &(dyn Fn(u64) + Sync),
    uploads: &Receiver<FinishedSegment>,
    segments: &Mutex<Vec<SegmentRef>>,
    trouble: &Trouble<'_>,
) {
    let go_on = || !trouble.is_over();
    for segment in uploads {
        if trouble.is_over() {
            continue;
        }
        let pace = to.throttle.pace(&go_on);
        let pace = Counted::new(&pace, &segment, went);
        match to.vault.put_segment_paced(segment, &pace) {
            Ok(segment) => {
                pace.all_went();
                put(&segment);
                segments.lock().unwrap_or_else(PoisonError::into_inner).push(segment);
            }
            // Why is in the trouble already.
            Err(VaultError::Stopped { .. }) => {}
            Err(e) => trouble.report(e.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_vault::Vaults;
    use backstay_vault::format::key::DiskFolder;
    use std::sync::LazyLock;

    fn shipment<'a>(vault: &'a Vault, ship: &'a Ship, stop: &'a AtomicBool) -> Shipment<'a> {
        static UNLIMITED: LazyLock<Throttle> = LazyLock::new(Throttle::none);
        Shipment {
            vault,
            disk: DiskId::from_bytes([3; 16]),
            cycle: CycleNo(1),
            attempt: 1,
            first_segment: 0,
            ship,
            throttle: &UNLIMITED,
            stop,
        }
    }

    fn room() -> (tempfile::TempDir, Vault) {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vaults::default().create(dir.path().to_str().unwrap()).unwrap();
        (dir, vault)
    }

    /// A throttle that lets a byte a second through.
    fn standstill() -> Throttle {
        let limit = crate::throttle::Rate::bytes_per_second(1);
        let settings = crate::throttle::ThrottleSettings { limit, ..Default::default() };
        Throttle::new(settings, crate::windows::Zone::default())
    }

    fn feed_noise(feed: &mut Feed<'_>, chunks: u64) -> Result<(), CycleError> {
        for n in 0..chunks {
            let mut chunk = feed.chunk()?;
            let mut bytes = vec![0; 256 << 10];
            fastrand::Rng::with_seed(n).fill(&mut bytes);
            chunk.push(SectorRange::new(n * 512, n * 512 + 512), &bytes);
            feed.send(chunk)?;
        }
        Ok(())
    }

    #[test]
    fn everything_fed_is_put() {
        let (_dir, vault) = room();
        let ship_settings = Ship { segment_size: bytesize::ByteSize::mib(2), ..Ship::default() };
        let stop = AtomicBool::new(false);
        let shipped = ship(shipment(&vault, &ship_settings, &stop), |feed| {
            feed.zero(SectorRange::new(1 << 20, 1 << 30))?;
            feed_noise(feed, 40)
        });
        shipped.result.unwrap();
        assert!(shipped.segments.len() >= 5);
        let data: u64 = shipped.segments.iter().map(|s| s.data_sectors).sum();
        let zero: u64 = shipped.segments.iter().map(|s| s.zero_sectors).sum();
        assert_eq!((data, zero), (40 * 512, (1 << 30) - (1 << 20)));
    }

    /// A vault that fails in the middle must end the reader, not leave it waiting.
    #[test]
    fn a_failing_upload_ends_all_stages() {
        let (dir, vault) = room();
        // The disk's folder is a file: nothing can be put below it.
        std::fs::write(dir.path().join("disks"), b"").unwrap();
        let settings = Ship { segment_size: bytesize::ByteSize::mib(1), ..Ship::default() };
        let stop = AtomicBool::new(false);
        let shipped = ship(shipment(&vault, &settings, &stop), |feed| feed_noise(feed, 10_000));
        assert!(matches!(shipped.result, Err(CycleError::Vault(_))), "{:?}", shipped.result);
    }

    /// A cycle that is stopped while its upload waits at the throttle ends at once, and leaves nothing.
    #[test]
    fn being_told_to_stop_ends_a_slow_upload() {
        let (dir, vault) = room();
        let ship_settings = Ship { segment_size: bytesize::ByteSize::mib(1), ..Ship::default() };
        let stop = AtomicBool::new(false);
        let throttle = standstill();
        let to = Shipment { throttle: &throttle, ..shipment(&vault, &ship_settings, &stop) };
        let shipped = ship(to, |feed| {
            feed_noise(feed, 8)?;
            stop.store(true, Ordering::Relaxed);
            Ok(())
        });
        assert!(matches!(shipped.result, Err(CycleError::Stopped)), "{:?}", shipped.result);
        assert!(shipped.segments.is_empty());
        let segments =
            dir.path().join(DiskFolder::Segments.of(DiskId::from_bytes([3; 16])).to_string());
        let left = std::fs::read_dir(segments).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing half-written stays");
    }

    /// Who looks on ends what is of no use any more, also while an upload waits at the throttle.
    #[test]
    fn who_looks_on_can_end_it() {
        let (_dir, vault) = room();
        let ship_settings = Ship { segment_size: bytesize::ByteSize::mib(1), ..Ship::default() };
        let stop = AtomicBool::new(false);
        let throttle = standstill();
        let to = Shipment { throttle: &throttle, ..shipment(&vault, &ship_settings, &stop) };
        let watch: Watch<'_> = Box::new(|| Some(CycleError::Lost("the limit".into())));
        let beside = Beside { watch: Some(watch), ..Beside::default() };
        let shipped = ship_beside(to, beside, |feed| feed_noise(feed, 10_000));
        assert!(matches!(shipped.result, Err(CycleError::Lost(_))), "{:?}", shipped.result);
    }

    /// What is told to have gone is what went, not what was read ahead.
    #[test]
    fn bytes_count_as_they_go() {
        let (_dir, vault) = room();
        let ship_settings = Ship { segment_size: bytesize::ByteSize::mib(2), ..Ship::default() };
        let stop = AtomicBool::new(false);
        let (told, times) = (Mutex::new(0), Mutex::new(0));
        let went = |bytes| {
            *told.lock().unwrap() += bytes;
            *times.lock().unwrap() += 1;
        };
        let beside = Beside { went: &went, ..Beside::default() };
        let shipped = ship_beside(shipment(&vault, &ship_settings, &stop), beside, |feed| {
            feed.zero(SectorRange::new(1 << 20, 1 << 21))?;
            feed_noise(feed, 40)
        });
        shipped.result.unwrap();
        assert_eq!(told.into_inner().unwrap(), (40 * 512 + (1 << 20)) * 512);
        assert!(times.into_inner().unwrap() >= 5);
    }

    #[test]
    fn being_told_to_stop_ends_all_stages() {
        let (_dir, vault) = room();
        let (settings, stop) = (Ship::default(), AtomicBool::new(false));
        let shipped = ship(shipment(&vault, &settings, &stop), |feed| {
            feed_noise(feed, 4)?;
            stop.store(true, Ordering::Relaxed);
            feed_noise(feed, 10_000)
        });
        assert!(matches!(shipped.result, Err(CycleError::Stopped)), "{:?}", shipped.result);
    }
}

//! The overlay against a model, with the power lost at every operation.

use std::sync::{Arc, Mutex};

use super::*;
use crate::mount::medium::memory::Memory;

const SECTORS: u64 = 96;
const SIZE: ByteLen = ByteLen(SECTORS * SECTOR_BYTES - 100);

type Fuse = Arc<Mutex<Option<u64>>>;
type Tested = Overlay<Memory, Memory>;

fn of() -> (DiskId, PointId) {
    (DiskId::from_bytes([1; 16]), PointId::from_bytes([2; 16]))
}

fn new(fuse: &Fuse) -> (Memory, Memory) {
    let data = Memory::new(SIZE.0 as usize, Arc::clone(fuse));
    let map = Memory::new(map_bytes(SIZE) as usize, Arc::clone(fuse));
    map.write_at(&first_header(of().0, of().1, SIZE).encode(), 0).unwrap();
    (data, map)
}

/// What the point has in a sector.
fn point(sector: u64) -> u8 {
    if sector.is_multiple_of(7) { 0 } else { 0x80 | sector as u8 }
}

/// What a sector may be: flushed content first, then all it was written with since.
struct Model(Vec<Vec<u8>>);

impl Model {
    fn check(&self, overlay: &Tested, when: &str) {
        for sector in 0..SECTORS {
            let run = SectorRange::new(sector, sector + 1);
            let found = if overlay.has(run) {
                let len = SECTOR_BYTES.min(SIZE.0 - sector * SECTOR_BYTES) as usize;
                let mut bytes = vec![0; len];
                overlay.read(&mut bytes, run.start.byte_offset()).unwrap();
                assert!(bytes.iter().all(|&b| b == bytes[0]), "{when}: sector {sector} is torn");
                bytes[0]
            } else {
                point(sector)
            };
            let may = &self.0[sector as usize];
            assert!(may.contains(&found), "{when}: sector {sector} is {found:#x}, not {may:x?}");
        }
    }
}

/// Runs a history until the fuse burns; what each sector may be then.
fn live(overlay: &Tested, rng: &mut fastrand::Rng) -> Model {
    let mut model = Model((0..SECTORS).map(|sector| vec![point(sector)]).collect());
    for value in 1..=60u8 {
        let start = rng.u64(0..SECTORS);
        let run = SectorRange::new(start, rng.u64(start + 1..=SECTORS));
        let (at, len) = (run.start.byte_offset(), run.bytes().0.min(SIZE.0 - run.start.0 * 512));
        let (done, content) = match rng.u8(0..10) {
            0..4 => (overlay.write(&vec![value; len as usize], at), Some(value)),
            4 => (overlay.clear(run), Some(0)),
            5..7 => {
                let from = overlay.whole_to();
                let run = SectorRange::new(from, (from + rng.u64(1..9)).min(SECTORS));
                let bytes: Vec<u8> =
                    run.as_range().flat_map(|sector| [point(sector); 512]).collect();
                (overlay.fill_next(run, &bytes), None)
            }
            7 => {
                let bytes: Vec<u8> =
                    run.as_range().flat_map(|sector| [point(sector); 512]).collect();
                (overlay.fill(run, &bytes), None)
            }
            _ => {
                let synced = overlay.sync();
                if synced.is_ok() {
                    model.0.iter_mut().for_each(|may| drop(may.drain(..may.len() - 1)));
                }
                (synced, None)
            }
        };
        if let Some(content) = content {
            // Also if it failed: it may have been begun.
            run.as_range().for_each(|sector| model.0[sector as usize].push(content));
        }
        if done.is_err() {
            break;
        }
    }
    model
}

/// Every number of operations up to the whole history: after the power loss, each sector is what it was
/// at the last flush or something newer, never anything else.
#[test]
fn power_lost_at_every_operation() {
    let seed = std::env::var("BACKSTAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or(0x5EED_u64);
    println!("BACKSTAY_SEED={seed}");
    let mut states = 0;
    for history in 0..12 {
        for operations in 0.. {
            let fuse = Fuse::default();
            let (data, map) = new(&fuse);
            map.sync().unwrap();
            let overlay = Tested::open(data.clone(), map.clone(), SIZE, of().0, of().1).unwrap();
            *fuse.lock().unwrap() = Some(operations);
            let model = live(&overlay, &mut fastrand::Rng::with_seed(seed + history));
            let burnt = *fuse.lock().unwrap() == Some(0);
            for crash in 0..4 {
                let mut rng = fastrand::Rng::with_seed(seed ^ (operations << 8 | crash));
                let fuse = Fuse::default();
                let (data, map) =
                    (data.crashed(&mut rng, Arc::clone(&fuse)), map.crashed(&mut rng, fuse));
                let again = Tested::open(data, map, SIZE, of().0, of().1).unwrap();
                model.check(&again, &format!("history {history}, operation {operations}"));
                states += 1;
            }
            if !burnt {
                break;
            }
        }
    }
    println!("{states} crash states");
}

/// A sync that fails loses what was not flushed, says so at each flush from then on, and what is read is
/// what a remount finds.
#[test]
fn a_failed_sync_is_never_forgotten() {
    let fuse = Fuse::default();
    let (data, map) = new(&fuse);
    let overlay = Tested::open(data, map, SIZE, of().0, of().1).unwrap();
    overlay.write(&[5; 512], ByteOffset(512)).unwrap();
    overlay.sync().unwrap();
    overlay.write(&[6; 1024], ByteOffset(1024)).unwrap();
    *fuse.lock().unwrap() = Some(0);
    assert!(overlay.sync().is_err());
    *fuse.lock().unwrap() = None;
    assert!(overlay.has(SectorRange::new(1, 2)) && !overlay.has(SectorRange::new(2, 3)));
    assert!(overlay.sync().is_err(), "still");
    assert!(overlay.write(&[7; 512], ByteOffset(0)).is_err());
}

#[test]
fn only_parts_of_sectors_need_fetching() {
    let (data, map) = new(&Fuse::default());
    let overlay = Tested::open(data, map, SIZE, of().0, of().1).unwrap();
    let edges = |at: u64, len: u64| overlay.edges(ByteOffset(at), ByteLen(len));
    let one = |sector: u64| SectorRange::new(sector, sector + 1);
    assert_eq!(edges(512, 1024), []);
    assert_eq!(edges(513, 1024), [one(1), one(3)]);
    assert_eq!(edges(513, 5), [one(1)]);
    assert_eq!(edges(SIZE.0 - 412, 412), [], "the last sector is shorter");
    overlay.fill(one(1), &[9; 512]).unwrap();
    assert_eq!(edges(513, 1024), [one(3)]);
}

#[test]
fn another_points_map_is_refused() {
    let (data, map) = new(&Fuse::default());
    let other = PointId::from_bytes([3; 16]);
    assert!(matches!(Tested::open(data, map, SIZE, of().0, other), Err(OverlayError::Other)));
}

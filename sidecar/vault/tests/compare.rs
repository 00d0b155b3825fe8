//! Comparing a disk with a point: everything that differs is found, and little is read for it.

mod common;

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_types::SectorRange;
use backstay_vault::read::compare::{Comparison, Disk};
use backstay_vault::{Manifest, SectorSet, VaultError};
use common::Lab;
use proptest::prelude::*;

/// A disk in memory that notes what it is told.
struct Side<'a> {
    content: &'a [u8],
    differs: Mutex<SectorSet>,
    compared: AtomicU64,
}

impl Disk<VaultError> for Side<'_> {
    fn read(&self, range: SectorRange, buffer: &mut [u8]) -> io::Result<()> {
        let at = range.start.byte_offset().0 as usize;
        let there = buffer.len().min(self.content.len() - at);
        buffer[there..].fill(0);
        buffer[..there].copy_from_slice(&self.content[at..at + there]);
        Ok(())
    }

    fn data_within(&self, range: SectorRange) -> Vec<SectorRange> {
        vec![range]
    }

    fn differs(&self, range: SectorRange, bytes: &[u8]) -> Result<(), VaultError> {
        let mut there = vec![0; bytes.len()];
        self.read(range, &mut there).unwrap();
        assert!(there == bytes, "what is reported is what the disk holds");
        assert_eq!(self.differs.lock().unwrap().insert(range), range.sectors(), "twice: {range}");
        Ok(())
    }

    fn compared(&self, sectors: u64) -> Result<(), VaultError> {
        self.compared.fetch_add(sectors, Ordering::Relaxed);
        Ok(())
    }
}

/// Compares in steps of at least `step` sectors, each by a new comparison that goes on.
fn compare(lab: &Lab, point: &Manifest, content: &[u8], deep: bool, step: u64) -> SectorSet {
    let side = Side { content, differs: Mutex::default(), compared: AtomicU64::new(0) };
    let mut seen = 0;
    loop {
        let mut comparison = Comparison::new(&lab.vault, point, seen, deep).unwrap();
        let more = comparison.step::<VaultError>(&side, 2, step).unwrap();
        seen = comparison.seen();
        if !more {
            comparison.finish().unwrap();
            break;
        }
    }
    assert_eq!(side.compared.into_inner(), lab.whole().sectors(), "every sector, once");
    side.differs.into_inner().unwrap()
}

fn noise(size: u64, seed: u64) -> Vec<u8> {
    let mut content = vec![0; size as usize];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    content
}

/// Nothing found that is not there, nothing there that is not found: at most the rest of a chunk
/// comes along.
fn check(found: &SectorSet, point: &[u8], disk: &[u8]) {
    for (sector, (a, b)) in point.chunks(512).zip(disk.chunks(512)).enumerate() {
        assert!(a == b || found.contains(sector as u64), "sector {sector} differs");
    }
    for run in found.runs() {
        for chunk in run.split_at_multiples(128) {
            let chunk =
                SectorRange::new(chunk.start.0 / 128 * 128, chunk.end.0.div_ceil(128) * 128);
            let from = chunk.start.byte_offset().0 as usize;
            let to = (chunk.end.byte_offset().0 as usize).min(disk.len());
            assert!(point[from..to] != disk[from..to], "{chunk} is equal");
        }
    }
}

#[test]
fn equal_disks_cost_their_checksums_only() {
    let size = 8 << 20;
    let lab = Lab::new(size);
    let content = noise(size, 1);
    // In whole frames, as a pass over the disk ships them.
    let runs: Vec<_> = lab.whole().split_at_multiples(512).collect();
    let point = lab.cycle_in_frames(None, &content, &runs);
    let before = lab.vault.fetched().0;
    assert!(compare(&lab, &point, &content, false, u64::MAX).is_empty());
    let read = lab.vault.fetched().0 - before;
    assert!(read < size / 500, "{read} bytes read from the vault");
    assert!(compare(&lab, &point, &content, true, u64::MAX).is_empty());
    assert!(lab.vault.fetched().0 - before > size, "deep reads everything");
}

#[test]
fn a_changed_byte_is_found_whatever_holds_it() {
    let size = (4 << 20) + 1000;
    let lab = Lab::new(size);
    let mut content = noise(size, 2);
    content[1 << 20..2 << 20].fill(0);
    let runs: Vec<_> = lab.whole().split_at_multiples(512).collect();
    let first = lab.cycle_in_frames(None, &content, &runs);
    // A later cycle hides parts of chunks, and makes some zero.
    content[70_000..71_000].fill(5);
    content[300_032..304_128].fill(0);
    let hidden = [SectorRange::new(136, 139), SectorRange::new(586, 594)];
    let point = lab.cycle(Some(&first), &content, &hidden).unwrap();
    for at in [0, 69_999, 70_000, 300_100, (1 << 20) + 5, (2 << 20) - 1, size as usize - 1] {
        let mut disk = content.clone();
        disk[at] ^= 1;
        for deep in [false, true] {
            let found = compare(&lab, &point, &disk, deep, u64::MAX);
            check(&found, &content, &disk);
            assert!(found.contains(at as u64 / 512), "byte {at}, deep {deep}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any history of cycles, any changes afterwards, in any number of steps.
    #[test]
    fn all_that_differs_is_found(seed: u64, cycles in 1usize..5, changes in 0usize..20, deep: bool,
                                 step in prop::sample::select(vec![1, 3000, u64::MAX])) {
        let mut dice = fastrand::Rng::with_seed(seed);
        let size = (1 << 20) + dice.u64(0..2000);
        let lab = Lab::new(size);
        let mut content = noise(size, seed);
        let some = |content: &mut Vec<u8>, dice: &mut fastrand::Rng| {
            let sectors = lab.whole().sectors();
            let start = dice.u64(0..sectors);
            let run = SectorRange::new(start, (start + dice.u64(1..300)).min(sectors));
            let from = run.start.byte_offset().0 as usize;
            let to = (run.end.byte_offset().0 as usize).min(content.len());
            if dice.bool() { content[from..to].fill(0) } else { dice.fill(&mut content[from..to]) }
            run
        };
        let runs: Vec<_> = lab.whole().split_at_multiples(512).collect();
        let mut point = lab.cycle_in_frames(None, &content, &runs);
        for _ in 0..cycles {
            let run = some(&mut content, &mut dice);
            point = lab.cycle(Some(&point), &content, &[run]).unwrap();
        }
        let mut disk = content.clone();
        for _ in 0..changes {
            some(&mut disk, &mut dice);
        }
        check(&compare(&lab, &point, &disk, deep, step), &content, &disk);
    }
}

/// What the vault has lost differs from any disk: a deep comparison reports it, so that it is shipped again over what is
/// damaged, and goes on.
#[test]
fn what_is_damaged_in_the_vault_is_a_difference() {
    const SIZE: u64 = 2 << 20;
    let lab = Lab::new(SIZE);
    let content = noise(SIZE, 31);
    let point = lab.cycle_in_frames(None, &content, &[lab.whole()]);
    let first =
        lab.objects().into_iter().find(|path| path.to_str().unwrap().contains("/segments/"));
    let path = first.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let found = compare(&lab, &point, &content, true, u64::MAX);
    let runs = found.runs().map(|run| run.sectors()).collect::<Vec<_>>();
    assert_eq!(runs, [512], "the damaged frame and no more");
    // Shipped again, the next point is whole, and the one before it is not.
    let runs: Vec<SectorRange> = found.runs().collect();
    let mended = lab.cycle(Some(&point), &content, &runs).unwrap();
    assert!(lab.restored(mended.cycle).unwrap() == content);
    assert!(lab.restored(point.cycle).is_err());
    backstay_vault::read::verify_point(&lab.vault, lab.disk, mended.cycle, 1, &|_, _| {}).unwrap();
}

//! What goes in comes out: every point of a disk equals the disk at that point.

mod common;

use backstay_types::{ByteLen, CycleNo, SectorRange};
use backstay_vault::read::{FileTarget, restore, verify_point, verify_points};
use backstay_vault::retain::{Policy, maintain};
use backstay_vault::{Pass, PointMeta, verify_cycle};
use common::{Lab, content, meta, rewrite, set, some_runs};

/// Cycles of random writes; every point is compared with what the disk was.
fn history(size: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let lab = Lab::new(size);
    let mut now = content(&mut rng, size);
    let mut then = vec![];
    let mut point = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    then.push(now.clone());
    for _ in 0..4 {
        let runs = some_runs(&mut rng, lab.whole().end.0);
        rewrite(&mut rng, &mut now, &runs);
        point = lab.cycle(Some(&point), &now, &runs).unwrap();
        then.push(now.clone());
    }
    let points = lab.vault.points(lab.disk).unwrap();
    assert_eq!(points, (1..=5).map(CycleNo).collect::<Vec<_>>());
    for (cycle, then) in points.iter().zip(&then) {
        assert!(lab.restored(*cycle).unwrap() == *then, "point {cycle}, seed {seed}");
        verify_point(&lab.vault, lab.disk, *cycle, 2, &|_, _| {}).unwrap();
    }
    let all = verify_points(&lab.vault, lab.disk, &points, 2, &|_, _| {}).unwrap();
    assert_eq!(all.points, 5);
    assert_eq!(all.segments as usize, point.segments.len(), "shared segments are read once");
}

#[test]
fn every_point_is_the_disk_as_it_was() {
    for seed in 0..3 {
        history(8 << 20, seed);
    }
}

#[test]
fn a_disk_of_odd_size() {
    history((3 << 20) + 777, 10);
    history(513, 11);
    history(1, 12);
}

/// An initial cycle is a fuzzy pass and a delta on top: the later pass holds.
#[test]
fn the_second_pass_holds_over_the_first() {
    let mut rng = fastrand::Rng::with_seed(20);
    let lab = Lab::new(2 << 20);
    let fuzzy = content(&mut rng, 2 << 20);
    let first = lab.ship(1, &fuzzy, &[lab.whole()]);
    let mut cut = fuzzy.clone();
    let runs = some_runs(&mut rng, lab.whole().end.0);
    rewrite(&mut rng, &mut cut, &runs);
    let second = lab.ship(1, &cut, &runs);
    let passes = vec![
        Pass { must_move: set(&[lab.whole()]), segments: first },
        Pass { must_move: set(&runs), segments: second },
    ];
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), passes).unwrap();
    let point = lab.vault.commit(verified, meta(None)).unwrap();
    assert_eq!(point.moved_sectors, lab.whole().sectors());
    assert!(lab.restored(CycleNo(1)).unwrap() == cut);
}

/// A cycle without a change: what a new writer commits to end an old one's term.
#[test]
fn an_empty_cycle_is_a_point() {
    let lab = Lab::new(1 << 20);
    let now = content(&mut fastrand::Rng::with_seed(30), 1 << 20);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let second = lab.cycle(Some(&first), &now, &[]).unwrap();
    assert_eq!(second.segments, first.segments);
    assert!(lab.restored(CycleNo(2)).unwrap() == now);
}

#[test]
fn a_restored_file_is_sparse_and_whole() {
    use std::os::unix::fs::MetadataExt;
    let size = 16 << 20;
    let lab = Lab::new(size);
    let mut now = vec![0; size as usize];
    fastrand::Rng::with_seed(40).fill(&mut now[1 << 20..2 << 20]);
    let point = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let path = lab.dir.path().join("restored.img");
    std::fs::write(&path, vec![0xEE; 20 << 20]).unwrap();
    let target = FileTarget::open(&path, ByteLen(size)).unwrap();
    restore(&lab.vault, &point, &target, 2, &|_, _| {}).unwrap();
    assert!(std::fs::read(&path).unwrap() == now);
    let blocks = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(blocks <= 2 << 20, "{blocks} bytes allocated for 1 MiB of data");
}

#[test]
fn many_threads_may_use_one_vault() {
    let lab = Lab::new(4 << 20);
    let now = content(&mut fastrand::Rng::with_seed(50), 4 << 20);
    let quarters: Vec<SectorRange> = lab.whole().split_at_multiples(2048).collect();
    let ship = |run: &SectorRange| lab.ship(1, &now, std::slice::from_ref(run));
    let segments = std::thread::scope(|scope| {
        let running: Vec<_> = quarters.iter().map(|run| scope.spawn(|| ship(run))).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let pass = Pass { must_move: set(&[lab.whole()]), segments };
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).unwrap();
    lab.vault.commit(verified, meta(None)).unwrap();
    assert!(lab.restored(CycleNo(1)).unwrap() == now);
}

/// A point by its time: the newest not after it, also with clocks that step back, and without reading all.
#[test]
fn the_newest_until_an_instant() {
    let lab = Lab::new(1 << 16);
    let now = content(&mut fastrand::Rng::with_seed(3), 1 << 16);
    let (mut before, mut cuts) = (None, vec![]);
    for cycle in 1..=150_u64 {
        let runs = if before.is_none() { [lab.whole()] } else { [SectorRange::new(0, 1)] };
        let segments = lab.ship(cycle, &now, &runs);
        let pass = Pass { must_move: set(&runs), segments };
        let verified =
            verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(cycle), vec![pass]).unwrap();
        // Each tenth clock is an hour late.
        let cut_unix_ns = cycle * 1000 - if cycle % 10 == 0 { 3600 } else { 0 };
        cuts.push((CycleNo(cycle), cut_unix_ns));
        let meta = PointMeta { cut_unix_ns, ..meta(before.as_ref()) };
        before = Some(lab.vault.commit(verified, meta).unwrap());
    }
    let right = || {
        let points = lab.vault.points(lab.disk).unwrap();
        for at in (0..160_000).step_by(500) {
            let want = cuts.iter().rev().find(|(cycle, cut)| *cut <= at && points.contains(cycle));
            let found = lab.vault.newest_until(lab.disk, &points, at).unwrap();
            assert_eq!(found.map(|p| (p.cycle, p.cut_unix_ns)), want.copied(), "{at}");
        }
        let requests = lab.vault.requests();
        lab.vault.newest_until(lab.disk, &points, 1500).unwrap();
        lab.vault.requests() - requests
    };
    assert!((150..160).contains(&right()));
    // Once they are in the ledger, nobody asks for them.
    let policy = Policy {
        keep: Some("last 90".parse().unwrap()),
        thorough: true,
        merge: false,
        segment_bytes: 1 << 20,
        zstd_level: 1,
    };
    maintain(&lab.vault, lab.disk, &policy, &common::history::time(0), &false.into()).unwrap();
    assert!(right() < 10);
}

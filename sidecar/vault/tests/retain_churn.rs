//! Endless churn: however many cycles, a point needs few segments, restoring it reads little more than
//! the disk, and the vault stays small. And readers, writers and maintainers all at once.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use backstay_types::{CycleNo, SectorRange};
use backstay_vault::retain::tiers::{runs, runs_max, tier};
use backstay_vault::retain::{Held, Policy, maintain};
use backstay_vault::{SectorSet, VaultError};
use common::history::{History, policy, room, run, time};

/// Cycles; `BACKSTAY_TEST_LONG` makes ten times as many.
fn cycles() -> u64 {
    if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 4_000 } else { 400 }
}

/// What a list promises after maintenance: docs/explanation/format-vault.md.
fn check_list(history: &History, vault: &backstay_vault::Vault, what: &str) -> u64 {
    let newest = history.newest(vault).unwrap().unwrap();
    let list = match vault.ledger(history.disk).unwrap() {
        Some(ledger) => ledger.merged(&newest.segments).0,
        None => newest.segments.clone(),
    };
    let runs = runs(&list);
    let highest = runs.iter().skip(1).map(|run| tier(run.bytes)).max().unwrap_or(0);
    assert!(runs.len() <= runs_max(highest), "{what}: {} runs", runs.len());
    let disk = SectorRange::whole(history.size).sectors();
    let base = runs[0].data_sectors;
    let newer: u64 = runs.iter().skip(1).map(|run| run.data_sectors).sum();
    assert!(base <= disk + disk / 4, "{what}: the oldest run holds {base} sectors");
    assert!(newer <= base, "{what}: {newer} sectors over {base}");
    // As many as the runs, and as their bytes fill.
    let bytes: u64 = list.iter().map(|entry| entry.object.0).sum();
    assert!(list.len() as u64 <= runs.len() as u64 + bytes / (64 << 10), "{what}");
    bytes
}

#[test]
fn endless_churn_stays_bounded() {
    let (dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut history = History::new(&vault, 4 << 20, 1);
    let (mut most, mut shipped, mut rewritten) = (0, 0, 0);
    for cycle in 1..=cycles() {
        let point = history.cycle(&vault, &mut rng).unwrap();
        shipped += point.own_segments().map(|segment| segment.object.0).sum::<u64>();
        let report = run(&vault, history.disk, "last 5").unwrap();
        rewritten += report.merged.bytes;
        let what = format!("cycle {cycle}");
        check_list(&history, &vault, &what);
        if cycle % 50 == 0 {
            history.check(&vault, &what);
            history.check_clean(&vault, dir.path(), &what);
        }
        history.images.retain(|&of, _| of + 5 > cycle);
        most = most.max(history.stored(dir.path()));
    }
    // Five points of at most one and three quarters of the disk each, if they share nothing; the
    // merge that no point has yet; and what it takes to be stored at all.
    let bound = 4 * history.size.0;
    assert!(most <= bound, "{most} bytes, {bound} at most");
    assert!(rewritten <= shipped * 6, "{rewritten} bytes rewritten for {shipped} shipped");
    println!("{most} bytes at most; {rewritten} rewritten for {shipped} shipped");
}

/// The same few sectors over and over: what is merged is small, and the disk is left alone.
#[test]
fn a_hot_spot_does_not_rewrite_the_disk() {
    let (dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(4);
    let mut history = History::new(&vault, 4 << 20, 1);
    history.cycle(&vault, &mut rng).unwrap();
    let hot = [SectorRange::new(1000, 1600)];
    let mut rewritten = 0;
    for _ in 0..200 {
        common::rewrite(&mut rng, &mut history.now, &hot);
        let before = history.newest(&vault).unwrap();
        history.commit(&vault, before.as_ref(), &hot).unwrap();
        rewritten += run(&vault, history.disk, "last 2").unwrap().merged.bytes;
        check_list(&history, &vault, "hot");
    }
    history.images.retain(|&of, _| of > 195);
    history.check(&vault, "hot");
    history.check_clean(&vault, dir.path(), "hot");
    // The first cycle's segments are still the oldest of the list, and what is merged is the hot spot.
    let newest = history.newest(&vault).unwrap().unwrap();
    assert_eq!(newest.segments[0].cycle, CycleNo(1));
    assert!(rewritten <= 200 / 3 * (600 * 512), "{rewritten}");
}

/// Zeroes hide what is below them, also when what is below is merged away from them, and the space
/// of what they hide comes back.
#[test]
fn discarded_data_does_not_come_back_and_its_space_does() {
    let (dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(5);
    let mut history = History::new(&vault, 4 << 20, 1);
    rng.fill(&mut history.now);
    history.cycle(&vault, &mut rng).unwrap();
    let full = history.stored(dir.path());
    let whole = SectorRange::whole(history.size);
    let most = SectorRange::new(whole.start.0 + 100, whole.end.0);
    history.now[100 * 512..].fill(0);
    let before = history.newest(&vault).unwrap();
    history.commit(&vault, before.as_ref(), &[most]).unwrap();
    for _ in 0..20 {
        common::rewrite(&mut rng, &mut history.now, &[SectorRange::new(0, 8)]);
        let before = history.newest(&vault).unwrap();
        history.commit(&vault, before.as_ref(), &[SectorRange::new(0, 8)]).unwrap();
        run(&vault, history.disk, "last 2").unwrap();
        let newest = *history.images.keys().last().unwrap();
        let mut now = history.clone();
        now.images.retain(|&of, _| of + 2 > newest);
        now.check(&vault, "discarded");
    }
    assert!(history.stored(dir.path()) < full / 8, "{} of {full}", history.stored(dir.path()));
}

/// Sets of what a merge holds: exactly the sectors of what it stands for.
#[test]
fn a_merge_holds_the_same_sectors() {
    let (_dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(6);
    let mut history = History::new(&vault, 1 << 20, 1);
    for _ in 0..9 {
        history.cycle(&vault, &mut rng).unwrap();
    }
    let newest = history.newest(&vault).unwrap().unwrap();
    let covered = |list: &[backstay_vault::SegmentRef]| {
        let mut set = SectorSet::new();
        for segment in list {
            let index =
                backstay_vault::read::read_index(&vault, history.disk, history.size, segment);
            index.unwrap().extents.iter().for_each(|extent| {
                set.insert(extent.range);
            });
        }
        set
    };
    let report = run(&vault, history.disk, "").unwrap();
    assert!(report.merged.replaced > 1 && report.retired.retired.is_empty());
    let ledger = vault.ledger(history.disk).unwrap().unwrap();
    let merge = &ledger.merges[0];
    let place = merge.place_in(&newest.segments).unwrap();
    assert_eq!(place.len() as u64, report.merged.replaced);
    let old = covered(&newest.segments[place]);
    assert_eq!(covered(&merge.segments).first_difference(&old), None);
}

/// Anyone who ends, well or not, ends all.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A writer, two maintainers and two readers, as fast as they can.
#[test]
fn everybody_at_once() {
    let (dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(13);
    let mut history = History::new(&vault, 1 << 20, 1);
    history.cycle(&vault, &mut rng).unwrap();
    let disk = history.disk;
    let shared = Mutex::new(history);
    let (stop, reads, runs) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let begin = Barrier::new(5);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mine, _) = common::history::stepped(dir.path(), common::At::Nothing);
                let _ends = Ends(&stop);
                begin.wait();
                while !stop.load(Ordering::SeqCst) {
                    match run(&mine, disk, "last 3") {
                        Ok(_) => drop(runs.fetch_add(1, Ordering::SeqCst)),
                        Err(VaultError::Contended { .. } | VaultError::NotFound { .. }) => {}
                        Err(e) => panic!("maintaining: {e}"),
                    }
                }
            });
        }
        for seed in 0..2 {
            let (shared, stop, reads, begin, dir) = (&shared, &stop, &reads, &begin, &dir);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed);
                let (mine, _) = common::history::stepped(dir.path(), common::At::Nothing);
                let _ends = Ends(stop);
                begin.wait();
                while !stop.load(Ordering::SeqCst) {
                    let points = mine.points(disk).unwrap();
                    let cycle = points[rng.usize(..points.len())];
                    let held = match Held::reading(&mine, disk, cycle..=cycle, "test") {
                        Ok(held) => held,
                        Err(VaultError::Retired(_)) => continue,
                        Err(e) => panic!("holding {cycle}: {e}"),
                    };
                    // Held: whatever the others do now, it can be read to its end.
                    let (now, image) = {
                        let history = shared.lock().unwrap();
                        (history.clone(), history.images.get(&cycle.0).map(Arc::clone))
                    };
                    // The writer tells of a point only after it is there.
                    if let Some(image) = image {
                        let restored = now.restored(&mine, cycle);
                        let restored = restored.unwrap_or_else(|e| panic!("point {cycle}: {e}"));
                        assert!(restored == *image, "point {cycle} is another disk");
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                    drop(held);
                }
            });
        }
        begin.wait();
        let _ends = Ends(&stop);
        let mut written = 0;
        while !stop.load(Ordering::SeqCst)
            && (written < 60
                || reads.load(Ordering::SeqCst) < 30
                || runs.load(Ordering::SeqCst) < 30)
        {
            let mut next = shared.lock().unwrap().clone();
            next.cycle(&vault, &mut rng).unwrap_or_else(|e| panic!("cycle: {e}"));
            let mut history = shared.lock().unwrap();
            *history = next;
            written += 1;
        }
        stop.store(true, Ordering::SeqCst);
    });
    let history = shared.into_inner().unwrap();
    run(&vault, disk, "last 3").unwrap();
    assert_eq!(history.check(&vault, "in the end").len(), 3);
    history.check_clean(&vault, dir.path(), "in the end");
    assert!(vault.holds(disk).unwrap().is_empty(), "readers released what they held");
}

/// In passing, points go in batches, and what went is collected.
#[test]
fn in_passing_points_go_in_batches() {
    let (dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(14);
    let mut history = History::new(&vault, 1 << 20, 1);
    let passing = Policy { thorough: false, ..policy("last 40") };
    let (mut batches, mut most) = (0, 0);
    for cycle in 1..=60 {
        history.cycle(&vault, &mut rng).unwrap();
        let report =
            maintain(&vault, history.disk, &passing, &time(0), &AtomicBool::new(false)).unwrap();
        let gone = report.retired.retired.len();
        assert!(gone == 0 || gone >= 2, "cycle {cycle}: {gone}");
        batches += usize::from(gone > 0);
        most = most.max(vault.points(history.disk).unwrap().len());
    }
    assert!(batches >= 5 && most <= 43, "{batches} batches, {most} points");
    history.check(&vault, "in passing");
    run(&vault, history.disk, "last 40").unwrap();
    history.check_clean(&vault, dir.path(), "in passing");
}

#[test]
fn being_told_to_stop_ends_it() {
    let (_dir, vault) = room();
    let mut history = History::new(&vault, 1 << 20, 1);
    history.cycle(&vault, &mut fastrand::Rng::with_seed(1)).unwrap();
    let stopped = maintain(&vault, history.disk, &policy(""), &time(0), &AtomicBool::new(true));
    assert!(matches!(stopped, Err(VaultError::MaintenanceStopped)), "{stopped:?}");
    assert_eq!(vault.points(history.disk).unwrap(), [CycleNo(1)]);
}

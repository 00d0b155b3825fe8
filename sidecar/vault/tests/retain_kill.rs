//! Maintenance killed at each of its changes, and everything else that may happen at each of its
//! steps: no point that stays ever loses anything, and the next run leaves nothing behind.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use backstay_types::CycleNo;
use backstay_vault::retain::{Policy, maintain};
use backstay_vault::{HoldKind, Pass, Vault, VaultError, verify_cycle};
use common::history::{HOUR, History, copy, hold, policy, room, run, stepped, time};
use common::{At, meta, set, ship};

const SIZE: u64 = 1 << 20;
const KEEP: &str = "last 4";
/// The first of these is pinned, the second mounted.
const HELD: [u64; 2] = [3, 7];

/// Points 1 to 22 of a churning disk, never maintained but once; some are held; attempts that were
/// killed lie about. Merging is due.
fn prepared(vault: &Vault) -> History {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut history = History::new(vault, SIZE, 1);
    for cycle in 1..=22 {
        if cycle % 5 == 0 {
            history.leave_attempt(vault, cycle);
        }
        history.cycle(vault, &mut rng).unwrap();
        if cycle == 9 {
            vault.hold(history.disk, &hold("keep-me", HoldKind::Pin, (3, 3), None)).unwrap();
            let until = Some((1 << 62) + HOUR);
            vault.hold(history.disk, &hold("mnt", HoldKind::Mount, (7, 7), until)).unwrap();
            run(vault, history.disk, "last 6").unwrap();
        }
    }
    history.leave_attempt(vault, 23);
    history
}

fn expected() -> BTreeSet<u64> {
    HELD.into_iter().chain(19..=22).collect()
}

/// What must hold after a kill, and after the next run; then life goes on.
fn survives(history: &History, dir: &Path, what: &str) {
    let (vault, _) = stepped(dir, At::Nothing);
    let points = history.check(&vault, what);
    assert!(points.is_superset(&expected()), "{what}: only {points:?} are left");
    run(&vault, history.disk, KEEP).unwrap_or_else(|e| panic!("{what}: the next run: {e}"));
    assert_eq!(history.check(&vault, what), expected(), "{what}");
    history.check_clean(&vault, dir, what);
    let mut history = history.clone();
    let mut rng = fastrand::Rng::with_seed(8);
    for _ in 0..2 {
        history.cycle(&vault, &mut rng).unwrap_or_else(|e| panic!("{what}: a cycle: {e}"));
        run(&vault, history.disk, KEEP).unwrap();
    }
    let points = history.check(&vault, what);
    assert_eq!(points, HELD.into_iter().chain(21..=24).collect(), "{what}");
    history.check_clean(&vault, dir, what);
}

fn killed_at_each_change(die: fn(u64) -> At) {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (vault, steps) = stepped(place.path(), die(at));
        let done = run(&vault, history.disk, KEEP);
        let what = format!("killed at change {at}");
        if steps.counted().1 <= at {
            done.unwrap();
            break;
        }
        // Leaving old revisions of the ledger behind is no failure; that run may even end well.
        survives(&history, place.path(), &what);
        at += 1;
    }
    assert!(at > 25, "only {at} changes: this test does not test what it should");
}

#[test]
fn killed_before_each_change() {
    killed_at_each_change(At::DieBefore);
}

#[test]
fn killed_after_each_change_before_its_answer() {
    killed_at_each_change(At::DieAfter);
}

/// At each step of a maintainer, `other` does all of its work, with a vault of its own.
fn at_each_step(other: impl Fn(&Vault, &mut History) + Clone + Send + 'static) {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (told, shared) = std::sync::mpsc::channel();
        let (mut theirs, path, act) = (history.clone(), place.path().to_owned(), other.clone());
        let meanwhile = move || {
            let (vault, _) = stepped(&path, At::Nothing);
            act(&vault, &mut theirs);
            told.send(theirs).unwrap();
        };
        let (vault, steps) = stepped(place.path(), At::Meanwhile(at, Box::new(meanwhile)));
        let what = format!("something else at step {at}");
        let done = run(&vault, history.disk, KEEP);
        if steps.counted().0 <= at {
            done.unwrap();
            break;
        }
        match done {
            // It may find what it reads deleted by the other one; then it has done nothing wrong.
            Ok(_) | Err(VaultError::Contended { .. } | VaultError::NotFound { .. }) => {}
            Err(e) => panic!("{what}: {e}"),
        }
        let mut history = shared.recv().expect("the other one ends");
        let (vault, _) = stepped(place.path(), At::Nothing);
        history.check(&vault, &what);
        run(&vault, history.disk, KEEP).unwrap();
        let points = history.check(&vault, &what);
        let last: Vec<u64> = history.images.keys().rev().take(4).copied().collect();
        assert!(last.iter().all(|cycle| points.contains(cycle)), "{what}: {points:?}");
        assert!(HELD.iter().all(|cycle| points.contains(cycle)), "{what}: {points:?}");
        history.check_clean(&vault, place.path(), &what);
        history.cycle(&vault, &mut fastrand::Rng::with_seed(at)).unwrap();
        run(&vault, history.disk, KEEP).unwrap();
        history.check(&vault, &what);
        at += 1;
    }
    assert!(at > 100, "only {at} steps: this test does not test what it should");
}

#[test]
fn beside_another_maintainer() {
    at_each_step(|vault, history| {
        run(vault, history.disk, KEEP).unwrap();
    });
}

/// The other one only collects: what is put for a merge and not named yet is garbage to it, and the
/// merge must not come into force after that.
#[test]
fn beside_a_collector() {
    at_each_step(|vault, history| {
        let only = Policy { merge: false, ..policy("") };
        maintain(vault, history.disk, &only, &time(0), &AtomicBool::new(false)).unwrap();
    });
}

#[test]
fn beside_a_cycle() {
    at_each_step(|vault, history| {
        history.cycle(vault, &mut fastrand::Rng::with_seed(9)).unwrap();
    });
}

/// The other one merges, and a cycle takes over what it merged; then it drops the merge.
#[test]
fn beside_a_maintainer_and_cycles() {
    at_each_step(|vault, history| {
        let mut rng = fastrand::Rng::with_seed(9);
        for _ in 0..2 {
            run(vault, history.disk, KEEP).unwrap();
            history.cycle(vault, &mut rng).unwrap();
        }
        run(vault, history.disk, KEEP).unwrap();
    });
}

/// What a cycle that runs has put is left alone, though no point names it yet.
#[test]
fn a_running_cycle_is_left_alone() {
    let (dir, vault) = room();
    let mut history = prepared(&vault);
    let mut rng = fastrand::Rng::with_seed(17);
    for _ in 0..12 {
        let before = history.newest(&vault).unwrap().unwrap();
        let runs = history.churn(&mut rng);
        let cycle = before.cycle.next();
        let segments = ship(&vault, history.disk, cycle, &history.now, &runs).unwrap();
        run(&vault, history.disk, KEEP).unwrap();
        let pass = Pass { must_move: set(&runs), segments };
        let verified = verify_cycle(&vault, history.disk, history.size, cycle, vec![pass]).unwrap();
        run(&vault, history.disk, KEEP).unwrap();
        vault.commit(verified, meta(Some(&before))).unwrap();
        history.images.insert(cycle.0, std::sync::Arc::new(history.now.clone()));
        history.check(&vault, "a running cycle");
    }
    run(&vault, history.disk, KEEP).unwrap();
    history.check_clean(&vault, dir.path(), "a running cycle");
}

/// A hold that was granted holds, whenever it came; one that was refused was told the truth.
#[test]
fn beside_somebody_who_pins() {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let (mut granted, mut refused) = (0, 0);
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (told, shared) = std::sync::mpsc::channel();
        let (path, disk) = (place.path().to_owned(), history.disk);
        let meanwhile = move || {
            let (vault, _) = stepped(&path, At::Nothing);
            let request = hold("late", HoldKind::Pin, (15, 15), None);
            told.send(vault.hold(disk, &request).map(|_| ())).unwrap();
        };
        let (vault, steps) = stepped(place.path(), At::Meanwhile(at, Box::new(meanwhile)));
        run(&vault, history.disk, KEEP).unwrap();
        if steps.counted().0 <= at {
            break;
        }
        for _ in 0..2 {
            let (vault, _) = stepped(place.path(), At::Nothing);
            let points = history.check(&vault, &format!("pinned at step {at}"));
            match shared.try_recv() {
                Ok(Ok(())) => {
                    assert!(points.contains(&15), "pinned at step {at}, and gone");
                    granted += 1;
                }
                Ok(Err(VaultError::Retired(CycleNo(15)))) => {
                    assert!(!points.contains(&15), "refused at step {at}, and there");
                    refused += 1;
                }
                Ok(Err(e)) => panic!("at step {at}: {e}"),
                // The second time round.
                Err(_) => {}
            }
            run(&vault, history.disk, KEEP).unwrap();
        }
        at += 1;
    }
    assert!(granted > 5 && refused > 5, "{granted} granted, {refused} refused");
}

/// A writer that sleeps at any step of its cycle while others commit, retire and collect has lost,
/// and knows it; what it put is nobody's.
#[test]
fn a_writer_that_slept_has_lost() {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (told, shared) = std::sync::mpsc::channel();
        let (mut theirs, path) = (history.clone(), place.path().to_owned());
        let meanwhile = move || {
            let (vault, _) = stepped(&path, At::Nothing);
            let mut rng = fastrand::Rng::with_seed(11);
            for _ in 0..6 {
                theirs.cycle(&vault, &mut rng).unwrap();
                run(&vault, theirs.disk, "last 2").unwrap();
            }
            told.send(theirs).unwrap();
        };
        let before = history.newest(&vault).unwrap();
        let mut ours = history.clone();
        let runs = ours.churn(&mut fastrand::Rng::with_seed(12));
        let (slow, steps) = stepped(place.path(), At::Meanwhile(at, Box::new(meanwhile)));
        let committed = ours.commit(&slow, before.as_ref(), &runs);
        if steps.counted().0 <= at {
            committed.unwrap();
            break;
        }
        let what = format!("a writer that slept at step {at}");
        let theirs = shared.recv().unwrap();
        let (vault, _) = stepped(place.path(), At::Nothing);
        match committed {
            Err(
                VaultError::LostRace(_) | VaultError::NotFound { .. } | VaultError::Lost { .. },
            ) => {
                let points = theirs.check(&vault, &what);
                assert!(!points.contains(&23), "{what}: {points:?}");
                // What the slow one put is there, and is no point.
                let pinned = vault.hold(theirs.disk, &hold("p", HoldKind::Pin, (23, 23), None));
                let refused = matches!(pinned, Err(VaultError::Retired(CycleNo(23))));
                assert!(refused, "{what}: {pinned:?}");
            }
            // It had put its point before it slept; the others' history is then another one.
            Ok(_) => panic!("{what}: it says it committed"),
            Err(e) => panic!("{what}: {e}"),
        }
        run(&vault, theirs.disk, "last 2").unwrap();
        theirs.check(&vault, &what);
        theirs.check_clean(&vault, place.path(), &what);
        at += 1;
        // From the put on, the point is there and the others cannot commit this cycle.
        if put_is_next(&history, &runs, dir.path(), at) {
            break;
        }
    }
    assert!(at > 5, "only {at} steps");
}

/// Whether step `at` of a commit comes after its put.
fn put_is_next(
    history: &History,
    runs: &[backstay_types::SectorRange],
    dir: &Path,
    at: u64,
) -> bool {
    let place = tempfile::tempdir().unwrap();
    copy(dir, place.path());
    let path = history.folder(place.path()).join(format!("points/{:020}", 23));
    let there = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&there);
    let look = move || seen.store(path.exists(), std::sync::atomic::Ordering::SeqCst);
    let (vault, _) = stepped(place.path(), At::Meanwhile(at, Box::new(look)));
    let (calm, _) = stepped(place.path(), At::Nothing);
    let before = history.newest(&calm).unwrap();
    let mut ours = history.clone();
    ours.commit(&vault, before.as_ref(), runs).unwrap();
    there.load(std::sync::atomic::Ordering::SeqCst)
}

/// A list of a directory is not of one instant: it may show a point and not the one before it. Nothing
/// is taken for nobody's because of that.
#[test]
fn beside_lists_that_miss_a_point() {
    let (dir, vault) = room();
    let mut history = prepared(&vault);
    // Merged and taken over: the newest point needs other segments than the one before it.
    run(&vault, history.disk, "").unwrap();
    history.cycle(&vault, &mut fastrand::Rng::with_seed(21)).unwrap();
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let missed = "/points/00000000000000000022";
        let (vault, steps) = stepped(place.path(), At::Miss(at, missed));
        run(&vault, history.disk, KEEP).unwrap();
        let what = format!("list {at} misses point 22");
        for _ in 0..2 {
            let (vault, _) = stepped(place.path(), At::Nothing);
            let points = history.check(&vault, &what);
            assert!(points.is_superset(&(20..=23).collect()), "{what}: {points:?}");
            run(&vault, history.disk, KEEP).unwrap();
            history.check_clean(&vault, place.path(), &what);
        }
        if steps.lists() <= at {
            break;
        }
        at += 1;
    }
    assert!(at > 5, "only {at} lists");
}

//! Replicas in memory: random histories with merges and retention, a failure at every durable step,
//! power loss, damage. What a replica says it holds, it holds, byte for byte.

#[path = "../../vault/tests/common/mod.rs"]
mod common;
#[path = "replica/lab.rs"]
mod lab;

use std::collections::BTreeSet;

use backstay_format::unfinished::UnfinishedRestore;
use backstay_recovery::replica::difference::between;
use backstay_recovery::replica::{PointRef, ReplicaError, ReplicaState, Seam, Seed};
use backstay_track::Backing as _;
use backstay_types::{ByteLen, Classified, CycleNo, SectorRange, Term};
use backstay_vault::{HoldKind, Manifest, Vault};
use common::history::{History, room, run};
use fastrand::Rng;
use lab::{Host, fail_over, failing, flip, go_on, rewrite, seed};

const SIZE: u64 = (2 << 20) + 300;

fn long() -> bool {
    std::env::var_os("BACKSTAY_TEST_LONG").is_some()
}

fn at(host: &Host) -> PointRef {
    match host.record().standing {
        ReplicaState::At { point, .. } => point,
        other => panic!("{other:?}"),
    }
}

/// A history of some points, and a host at the first of them.
fn begun(vault: &Vault, seed: u64, points: u64) -> (History, Host, Vec<Manifest>) {
    let mut history = History::new(vault, SIZE, seed);
    let mut rng = Rng::with_seed(seed);
    let points: Vec<Manifest> =
        (0..points).map(|_| history.cycle(vault, &mut rng).unwrap()).collect();
    let host = Host::new(&history, &points[0], Seed::Full, SIZE);
    host.bring(vault, &points[0], Seam::default()).unwrap();
    host.is_at(&history, &(&points[0]).into(), "the first point");
    (history, host, points)
}

#[test]
fn every_point_of_random_histories_is_the_restore() {
    let first = seed(0x5EED);
    for round in 0..if long() { 200 } else { 8 } {
        let seed = first.wrapping_add(round);
        let mut rng = Rng::with_seed(seed);
        let (_dir, vault) = room();
        let mut history = History::new(&vault, SIZE, seed);
        let point = history.cycle(&vault, &mut rng).unwrap();
        let how = if rng.bool() { Seed::Full } else { Seed::Compare };
        let mut host = Host::new(&history, &point, how, SIZE);
        let (mut brought, mut failovers) = (0, 0);
        for step in 0..40 {
            let what = format!("seed {seed}, step {step}");
            match rng.u8(..11) {
                0..=4 => {
                    let runs = some_runs(&mut rng);
                    let term = vault.newest_term(history.disk).unwrap().unwrap().term;
                    go_on(&mut history, &vault, term, &runs, &mut rng);
                }
                // Another history goes on from an older point.
                10 => {
                    let points = vault.points(history.disk).unwrap();
                    let from = points[rng.usize(..points.len())];
                    let from = vault.manifest(history.disk, from).unwrap();
                    let runs = some_runs(&mut rng);
                    fail_over(&mut history, &vault, &from, &runs, &mut rng);
                    failovers += 1;
                }
                // Points go, segments are merged: also those that the replica counts from.
                5..=6 => {
                    run(&vault, history.disk, ["last 1", "last 3", ""][rng.usize(..3)]).unwrap();
                }
                // Mostly forward, now and then back, as a failover that is changed does.
                _ => {
                    let points = vault.points(history.disk).unwrap();
                    let to = match rng.u8(..4) {
                        0 => points[rng.usize(..points.len())],
                        _ => *points.last().unwrap(),
                    };
                    let to = vault.manifest(history.disk, to).unwrap();
                    host.log = ByteLen([64 << 10, 512 << 10, 1 << 30][rng.usize(..3)]);
                    host.stretch = [1, 1000, u64::MAX][rng.usize(..3)];
                    host.bring(&vault, &to, Seam::default())
                        .unwrap_or_else(|e| panic!("{what}: {e}"));
                    assert_eq!(at(&host), PointRef::from(&to), "{what}");
                    host.is_at(&history, &(&to).into(), &what);
                    brought += 1;
                }
            }
        }
        println!("seed {seed}: {brought} times brought to a point, {failovers} failovers");
    }
}

fn some_runs(rng: &mut Rng) -> Vec<SectorRange> {
    let sectors = SIZE.div_ceil(512);
    let mut at = rng.u64(..sectors / 2);
    let mut runs = vec![];
    while at < sectors && runs.len() < 4 {
        let end = (at + rng.u64(1..sectors / 16)).min(sectors);
        runs.push(SectorRange::new(at, end));
        at = end + rng.u64(1..sectors / 4);
    }
    runs
}

/// Fails at each step there is, with and without a power loss; then finishes, first without the vault.
fn at_every_step(
    name: &str,
    history: &History,
    before: &Host,
    vault: &Vault,
    to: &Manifest,
    later: &Manifest,
) -> BTreeSet<&'static str> {
    let mut seen = BTreeSet::new();
    for power in [false, true] {
        let mut rng = Rng::with_seed(7);
        for step in 1.. {
            let host = before.copy();
            let (seam, steps) = failing(step);
            let brought = host.bring(vault, to, seam);
            let steps = steps.lock().unwrap().clone();
            seen.extend(&steps);
            if (steps.len() as u64) < step {
                brought.unwrap_or_else(|e| panic!("{name}: {e}"));
                println!("{name}: {} steps, power loss {power}", steps.len());
                break;
            }
            let what =
                format!("{name}, step {step} ({}), power loss {power}", steps[step as usize - 1]);
            assert!(brought.is_err(), "{what}");
            if power {
                host.target.lose_power(&mut rng);
            }
            // What is no whole point says so itself, to anyone who finds the device.
            let bytes = host.target.bytes(host.target.size());
            let known = bytes == before.target.bytes(before.target.size())
                || history.images.values().any(|image| bytes.starts_with(image));
            assert!(
                UnfinishedRestore::is_mark(&bytes) || known,
                "{what}: half written, not marked"
            );
            // The vault is gone: what can be whole is whole.
            let whole = host.record().standing.whole();
            let finished = host.start(Seam::default()).finish();
            finished.unwrap_or_else(|e| panic!("{what}: {e}"));
            match whole {
                Some(point) => {
                    assert_eq!(at(&host), point, "{what}");
                    host.is_at(history, &point, &what);
                }
                None => assert_eq!(host.record().standing.whole(), None, "{what}"),
            }
            // And it is back; by then there is another point.
            let to = if rng.bool() { to } else { later };
            host.bring(vault, to, Seam::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            host.is_at(history, &to.into(), &what);
            // Nothing is left behind.
            let left: Vec<_> = std::fs::read_dir(&host.dir)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(left, ["replica.json"], "{what}");
        }
    }
    seen
}

#[test]
fn a_failure_at_any_step_leaves_a_whole_point_or_what_makes_one() {
    let (_dir, vault) = room();
    let (history, mut host, points) = begun(&vault, seed(21), 5);
    host.stretch = 600;
    let steps = at_every_step("log", &history, &host, &vault, &points[2], &points[4]);
    for step in ["log synced", "standing said", "applying", "record written", "target synced"] {
        assert!(steps.contains(step), "{step} in {steps:?}");
    }
    host.log = ByteLen(8 << 10);
    let steps =
        at_every_step("too large for a log", &history, &host, &vault, &points[2], &points[4]);
    for step in ["set saved", "stretch written", "arrived"] {
        assert!(steps.contains(step), "{step} in {steps:?}");
    }
    for how in [Seed::Full, Seed::Compare] {
        let mut host = Host::new(&history, &points[2], how, SIZE);
        host.stretch = 600;
        let steps = at_every_step("seed", &history, &host, &vault, &points[2], &points[4]);
        assert!(steps.contains("stretch noted"), "{steps:?}");
    }
}

/// Where a difference was too large for the log, and its set is small enough for it when it goes on (`--log-limit`
/// was raised, or the seed was that of a stopped disk): through the log, from what is not a whole point.
#[test]
fn a_known_set_that_fits_the_log_goes_through_it() {
    let (_dir, vault) = room();
    let (history, mut host, points) = begun(&vault, 30, 5);
    host.log = ByteLen(8 << 10);
    let seam = Seam::with(|step| match step {
        "standing said" => Err(std::io::Error::other("killed")),
        _ => Ok(()),
    });
    host.bring(&vault, &points[2], seam).unwrap_err();
    let standing = host.record().standing;
    assert!(matches!(standing, ReplicaState::Partial { seen: 0, .. }), "{standing:?}");
    host.log = ByteLen(1 << 30);
    let steps = at_every_step("but", &history, &host, &vault, &points[2], &points[4]);
    for step in ["log synced", "reserved", "record written", "target synced"] {
        assert!(steps.contains(step), "{step} in {steps:?}");
    }
    assert!(!steps.contains("stretch written"), "straight from the vault: {steps:?}");
}

/// What a power loss makes of the replica's own folder: of a log that was not synced anything may be there, and
/// one that was removed may be there again.
#[test]
fn a_power_loss_of_the_folder_leaves_a_whole_point() {
    let (_dir, vault) = room();
    let first = seed(31);
    let (history, before, points) = begun(&vault, first, 5);
    let mut rng = Rng::with_seed(first);
    let (from, to) = (&points[0], &points[2]);
    let redo = |host: &Host| {
        let files = std::fs::read_dir(&host.dir).unwrap().map(|entry| entry.unwrap().path());
        files
            .into_iter()
            .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("redo"))
    };
    let (mut not_synced, mut log) = (0, None);
    for step in 1.. {
        let host = before.copy();
        let (seam, steps) = failing(step);
        let brought = host.bring(&vault, to, seam);
        let steps = steps.lock().unwrap().clone();
        let Some(&at) = steps.get(step as usize - 1) else {
            brought.unwrap();
            break;
        };
        if at == "log synced" {
            let path = redo(&host).expect("the log");
            log = Some((path.file_name().unwrap().to_owned(), std::fs::read(&path).unwrap()));
        }
        if !["log begun", "log written"].contains(&at) {
            continue;
        }
        for round in 0..if long() { 200 } else { 20 } {
            let lost = host.copy();
            let what = format!("seed {first}, {at}, round {round}");
            // It fails as it should when it can; anyone who loses power cannot remove it.
            let path = redo(&lost).unwrap_or_else(|| lost.dir.join("redo-1"));
            let mut bytes = std::fs::read(&path).unwrap_or_default();
            bytes.resize(rng.usize(..256 << 10), 0);
            for sector in bytes.chunks_mut(512) {
                match rng.u8(..3) {
                    0 => rng.fill(sector),
                    1 => sector.fill(0),
                    _ => {}
                }
            }
            std::fs::write(&path, bytes).unwrap();
            lost.target.lose_power(&mut rng);
            lost.start(Seam::default()).finish().unwrap_or_else(|e| panic!("{what}: {e}"));
            lost.is_at(&history, &from.into(), &what);
            lost.bring(&vault, to, Seam::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            lost.is_at(&history, &to.into(), &what);
            not_synced += 1;
        }
    }
    assert!(not_synced >= 40, "only {not_synced} rounds");
    // It got there, and its log is back: of no use any more, and of no harm.
    let (name, bytes) = log.expect("a log that was synced");
    let host = before.copy();
    host.bring(&vault, &points[4], Seam::default()).unwrap();
    std::fs::write(host.dir.join(&name), bytes).unwrap();
    host.start(Seam::default()).finish().unwrap();
    host.is_at(&history, &(&points[4]).into(), "with an old log beside it");
    host.bring(&vault, to, Seam::default()).unwrap();
    host.is_at(&history, &to.into(), "and back");
    assert_eq!(redo(&host), None);
}

#[test]
fn going_back_and_forth_is_whole_at_any_step() {
    let (_dir, vault) = room();
    let (history, host, points) = begun(&vault, 22, 5);
    host.bring(&vault, &points[4], Seam::default()).unwrap();
    at_every_step("back", &history, &host, &vault, &points[1], &points[3]);
}

#[test]
fn a_damaged_segment_is_never_written() {
    let (dir, vault) = room();
    let (mut history, host, points) = begun(&vault, 23, 2);
    let mut rng = Rng::with_seed(1);
    let bad = rewrite(&mut history, &vault, &mut rng, &[SectorRange::new(100, 400)]);
    let folder = history.folder(dir.path()).join("segments");
    let segment = bad.own_segments().next().unwrap();
    let name = format!("{:020}-{:016x}-{}", bad.cycle.0, segment.attempt, segment.number);
    let before = std::fs::read(folder.join(&name)).unwrap();
    host.bring(&vault, &points[1], Seam::default()).unwrap();
    let mut written = host.target.written();
    for at in (0..before.len()).step_by(if long() { 1 } else { 97 }) {
        flip(&folder.join(&name), at);
        match host.bring(&vault, &bad, Seam::default()) {
            // The header is for people with a hex editor: a reader starts from the end.
            Ok(_) => {
                host.is_at(&history, &(&bad).into(), "flipped where nobody reads");
                assert!(at < 64, "byte {at}");
                host.bring(&vault, &points[1], Seam::default()).unwrap();
                written = host.target.written();
            }
            Err(e) => {
                assert!(e.is_damage() && !e.may_pass(), "byte {at}: {e}");
                host.is_at(&history, &(&points[1]).into(), "after damage");
                assert_eq!(host.target.written(), written, "byte {at}: something was written");
            }
        }
        std::fs::write(folder.join(&name), &before).unwrap();
    }
    // The next point mends it.
    let good = rewrite(&mut history, &vault, &mut rng, &[SectorRange::new(90, 410)]);
    flip(&folder.join(&name), 70);
    // Where a later segment holds the sectors, the damaged one is not read.
    host.bring(&vault, &good, Seam::default()).unwrap();
    host.is_at(&history, &(&good).into(), "mended");
}

#[test]
fn a_damaged_log_is_never_written() {
    let (_dir, vault) = room();
    let (history, before, points) = begun(&vault, 24, 3);
    // Stopped while it is applied, and before it is.
    for (step, applying) in [("record written", true), ("standing said", false)] {
        let stopped = before.copy();
        let seam = Seam::with(move |at| match at == step {
            true => Err(std::io::Error::other("killed")),
            false => Ok(()),
        });
        stopped.bring(&vault, &points[2], seam).unwrap_err();
        let log = stopped.dir.join("redo-1");
        let len = std::fs::metadata(&log).unwrap().len() as usize;
        let damages = (0..len).step_by(if long() { 13 } else { len / 40 });
        for damage in damages.map(Some).chain([None]) {
            let host = stopped.copy();
            let log = host.dir.join("redo-1");
            match damage {
                Some(at) => flip(&log, at),
                // Torn.
                None => {
                    std::fs::OpenOptions::new()
                        .write(true)
                        .open(&log)
                        .unwrap()
                        .set_len(len as u64 / 2)
                        .unwrap();
                }
            }
            let bytes = host.target.bytes(host.target.size());
            let error = host.start(Seam::default()).finish().unwrap_err();
            assert!(matches!(error, ReplicaError::Log { .. }), "{damage:?}: {error}");
            assert!(host.target.bytes(ByteLen(SIZE)) == bytes, "{damage:?}: something was written");
            match (applying, host.record().standing) {
                (true, ReplicaState::Seeding { how: Seed::Compare, .. }) => {}
                (false, ReplicaState::At { point, .. }) => host.is_at(&history, &point, "before"),
                (_, other) => panic!("{damage:?}: {other:?}"),
            }
            host.bring(&vault, &points[2], Seam::default()).unwrap();
            host.is_at(&history, &(&points[2]).into(), "after damage of the log");
        }
    }
}

#[test]
fn comparing_moves_only_what_differs() {
    let (_dir, vault) = room();
    let size = 8 << 20;
    let mut history = History::new(&vault, size, 25);
    let mut rng = Rng::with_seed(25);
    history.now.iter_mut().for_each(|byte| *byte = rng.u8(..));
    let first = lab::first_in_frames(&mut history, &vault);
    let host = Host::new(&history, &first, Seed::Compare, size);
    host.target.set(0, &history.now);
    // Three places of a few bytes.
    for at in [5, 3 << 20, size as usize - 700] {
        host.target.set(at, b"something else");
    }
    let moved = host.bring(&vault, &first, Seam::default()).unwrap();
    host.is_at(&history, &(&first).into(), "compared");
    // A chunk of 64 KiB, or the frame of 256 KiB around it, for each, the index, and the first block once more,
    // which is written last.
    println!("compared: {moved:?}");
    assert!(moved.written.0 <= 3 * (64 << 10), "{moved:?}");
    assert!(moved.fetched.0 <= 4 * (256 << 10) + (64 << 10), "{moved:?}");
    // Everything, for comparison.
    let full = Host::new(&history, &first, Seed::Full, size);
    let all = full.bring(&vault, &first, Seam::default()).unwrap();
    assert!(all.written.0 >= size && all.fetched.0 >= size, "{all:?}");
}

#[test]
fn the_difference_of_two_points_is_what_was_shipped_between() {
    let (_dir, vault) = room();
    let mut history = History::new(&vault, SIZE, 26);
    let mut rng = Rng::with_seed(26);
    let first = history.cycle(&vault, &mut rng).unwrap();
    let mut union = backstay_vault::SectorSet::new();
    let mut newest = first.clone();
    // Merges reach across the first point, and still the difference is exact.
    for at in 0..20u64 {
        let place = SectorRange::new(at * 100, at * 100 + 30 + at);
        union.insert(place);
        newest = rewrite(&mut history, &vault, &mut rng, &[place]);
        run(&vault, history.disk, "").unwrap();
    }
    let differ = between(&vault, history.disk, &(&first).into(), &newest).unwrap().unwrap();
    assert_eq!(differ.first_difference(&union), None);
    // Without the points between, it may be more, never less.
    let held = common::history::hold("a", HoldKind::Replica, (1, 1), None);
    vault.hold(history.disk, &held).unwrap();
    run(&vault, history.disk, "last 1").unwrap();
    let differ = between(&vault, history.disk, &(&first).into(), &newest).unwrap().unwrap();
    assert!(union.runs().all(|run| differ.runs_within(run, false).is_empty()));
    println!("{} sectors, {} exactly", differ.count(), union.count());
    // Without the first, nobody knows.
    vault.release(history.disk, &held.name).unwrap();
    run(&vault, history.disk, "last 1").unwrap();
    assert!(between(&vault, history.disk, &(&first).into(), &newest).unwrap().is_none());
}

#[test]
fn after_a_failover_both_histories_differ_by_what_each_of_them_moved() {
    let (_dir, vault) = room();
    let mut history = History::new(&vault, SIZE, 29);
    let mut rng = Rng::with_seed(29);
    let first = history.cycle(&vault, &mut rng).unwrap();
    let places: Vec<_> = (0..6u64).map(|n| SectorRange::new(n * 300, n * 300 + 40 + n)).collect();
    rewrite(&mut history, &vault, &mut rng, &places[..1]);
    let left = rewrite(&mut history, &vault, &mut rng, &places[1..2]);
    fail_over(&mut history, &vault, &first, &places[2..3], &mut rng);
    let newest = go_on(&mut history, &vault, Term(2), &places[3..5], &mut rng);
    let expected = |places: &[SectorRange]| {
        let mut set = backstay_vault::SectorSet::new();
        places.iter().for_each(|&place| {
            set.insert(place);
        });
        set
    };
    let differ = |from: &Manifest, to: &Manifest| {
        between(&vault, history.disk, &from.into(), to).unwrap().unwrap()
    };
    for (from, to) in [(&left, &newest), (&newest, &left)] {
        assert_eq!(differ(from, to).first_difference(&expected(&places[..5])), None);
    }
    assert_eq!(differ(&first, &newest).first_difference(&expected(&places[2..5])), None);
    // The newest is on the line; a replica that is on what was left goes there.
    assert_eq!(
        backstay_recovery::replica::newest(&vault, history.disk).unwrap(),
        Some(newest.clone())
    );
    let host = Host::new(&history, &left, Seed::Full, SIZE);
    host.bring(&vault, &left, Seam::default()).unwrap();
    let moved = host.bring(&vault, &newest, Seam::default()).unwrap();
    assert_eq!(moved.written.0, expected(&places[..5]).count() * 512);
    host.is_at(&history, &(&newest).into(), "the other history");
    at_every_step("another history", &history, &host, &vault, &left, &newest);
}

#[test]
fn the_point_it_is_at_stays_in_the_vault() {
    let (_dir, vault) = room();
    let (mut history, host, points) = begun(&vault, 27, 3);
    let mut rng = Rng::with_seed(27);
    host.bring(&vault, &points[1], Seam::default()).unwrap();
    for _ in 0..3 {
        history.cycle(&vault, &mut rng).unwrap();
        run(&vault, history.disk, "last 1").unwrap();
    }
    let left = vault.points(history.disk).unwrap();
    assert_eq!(left, [points[1].cycle, CycleNo(6)], "held, and the newest");
    let newest = history.newest(&vault).unwrap().unwrap();
    host.bring(&vault, &newest, Seam::default()).unwrap();
    host.is_at(&history, &(&newest).into(), "the newest");
    run(&vault, history.disk, "last 1").unwrap();
    assert_eq!(vault.points(history.disk).unwrap(), [newest.cycle], "not held any more");
}

#[test]
fn a_device_that_is_too_small_is_told_before_anything_is_written() {
    let (_dir, vault) = room();
    let (mut history, host, points) = begun(&vault, 28, 1);
    let bigger = SIZE + (1 << 20);
    let mut rng = Rng::with_seed(28);
    history.size = ByteLen(bigger);
    history.now.resize(bigger as usize, 7);
    let runs = [SectorRange::new(SIZE / 512, bigger.div_ceil(512))];
    let grown = rewrite(&mut history, &vault, &mut rng, &runs);
    let error = host.bring(&vault, &grown, Seam::default()).unwrap_err();
    assert!(matches!(error, ReplicaError::TooSmall { .. }), "{error}");
    host.is_at(&history, &(&points[0]).into(), "as it was");
    // One that is large enough grows with the disk.
    let large = Host::new(&history, &points[0], Seed::Full, 2 * bigger);
    large.bring(&vault, &points[0], Seam::default()).unwrap();
    at_every_step("growth", &history, &large, &vault, &grown, &grown);
}

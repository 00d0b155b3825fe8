//! No clock deletes history: neither a point's, nor a maintainer's, nor a holder's.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use backstay_host::clock::trusted::Doubt;
use backstay_types::CycleNo;
use backstay_vault::retain::keep::{Candidate, Keep};
use backstay_vault::retain::{Time, maintain, preview};
use backstay_vault::{HoldKind, Vault};
use common::history::{HOUR, History, hold, policy, room, run, time};

const DAY: u64 = 24 * HOUR;
/// 2026-03-02, a Monday, 00:00 UTC.
const MONDAY: u64 = 1_772_409_600_000_000_000;

fn points(cuts: impl IntoIterator<Item = u64>) -> Vec<Candidate> {
    let point = |(i, cut_unix_ns)| Candidate {
        cycle: CycleNo(i as u64 + 1),
        cut_unix_ns,
        held: false,
        damaged: false,
    };
    cuts.into_iter().enumerate().map(point).collect()
}

fn stay(text: &str, points: &[Candidate], now: u64) -> Vec<u64> {
    let stay: BTreeSet<CycleNo> = text.parse::<Keep>().unwrap().choose(points, now);
    stay.into_iter().map(|cycle| cycle.0).collect()
}

fn with_points(vault: &Vault, count: u64) -> History {
    let mut rng = fastrand::Rng::with_seed(2);
    let mut history = History::new(vault, 1 << 20, 1);
    for _ in 0..count {
        history.cycle(vault, &mut rng).unwrap();
    }
    history
}

fn cycles(vault: &Vault, history: &History) -> Vec<u64> {
    vault.points(history.disk).unwrap().into_iter().map(|cycle| cycle.0).collect()
}

/// The clock is forty days behind for an hour, in the middle of a history.
#[test]
fn a_clock_that_was_behind_costs_no_point() {
    let rules = "all 2h, hourly 2d, daily 60d";
    let before: Vec<u64> = (0..60).map(|day| MONDAY + day * DAY).collect();
    let now = MONDAY + 59 * DAY + HOUR;
    let behind = (0..6).map(|i| now - 40 * DAY + i * HOUR / 6);
    let all = points(before.iter().copied().chain(behind).chain([now + HOUR]));
    let kept = stay(rules, &all, now + HOUR);
    // Every day of the history has its point still, and what is an hour old is not thinned out as if it were old.
    assert_eq!(kept, (1..=67).collect::<Vec<_>>());
}

/// The clock was forty days ahead for one point: those before it stay, and those after it are thinned out as usual.
#[test]
fn a_point_from_the_future_costs_no_other() {
    let hours = |count: u64, from: u64| (0..count).map(move |i| from + i * HOUR / 4);
    let now = MONDAY + 10 * DAY;
    let all: Vec<u64> =
        hours(8, now - 3 * HOUR).chain([now + 40 * DAY]).chain(hours(4, now)).collect();
    let kept = stay("hourly 2d", &points(all), now + HOUR);
    assert_eq!(kept, [4, 8, 9, 13]);
}

/// A maintainer's wall clock ends no hold: not one that is days ahead, nor a reboot, nor one that it first sees.
#[test]
fn only_watching_a_hold_ends_it() {
    let (_dir, vault) = room();
    let history = with_points(&vault, 3);
    let disk = history.disk;
    let until = Some(backstay_host::clock::now_unix_ns() + HOUR);
    vault.hold(disk, &hold("mnt", HoldKind::Mount, (1, 1), until)).unwrap();
    let watched = tempfile::tempdir().unwrap();
    let at = |boot: &str, hours: u64, days_ahead: u64| {
        let mut time = Time { watched: Some(watched.path().into()), ..time(hours * HOUR) };
        time.reading.boot = boot.into();
        time.reading.unix_ns += days_ahead * 24 * HOUR;
        maintain(&vault, disk, &policy("last 1"), &time, &AtomicBool::new(false)).unwrap();
        cycles(&vault, &history)
    };
    assert_eq!(at("a", 500, 9), [1, 3]);
    assert_eq!(at("a", 501, 90), [1, 3]);
    assert_eq!(at("b", 0, 900), [1, 3], "how long a reboot takes is not known");
    // A maintainer that remembers nothing ends none, however often it looks.
    run(&vault, disk, "last 1").unwrap();
    assert_eq!(cycles(&vault, &history), [1, 3]);
    assert_eq!(at("b", 1, 0), [3], "two hours of two boots");
}

/// A clock that is doubted deletes nothing, and says so; nor does a point that is dated ahead.
#[test]
fn a_doubted_clock_retires_nothing() {
    let (dir, vault) = room();
    let history = with_points(&vault, 6);
    let disk = history.disk;
    let by = std::time::Duration::from_secs(40 * 86_400);
    let doubted = Time { doubt: Some(Doubt::Jumped { by, ahead: true }), ..time(0) };
    let mut behind = time(0);
    behind.reading.unix_ns = 0;
    // The newest point's date is a few nanoseconds from 1970: seen from a clock at zero it is not ahead by much.
    let ahead = Time { reading: behind.reading, ..time(0) };
    let go = |time: &Time| {
        maintain(&vault, disk, &policy("last 1"), time, &AtomicBool::new(false)).unwrap()
    };
    let report = go(&doubted);
    let why = report.retired.withheld.unwrap();
    assert_eq!((why.cause.as_str(), report.retired.deleted), ("clock-jumped", 0));
    assert!(why.reason.contains("40 d ahead"), "{}", why.reason);
    assert_eq!(cycles(&vault, &history), [1, 2, 3, 4, 5, 6]);
    let (would, verdicts) = preview(&vault, disk, &policy("last 1"), &doubted).unwrap();
    assert!(would.retired.withheld.is_some() && verdicts.iter().all(|verdict| verdict.stays));
    assert_eq!(go(&ahead).retired.withheld, None);
    assert_eq!(cycles(&vault, &history), [6]);
    let accepted = Time { accepted: true, ..doubted };
    assert_eq!(go(&accepted).retired.withheld, None);
    history.check_clean(&vault, dir.path(), "in the end");
}

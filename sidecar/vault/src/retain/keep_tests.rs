//! Rules: parsed strictly, printed so that they are read again, and what they keep.

use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3_600_000_000_000;
const DAY: u64 = 24 * HOUR;
/// 2026-03-02, a Monday, 00:00 UTC.
const MONDAY: u64 = 1_772_409_600_000_000_000;

fn keep(text: &str) -> Keep {
    text.parse().unwrap()
}

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
    keep(text).choose(points, now).into_iter().map(|cycle| cycle.0).collect()
}

#[test]
fn what_people_write_is_read_and_printed() {
    for (text, printed) in [
        ("all 2h, hourly 2d, daily 30d", "all 2h, hourly 2days, daily 30days"),
        ("  all   90m,daily 1w ", "all 1h30m, daily 7days"),
        ("last 3", "last 3"),
        ("weekly 1y,monthly 2y,yearly 10y,last 1", ""),
    ] {
        let parsed = keep(text);
        if !printed.is_empty() {
            assert_eq!(parsed.to_string(), printed);
        }
        assert_eq!(keep(&parsed.to_string()), parsed, "{text}");
    }
}

#[test]
fn a_mistake_is_shown_where_it_is() {
    for (text, at, says) in [
        ("", 1, "missing"),
        ("all 2h,", 8, "missing"),
        ("all 2h,, daily 3d", 8, "missing"),
        ("all", 4, "how long"),
        ("last", 5, "how many"),
        ("last 0", 6, "at least 1"),
        ("all 2h, hourly 2x", 16, "2x"),
        ("all 2h, dayly 2d", 9, "dayly"),
        ("all 2h daily 3d", 8, "comma"),
        ("all 2h, all 3h", 9, "twice"),
        ("all 0s", 5, "nothing"),
        ("ALL 2h", 1, "ALL"),
        ("täglich 3d", 1, "täglich"),
        ("all  ü", 6, "ü"),
    ] {
        let error = text.parse::<Keep>().unwrap_err();
        assert_eq!(error.at, at, "{text:?}: {error}");
        assert!(error.to_string().contains(says), "{text:?}: {error}");
    }
}

#[test]
fn each_stretch_keeps_its_newest_point() {
    // Every 10 minutes for 3 hours from Monday 00:00.
    let three = points((0..18).map(|i| MONDAY + i * HOUR / 6));
    assert_eq!(stay("hourly 1d", &three, MONDAY + 3 * HOUR), [6, 12, 18]);
    assert_eq!(stay("all 20m, hourly 1d", &three, MONDAY + 3 * HOUR), [6, 12, 16, 17, 18]);
    // Every 6 hours for 40 days from Monday 2026-03-02: March ends with day 29.
    let days = points((0..160).map(|i| MONDAY + i * DAY / 4));
    let now = MONDAY + 40 * DAY;
    assert_eq!(stay("daily 3d", &days, now), [148, 152, 156, 160]);
    assert_eq!(stay("weekly 90d", &days, now), [28, 56, 84, 112, 140, 160]);
    assert_eq!(stay("monthly 90d", &days, now), [120, 160]);
    assert_eq!(stay("yearly 9y", &days, now), [160]);
    assert_eq!(stay("last 2", &days, now), [159, 160]);
}

#[test]
fn a_disk_without_new_points_loses_none() {
    let old = points((0..48).map(|i| MONDAY + i * HOUR));
    let soon = stay("all 2h, hourly 1d, daily 7d", &old, MONDAY + 48 * HOUR);
    let years_later = stay("all 2h, hourly 1d, daily 7d", &old, MONDAY + 4_000 * DAY);
    assert_eq!(soon, years_later);
    assert!(soon.len() > 20);
}

#[test]
fn a_clock_that_stepped_back_makes_no_point_old() {
    // The third was cut before the second; the newest is the last by cycle.
    let steps = points([MONDAY, MONDAY + 10 * DAY, MONDAY + HOUR]);
    assert_eq!(stay("all 2h", &steps, MONDAY + 10 * DAY), [1, 2, 3]);
    assert_eq!(stay("last 1", &steps, 0), [3]);
    assert_eq!(stay("last 1", &points([u64::MAX, 0]), u64::MAX), [2]);
}

#[test]
fn held_points_stay() {
    let mut all = points((0..10).map(|i| MONDAY + i * DAY));
    all[2].held = true;
    assert_eq!(stay("last 1", &all, MONDAY + 10 * DAY), [3, 10]);
}

#[test]
fn damaged_points_take_no_place_of_whole_ones() {
    let mut all = points((0..6).map(|i| MONDAY + i * HOUR));
    all[2..].iter_mut().for_each(|point| point.damaged = true);
    let now = MONDAY + 6 * HOUR;
    // The newest stays because the next one builds on it.
    assert_eq!(stay("last 1", &all, now), [2, 6]);
    assert_eq!(stay("last 2", &all, now), [1, 2, 5, 6]);
    assert_eq!(stay("daily 7d", &all, now), [2, 6]);
    // Ages count from the newest whole one: it does not grow old while damage goes on.
    assert_eq!(stay("all 1h", &all, now), [1, 2, 3, 4, 5, 6]);
    all.extend(points((0..7).map(|i| MONDAY + i * HOUR)).pop());
    assert_eq!(stay("last 1", &all, now + HOUR), [7], "it is whole: the damaged ones go");
    all.iter_mut().for_each(|point| point.damaged = true);
    assert_eq!(stay("last 2", &all, now + HOUR), [6, 7], "none is whole");
}

fn any_rule() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec!["all", "hourly", "daily", "weekly", "monthly", "yearly"]);
    (word, 1u64..100, prop::sample::select(vec!["m", "h", "d", "w"]))
        .prop_map(|(word, n, unit)| format!("{word} {n}{unit}"))
}

proptest! {
    /// Over time, with a point at each step and the rest thinned at each step, the rules keep what
    /// they would have kept of all points ever made: thinning early never costs a later choice.
    #[test]
    fn thinning_step_by_step_keeps_what_thinning_at_once_would(
        rules in prop::collection::btree_map(
            prop::sample::select(vec!["hourly", "daily", "weekly", "monthly"]), 1u64..60, 1..4),
        all_hours in 1u64..30,
        gaps in prop::collection::vec(1u64..40, 1..120),
    ) {
        let mut text = format!("all {all_hours}h");
        for (word, days) in &rules {
            text += &format!(", {word} {days}d");
        }
        let rules = keep(&text);
        let (mut ever, mut kept) = (vec![], Vec::<Candidate>::new());
        let mut at = MONDAY;
        for (i, gap) in gaps.iter().enumerate() {
            at += gap * HOUR / 2;
            let new = Candidate { cycle: CycleNo(i as u64 + 1), cut_unix_ns: at, held: false, damaged: false };
            ever.push(new);
            kept.push(new);
            let stay = rules.choose(&kept, at);
            kept.retain(|point| stay.contains(&point.cycle));
        }
        let at_once = rules.choose(&ever, at);
        let stepwise: BTreeSet<_> = kept.iter().map(|point| point.cycle).collect();
        prop_assert_eq!(stepwise, at_once);
    }

    #[test]
    fn the_newest_and_the_held_stay_and_nothing_is_made_up(
        texts in prop::collection::vec(any_rule(), 1..4),
        cuts in prop::collection::vec((0u64..400 * DAY, any::<bool>()), 1..60),
        now in 0u64..500 * DAY,
    ) {
        let Ok(rules) = texts.join(", ").parse::<Keep>() else { return Ok(()) };
        let all: Vec<_> = cuts.iter().enumerate().map(|(i, &(cut, held))| Candidate {
            cycle: CycleNo(i as u64 + 1), cut_unix_ns: MONDAY + cut, held, damaged: false,
        }).collect();
        let stay = rules.choose(&all, MONDAY + now);
        prop_assert!(stay.contains(&all.last().unwrap().cycle));
        for point in &all {
            prop_assert!(!point.held || stay.contains(&point.cycle));
        }
        prop_assert!(stay.iter().all(|cycle| all.iter().any(|point| point.cycle == *cycle)));
        prop_assert_eq!(keep(&rules.to_string()), rules);
    }

    #[test]
    fn to_know_of_damage_only_keeps_more(
        texts in prop::collection::vec(any_rule(), 1..4),
        last in 0u64..5,
        cuts in prop::collection::vec((0u64..400 * DAY, any::<bool>()), 1..60),
        now in 0u64..500 * DAY,
    ) {
        let mut text = texts.join(", ");
        if last > 0 {
            text += &format!(", last {last}");
        }
        let Ok(rules) = text.parse::<Keep>() else { return Ok(()) };
        let mut all = points(cuts.iter().map(|(cut, _)| MONDAY + cut));
        let unknowing = rules.choose(&all, MONDAY + now);
        all.iter_mut().zip(&cuts).for_each(|(point, (_, damaged))| point.damaged = *damaged);
        let stay = rules.choose(&all, MONDAY + now);
        prop_assert!(stay.is_superset(&unknowing));
        let whole: Vec<_> = all.iter().filter(|point| !point.damaged).copied().collect();
        prop_assert!(stay.is_superset(&rules.choose(&whole, MONDAY + now)));
    }

    #[test]
    fn any_text_is_rules_or_an_error(text in "\\PC{0,40}") {
        if let Ok(rules) = text.parse::<Keep>() {
            prop_assert_eq!(keep(&rules.to_string()), rules);
        }
    }

    /// An independent reading of the rules: a point stays exactly if it is in one of the windows.
    #[test]
    fn all_keeps_exactly_its_window(
        cuts in prop::collection::vec(0u64..40 * DAY, 1..50), hours in 1u64..200,
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        let all = points(cuts.iter().map(|cut| MONDAY + cut));
        let newest = all.last().unwrap().cut_unix_ns;
        let expected: Vec<_> = all.iter()
            .filter(|p| newest - p.cut_unix_ns <= hours * HOUR)
            .map(|p| p.cycle.0).collect();
        prop_assert_eq!(stay(&format!("all {hours}h"), &all, u64::MAX), expected);
    }
}

//! Each rule, on a clock that runs through weeks in an instant.

use std::collections::BTreeMap;

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
const WEEK: u64 = 7 * 24 * 3600;

fn name(n: usize) -> DiskName {
    format!("d{n:04}").parse().unwrap()
}

fn settings(interval: u64, device: u64) -> Settings {
    Settings { device, interval: s(interval), retry: Retry::default() }
}

/// A world in which cycles take the time they are told to.
struct World {
    schedule: Schedule,
    now: Duration,
    /// When running cycles end, and how.
    ends: Vec<(Duration, DiskName, Work, Outcome)>,
    /// Begun and ended cycles, in order.
    began: Vec<(Duration, DiskName, Work)>,
    ended: Vec<(Duration, DiskName)>,
    most_at_once: usize,
    most_on_device: usize,
}

impl World {
    fn new(slots: Slots) -> Self {
        Self {
            schedule: Schedule::new(slots),
            now: s(0),
            ends: vec![],
            began: vec![],
            ended: vec![],
            most_at_once: 0,
            most_on_device: 0,
        }
    }

    /// Runs until an instant. `how` says how long a cycle takes and how it ends.
    fn run(
        &mut self,
        until: Duration,
        may: impl Fn(Duration, &DiskName, Work) -> bool,
        mut how: impl FnMut(Duration, &DiskName, Work) -> (Duration, Outcome),
    ) {
        loop {
            let now = self.now;
            while let Some((disk, work)) = self.schedule.start(now, |n, w| may(now, n, w)) {
                let (takes, outcome) = how(now, &disk, work);
                self.began.push((now, disk.clone(), work));
                self.ends.push((now + takes, disk, work, outcome));
            }
            let mut devices: BTreeMap<u64, usize> = BTreeMap::new();
            for (_, disk, ..) in &self.ends {
                *devices.entry(self.schedule.disks[disk].settings.device).or_default() += 1;
            }
            self.most_at_once = self.most_at_once.max(self.ends.len());
            let most = devices.values().copied().max().unwrap_or(0);
            self.most_on_device = self.most_on_device.max(most);
            // The next thing that happens; windows are looked at every minute.
            let next = self
                .ends
                .iter()
                .map(|end| end.0)
                .chain(self.schedule.disks.values().filter_map(|d| d.due).filter(|&at| at > now))
                .chain([now + s(60)])
                .min()
                .unwrap();
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
            let (over, on): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.ends).into_iter().partition(|end| end.0 <= next);
            self.ends = on;
            for (at, disk, _, outcome) in over {
                self.schedule.ended(&disk, at, outcome);
                self.ended.push((at, disk));
            }
        }
    }

    fn begins(&self, disk: &DiskName) -> Vec<u64> {
        self.began.iter().filter(|(_, d, _)| d == disk).map(|(at, ..)| at.as_secs()).collect()
    }
}

const WIDE: Slots = Slots { all: 1000, per_device: 1000 };

#[test]
fn the_interval_counts_from_begin_to_begin() {
    let mut world = World::new(WIDE);
    world.schedule.put(&name(1), settings(300, 0), Work::Delta, Some(s(0)));
    world.run(s(WEEK), |_, _, _| true, |_, _, _| (s(10), Outcome::Done));
    let begins = world.begins(&name(1));
    assert_eq!(begins.len() as u64, WEEK / 300 + 1);
    assert!(begins.windows(2).all(|pair| pair[1] - pair[0] == 300));
}

#[test]
fn half_of_a_long_cycles_time_is_rest() {
    let mut world = World::new(WIDE);
    world.schedule.put(&name(1), settings(60, 0), Work::Delta, Some(s(0)));
    world.run(s(WEEK), |_, _, _| true, |_, _, _| (s(400), Outcome::Done));
    assert!(world.begins(&name(1)).windows(2).all(|pair| pair[1] - pair[0] == 600));
}

#[test]
fn an_interval_of_zero_is_back_to_back() {
    let mut world = World::new(WIDE);
    world.schedule.put(&name(1), settings(0, 0), Work::Delta, Some(s(0)));
    world.run(s(3600), |_, _, _| true, |_, _, _| (s(7), Outcome::Done));
    assert!(world.begins(&name(1)).windows(2).all(|pair| pair[1] - pair[0] == 7));
}

#[test]
fn the_first_delta_follows_the_initial_copy_at_once() {
    let mut world = World::new(WIDE);
    world.schedule.put(&name(1), settings(86_400, 0), Work::Initial, Some(s(5)));
    world.run(
        s(3 * 86_400),
        |_, _, _| true,
        |_, _, work| (if work == Work::Initial { s(5000) } else { s(1) }, Outcome::Done),
    );
    let works: Vec<_> = world.began.iter().map(|(at, _, work)| (at.as_secs(), *work)).collect();
    assert_eq!(works[..2], [(5, Work::Initial), (5005, Work::Delta)]);
    assert_eq!(works[2], (5005 + 86_400, Work::Delta));
}

#[test]
fn priorities_and_work_that_was_begun() {
    let mut schedule = Schedule::new(Slots { all: 1, per_device: 1 });
    // All due; the deltas have waited longest.
    for (n, work, due) in [
        (1, Work::Delta, 0),
        (2, Work::Delta, 1),
        (3, Work::Resync, 2),
        (4, Work::Initial, 3),
        (5, Work::Initial, 4),
        (6, Work::OnDemand, 5),
    ] {
        schedule.put(&name(n), settings(1000, 0), work, Some(s(due)));
    }
    schedule.needs(&name(5), Work::Initial, true);
    let mut order = vec![];
    while let Some((disk, _)) = schedule.start(s(10), |_, _| true) {
        assert!(schedule.start(s(10), |_, _| true).is_none(), "one slot");
        schedule.ended(&disk, s(10), Outcome::Failed { may_pass: false, failures: 1 });
        order.push(disk);
    }
    assert_eq!(order, [6, 5, 4, 3, 1, 2].map(name));
}

#[test]
fn slots_of_sidecar_and_device() {
    let mut world = World::new(Slots { all: 6, per_device: 2 });
    for n in 0..40 {
        world.schedule.put(&name(n), settings(100, n as u64 % 4), Work::Initial, Some(s(0)));
    }
    world.run(s(86_400), |_, _, _| true, |_, _, _| (s(30), Outcome::Done));
    assert_eq!((world.most_at_once, world.most_on_device), (6, 2));
    // A device that is busy does not keep others' slots empty.
    let mut world = World::new(Slots { all: 3, per_device: 1 });
    for n in 0..10 {
        world.schedule.put(&name(n), settings(10, u64::from(n == 9)), Work::Delta, Some(s(0)));
    }
    world.run(s(1000), |_, _, _| true, |_, _, _| (s(100), Outcome::Done));
    assert!(world.begins(&name(9)).len() >= 6, "{:?}", world.begins(&name(9)));
}

/// More work than slots: nobody is forgotten, and nobody gets twice what another gets.
#[test]
fn fair_among_equals_over_weeks() {
    let mut world = World::new(Slots { all: 2, per_device: 2 });
    for n in 0..50 {
        world.schedule.put(&name(n), settings(300, n as u64), Work::Delta, Some(s(0)));
    }
    world.run(
        s(3 * WEEK),
        |_, _, _| true,
        |_, disk, _| {
            // Some are slow.
            (s(if disk.as_str().ends_with('7') { 90 } else { 30 }), Outcome::Done)
        },
    );
    let counts: Vec<_> = (0..50).map(|n| world.begins(&name(n)).len()).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(most - least <= 1, "{counts:?}");
    let longest = (0..50)
        .flat_map(|n| {
            let begins = world.begins(&name(n));
            begins.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>()
        })
        .max()
        .unwrap();
    // One round of all on two slots: (5 × 90 + 45 × 30) / 2.
    assert!(longest <= 1100, "{longest}");
}

#[test]
fn a_stream_of_initial_copies_does_not_end_while_deltas_wait_only_as_long() {
    let mut world = World::new(Slots { all: 1, per_device: 1 });
    world.schedule.put(&name(0), settings(60, 0), Work::Delta, Some(s(0)));
    for n in 1..6 {
        world.schedule.put(&name(n), settings(86_400, 0), Work::Initial, Some(s(0)));
    }
    world.run(
        s(7200),
        |_, _, _| true,
        |_, _, work| (if work == Work::Initial { s(600) } else { s(1) }, Outcome::Done),
    );
    // Five initial copies first, then the delta goes at its pace.
    assert_eq!(world.begins(&name(0))[0], 5 * 600);
    assert!(world.begins(&name(0)).windows(2).all(|pair| pair[1] - pair[0] <= 62));
}

#[test]
fn failures_wait_longer_and_longer_and_success_ends_that() {
    let mut world = World::new(WIDE);
    world.schedule.put(&name(1), settings(60, 0), Work::Delta, Some(s(0)));
    let mut failures = 0;
    world.run(
        s(86_400),
        |_, _, _| true,
        |now, _, _| {
            if now < s(4 * 3600) {
                failures += 1;
                (s(0), Outcome::Failed { may_pass: true, failures })
            } else {
                (s(0), Outcome::Done)
            }
        },
    );
    let begins = world.begins(&name(1));
    let waits: Vec<_> = begins.windows(2).map(|pair| (pair[1] - pair[0]) / 60).collect();
    assert_eq!(waits[..7], [1, 2, 4, 8, 10, 30, 30]);
    assert_eq!(waits.last(), Some(&1), "every minute again");
}

#[test]
fn critical_stays_until_somebody_acts() {
    let mut world = World::new(WIDE);
    world.schedule.put(&name(1), settings(60, 0), Work::Delta, Some(s(0)));
    let critical = Outcome::Failed { may_pass: false, failures: 1 };
    world.run(s(2 * WEEK), |_, _, _| true, |_, _, _| (s(1), critical));
    assert_eq!(world.begins(&name(1)), [0]);
    assert_eq!(world.schedule.due(&name(1)), None);
    world.schedule.wake(&name(1), world.now);
    world.run(s(2 * WEEK + 600), |_, _, _| true, |_, _, _| (s(1), Outcome::Done));
    assert_eq!(world.begins(&name(1))[1], 2 * WEEK);
    assert!(world.begins(&name(1)).len() > 5);
}

/// A window that is closed holds a disk back, never another one, and a cycle that runs completes.
#[test]
fn windows_hold_back_what_they_are_for() {
    let mut world = World::new(Slots { all: 1, per_device: 1 });
    world.schedule.put(&name(1), settings(600, 0), Work::Resync, Some(s(0)));
    world.schedule.put(&name(2), settings(600, 0), Work::Delta, Some(s(0)));
    let night = |now: Duration| !(8..18).contains(&(now.as_secs() / 3600 % 24));
    world.now = s(9 * 3600);
    world.run(
        s(2 * 86_400),
        |now, _, work| work != Work::Resync || night(now),
        |_, _, work| (s(if work == Work::Resync { 16 * 3600 } else { 5 }), Outcome::Done),
    );
    let resync = world.begins(&name(1))[0];
    assert_eq!(resync, 18 * 3600, "as soon as the window opens");
    assert!(world.begins(&name(2)).iter().filter(|&&at| at < resync).count() >= 54);
    assert!(world.ended.contains(&(s((18 + 16) * 3600), name(1))), "it completes in the day");
}

#[test]
fn new_settings_hold_at_once() {
    let mut schedule = Schedule::new(WIDE);
    schedule.put(&name(1), settings(86_400, 0), Work::Delta, Some(s(0)));
    schedule.start(s(0), |_, _| true).unwrap();
    schedule.ended(&name(1), s(1), Outcome::Done);
    assert_eq!(schedule.due(&name(1)), Some(s(86_400)));
    schedule.put(&name(1), settings(60, 0), Work::Delta, Some(s(0)));
    assert_eq!(schedule.due(&name(1)), Some(s(60)));
    schedule.keep(|_| false);
    assert!(!schedule.has(&name(1)));
}

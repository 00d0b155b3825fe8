//! Pins and holds: granted only for what is there, found again by name, over when they are over.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

mod common;

use std::sync::atomic::AtomicBool;

use backstay_types::{Classified, CycleNo};
use backstay_vault::retain::{Held, Policy, Time, maintain, preview};
use backstay_vault::{HoldKind, Vault, VaultError, Vaults};
use common::history::{HOUR, History, hold, objects, policy, room, run, time};

const NOW: u64 = 1 << 62;

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

#[test]
fn a_pin_stays_until_it_is_unpinned() {
    let (dir, vault) = room();
    let history = with_points(&vault, 6);
    let disk = history.disk;
    let (pin, _) = vault.hold(disk, &hold("p", HoldKind::Pin, (2, 2), None)).unwrap();
    run(&vault, disk, "last 1").unwrap();
    assert_eq!(cycles(&vault, &history), [2, 6]);
    history.check(&vault, "pinned");
    assert!(vault.release(disk, &"p".parse().unwrap()).unwrap());
    assert!(!vault.release(disk, &"p".parse().unwrap()).unwrap());
    // Taken again, it is another version: nobody who still thinks of the old one deletes it.
    let (again, _) = vault.hold(disk, &hold("p", HoldKind::Pin, (2, 2), None)).unwrap();
    assert!(again.version > pin.version);
    assert!(vault.release(disk, &"p".parse().unwrap()).unwrap());
    run(&vault, disk, "last 1").unwrap();
    assert_eq!(cycles(&vault, &history), [6]);
    history.check_clean(&vault, dir.path(), "unpinned");
}

#[test]
fn nothing_is_held_that_is_not_there() {
    let (_dir, vault) = room();
    let history = with_points(&vault, 6);
    let disk = history.disk;
    run(&vault, disk, "last 2").unwrap();
    let gone = vault.hold(disk, &hold("p", HoldKind::Pin, (2, 2), None)).unwrap_err();
    assert!(matches!(gone, VaultError::Retired(CycleNo(2))), "{gone}");
    let never = vault.hold(disk, &hold("p", HoldKind::Pin, (9, 9), None)).unwrap_err();
    assert!(matches!(never, VaultError::NotFound { .. }), "{never}");
    assert_eq!(vault.holds(disk).unwrap(), []);
    let gone = Held::reading(&vault, disk, CycleNo(1)..=CycleNo(1), "").unwrap_err();
    assert!(matches!(gone, VaultError::Retired(_)), "{gone}");
}

#[test]
fn a_name_belongs_to_its_kind_and_a_pin_does_not_move() {
    let (_dir, vault) = room();
    let history = with_points(&vault, 3);
    let disk = history.disk;
    vault.hold(disk, &hold("x", HoldKind::Pin, (1, 1), None)).unwrap();
    vault.hold(disk, &hold("x", HoldKind::Pin, (1, 1), None)).unwrap();
    for other in [hold("x", HoldKind::Pin, (2, 2), None), hold("x", HoldKind::Mount, (1, 1), None)]
    {
        let taken = vault.hold(disk, &other).unwrap_err();
        assert!(taken.to_string().contains("a pin of point 1"), "{taken}");
    }
    assert_eq!(vault.holds(disk).unwrap().len(), 1);
}

/// A replica that was killed finds its hold again, though its point was retired meanwhile.
#[test]
fn a_holder_that_was_killed_finds_its_hold_again() {
    let (dir, vault) = room();
    let mut history = with_points(&vault, 6);
    let disk = history.disk;
    // By the clock of this machine, which tells whether the hold was broken.
    let replica = |cycle, hours: u64| {
        let until = backstay_host::clock::now_unix_ns() + hours * HOUR;
        hold("replica-west", HoldKind::Replica, (cycle, cycle), Some(until))
    };
    let watched = tempfile::tempdir().unwrap();
    let at = |hours: u64| {
        let time = Time { watched: Some(watched.path().into()), ..time(hours * HOUR) };
        maintain(&vault, disk, &policy("last 1"), &time, &AtomicBool::new(false)).unwrap();
    };
    let (first, _) = vault.hold(disk, &replica(3, 2)).unwrap();
    at(1);
    assert_eq!(cycles(&vault, &history), [3, 6]);
    // Killed, and back: the same name, the same point, longer. Nothing else could hold that point.
    let (record, points) = vault.hold(disk, &replica(3, 5)).unwrap();
    assert!(record.version > first.version && points == [CycleNo(3)]);
    at(4);
    assert_eq!(cycles(&vault, &history), [3, 6]);
    history.check(&vault, "after it came back");
    // It moves on; the version before still holds, in case a list is made just now.
    vault.hold(disk, &replica(6, 6)).unwrap();
    at(4);
    assert_eq!(cycles(&vault, &history), [3, 6]);
    vault.hold(disk, &replica(6, 7)).unwrap();
    at(4);
    assert_eq!(cycles(&vault, &history), [6]);
    // Its hold ends once it was watched for seven hours, and a quarter of one more.
    history.cycle(&vault, &mut fastrand::Rng::with_seed(1)).unwrap();
    at(11);
    assert_eq!(cycles(&vault, &history), [6, 7]);
    at(12);
    assert_eq!(cycles(&vault, &history), [7]);
    let gone = vault.hold(disk, &replica(6, 9)).unwrap_err();
    assert!(matches!(gone, VaultError::Retired(CycleNo(6))), "{gone}");
    assert_eq!(objects(&history.folder(dir.path()).join("holds")), Vec::<String>::new());
    history.check_clean(&vault, dir.path(), "in the end");
}

/// What was retired before somebody held it and could not be deleted is let go when it is released.
#[test]
fn a_retired_point_that_is_held_is_there_until_it_is_released() {
    let (dir, vault) = room();
    let history = with_points(&vault, 5);
    let disk = history.disk;
    vault.hold(disk, &hold("m", HoldKind::Mount, (1, 3), Some(NOW + HOUR))).unwrap();
    let report = run(&vault, disk, "last 1").unwrap();
    assert_eq!(report.retired.retired, [CycleNo(4)]);
    assert_eq!(cycles(&vault, &history), [1, 2, 3, 5]);
    history.check(&vault, "held");
    vault.release(disk, &"m".parse().unwrap()).unwrap();
    run(&vault, disk, "last 1").unwrap();
    assert_eq!(cycles(&vault, &history), [5]);
    history.check_clean(&vault, dir.path(), "released");
}

/// Nobody knows what a damaged hold holds: nothing is deleted until a person has looked.
#[test]
fn a_damaged_hold_stops_deletion() {
    let (dir, vault) = room();
    let history = with_points(&vault, 4);
    vault.hold(history.disk, &hold("p", HoldKind::Pin, (1, 1), None)).unwrap();
    let folder = history.folder(dir.path()).join("holds");
    let path = folder.join(&objects(&folder)[0]);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"first_cycle\": 1", "\"first_cycle\": 2")).unwrap();
    let damaged = run(&vault, history.disk, "last 1").unwrap_err();
    assert!(damaged.is_damage() && damaged.to_string().contains("holds/"), "{damaged}");
    assert_eq!(cycles(&vault, &history), [1, 2, 3, 4]);
    // Its mark says that it holds the point, whatever became of it.
    std::fs::remove_file(&path).unwrap();
    run(&vault, history.disk, "last 1").unwrap();
    assert_eq!(cycles(&vault, &history), [1, 4]);
    assert!(vault.unmark_everywhere(history.disk, &"p".parse().unwrap()).unwrap());
    run(&vault, history.disk, "last 1").unwrap();
    assert_eq!(cycles(&vault, &history), [4]);
}

/// Nobody knows what a damaged point names: nothing is collected.
#[test]
fn a_damaged_point_stops_collection() {
    let (dir, vault) = room();
    let history = with_points(&vault, 4);
    let point = history.folder(dir.path()).join(format!("points/{:020}", 3));
    let mut bytes = std::fs::read(&point).unwrap();
    bytes[300] ^= 1;
    std::fs::write(&point, bytes).unwrap();
    let before = objects(&history.folder(dir.path()).join("segments"));
    let damaged = run(&vault, history.disk, "").unwrap_err();
    assert!(damaged.is_damage(), "{damaged}");
    assert_eq!(objects(&history.folder(dir.path()).join("segments")), before);
}

#[test]
fn a_preview_changes_nothing_and_comes_true() {
    let (dir, vault) = room();
    let mut history = with_points(&vault, 14);
    let disk = history.disk;
    run(&vault, disk, "").unwrap();
    for seed in 0..10 {
        history.cycle(&vault, &mut fastrand::Rng::with_seed(seed)).unwrap();
    }
    vault.hold(disk, &hold("p", HoldKind::Pin, (2, 2), None)).unwrap();
    let all = || {
        let folder = history.folder(dir.path());
        ["points", "segments", "ledger", "holds"].map(|name| objects(&folder.join(name)))
    };
    let before = all();
    let (expected, verdicts) = preview(&vault, disk, &policy("last 3"), &time(0)).unwrap();
    assert_eq!(all(), before);
    let stay: Vec<u64> = verdicts.iter().filter(|v| v.stays).map(|v| v.cycle.0).collect();
    assert_eq!(stay, [2, 22, 23, 24]);
    assert_eq!(verdicts[1].held_by, ["p"]);
    let report = run(&vault, disk, "last 3").unwrap();
    assert_eq!(cycles(&vault, &history), stay);
    assert_eq!(report.retired, expected.retired);
    assert_eq!(report.collected.deleted, expected.collected.deleted);
    assert_eq!(report.collected.deleted_bytes, expected.collected.deleted_bytes);
    assert_eq!(report.merged.replaced, expected.merged.replaced);
    assert!(report.collected.deleted > 0 && report.merged.replaced > 0);
}

/// A tmpfs of a few MiB, unmounted in the end.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(size: &str) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        this.mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "backstay-test"]);
        this
    }
    fn mount(&self, args: &[&str]) {
        let done = std::process::Command::new("mount").args(args).arg(self.0.path()).status();
        assert!(done.unwrap().success(), "this test mounts a file system: run it as root");
    }
    fn vault(&self) -> Vault {
        let url = self.0.path().join("vault");
        Vaults::default()
            .open(url.to_str().unwrap())
            .or_else(|_| Vaults::default().create(url.to_str().unwrap()))
            .unwrap()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

/// Where nothing can be written, reading goes on without a hold.
#[test]
fn a_vault_that_cannot_be_written_can_be_read() {
    let small = Mounted::new("16m");
    let vault = small.vault();
    let history = with_points(&vault, 2);
    small.mount(&["-o", "remount,ro"]);
    let held = Held::reading(&vault, history.disk, CycleNo(1)..=CycleNo(2), "restore").unwrap();
    assert_eq!(held.points(), [CycleNo(1), CycleNo(2)]);
    history.check(&vault, "read-only");
    drop(held);
}

/// A vault without a single byte left can be pruned, for the ledger gives up what it does not need.
#[test]
fn a_full_vault_can_be_pruned() {
    let small = Mounted::new("8m");
    let vault = small.vault();
    let mut rng = fastrand::Rng::with_seed(3);
    let mut history = with_points(&vault, 6);
    run(&vault, history.disk, "last 4").unwrap();
    history.cycle(&vault, &mut rng).unwrap();
    run(&vault, history.disk, "last 4").unwrap();
    let full = loop {
        // A cycle that fails leaves its sectors to the next; here, it never was.
        let mut next = history.clone();
        match next.cycle(&vault, &mut rng) {
            Ok(_) => history = next,
            Err(e) => break e,
        }
    };
    assert!(matches!(full, VaultError::Full { .. }), "{full}");
    let filler = small.0.path().join("filler");
    let mut filler = std::fs::File::create(filler).unwrap();
    let why = loop {
        if let Err(e) = std::io::Write::write_all(&mut filler, &[1; 4096]) {
            break e;
        }
    };
    assert_eq!(why.kind(), std::io::ErrorKind::StorageFull);
    let free = Policy { merge: false, ..policy("last 2") };
    let stop = AtomicBool::new(false);
    let report = maintain(&vault, history.disk, &free, &time(0), &stop).unwrap();
    assert!(report.collected.deleted > 0 || report.retired.deleted > 0, "{report:?}");
    history.check(&vault, "pruned");
    // Merged by the next point, so that old segments become free, too.
    history.cycle(&vault, &mut rng).unwrap();
    run(&vault, history.disk, "last 1").unwrap();
    history.cycle(&vault, &mut rng).unwrap();
    run(&vault, history.disk, "last 1").unwrap();
    assert_eq!(history.check(&vault, "in the end").len(), 1);
}

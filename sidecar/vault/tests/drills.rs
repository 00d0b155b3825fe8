//! Verdicts on points: put once, found again, gone with their points.

mod common;

use backstay_types::{CycleNo, PointId};
use backstay_vault::format::key::DiskFolder;
use backstay_vault::{DrillCheck, DrillRecord, HoldKind, Manifest};
use common::history::{History, hold, room, run};

fn verdict(point: &Manifest, passed: bool, at: u64) -> DrillRecord {
    DrillRecord {
        drill: uuid::Uuid::new_v4(),
        disk: point.disk,
        cycle: point.cycle,
        point: point.point,
        check: DrillCheck::Fsck,
        passed,
        message: "clean".into(),
        by: "a test".into(),
        began_unix_ns: at,
        ended_unix_ns: at + 1,
    }
}

#[test]
fn verdicts_go_with_their_points() {
    let (dir, vault) = room();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut disk = History::new(&vault, 1 << 20, 1);
    let points: Vec<Manifest> = (0..6).map(|_| disk.cycle(&vault, &mut rng).unwrap()).collect();
    assert!(vault.drills(disk.disk).unwrap().is_empty());
    for point in &points {
        for passed in [false, true] {
            vault.put_drill(&verdict(point, passed, u64::from(passed))).unwrap();
        }
    }
    let found = vault.drills(disk.disk).unwrap();
    assert_eq!(found.len(), 12);
    assert!(found.chunks(2).all(|pair| !pair[0].passed && pair[1].passed), "by time");

    // A point that is held stays though it is retired, and so do its verdicts.
    vault.hold(disk.disk, &hold("two", HoldKind::Pin, (2, 2), None)).unwrap();
    run(&vault, disk.disk, "last 1").unwrap();
    let cycles = || {
        let found = vault.drills(disk.disk).unwrap();
        found.iter().map(|verdict| verdict.cycle.0).collect::<Vec<_>>()
    };
    assert_eq!(cycles(), [2, 2, 6, 6]);
    // One that comes late goes the next time.
    vault.put_drill(&verdict(&points[2], true, 5)).unwrap();
    assert_eq!(cycles(), [2, 2, 3, 6, 6]);
    run(&vault, disk.disk, "last 1").unwrap();
    assert_eq!(cycles(), [2, 2, 6, 6]);

    // What is damaged, or of no drill, is in nobody's way.
    let folder = dir.path().join(DiskFolder::Drills.of(disk.disk).to_string());
    let one = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&one, b"{").unwrap();
    std::fs::write(folder.join("readme"), b"").unwrap();
    assert_eq!(cycles().len(), 3);
    run(&vault, disk.disk, "last 1").unwrap();
    disk.cycle(&vault, &mut rng).unwrap();
    assert_eq!(vault.points(disk.disk).unwrap().last(), Some(&CycleNo(7)));
    vault.remove_disk(disk.disk).unwrap();
    assert!(!folder.exists() || std::fs::read_dir(folder).unwrap().next().is_none());
}

#[test]
fn a_verdict_has_its_limits() {
    let (_dir, vault) = room();
    let mut disk = History::new(&vault, 1 << 20, 2);
    let point = disk.cycle(&vault, &mut fastrand::Rng::with_seed(2)).unwrap();
    let long = DrillRecord { message: "x".repeat(4097), ..verdict(&point, true, 1) };
    assert!(vault.put_drill(&long).is_err());
    let twice = verdict(&point, true, 1);
    vault.put_drill(&twice).unwrap();
    let changed = DrillRecord { point: PointId::from_bytes([1; 16]), ..twice };
    assert!(vault.put_drill(&changed).is_err(), "nothing is ever overwritten");
}

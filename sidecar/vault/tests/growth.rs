//! Disks that grow: what may be committed, and what points from before and after restore to.

mod common;

use backstay_types::{ByteLen, CycleNo, SectorRange};
use backstay_vault::read::{verify_point, verify_points};
use backstay_vault::{Base, CycleKind, Pass, VaultError, verify_cycle};
use common::{Lab, content, meta, rewrite, set, some_runs};

/// The last sector of the small disk is partial.
const SMALL: u64 = (1 << 20) + 100;
const LARGE: u64 = (3 << 20) + 700;

/// The sectors a growth makes new.
fn new_sectors(from: u64, to: u64) -> SectorRange {
    SectorRange::new(from / 512, to.div_ceil(512))
}

#[test]
fn points_of_before_and_after_are_what_they_were() {
    let mut rng = fastrand::Rng::with_seed(4);
    let mut lab = Lab::new(SMALL);
    let mut now = content(&mut rng, SMALL);
    let mut point = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let mut expected = vec![(point.cycle, now.clone())];
    for size in [SMALL, LARGE, LARGE, LARGE + 1, LARGE + 513, LARGE + 513] {
        let from = lab.size.0;
        lab.size = ByteLen(size);
        let mut runs = some_runs(&mut rng, from / 512);
        // Runs that touch would be one.
        runs.retain(|run| run.end.0 < from / 512);
        rewrite(&mut rng, &mut now, &runs);
        if size > from {
            now.extend(content(&mut rng, size - from));
            runs.push(new_sectors(from, size));
        }
        point = lab.cycle(Some(&point), &now, &runs).unwrap();
        assert_eq!(point.size.0, size);
        expected.push((point.cycle, now.clone()));
    }
    for (cycle, content) in &expected {
        assert!(lab.restored(*cycle).unwrap() == *content, "point {cycle}");
        verify_point(&lab.vault, lab.disk, *cycle, 2, &|_, _| {}).unwrap();
    }
    let cycles: Vec<CycleNo> = expected.iter().map(|(cycle, _)| *cycle).collect();
    verify_points(&lab.vault, lab.disk, &cycles, 2, &|_, _| {}).unwrap();
    let back: Vec<CycleNo> = cycles.into_iter().rev().collect();
    verify_points(&lab.vault, lab.disk, &back, 2, &|_, _| {}).unwrap();
}

/// I7: new sectors that did not move could never be restored; the first of them is named. The sector
/// that was partial is one of them.
#[test]
fn new_sectors_that_did_not_move_are_refused() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut lab = Lab::new(SMALL);
    let mut now = content(&mut rng, SMALL);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    now.extend(content(&mut rng, LARGE - SMALL));
    lab.size = ByteLen(LARGE);
    let new = new_sectors(SMALL, LARGE);
    for (runs, missing) in [
        (vec![], new),
        (vec![SectorRange::new(0, new.start.0)], new),
        (
            vec![SectorRange::new(new.start.0 + 1, new.end.0)],
            SectorRange::new(new.start.0, new.start.0 + 1),
        ),
        (
            vec![SectorRange::new(new.start.0, new.end.0 - 1)],
            SectorRange::new(new.end.0 - 1, new.end.0),
        ),
    ] {
        match lab.cycle(Some(&first), &now, &runs) {
            Err(VaultError::Missed { range, .. }) => assert_eq!(range, missing),
            other => panic!("{other:?}"),
        }
        assert_eq!(lab.vault.points(lab.disk).unwrap(), [CycleNo(1)]);
    }
    lab.cycle(Some(&first), &now, &[new]).unwrap();
}

#[test]
fn a_disk_never_shrinks_in_a_delta() {
    let mut rng = fastrand::Rng::with_seed(6);
    let mut lab = Lab::new(LARGE);
    let now = content(&mut rng, LARGE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    lab.size = ByteLen(SMALL);
    let refused = lab.cycle(Some(&first), &now[..SMALL as usize], &[lab.whole()]).unwrap_err();
    assert!(refused.to_string().contains("resync"), "{refused}");
    // A resync stands alone: it may have any size.
    let segments = lab.ship(2, &now[..SMALL as usize], &[lab.whole()]);
    let pass = Pass { must_move: set(&[lab.whole()]), segments };
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(2), vec![pass]).unwrap();
    let mut resync = meta(Some(&first));
    resync.kind = CycleKind::Resync;
    resync.base = Base::Nothing { continues: None };
    lab.vault.commit(verified, resync).unwrap();
    assert!(lab.restored(CycleNo(1)).unwrap() == now);
    assert!(lab.restored(CycleNo(2)).unwrap() == now[..SMALL as usize]);
}

//! Damage at rest: what needs it is told, what does not is whole, and what somebody still has is mended byte for byte.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use backstay_types::{Classified, CycleNo, SectorRange};
use backstay_vault::damaged::damage_message;
use backstay_vault::read::mend::{Mended, Spare};
use backstay_vault::read::survey::{Reading, Survey, segment_name, survey};
use backstay_vault::read::verify_point;
use backstay_vault::retain::preview;
use backstay_vault::{DrillCheck, DrillRecord, Manifest, VaultError};
use common::history::{policy, run, time};
use common::{Lab, content};

const SIZE: u64 = 1 << 20;

fn look(lab: &Lab) -> Survey {
    let cycles = lab.vault.points(lab.disk).unwrap();
    let how =
        Reading { threads: 2, progress: &|_, _| {}, skip: &BTreeSet::new(), done: &|_, _| true };
    survey(&lab.vault, lab.disk, &cycles, &how).unwrap()
}

fn file_of(lab: &Lab, point: &Manifest, segment: usize) -> PathBuf {
    lab.dir.path().join(point.segments[segment].id(lab.disk).key().to_string())
}

fn flip(path: &PathBuf, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 4;
    fs::write(path, bytes).unwrap();
}

/// A disk's content, as it is or in part.
struct Disk(Vec<u8>, SectorRange);

impl Spare for Disk {
    fn read(&self, range: SectorRange) -> Option<Vec<u8>> {
        let inside = range.start >= self.1.start && range.end <= self.1.end;
        let at = range.start.byte_offset().0 as usize;
        inside.then(|| self.0[at..at + range.bytes().0 as usize].to_vec())
    }
}

#[test]
fn a_damaged_segment_becomes_what_it_was() {
    let lab = Lab::new(SIZE);
    let now = content(&mut fastrand::Rng::with_seed(9), SIZE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let path = file_of(&lab, &first, 0);
    let good = fs::read(&path).unwrap();
    let disk = Disk(now.clone(), lab.whole());
    // In the header, the first frame, one in the middle.
    for at in [3, 70, good.len() / 2] {
        flip(&path, at);
        let found = look(&lab);
        assert!(found.damaged.contains_key(&CycleNo(1)), "{at}");
        let bad = &found.segments[0];
        let none = Disk(vec![], SectorRange::new(0, 0));
        let other = Disk(vec![7; SIZE as usize], lab.whole());
        for useless in [&none as &dyn Spare, &other] {
            if at > 64 {
                let not = lab.vault.mend_segment(lab.disk, lab.size, &bad.segment, &[useless]);
                assert_eq!(not.unwrap(), Mended::Not);
            }
        }
        let spares: [&dyn Spare; 2] = [&other, &disk];
        let mended = lab.vault.mend_segment(lab.disk, lab.size, &bad.segment, &spares);
        assert_eq!(mended.unwrap(), Mended::Whole, "{at}");
        assert_eq!(fs::read(&path).unwrap(), good, "byte for byte");
        assert!(look(&lab).damaged.is_empty());
    }
    // A footer can be found damaged, and nobody can make it again.
    flip(&path, good.len() - 10);
    let bad = look(&lab);
    assert!(bad.damaged.contains_key(&CycleNo(1)));
    fs::write(&path, &good).unwrap();
}

#[test]
fn another_point_has_what_one_has_lost() {
    let lab = Lab::new(SIZE);
    let now = content(&mut fastrand::Rng::with_seed(10), SIZE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let second = lab.cycle(Some(&first), &now, &[lab.whole()]).unwrap();
    let path = file_of(&lab, &first, 0);
    let good = fs::read(&path).unwrap();
    flip(&path, good.len() / 3);
    let found = look(&lab);
    // The second point has all of its own: what lies beneath is not needed.
    assert_eq!(found.damaged.keys().copied().collect::<Vec<_>>(), [CycleNo(1)]);
    verify_point(&lab.vault, lab.disk, CycleNo(2), 2, &|_, _| {}).unwrap();
    let spare = lab.vault.spare(&second);
    let spares: [&dyn Spare; 1] = [&spare];
    let bad = &found.segments[0].segment;
    assert_eq!(lab.vault.mend_segment(lab.disk, lab.size, bad, &spares).unwrap(), Mended::Whole);
    assert_eq!(fs::read(&path).unwrap(), good);
    assert!(look(&lab).damaged.is_empty());
}

/// A header is read with the first frame, so that who restores finds the damage that a verification finds.
#[test]
fn a_damaged_header_is_seen_by_all_readers() {
    let lab = Lab::new(SIZE);
    let now = content(&mut fastrand::Rng::with_seed(11), SIZE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    flip(&file_of(&lab, &first, 0), 20);
    let restored = lab.restored(CycleNo(1)).unwrap_err();
    assert!(restored.is_damage(), "{restored}");
    let verified = verify_point(&lab.vault, lab.disk, CycleNo(1), 1, &|_, _| {}).unwrap_err();
    assert!(verified.is_damage(), "{verified}");
}

/// Points, each of which has a segment of its own and those of the ones before it.
fn chain(lab: &Lab, count: u64) -> Vec<Manifest> {
    let now = content(&mut fastrand::Rng::with_seed(12), SIZE);
    let mut points: Vec<Manifest> = vec![];
    for cycle in 0..count {
        let run = match cycle {
            0 => lab.whole(),
            n => SectorRange::new(n * 64, n * 64 + 8),
        };
        points.push(lab.cycle(points.last(), &now, &[run]).unwrap());
    }
    points
}

/// What a scrub says of a point.
fn verdict(lab: &Lab, point: &Manifest, passed: bool, ended: u64, segments: &[&str]) {
    let names = segments.iter().map(|name| (*name).to_owned()).collect();
    let message = if passed { "whole".into() } else { damage_message(&names, "why") };
    lab.vault
        .put_drill(&DrillRecord {
            drill: uuid::Uuid::new_v4(),
            disk: lab.disk,
            cycle: point.cycle,
            point: point.point,
            check: DrillCheck::Scrub,
            passed,
            message,
            by: String::new(),
            began_unix_ns: ended,
            ended_unix_ns: ended,
        })
        .unwrap();
}

fn cycles(lab: &Lab) -> Vec<u64> {
    lab.vault.points(lab.disk).unwrap().into_iter().map(|cycle| cycle.0).collect()
}

#[test]
fn nobody_gets_a_damaged_point_without_naming_it() {
    let lab = Lab::new(SIZE);
    let points = chain(&lab, 4);
    lab.vault.refuse_damaged(lab.disk, CycleNo(4)).unwrap();
    // The second point's own segment is damaged: it, and those after it that have it.
    let bad = segment_name(lab.disk, points[1].segments.last().unwrap());
    verdict(&lab, &points[1], false, 5, &[&bad]);
    let damaged: Vec<u64> =
        lab.vault.damaged_points(lab.disk).unwrap().into_keys().map(|cycle| cycle.0).collect();
    assert_eq!(damaged, [2, 3, 4]);
    let refused = lab.vault.refuse_damaged(lab.disk, CycleNo(4)).unwrap_err();
    assert!(
        matches!(refused, VaultError::PointDamaged { whole: Some(CycleNo(1)), .. }),
        "{refused}"
    );
    assert!(refused.is_damage() && refused.to_string().contains("--point 1"), "{refused}");
    // Read back since, the fourth is whole.
    verdict(&lab, &points[3], true, 6, &[]);
    lab.vault.refuse_damaged(lab.disk, CycleNo(4)).unwrap();
    verdict(&lab, &points[1], true, 7, &[]);
    assert!(lab.vault.damaged_points(lab.disk).unwrap().is_empty());
}

/// Retention counts whole points; the newest stays beside them, because the next one builds on it.
#[test]
fn no_whole_point_goes_for_a_damaged_one() {
    let lab = Lab::new(SIZE);
    let points = chain(&lab, 6);
    let bad = segment_name(lab.disk, points[2].segments.last().unwrap());
    verdict(&lab, &points[2], false, 5, &[&bad]);
    let rules = policy("last 1");
    let (_, shown) = preview(&lab.vault, lab.disk, &rules, &time(0)).unwrap();
    let shown: Vec<_> = shown.iter().map(|v| (v.cycle.0, v.stays, v.damaged.is_some())).collect();
    let gone = |cycle, damaged| (cycle, false, damaged);
    assert_eq!(
        shown,
        [
            gone(1, false),
            (2, true, false),
            gone(3, true),
            gone(4, true),
            gone(5, true),
            (6, true, true)
        ]
    );
    run(&lab.vault, lab.disk, "last 1").unwrap();
    assert_eq!(cycles(&lab), [2, 6]);
    verify_point(&lab.vault, lab.disk, CycleNo(2), 1, &|_, _| {}).unwrap();
    // The verdict that named the segment went with its point: what is left of the damaged ones is still known.
    assert!(lab.vault.damaged_points(lab.disk).unwrap().contains_key(&CycleNo(6)));
    run(&lab.vault, lab.disk, "last 1").unwrap();
    assert_eq!(cycles(&lab), [2, 6]);
}

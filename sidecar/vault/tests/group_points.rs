//! Group points: what may become one, who wins a number, what a damaged one is.

mod common;

use backstay_types::{CycleNo, PointId};
use backstay_vault::{GroupMember, GroupName, GroupPointNo, Manifest, VaultError};
use common::{Lab, content};

const SIZE: u64 = 1 << 20;

fn lab() -> (Lab, Manifest) {
    let lab = Lab::new(SIZE);
    let now = content(&mut fastrand::Rng::with_seed(1), SIZE);
    let point = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    (lab, point)
}

fn member(point: &Manifest) -> GroupMember {
    GroupMember {
        host: None,
        disk: point.disk,
        name: "db".parse().unwrap(),
        cycle: point.cycle,
        point: point.point,
        cut_unix_ns: point.cut_unix_ns,
    }
}

fn shop() -> GroupName {
    "shop".parse().unwrap()
}

#[test]
fn points_are_numbered_and_found_again() {
    let (lab, point) = lab();
    assert_eq!(lab.vault.groups().unwrap(), []);
    assert_eq!(lab.vault.group_points(&shop()).unwrap(), []);
    for number in 1..=3 {
        let put = lab.vault.commit_group(&shop(), vec![member(&point)], 5).unwrap();
        assert_eq!(put.number, GroupPointNo(number));
        assert_eq!(lab.vault.group_point(&shop(), put.number).unwrap(), put);
    }
    assert_eq!(lab.vault.groups().unwrap(), [shop()]);
    assert_eq!(lab.vault.group_points(&shop()).unwrap(), [1, 2, 3].map(GroupPointNo));
    let none = lab.vault.group_point(&shop(), GroupPointNo(4)).unwrap_err();
    assert!(matches!(none, VaultError::NotFound { .. }), "{none}");
}

/// Anyone who reports a point need not be believed: it must be in this vault, and be that one.
#[test]
fn a_point_that_is_not_in_the_vault_makes_no_group_point() {
    let (lab, point) = lab();
    let later = GroupMember { cycle: CycleNo(2), ..member(&point) };
    let missing = lab.vault.commit_group(&shop(), vec![later], 5).unwrap_err();
    assert!(matches!(missing, VaultError::NotFound { .. }), "{missing}");
    let other = GroupMember { point: PointId::random(), ..member(&point) };
    let other = lab.vault.commit_group(&shop(), vec![other], 5).unwrap_err();
    assert!(matches!(other, VaultError::Inconsistent { .. }), "{other}");
    let twice = vec![member(&point), member(&point)];
    assert!(lab.vault.commit_group(&shop(), twice, 5).is_err());
    assert!(lab.vault.commit_group(&shop(), vec![], 5).is_err());
    assert_eq!(lab.vault.group_points(&shop()).unwrap(), []);
}

#[test]
fn those_who_commit_at_once_all_get_a_number() {
    let (lab, point) = lab();
    let mut numbers: Vec<u64> = std::thread::scope(|scope| {
        let commit = || lab.vault.commit_group(&shop(), vec![member(&point)], 5);
        let all: Vec<_> = (0..6).map(|_| scope.spawn(commit)).collect();
        all.into_iter().map(|one| one.join().unwrap().unwrap().number.0).collect()
    });
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn damage_is_seen() {
    let (lab, point) = lab();
    lab.vault.commit_group(&shop(), vec![member(&point)], 5).unwrap();
    let path = lab
        .objects()
        .into_iter()
        .find(|path| path.to_string_lossy().contains("groups/shop/points/"))
        .expect("the group point's object");
    let text = std::fs::read_to_string(&path).unwrap();
    // A whole point under another number.
    std::fs::write(path.with_file_name(format!("{:020}", 2)), &text).unwrap();
    let moved = lab.vault.group_point(&shop(), GroupPointNo(2)).unwrap_err();
    assert!(matches!(moved, VaultError::Inconsistent { .. }), "{moved}");
    std::fs::write(&path, text.replace("\"cycle\": 1", "\"cycle\": 2")).unwrap();
    let damaged = lab.vault.group_point(&shop(), GroupPointNo(1)).unwrap_err();
    assert!(matches!(damaged, VaultError::Damaged { .. }), "{damaged}");
}

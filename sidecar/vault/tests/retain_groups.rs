//! Retention of what belongs together: disks of a group keep the points of the same group points,
//! though each has points of its own between; and no group point outlives one of its members.

mod common;

use std::sync::atomic::AtomicBool;

use backstay_vault::retain::maintain;
use backstay_vault::{GroupMember, GroupName, GroupPoint, Manifest, Vault};
use common::history::{History, policy, room, run, time};

fn shop() -> GroupName {
    "shop".parse().unwrap()
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

fn group_points(vault: &Vault) -> Vec<GroupPoint> {
    let numbers = vault.group_points(&shop()).unwrap();
    numbers.into_iter().map(|number| vault.group_point(&shop(), number).unwrap()).collect()
}

/// Two disks with group points, and `more` points of the second one's own after each.
fn two(vault: &Vault, rounds: u64, more: u64) -> [History; 2] {
    let mut rng = fastrand::Rng::with_seed(9);
    let mut disks = [1, 2].map(|seed| History::new(vault, 1 << 20, seed));
    for _ in 0..rounds {
        let members: Vec<GroupMember> =
            disks.iter_mut().map(|disk| member(&disk.cycle(vault, &mut rng).unwrap())).collect();
        let cut_unix_ns = members[0].cut_unix_ns;
        vault.commit_group(&shop(), members, cut_unix_ns).unwrap();
        for _ in 0..more {
            disks[1].cycle(vault, &mut rng).unwrap();
        }
    }
    disks
}

fn all_complete(vault: &Vault) {
    for point in group_points(vault) {
        for member in &point.members {
            let there = vault.points(member.disk).unwrap();
            assert!(there.contains(&member.cycle), "group point {} lost a member", point.number);
        }
    }
}

#[test]
fn what_belongs_together_stays_together() {
    let (dir, vault) = room();
    let disks = two(&vault, 12, 3);
    // By its own points alone the second disk would keep members of the newest group point only.
    for disk in &disks {
        run(&vault, disk.disk, "last 4").unwrap();
        all_complete(&vault);
    }
    let numbers: Vec<u64> = group_points(&vault).iter().map(|point| point.number.0).collect();
    assert_eq!(numbers, [9, 10, 11, 12]);
    for disk in &disks {
        disk.check(&vault, "members restore");
        disk.check_clean(&vault, dir.path(), "nothing else stays");
    }
    assert_eq!(vault.points(disks[0].disk).unwrap().len(), 4);
    // Its own last four, and the members of the other three group points.
    assert_eq!(vault.points(disks[1].disk).unwrap().len(), 7);
}

/// Anyone who keeps less decides: then there is no group point, and the rest is a disk's own.
#[test]
fn a_group_point_goes_before_the_first_of_its_members() {
    let (_dir, vault) = room();
    let disks = two(&vault, 6, 0);
    run(&vault, disks[0].disk, "last 2").unwrap();
    all_complete(&vault);
    assert_eq!(group_points(&vault).len(), 2);
    run(&vault, disks[1].disk, "last 4").unwrap();
    all_complete(&vault);
    assert_eq!(group_points(&vault).len(), 2);
    assert_eq!(vault.points(disks[1].disk).unwrap().len(), 4);
}

#[test]
fn a_group_that_is_no_more_holds_nothing_back_for_ever() {
    let (_dir, vault) = room();
    let mut disks = two(&vault, 5, 0);
    let mut rng = fastrand::Rng::with_seed(4);
    for disk in &mut disks {
        for _ in 0..8 {
            disk.cycle(&vault, &mut rng).unwrap();
        }
        run(&vault, disk.disk, "last 3").unwrap();
        all_complete(&vault);
        assert_eq!(vault.points(disk.disk).unwrap().len(), 3);
    }
    assert_eq!(group_points(&vault), []);
}

/// Without rules nothing goes, group points neither.
#[test]
fn without_rules_all_stays() {
    let (_dir, vault) = room();
    let disks = two(&vault, 3, 1);
    for disk in &disks {
        maintain(&vault, disk.disk, &policy(""), &time(0), &AtomicBool::new(false)).unwrap();
    }
    assert_eq!(group_points(&vault).len(), 3);
    all_complete(&vault);
}

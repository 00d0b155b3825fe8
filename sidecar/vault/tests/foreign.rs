//! Objects that were copied from somewhere else, whole and with their checksums: every reader sees it, and nothing
//! is deleted on their word.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use backstay_types::{Classified, CycleNo, DiskId, Term};
use backstay_vault::{HoldKind, TermFrom, Vault, VaultError, Vaults};
use common::history::{History, hold, run};

fn room() -> (tempfile::TempDir, Vault) {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vaults::default().create(dir.path().to_str().unwrap()).unwrap();
    (dir, vault)
}

fn of(dir: &Path, disk: DiskId, piece: &str) -> PathBuf {
    dir.join("disks").join(disk.to_string()).join(piece)
}

/// All objects but holds, which come and go with readers.
fn objects(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = vec![];
    walk(dir, &mut found);
    found.sort();
    found
}

/// Two disks with five points each, two of which were retired before.
fn two(vault: &Vault) -> [History; 2] {
    let mut rng = fastrand::Rng::with_seed(4);
    [1, 2].map(|seed| {
        let mut disk = History::new(vault, 1 << 20, seed);
        for _ in 0..7 {
            disk.cycle(vault, &mut rng).unwrap();
        }
        run(vault, disk.disk, "last 5").unwrap();
        disk
    })
}

#[track_caller]
fn damage<T>(what: &str, read: Result<T, VaultError>, key: &str) {
    match read {
        Ok(_) => panic!("{what}: it was believed"),
        Err(e) => {
            assert!(e.is_damage(), "{what}: {e}");
            assert!(e.to_string().contains(key), "{what}: {e} does not name {key}");
        }
    }
}

fn number(n: u64) -> String {
    format!("{n:020}")
}

/// `disk.json` of another disk: `prune` would have deleted the other disk's points.
#[test]
fn another_disks_record_is_nobodys() {
    let (dir, vault) = room();
    let [a, b] = two(&vault);
    fs::copy(of(dir.path(), b.disk, "disk.json"), of(dir.path(), a.disk, "disk.json")).unwrap();
    let before = objects(dir.path());
    damage("record", vault.disk(a.disk), &a.disk.to_string());
    damage("list", vault.disks(), &a.disk.to_string());
    assert_eq!(objects(dir.path()), before);
    assert_eq!(vault.disk(b.disk).unwrap().disk, b.disk);
    // The other disk is listed all the same.
    let (disks, damaged) = vault.list_disks().unwrap();
    assert_eq!(disks.iter().map(|disk| disk.disk).collect::<Vec<_>>(), [b.disk]);
    assert_eq!(damaged.iter().map(|found| found.disk).collect::<Vec<_>>(), [Some(a.disk)]);
    assert!(damaged[0].why.damaged_document().unwrap().ends_with("/disk.json"), "{damaged:?}");
}

/// Of each kind of object: another disk's, and another one of the same disk.
#[test]
fn every_reader_compares_an_object_with_its_key() {
    let (dir, vault) = room();
    let [a, b] = two(&vault);
    let newest = 7;
    for disk in [&a, &b] {
        vault.claim_term(disk.disk, "test").unwrap();
        vault.hold(disk.disk, &hold("pin", HoldKind::Pin, (newest, newest), None)).unwrap();
        let point = vault.manifest(disk.disk, CycleNo(newest)).unwrap();
        vault
            .hand_over(
                disk.disk,
                "test",
                TermFrom { term: Term(2), cycle: point.cycle, point: point.point },
            )
            .unwrap();
    }
    let ledger = newest_in(&of(dir.path(), a.disk, "ledger"));
    let pin = newest_in(&of(dir.path(), a.disk, "holds"));
    let (points, terms) = (|n| format!("points/{}", number(n)), |n| format!("terms/{}", number(n)));
    type Read<'a> = &'a dyn Fn(&Vault) -> Result<(), VaultError>;
    let (disk, cycle) = (a.disk, CycleNo(newest));
    let point: Read = &|vault| vault.manifest(disk, cycle).map(drop);
    let term: Read = &|vault| vault.newest_term(disk).map(drop);
    let holds: Read = &|vault| vault.holds(disk).map(drop);
    let ledgers: Read = &|vault| vault.ledger(disk).map(drop);
    let handover: Read = &|vault| vault.handover(disk).map(drop);
    // What is copied, from which disk, and to which object of `a`.
    let cases: [(&str, DiskId, String, String, Read); 8] = [
        ("point of another disk", b.disk, points(newest), points(newest), point),
        ("point of another cycle", a.disk, points(newest - 1), points(newest), point),
        ("term of another disk", b.disk, terms(2), terms(2), term),
        ("term of another number", a.disk, terms(1), terms(2), term),
        (
            "hold of another disk",
            b.disk,
            first_in(&of(dir.path(), b.disk, "holds")),
            pin.clone(),
            holds,
        ),
        (
            "ledger of another disk",
            b.disk,
            newest_in(&of(dir.path(), b.disk, "ledger")),
            ledger.clone(),
            ledgers,
        ),
        (
            "ledger of another revision",
            a.disk,
            first_in(&of(dir.path(), a.disk, "ledger")),
            ledger,
            ledgers,
        ),
        (
            "handover of another disk",
            b.disk,
            format!("handovers/{}", number(2)),
            format!("handovers/{}", number(2)),
            handover,
        ),
    ];
    for (what, from, source, target, read) in cases {
        let (source, to) = (of(dir.path(), from, &source), of(dir.path(), a.disk, &target));
        let kept = fs::read(&to).unwrap();
        let theirs = fs::read(&source).unwrap();
        assert_ne!(kept, theirs, "{what}");
        fs::write(&to, theirs).unwrap();
        let vault = Vaults::default().open(dir.path().to_str().unwrap()).unwrap();
        damage(what, read(&vault), &target);
        fs::write(&to, kept).unwrap();
        read(&vault).unwrap_or_else(|e| panic!("{what}: mended: {e}"));
    }
}

/// The name of an object of a folder, as a piece of its disk: the first, or the last.
fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let piece = folder.file_name().unwrap().to_str().unwrap();
    names.into_iter().map(|name| format!("{piece}/{name}")).collect()
}

fn first_in(folder: &Path) -> String {
    names_in(folder).remove(0)
}

fn newest_in(folder: &Path) -> String {
    names_in(folder).pop().unwrap()
}

/// A point in the place of another that the ledger keeps, of the same disk and cycle: only its identity tells. Whatever
/// stands where something would be deleted, nothing is.
#[test]
fn nothing_is_deleted_where_something_else_stands() {
    let (dir, vault) = room();
    let [a, b] = two(&vault);
    let at = |cycle: u64| of(dir.path(), a.disk, &format!("points/{}", number(cycle)));
    let open = || Vaults::default().open(dir.path().to_str().unwrap()).unwrap();
    // The same disk and cycle with another identity, as if from a copy of the vault that went on.
    let other = {
        let mut point = vault.manifest(a.disk, CycleNo(3)).unwrap();
        point.point = backstay_types::PointId::random();
        point.encode()
    };
    let theirs = fs::read(of(dir.path(), b.disk, &format!("points/{}", number(3)))).unwrap();
    let kept = fs::read(at(3)).unwrap();
    for (what, bytes) in [("another identity", other), ("another disk", theirs)] {
        fs::write(at(3), bytes).unwrap();
        let before = objects(dir.path());
        let vault = open();
        damage(what, run(&vault, a.disk, "last 2"), &number(3));
        assert_eq!(objects(dir.path()), before, "{what}: something was deleted");
        vault.points(a.disk).unwrap();
        damage(what, vault.manifest(a.disk, CycleNo(3)), &number(3));
    }
    // What the ledger does not know, and is another disk's.
    fs::write(at(3), &kept).unwrap();
    fs::copy(of(dir.path(), b.disk, &format!("points/{}", number(4))), at(1)).unwrap();
    let before = objects(dir.path());
    damage("nobody's", run(&open(), a.disk, "last 2"), &number(1));
    assert_eq!(objects(dir.path()), before);
    fs::remove_file(at(1)).unwrap();
    let done = run(&open(), a.disk, "last 2").unwrap();
    assert_eq!(done.retired.deleted, 3);
}

//! The life of a disk: cycles, retention, a resync, restore, instant mount, there and back by plan, and a failover.
//!
//! Each step is done by a host that has nothing but what its role needs: where a backend knows roles, that
//! is also all it may do, and what it may not is refused in words.

use std::path::Path;
use std::sync::Arc;

use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::{Disk, Host};

use super::{MIB, PARTS, SIZE, SMALL, noise};

/// Has only the points stay that these rules say, once.
pub type Prune<'a> = &'a dyn Fn(&Host, &str);

/// Retention by command, wherever the store is reached directly.
pub fn by_command(keeper: &Host, keep: &str) {
    keeper.backstay(&["prune", "db", "--keep", keep]);
}

/// From the first copy to restore, mount and failover on another host.
pub fn life(backend: &Backend, (host, disk): (Arc<Host>, Disk), prune: Prune<'_>) {
    let served = disk.served();
    disk.cycle();
    let mut hashes = vec![hash(&served)];
    for n in 2..=4 {
        noise(&served, n * 3 * MIB + 4096 * n, MIB, n);
        disk.cycle();
        hashes.push(hash(&served));
    }
    // Rules, a pin, merging and collecting.
    let keeper = another(backend, Role::Maintainer);
    keeper.backstay(&["pin", "db", "2", "--name", "before"]);
    prune(&keeper, "last 1");
    points(&disk, &[2, 4]);
    if backend.knows_roles() {
        refused(&host, &["pin", "db", "4"], "a source holds points only to compare");
        refused(&host, &["unpin", "db", "before"], "a source has no right to Delete");
        takes_nothing_over(&keeper);
    }
    // A comparison by checksums, after the backing was changed behind our back.
    host.backstay(&["umount", "db"]);
    noise(&disk.backing, 20 * MIB, 4096, 9);
    disk.mount(&[]);
    host.backstay(&["resync", "db", "--now"]);
    assert_eq!(host.json(&["points", "db"])[2]["kind"], "resync");
    keeper.backstay(&["unpin", "db", "before"]);
    prune(&keeper, "last 2");
    points(&disk, &[4, 5]);
    // Another host has nothing but the URL and the credentials.
    let other = another(backend, Role::Recovery);
    other.backstay(&["verify", "db"]);
    for (cycle, expected) in [(4, hashes.pop().unwrap()), (5, hash(&disk.served()))] {
        let to = other.path("restored.img");
        let (to, point) = (to.to_str().unwrap(), cycle.to_string());
        other.backstay(&["restore", "db", "--point", &point, "--to", to, "--force"]);
        assert_eq!(hash(Path::new(to)), expected, "point {cycle}");
    }
    let gone = other.try_backstay(&["restore", "db", "--point", "2", "--to", "/dev/null"]);
    assert!(said(&gone).contains("no recovery point 2"), "{}", said(&gone));
    if backend.knows_roles() {
        let to = host.path("never.img");
        let args = ["restore", "db", "--point", "5", "--to", to.to_str().unwrap()];
        refused(&host, &args, "a source reads of a segment its header, index and footer");
        refused(&other, &["prune", "db", "--keep", "last 1"], "retention runs there");
    }
    mount(&another(backend, Role::Recovery), &hash(&disk.served()));
    there_and_back(backend, &disk);
    noise(&served, 10 * MIB, MIB, 19);
    disk.cycle();
    fail_over(&disk, &other);
}

/// A certificate is for one thing; the rest is refused, and said so.
fn refused(host: &Host, args: &[&str], why: &str) {
    let tried = host.try_backstay(args);
    assert!(!tried.status.success(), "{args:?} was done: {}", said(&tried));
    assert!(said(&tried).contains(why), "{args:?}: {}", said(&tried));
}

/// Who looks after points reads them, too, and takes no term.
fn takes_nothing_over(keeper: &Arc<Host>) {
    // For its clean-up.
    keeper.disk("db", SIZE);
    keeper.backstay(&["failover", "unplanned", "db"]);
    refused(keeper, &["failover", "commit", "db"], "a maintainer has no right to Put");
    keeper.backstay(&["failover", "cancel", "db"]);
}

fn points(disk: &Disk, expected: &[u64]) {
    let cycles: Vec<u64> = disk.points().iter().map(|point| point.cycle).collect();
    assert_eq!(cycles, expected);
}

/// Another host, with nothing but the vault's URL and what a role has.
fn another(backend: &Backend, role: Role) -> Arc<Host> {
    let other = Host::new("stores-other");
    backend.connect(&other, role, "", "");
    other
}

/// A point is mounted and read as a disk.
fn mount(host: &Arc<Host>, expected: &str) {
    // For its clean-up.
    host.disk("tried", SIZE);
    let of = ["--disk", "db", "--name", "tried", "--point", "5"];
    let file = host.backstay(&[&["mount", "--vault", &host.vault()], &of[..]].concat());
    assert_eq!(hash(Path::new(file.trim())), expected, "mounted");
    host.backstay(&["umount", "tried"]);
}

/// The disk goes to another host by plan, is written there, and comes back.
fn there_and_back(backend: &Backend, source: &Disk) {
    let there = another(backend, Role::Recovery);
    let was = hash(&source.served());
    source.host.backstay(&["failover", "handover", "db"]);
    let target = there.disk("db", SIZE);
    there.backstay(&["failover", "planned", "db"]);
    assert_eq!(hash(&target.served()), was, "handed over");
    there.backstay(&["failover", "commit", "db"]);
    noise(&target.served(), 6 * MIB, MIB, 20);
    there.backstay(&["cycle", "db"]);
    noise(&target.served(), 8 * MIB, MIB, 21);
    let now = hash(&target.served());
    there.backstay(&["failover", "handover", "db"]);
    // Anyone who takes a disk back reads it and takes a term.
    backend.connect(&source.host, Role::Recovery, SMALL, PARTS);
    source.host.backstay(&["failback", "db", "--to", source.backing.to_str().unwrap()]);
    backend.connect(&source.host, Role::Source, SMALL, PARTS);
    assert_eq!(hash(&source.served()), now, "failed back");
}

/// Another host takes the disk over; the old source is shut out (I5).
fn fail_over(source: &Disk, other: &Arc<Host>) {
    let was = hash(&source.served());
    let target = other.disk("db", SIZE);
    other.backstay(&["failover", "unplanned", "db"]);
    assert_eq!(hash(&target.served()), was, "failed over");
    noise(&target.served(), 9 * MIB, MIB, 21);
    other.backstay(&["failover", "commit", "db"]);
    other.backstay(&["cycle", "db"]);
    let newest = target.points().pop().unwrap().cycle;
    assert!(newest > 5);
    assert_eq!(hash(&target.restore(newest, "after.img")), hash(&target.served()));
    noise(&source.served(), 9 * MIB, MIB, 22);
    let fenced = source.host.try_backstay(&["cycle", "db"]);
    assert!(said(&fenced).contains("is over"), "{}", said(&fenced));
    assert_eq!(target.points().pop().unwrap().cycle, newest, "the old source committed");
}

//! Damage at rest: a sidecar reads points back, mends what the disk still has, and tells what it cannot mend.

use std::fs;
use std::path::{Path, PathBuf};

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::{hash, wait_gone};
use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::{Disk, Host};
use serde_json::Value;

use super::{MIB, noise};

const SETTINGS: &str = "interval = \"1d\"\nscrub = \"weekly\"\n";
const SMALL: &str = "[ship]\nsegment_size = \"1MiB\"\n";

/// The segments of a host's only disk, in order.
fn segments(host: &Host) -> Vec<PathBuf> {
    let below = |dir: &Path| -> Vec<PathBuf> {
        let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        all.sort();
        all
    };
    below(&below(&host.path("vault/disks"))[0].join("segments"))
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(path, bytes).unwrap();
}

/// What is remembered of the disk's scrubs.
fn scrubbed(disk: &Disk) -> Value {
    let text = fs::read(disk.host.path("state/db/scrub.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn has_ended(disk: &Disk) -> bool {
    scrubbed(disk)["ended_unix_ns"].is_u64()
}

#[test]
fn a_flipped_byte_is_mended_from_the_disk_and_what_cannot_be_is_told() {
    let host = Host::new("scrub");
    write_config(&host, &format!("{SETTINGS}{SMALL}"));
    let disk = host.disk("db", 24 * MIB);
    noise(&disk.backing, 0, 8 * MIB, 1);
    let served = disk.mount(&[]);
    disk.cycle();
    let victim = segments(&host)[3].clone();
    let good = fs::read(&victim).unwrap();
    flip(&victim);
    let service = Service::start(&host);
    service.says("was damaged and is whole again");
    wait_for("the end of the scrub", || has_ended(&disk));
    assert_eq!(fs::read(&victim).unwrap(), good);
    host.backstay(&["verify", "db"]);
    assert!(disk.causes().is_empty(), "{:?}", disk.causes());
    drop(service);
    // A point of what the disk does not have any more.
    let other = host.another("scrub-other");
    write_config(&other, "");
    fs::write(other.path("backstay.toml"), format!("vault = {:?}\n", host.vault())).unwrap();
    noise(&served, 10 * MIB, 64 << 10, 2);
    disk.cycle();
    noise(&served, 10 * MIB, 64 << 10, 3);
    flip(segments(&host).last().unwrap());
    fs::remove_file(host.path("state/db/scrub.json")).unwrap();
    let service = Service::start(&host);
    wait_for("the end of the scrub", || has_ended(&disk));
    drop(service);
    assert!(disk.causes().contains(&"vault-damaged".into()), "{:?}", disk.causes());
    let points = host.json(&["points", "db"]);
    let points = points.as_array().or_else(|| points["points"].as_array()).unwrap();
    assert!(points[0]["damaged"].is_null() && !points[1]["damaged"].is_null(), "{points:?}");
    let refused = other.try_backstay(&["failover", "unplanned", "db"]);
    assert_eq!(refused.status.code(), Some(4), "{}", said(&refused));
    assert!(said(&refused).contains("--point 1"), "{}", said(&refused));
    // The next cycle ships what the disk has over it, and that point is whole.
    disk.cycle();
    let target = other.disk("db", 24 * MIB);
    other.backstay(&["failover", "unplanned", "db"]);
    assert_eq!(hash(&target.served()), hash(&served));
}

/// It is a job; killed, it goes on where it was.
#[test]
fn a_scrub_that_was_killed_goes_on() {
    let host = Host::new("scrub-killed");
    write_config(&host, &format!("{SETTINGS}scrub_limit = \"8MB/s\"\n{SMALL}"));
    let disk = host.disk("db", 42 * MIB);
    noise(&disk.backing, 0, 40 * MIB, 1);
    disk.mount(&[]);
    disk.cycle();
    flip(segments(&host).first().unwrap());
    let mut service = Service::start(&host);
    let read = || scrubbed(&disk)["done"].as_array().map_or(0, Vec::len);
    wait_for("some segments", || read() > 0);
    let jobs = host.json(&["jobs"]);
    assert!(jobs.to_string().contains("scrub"), "{jobs}");
    service.child.kill().unwrap();
    wait_gone(service.child.id() as i32);
    service.child.wait().unwrap();
    drop(service);
    let before = scrubbed(&disk);
    let (so_far, done) = (read(), before["done"].as_array().unwrap().clone());
    assert!(so_far < 40, "{so_far}");
    let service = Service::start(&host);
    wait_for("more segments", || read() > so_far);
    let now = scrubbed(&disk);
    assert_eq!(now["began_unix_ns"], before["began_unix_ns"], "it began again");
    assert!(done.iter().all(|name| now["done"].as_array().unwrap().contains(name)));
    wait_for("the end of the scrub", || has_ended(&disk));
    drop(service);
    host.backstay(&["verify", "db"]);
}

/// All points go behind our back: that is told, nothing is shipped, and the way out that is named works.
#[test]
fn points_that_were_deleted_behind_our_back() {
    let host = Host::new("vanished");
    let settings = "interval = \"1s\"\nheartbeat = \"1s\"\nretry = [\"1s\"]\n";
    write_config(&host, &format!("{settings}{SMALL}"));
    let disk = host.disk("db", 24 * MIB);
    noise(&disk.backing, 0, 8 * MIB, 1);
    let served = disk.mount(&[]);
    let service = Service::start(&host);
    service.says("recovery point 2");
    // Until none is made between two looks.
    wait_for("no point", || {
        let points = segments(&host)[0].parent().unwrap().with_file_name("points");
        for point in fs::read_dir(&points).unwrap() {
            let _ = fs::remove_file(point.unwrap().path());
        }
        disk.causes().contains(&"points-vanished".into())
    });
    assert_eq!(disk.status()["health"]["level"], "critical");
    assert!(
        disk.status()["rpo_ns"].is_null(),
        "the age of a point that is gone: {}",
        disk.status()
    );
    let shipped = segments(&host);
    noise(&served, 9 * MIB, MIB, 2);
    for _ in 0..2 {
        let failed = host.try_backstay(&["cycle", "db"]);
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        assert!(said(&failed).contains("resync db --now --the-disk-is-right"), "{}", said(&failed));
    }
    assert_eq!(segments(&host), shipped, "nothing is shipped");
    let advice = disk.status()["health"]["causes"].to_string();
    assert!(advice.contains("resync db --now --the-disk-is-right"), "{advice}");
    host.backstay(&["resync", "db", "--now", "--the-disk-is-right"]);
    wait_for("health", || disk.causes().is_empty());
    drop(service);
    disk.cycle();
    let points = disk.points();
    assert!(points[0].cycle > 2, "no number is used twice: {points:?}");
    let newest = points.last().unwrap().cycle;
    assert_eq!(hash(&disk.restore(newest, "restored.img")), hash(&served));
}

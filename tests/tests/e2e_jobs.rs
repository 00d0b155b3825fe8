//! What `backstay jobs` shows of deltas: those that take long, with a time left that is right under a limit, and
//! those that failed; of groups too.
//!
//! Needs root, /dev/fuse.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backstay_tests::harness::command::said;
use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::{Disk, Host};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// For 4 MiB eight seconds: as long as what was not shown.
const SLOW: &str = "[throttle]\nlimit = \"500kB/s\"\n";

fn noise(path: &Path, len: u64, seed: u64) {
    let mut bytes = vec![0; len as usize];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
}

fn delta(host: &Host, disk: &str, state: &str) -> Option<Value> {
    job(host, disk, "delta", state)
}

fn job(host: &Host, disk: &str, work: &str, state: &str) -> Option<Value> {
    let jobs = host.json(&["jobs", disk]);
    let is = |job: &&Value| job["work"] == work && job["state"] == state;
    jobs.as_array().unwrap().iter().find(is).cloned()
}

fn number(job: &Value, field: &str) -> f64 {
    job[field].as_f64().unwrap_or_else(|| panic!("{field}: {job}"))
}

/// Seconds left, as `backstay jobs` says them.
fn left(job: &Value) -> f64 {
    number(job, "left_ns") / 1e9
}

/// A disk with a point, and then more to ship than goes in a moment.
fn with_work(host: &std::sync::Arc<Host>, name: &str) -> Disk {
    let disk = host.disk(name, 16 * MIB);
    disk.mount(&[]);
    disk.cycle();
    noise(&disk.served(), 4 * MIB, 1);
    disk
}

/// Waits for a running delta that has done a third, and then for its end: what it said was left is what it took.
fn is_right_about_its_end(host: &Host, disk: &str) {
    is_right_at(host, disk, "delta", "changes", 0.34);
}

/// The same of any work in a stage, when it has done this part of it.
fn is_right_at(host: &Host, disk: &str, work: &str, stage: &str, part: f64) {
    let mut early = Value::Null;
    wait_for("a running job", || {
        let Some(job) = job(host, disk, work, "running") else { return false };
        let enough = number(&job, "done_bytes") >= part * number(&job, "all_bytes");
        let is_shipping = job["stage"] == stage && enough;
        early = job;
        is_shipping
    });
    assert!(number(&early, "done_bytes") < number(&early, "all_bytes"), "{early}");
    let said = left(&early);
    let mut ended = Value::Null;
    wait_for("its end", || {
        job(host, disk, work, "done").inspect(|job| ended = job.clone()).is_some()
    });
    assert_eq!(early["id"], ended["id"]);
    let took = (number(&ended, "updated_unix_ns") - number(&early, "updated_unix_ns")) / 1e9;
    assert!(took <= said * 2.0 && said <= took * 2.0, "said {said} s, took {took} s: {early}");
}

#[test]
fn a_long_delta_is_shown_and_knows_when_it_ends() {
    let host = Host::new("jobs-long");
    write_config(&host, "interval = \"1d\"\n");
    let _disk = with_work(&host, "d");
    write_config(&host, &format!("interval = \"1s\"\n{SLOW}"));
    let _service = Service::start(&host);
    is_right_about_its_end(&host, "d");
}

/// Most of the disk is equal, and compared in a moment; what differs waits for the throttle.
#[test]
fn a_resync_under_a_throttle_knows_when_it_ends() {
    let host = Host::new("jobs-resync");
    write_config(&host, "interval = \"1d\"\n");
    let disk = host.disk("d", 32 * MIB);
    let served = disk.mount(&[]);
    noise(&served, 32 * MIB, 1);
    disk.cycle();
    noise(&served, 8 * MIB, 2);
    write_config(&host, &format!("interval = \"1d\"\n{SLOW}"));
    let mut resync = host.command().args(["resync", "d", "--now"]).spawn().unwrap();
    is_right_at(&host, "d", "resync", "comparing", 0.93);
    assert!(resync.wait().unwrap().success());
}

#[test]
fn a_delta_that_fails_is_shown() {
    let host = Host::new("jobs-failed");
    write_config(&host, "interval = \"1d\"\n");
    let disk = with_work(&host, "d");
    write_config(&host, "interval = \"1s\"\nretry = [\"1s\"]\n");
    // Where its segments go there is a file.
    let vault =
        host.path("vault").join("disks").join(disk.status()["driver"]["disk"].as_str().unwrap());
    let (segments, kept) = (vault.join("segments"), vault.join("kept"));
    fs::rename(&segments, &kept).unwrap();
    fs::write(&segments, b"").unwrap();
    let _service = Service::start(&host);
    wait_for("a failed delta", || delta(&host, "d", "failed").is_some());
    let job = delta(&host, "d", "failed").unwrap();
    assert!(job["message"].as_str().unwrap().contains("segments"), "{job}");
    fs::remove_file(&segments).unwrap();
    fs::rename(&kept, &segments).unwrap();
    wait_for("a point", || disk.points().len() == 2);
    assert_eq!(delta(&host, "d", "running"), None);
}

#[test]
fn the_deltas_of_a_group_are_shown_too() {
    let host = Host::new("jobs-group");
    write_config(&host, "interval = \"1d\"\n");
    let _disks = [with_work(&host, "a"), with_work(&host, "b")];
    let group = "interval = \"1d\"\n[group.shop]\ndisks = [\"a\", \"b\"]\n";
    write_config(&host, &format!("{group}[throttle]\nlimit = \"1MB/s\"\n"));
    let mut round = host.command().args(["group", "cycle", "shop"]).spawn().unwrap();
    is_right_about_its_end(&host, "a");
    assert!(round.wait().unwrap().success());
    assert!(delta(&host, "b", "done").is_some());
    // And one that fails.
    fs::rename(host.path("vault"), host.path("away")).unwrap();
    let failed = host.try_backstay(&["group", "cycle", "shop"]);
    assert!(!failed.status.success(), "{}", said(&failed));
    fs::rename(host.path("away"), host.path("vault")).unwrap();
    assert!(delta(&host, "a", "failed").is_some(), "{}", said(&failed));
}

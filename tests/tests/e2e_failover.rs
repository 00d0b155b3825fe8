//! Failover and failback between two hosts that share nothing but a vault: nothing that was acknowledged is
//! lost, one host writes, and a command that is killed at any of its steps goes on when it is run again.
//!
//! Needs root, /dev/fuse, loop devices, and a build with debug assertions (they hold the place where commands
//! are killed).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use backstay_tests::harness::command::{must, said};
use backstay_tests::harness::host::hash;
use backstay_tests::harness::service::{Service, wait_for};
use backstay_tests::harness::stamp::{StopOnDrop, check_at, now_ns, open_direct, write_until};
use backstay_tests::harness::{Disk, Host};
use fastrand::Rng;

#[path = "e2e_failover/handover.rs"]
mod handover;

const MIB: u64 = 1 << 20;

fn is_long() -> bool {
    std::env::var_os("BACKSTAY_TEST_LONG").is_some()
}

fn seed() -> u64 {
    let given = std::env::var("BACKSTAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(if is_long() { fastrand::u64(..1 << 40) } else { 0xFA11 });
    println!("BACKSTAY_SEED={seed}");
    seed
}

/// Another host with the vault of the first.
fn other(of: &Host, test: &str) -> Arc<Host> {
    let host = of.another(test);
    let config = format!("vault = \"{}\"\n", of.vault());
    fs::write(host.path("backstay.toml"), config).unwrap();
    host
}

/// A source with two points, and a target.
fn pair(test: &str, size: u64, rng: &mut Rng) -> (Disk, Disk) {
    pair_of(Host::new(&format!("{test}-a")), test, size, rng)
}

/// The same in an encrypted vault.
fn sealed_pair(test: &str, size: u64, rng: &mut Rng) -> (Disk, Disk) {
    pair_of(Host::sealed(&format!("{test}-a")), test, size, rng)
}

fn pair_of(a: Arc<Host>, test: &str, size: u64, rng: &mut Rng) -> (Disk, Disk) {
    let b = other(&a, &format!("{test}-b"));
    let source = a.disk("db", size);
    let served = source.mount(&[]);
    scribble(&served, rng, 6);
    source.cycle();
    scribble(&served, rng, 3);
    source.cycle();
    let target = b.disk("db", size);
    (source, target)
}

/// Writes random runs somewhere; bytes written.
fn scribble(path: &Path, rng: &mut Rng, runs: usize) -> u64 {
    let file = File::options().write(true).open(path).unwrap();
    let size = file.metadata().unwrap().len();
    let mut written = 0;
    for _ in 0..runs {
        let mut bytes = vec![0; rng.usize(1..32) * 4096];
        rng.fill(&mut bytes);
        let at = rng.u64(..(size - bytes.len() as u64) / 4096) * 4096;
        file.write_all_at(&bytes, at).unwrap();
        written += bytes.len() as u64;
    }
    file.sync_all().unwrap();
    written
}

fn served(host: &Host, name: &str) -> PathBuf {
    host.runtime.join(name).join("mnt/disk")
}

/// Every object of a vault and a hash of what is in it, but for holds and their marks.
fn objects(vault: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![vault.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if !["holds", "held"].iter().any(|of| path.parent().unwrap().ends_with(of)) {
                let mut hasher = DefaultHasher::new();
                fs::read(&path).unwrap().hash(&mut hasher);
                found.insert(path, hasher.finish());
            }
        }
    }
    found
}

fn holds(vault: &Path) -> usize {
    let disks = fs::read_dir(vault.join("disks")).unwrap().map(|disk| disk.unwrap().path());
    disks.map(|disk| fs::read_dir(disk.join("holds")).map_or(0, Iterator::count)).sum()
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(why), "{said}");
}

#[test]
fn a_test_failover_touches_nothing_and_leaves_nothing() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = sealed_pair("fo-test", 32 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    let vault = a.path("vault");
    let (before, was) = (objects(&vault), hash(&source.served()));
    b.disk("db.test", MIB);
    let device = b.backstay(&["failover", "test", "db", "--attach"]);
    assert!(device.starts_with("/dev/loop"), "{device}");
    assert_eq!(hash(Path::new(device.trim())), was);
    scribble(&served(b, "db.test"), &mut rng, 5);
    assert_ne!(hash(&served(b, "db.test")), was);
    // Nobody ships what was written, not even by hand.
    assert!(!b.try_backstay(&["cycle", "db.test"]).status.success());
    refused(
        &b.try_backstay(&["failover", "commit", "db.test"]),
        "backstay failover cleanup db.test",
    );
    assert_eq!(objects(&vault), before, "the vault was changed");
    assert!(holds(&vault) > 0, "the point is held");
    // A command that tries it has nobody to talk to, and what it mounts is its own.
    let (here, line) = (b.path("seen"), "ls /sys/class/net; cat /proc/net/dev; test $$ -lt 20");
    let line = format!(
        "mount -t tmpfs none /mnt; ({line}; cmp $BACKSTAY_DEVICE $BACKSTAY_SERVED && echo same) > {}",
        here.display()
    );
    b.backstay(&["failover", "test", "db", "--run", &line]);
    let seen = fs::read_to_string(&here).unwrap();
    let interfaces = seen.lines().filter(|line| line.contains(": ")).count();
    assert!(interfaces == 1 && seen.contains("lo:") && seen.contains("same"), "{seen}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("none /mnt tmpfs"), "{mounts}");
    let failed = b.try_backstay(&["failover", "test", "db", "--run", "exit 3"]);
    assert!(said(&failed).contains("the test stays up"), "{}", said(&failed));
    // Replication goes on.
    scribble(&source.served(), &mut rng, 2);
    source.cycle();
    let was = hash(&source.served());
    b.backstay(&["failover", "cleanup", "db"]);
    assert_eq!(hash(&source.restore(3, "restored.img")), was);
    assert_eq!(holds(&vault), 0);
    let mut left: Vec<_> =
        fs::read_dir(b.path("state")).unwrap().map(|e| e.unwrap().path()).collect();
    left.sort();
    // The cycle by hand was a job, and which vault was met is remembered.
    assert_eq!(left, [".failover", ".jobs", ".vaults"].map(|name| b.path("state").join(name)));
    assert_eq!(fs::read_dir(&left[0]).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&b.runtime).unwrap().count(), 0);
    let loops = std::process::Command::new("losetup").output().unwrap();
    assert!(!String::from_utf8_lossy(&loops.stdout).contains(&*b.runtime.to_string_lossy()));
}

#[test]
fn a_planned_failover_loses_no_acknowledged_write() {
    const BLOCKS: u64 = 8_192;
    let seed = seed();
    let a = Host::new("fo-planned-a");
    let b = other(&a, "fo-planned-b");
    let source = a.disk("db", BLOCKS * 4096);
    let served_there = source.mount(&[]);
    source.cycle();
    let sidecar = Service::start(&a);
    let (stop, written) = (AtomicBool::new(false), AtomicBool::new(false));
    let log = thread::scope(|scope| {
        let ends = StopOnDrop(&stop);
        let writer = scope.spawn(|| {
            let file = open_direct(&served_there);
            written.store(true, Ordering::SeqCst);
            write_until(&stop, &file, 0..BLOCKS, 0, seed)
        });
        wait_for("the writer", || written.load(Ordering::SeqCst));
        // While somebody writes, nothing is handed over, and it goes on.
        refused(&a.try_backstay(&["failover", "handover", "db"]), "in use: process");
        wait_for("writes", || {
            source.status()["driver"]["counters"]["writes"].as_u64() > Some(3_000)
        });
        drop(ends);
        writer.join().unwrap()
    });
    let acknowledged = log.writes.iter().filter(|write| write.acked_ns.is_some()).count();
    println!("{acknowledged} acknowledged writes");
    assert!(!log.disk_gone && acknowledged > 3_000);
    let was = hash(&source.served());
    a.backstay(&["failover", "handover", "db"]);
    // Its last cycle was the sidecar's, ahead of all others.
    let jobs = a.json(&["jobs", "db"]);
    let last = |work: &str| {
        let job = jobs.as_array().unwrap().iter().find(|job| job["work"] == work);
        job.unwrap_or_else(|| panic!("no {work} in {jobs}")).clone()
    };
    let (on_demand, handover) = (last("on-demand"), last("handover"));
    assert_eq!(on_demand["process"]["pid"], sidecar.child.id(), "{jobs}");
    assert_eq!((&handover["state"], &handover["point"]), (&"done".into(), &on_demand["point"]));
    let backing = source.backing.to_string_lossy().into_owned();
    for verb in ["mount", "attach", "protect"] {
        refused(&a.try_backstay(&[verb, &backing, "--name", "db"]), "handed over");
    }
    a.backstay(&["failover", "handover", "db"]);
    let status = source.status();
    assert_eq!(status["failover"]["state"], "handed-over", "{status}");
    assert!(status["health"]["reason"].as_str().unwrap().contains("handed over"), "{status}");

    b.disk("db", MIB);
    b.backstay(&["failover", "planned", "db"]);
    let file = File::open(served(&b, "db")).unwrap();
    check_at(&log.writes, 0..BLOCKS, &file, now_ns())
        .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    drop(file);
    assert_eq!(hash(&served(&b, "db")), was);
    b.backstay(&["failover", "commit", "db"]);
    refused(&b.try_backstay(&["failover", "commit", "db"]), "it is committed");
    refused(&b.try_backstay(&["failover", "change", "db", "--point", "1"]), "it is committed");
    refused(&b.try_backstay(&["failover", "cancel", "db"]), "backstay failover handover db");
    refused(&a.try_backstay(&["failover", "cancel", "db"]), "was failed over");
    // What was written here is the disk now.
    refused(&b.try_backstay(&["umount", "db", "--forget"]), "it is the disk");
    refused(&b.try_backstay(&["unprotect", "db", "--keep-points"]), "it is the disk");
    assert_eq!(hash(&served(&b, "db")), was);
}

#[test]
fn after_an_unplanned_failover_the_old_source_is_refused_and_its_guest_untouched() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-unplanned", 32 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    for _ in 0..2 {
        scribble(&source.served(), &mut rng, 2);
        source.cycle();
    }
    let old = source.restore(2, "old.img");
    b.backstay(&["failover", "unplanned", "db", "--point", "4"]);
    b.backstay(&["failover", "change", "db", "--point", "2"]);
    let here = served(b, "db");
    assert_eq!(hash(&here), hash(&old));
    scribble(&here, &mut rng, 3);
    {
        let sidecar = Service::start(b);
        b.backstay(&["failover", "commit", "db"]);
        sidecar.says("recovery point 5");
    }
    scribble(&here, &mut rng, 3);
    b.backstay(&["cycle", "db"]);
    let now = hash(&here);
    let points = target.points();
    assert_eq!(points.iter().map(|p| p.cycle).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(hash(&target.restore(6, "new.img")), now);
    b.backstay(&["verify", "db"]);
    // What was left can be restored, and is shown; it is failed over to only in so many words.
    let shown = b.json(&["points", "db"]);
    let left: Vec<bool> =
        shown.as_array().unwrap().iter().map(|p| p["left"].as_bool().unwrap()).collect();
    assert_eq!(left, [false, false, true, true, false, false]);
    let c = other(a, "fo-unplanned-c");
    let up = c.disk("db", MIB);
    refused(&c.try_backstay(&["failover", "unplanned", "db", "--point", "4"]), "was left");
    c.backstay(&["failover", "unplanned", "db", "--point", "4", "--left-history"]);
    // Nothing of it is shipped before it is committed, and nobody calls it protected.
    let status = up.status();
    assert!(status["state"].is_null() && status["rpo_ns"].is_null(), "{status:#}");
    assert_eq!(status["headline"], "mounted point", "{status:#}");
    assert!(up.causes().contains(&"failover-unfinished".to_owned()), "{status:#}");
    c.backstay(&["failover", "cancel", "db"]);

    // The old source comes back.
    let guest = source.served();
    scribble(&guest, &mut rng, 2);
    let before = objects(&a.path("vault"));
    let refusal = a.try_backstay(&["cycle", "db"]);
    assert!(said(&refusal).contains("term 1 of this disk is over"), "{}", said(&refusal));
    for _ in 0..2 {
        let sidecar = Service::start(a);
        let ask = || a.try_backstay(&["cycle", "db", "--by-sidecar", "--no-wait"]).status.success();
        wait_for("the sidecar", ask);
        sidecar.says("is over");
        wait_for("critical", || source.status()["health"]["level"] == "critical");
        let health = source.status()["health"].clone();
        assert!(health["advice"].as_str().unwrap().contains("failback"), "{health}");
    }
    let resync = a.try_backstay(&["resync", "db", "--the-disk-is-right", "--now"]);
    assert!(said(&resync).contains("failed over to another host"), "{}", said(&resync));
    assert_eq!(objects(&a.path("vault")), before, "the old source wrote something");
    let was = scribble_and_hash(&guest, &mut rng);
    assert_eq!(hash(&guest), was, "its guest goes on");
}

fn scribble_and_hash(path: &Path, rng: &mut Rng) -> String {
    scribble(path, rng, 3);
    hash(path)
}

#[test]
fn of_two_hosts_that_commit_one_wins_and_a_source_can_take_back() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-two", 16 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    let c = other(a, "fo-two-c");
    c.disk("db", MIB);
    refused(&a.try_backstay(&["failover", "unplanned", "db", "--as", "again"]), "may be newer");
    refused(&b.try_backstay(&["failover", "planned", "db"]), "was not handed over");
    // The source hands over, and thinks better of it: the target is too late.
    let was = hash(&source.served());
    a.backstay(&["failover", "handover", "db"]);
    b.backstay(&["failover", "planned", "db"]);
    a.backstay(&["failover", "cancel", "db"]);
    source.mount(&[]);
    assert_eq!(hash(&source.served()), was);
    scribble(&source.served(), &mut rng, 2);
    source.cycle();
    refused(&b.try_backstay(&["failover", "commit", "db"]), "meanwhile");
    b.backstay(&["failover", "cancel", "db"]);
    assert!(!b.path("state/db").exists());
    // Two targets.
    let was = hash(&source.served());
    for host in [b, &c] {
        host.backstay(&["failover", "unplanned", "db"]);
    }
    let (first, second) =
        (b.start(&["failover", "commit", "db"]), c.start(&["failover", "commit", "db"]));
    let codes = [first, second].map(|mut host| host.wait().unwrap().code());
    assert!(codes == [Some(0), Some(3)] || codes == [Some(3), Some(0)], "{codes:?}");
    let (won, lost) = if codes[0] == Some(0) { (b, &c) } else { (&c, b) };
    assert_eq!(hash(&served(won, "db")), was);
    assert_eq!(hash(&served(lost, "db")), was, "what is up stays up");
    lost.backstay(&["failover", "cancel", "db"]);
    won.backstay(&["cycle", "db"]);
}

/// Runs a command that is killed at one of its steps, then again; whether it was killed.
fn killed_at(host: &Host, step: u32, args: &[&str]) -> bool {
    let mut command = host.command();
    command.args(args).env("BACKSTAY_TEST_DIE_AT", format!("failover:{step}"));
    let output = command.output().unwrap();
    if output.status.success() {
        return false;
    }
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(9), "{args:?}, step {step}: {}", said(&output));
    let again = host.try_backstay(args);
    // It had done everything but to say so.
    let done = said(&again).contains("it is committed");
    assert!(
        again.status.success() || done,
        "{args:?} after a kill at step {step}: {}",
        said(&again)
    );
    true
}

/// There and back, each command killed at the same step of its own and run again. Most of it is waiting, so
/// several rounds go at once.
#[test]
fn every_command_can_be_killed_at_every_step() {
    const AT_ONCE: usize = 4;
    let seed = seed();
    let (next, kills, all) = (AtomicU32::new(0), AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while !all.load(Ordering::SeqCst) {
                    let step = next.fetch_add(1, Ordering::SeqCst);
                    match there_and_back(step, &mut Rng::with_seed(seed + u64::from(step))) {
                        0 => all.store(true, Ordering::SeqCst),
                        killed => drop(kills.fetch_add(killed, Ordering::SeqCst)),
                    }
                }
            });
        }
    });
    let kills = kills.into_inner();
    println!("{kills} kills");
    assert!(kills > 40, "only {kills} kills: was this built with debug assertions?");
}

/// One round; how many commands were killed at this step.
fn there_and_back(step: u32, rng: &mut Rng) -> u32 {
    let mut kills = 0;
    let (source, target) = pair("fo-kill", 8 * MIB, rng);
    let (a, b) = (&source.host, &target.host);
    let backing = source.backing.to_string_lossy().into_owned();
    let mut run = |host: &Host, args: &[&str]| kills += u32::from(killed_at(host, step, args));
    let cancel = ["failover", "cancel", "db"];
    // A source that thinks better of it.
    scribble(&source.served(), rng, 2);
    let was = hash(&source.served());
    run(a, &["failover", "handover", "db"]);
    killed_until_gone(a, step, &cancel);
    source.mount(&[]);
    assert_eq!(hash(&source.served()), was, "step {step}");
    // There, and not quite there.
    let was = scribble_and_hash(&source.served(), rng);
    run(a, &["failover", "handover", "db"]);
    run(b, &["failover", "planned", "db"]);
    let here = served(b, "db");
    assert_eq!(hash(&here), was, "step {step}");
    run(b, &["failover", "change", "db", "--point", "1"]);
    killed_until_gone(b, step, &cancel);
    assert!(!b.path("state/db").exists() && !b.runtime.join("db").exists(), "step {step}");
    run(b, &["failover", "planned", "db"]);
    assert_eq!(hash(&here), was, "step {step}");
    run(b, &["failover", "commit", "db"]);
    scribble(&here, rng, 2);
    b.backstay(&["cycle", "db"]);
    // Back.
    let was = scribble_and_hash(&here, rng);
    run(b, &["failover", "handover", "db"]);
    run(a, &["failback", "db", "--to", &backing]);
    assert_eq!(hash(&source.served()), was, "step {step}");
    scribble(&source.served(), rng, 1);
    source.cycle();
    let newest = source.points().last().unwrap().cycle;
    assert_eq!(hash(&source.restore(newest, "restored.img")), hash(&source.served()));
    a.backstay(&["verify", "db"]);
    kills
}

/// The same for a command that leaves nothing: run again, there is nothing to do any more.
fn killed_until_gone(host: &Host, step: u32, args: &[&str]) -> bool {
    let mut command = host.command();
    command.args(args).env("BACKSTAY_TEST_DIE_AT", format!("failover:{step}"));
    let output = command.output().unwrap();
    if output.status.success() {
        return false;
    }
    let again = host.try_backstay(args);
    let done = said(&again).contains("there is no failover");
    assert!(again.status.success() || done, "{args:?} after a kill at {step}: {}", said(&again));
    true
}

/// Mebibytes that a failback fetched, in all, as it said them.
fn fetched(said: &str) -> f64 {
    let mut sum = 0.0;
    for line in said.lines().filter(|line| line.contains(" fetched)")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "fetched)").unwrap();
        let amount: f64 = words[at - 2].parse().unwrap();
        sum += amount
            * match words[at - 1] {
                "B" => 1.0 / MIB as f64,
                "KiB" => 1.0 / 1024.0,
                "MiB" => 1.0,
                other => panic!("{other} in {line}"),
            };
    }
    sum
}

#[test]
fn two_rounds_there_and_back_keep_every_byte_and_move_the_union() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = sealed_pair("fo-rounds", 64 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    let backing = source.backing.to_string_lossy().into_owned();
    // So much that moving all of it would be seen.
    let mut bulk = vec![0; 40 << 20];
    rng.fill(&mut bulk);
    File::options().write(true).open(source.served()).unwrap().write_all_at(&bulk, 0).unwrap();
    source.cycle();
    for round in 0..if is_long() { 20 } else { 3 } {
        scribble(&source.served(), &mut rng, 4);
        let was = hash(&source.served());
        if round % 2 == 0 {
            a.backstay(&["failover", "handover", "db"]);
            b.backstay(&["failover", "planned", "db"]);
            assert_eq!(hash(&served(b, "db")), was, "round {round}");
        } else {
            // The source dies with changes that never left it.
            source.cycle();
            scribble(&source.served(), &mut rng, 4);
            source.kill_driver();
            b.backstay(&["failover", "unplanned", "db"]);
            assert_eq!(hash(&served(b, "db")), was, "round {round}");
        }
        b.backstay(&["failover", "commit", "db"]);
        let here = served(b, "db");
        let mut changed = scribble(&here, &mut rng, 4);
        b.backstay(&["cycle", "db"]);
        changed += scribble(&here, &mut rng, 4);
        // The other side goes on writing while the disk is brought back, and ships now and then.
        let mut failback = a.command();
        failback.args(["failback", "db", "--to", &backing]);
        let back = failback.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        for _ in 0..3 {
            changed += scribble(&here, &mut rng, 4);
            b.backstay(&["cycle", "db"]);
        }
        changed += scribble(&here, &mut rng, 1);
        let was = hash(&here);
        b.backstay(&["failover", "handover", "db"]);
        let back = back.wait_with_output().unwrap();
        assert!(back.status.success(), "{}", said(&back));
        let mib = fetched(&said(&back));
        println!("round {round}: {changed} bytes changed there, {mib:.1} MiB fetched");
        assert!(mib < 8.0, "more than the union moved");
        assert_eq!(hash(&source.served()), was, "round {round}");
        let newest = source.points().last().unwrap().cycle;
        assert_eq!(hash(&source.restore(newest, "restored.img")), was, "round {round}");
    }
    a.backstay(&["verify", "db"]);
}

#[test]
fn a_disk_comes_back_by_checksums_or_as_a_whole_or_to_a_new_file() {
    let mut rng = Rng::with_seed(seed());
    for (how, flags) in
        [("checksums", &["--force"][..]), ("whole", &["--full", "--force"]), ("new", &[])]
    {
        let (source, target) = pair("fo-back", 16 * MIB, &mut rng);
        let (a, b) = (&source.host, &target.host);
        let pid = source.driver_pid().unwrap();
        source.kill_driver();
        println!("{how}: driver {pid} is gone");
        b.backstay(&["failover", "unplanned", "db"]);
        b.backstay(&["failover", "commit", "db"]);
        let was = scribble_and_hash(&served(b, "db"), &mut rng);
        // The old state is lost, but not the backing.
        fs::remove_dir_all(a.path("state/db")).unwrap();
        let to = if how == "new" { a.path("new.img") } else { source.backing.clone() };
        b.backstay(&["failover", "handover", "db"]);
        let to = to.to_string_lossy().into_owned();
        let args = [&["failback", "db", "--to", &to][..], flags].concat();
        a.backstay(&args);
        assert_eq!(hash(&source.served()), was, "{how}");
        scribble(&source.served(), &mut rng, 1);
        source.cycle();
    }
}

/// The vault is gone in the middle: a command says so, and goes on when the vault is back.
#[test]
fn a_vault_that_is_gone_stops_a_failover_and_loses_nothing() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-gone", 8 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    let (vault, away) = (a.path("vault"), a.path("away"));
    let without = |host: &Host, args: &[&str]| {
        fs::rename(&vault, &away).unwrap();
        let output = host.try_backstay(args);
        fs::rename(&away, &vault).unwrap();
        assert!(matches!(output.status.code(), Some(1 | 3)), "{args:?}: {}", said(&output));
    };
    let was = scribble_and_hash(&source.served(), &mut rng);
    without(a, &["failover", "handover", "db"]);
    assert_eq!(hash(&source.served()), was, "it is served as before");
    a.backstay(&["failover", "handover", "db"]);
    without(a, &["failover", "cancel", "db"]);
    a.backstay(&["failover", "cancel", "db"]);
    source.mount(&[]);
    a.backstay(&["failover", "handover", "db"]);
    without(b, &["failover", "planned", "db"]);
    b.backstay(&["failover", "planned", "db"]);
    without(b, &["failover", "change", "db", "--point", "1"]);
    without(b, &["failover", "commit", "db"]);
    b.backstay(&["failover", "commit", "db"]);
    assert_eq!(hash(&served(b, "db")), was);
    let backing = source.backing.to_string_lossy().into_owned();
    without(a, &["failback", "db", "--to", &backing]);
    b.backstay(&["failover", "handover", "db"]);
    without(a, &["failback", "db", "--to", &backing]);
    a.backstay(&["failback", "db", "--to", &backing]);
    assert_eq!(hash(&source.served()), was);
}

#[test]
fn a_group_is_tried_at_one_of_its_points() {
    let mut rng = Rng::with_seed(seed());
    let a = Host::new("fo-group-a");
    let config = format!("vault = \"{}\"\n[group.shop]\ndisks = [\"x\", \"y\"]\n", a.vault());
    fs::write(a.path("backstay.toml"), config).unwrap();
    let disks = ["x", "y"].map(|name| a.disk(name, 8 * MIB));
    let mut was = vec![];
    for disk in &disks {
        disk.mount(&[]);
        scribble(&disk.served(), &mut rng, 3);
        was.push(hash(&disk.served()));
    }
    a.backstay(&["group", "cycle", "shop"]);
    for disk in &disks {
        scribble(&disk.served(), &mut rng, 1);
        disk.cycle();
    }
    let b = other(&a, "fo-group-b");
    for name in ["x.test", "y.test"] {
        b.disk(name, MIB);
    }
    b.backstay(&["failover", "test", "--group", "shop"]);
    let there: Vec<_> = ["x.test", "y.test"].map(|name| hash(&served(&b, name))).into();
    assert_eq!(there, was);
    b.backstay(&["failover", "cleanup", "--group", "shop"]);
    assert_eq!(holds(&a.path("vault")), 0);
}

/// Hands the disk of one host over to the other, which commits.
fn migrate(source: &Disk, target: &Disk) {
    source.host.backstay(&["failover", "handover", "db"]);
    target.host.backstay(&["failover", "planned", "db"]);
    target.host.backstay(&["failover", "commit", "db"]);
}

fn nothing_is_left(host: &Host) {
    for left in ["state/db", "state/.failover/db.json"] {
        assert!(!host.path(left).exists(), "{left} is left");
    }
    assert!(!host.runtime.join("db").exists());
}

/// Where a disk was and where it went: from both a short way leads to nothing left, and the messages name it.
#[test]
fn a_disk_that_lives_elsewhere_is_given_up_without_circles() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-leave", 16 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    migrate(&source, &target);
    let keep = ["unprotect", "db", "--keep-points"];
    refused(&a.try_backstay(&["failover", "cancel", "db"]), "backstay unprotect db --keep-points");
    refused(&a.try_backstay(&["unprotect", "db", "--delete-points", "--yes"]), "--keep-points");
    for step in 0..3 {
        let mut command = a.command();
        let killed = command.args(keep).env("BACKSTAY_TEST_DIE_AT", format!("failover:{step}"));
        assert!(said(&killed.output().unwrap()).contains("killed at step"));
    }
    a.backstay(&keep);
    nothing_is_left(a);
    // The new side: what was written there is the disk until it is handed over.
    scribble(&served(b, "db"), &mut rng, 3);
    let was = hash(&served(b, "db"));
    refused(&b.try_backstay(&keep), "backstay failover handover db");
    refused(&b.try_backstay(&["umount", "db", "--forget"]), "backstay failover handover db");
    b.backstay(&["failover", "handover", "db"]);
    b.backstay(&keep);
    nothing_is_left(b);
    b.backstay(&["failover", "planned", "db"]);
    assert_eq!(hash(&served(b, "db")), was, "the points were kept");
}

/// While a failback runs, status says that, and how far it is; not that something is missing.
#[test]
fn status_says_that_a_failback_runs() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-runs", 16 * MIB, &mut rng);
    let (a, b) = (&source.host, &target.host);
    migrate(&source, &target);
    let mut failback = a.start(&["failback", "db", "--to", source.backing.to_str().unwrap()]);
    wait_for("the failback", || {
        let status = source.status();
        let reason = status["health"]["reason"].as_str().unwrap_or_default().to_owned();
        let text = said(&a.try_backstay(&["status", "db"]));
        assert!(!text.contains("not running"), "{text}");
        assert!(!reason.contains("run backstay failback"), "{reason}");
        reason.starts_with("failback runs, ") && text.contains("failback runs, ")
    });
    b.backstay(&["failover", "handover", "db"]);
    assert!(failback.wait().unwrap().success());
    assert!(!said(&a.try_backstay(&["status", "db"])).contains("failback runs"));
}

/// One whose new file is gone frees its name by the command that its messages name.
#[test]
fn a_failback_whose_file_is_gone_frees_its_name() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-file-gone", 16 * MIB, &mut rng);
    let a = &source.host;
    migrate(&source, &target);
    let new = a.path("new.img");
    let failback = ["failback", "db", "--to", new.to_str().unwrap(), "--once"];
    a.backstay(&failback);
    fs::remove_file(&new).unwrap();
    let cancel = "backstay failover cancel db";
    refused(&a.try_backstay(&failback), cancel);
    refused(&a.try_backstay(&["unprotect", "db", "--keep-points"]), cancel);
    a.backstay(&["failover", "cancel", "db"]);
    nothing_is_left(a);
    a.backstay(&failback);
}

#[test]
fn a_failback_goes_on_with_the_backing_it_was_given_or_not_at_all() {
    let mut rng = Rng::with_seed(seed());
    let (source, target) = pair("fo-other-target", 16 * MIB, &mut rng);
    let a = &source.host;
    migrate(&source, &target);
    let (old, new) = (source.backing.to_str().unwrap(), a.path("new.img"));
    let new = new.to_str().unwrap();
    a.backstay(&["failback", "db", "--to", old, "--once"]);
    let output = a.try_backstay(&["failback", "db", "--to", new, "--once"]);
    refused(&output, "since an earlier start");
    assert!(said(&output).contains("failover cancel db"), "{}", said(&output));
    a.backstay(&["failback", "db", "--to", old, "--once"]);
    a.backstay(&["failover", "cancel", "db"]);
    let output = a.try_backstay(&["failback", "db", "--to", new, "--once"]);
    refused(&output, "has a replica on");
    assert!(!Path::new(new).exists());
    a.backstay(&["unprotect", "db", "--keep-points"]);
    a.backstay(&["failback", "db", "--to", new, "--once"]);
    assert_eq!(hash(Path::new(new)), hash(&served(&target.host, "db")));
}

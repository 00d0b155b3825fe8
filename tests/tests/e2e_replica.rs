//! Replicas with real files, devices and processes: following under load, killed at every step, the vault
//! gone, take-over, what is refused, and the seeds of failback.
//!
//! Needs root, /dev/fuse, loop devices.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use backstay_host::kill_point::DIE_AT;
use backstay_tests::harness::command::{must, run, said};
use backstay_tests::harness::host::{Disk, FsMount, Host, hash, wait_gone};
use backstay_tests::harness::service::wait_for;
use fastrand::Rng;

const MIB: u64 = 1 << 20;

fn seed(fixed: u64) -> u64 {
    let told = std::env::var("BACKSTAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let long = std::env::var_os("BACKSTAY_TEST_LONG").map(|_| fastrand::u64(..));
    let seed = told.or(long).unwrap_or(fixed);
    println!("BACKSTAY_SEED={seed}");
    seed
}

/// Where a replica is killed.
fn at(step: usize) -> String {
    format!("replica:{step}")
}

fn noise(path: &Path, offset: u64, len: u64, rng: &mut Rng) {
    let mut bytes = vec![0; len as usize];
    rng.fill(&mut bytes);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// Two hosts that share nothing but a vault: a disk on one, its replica on the other.
struct Pair {
    source: Arc<Host>,
    standby: Arc<Host>,
    disk: Disk,
    served: PathBuf,
    target: PathBuf,
    rng: Rng,
}

impl Pair {
    fn new(test: &str, size: u64) -> Self {
        Self::of(Host::new(test), test, size)
    }

    /// The same in an encrypted vault.
    fn sealed(test: &str, size: u64) -> Self {
        Self::of(Host::sealed(test), test, size)
    }

    fn of(source: Arc<Host>, test: &str, size: u64) -> Self {
        let standby = source.another(&format!("{test}-standby"));
        // The same vault for both.
        let config = format!("vault = \"{}\"\nretry = [\"100ms\"]\n", source.vault());
        fs::write(standby.path("backstay.toml"), config).unwrap();
        // Known to the standby, so that its driver and mounts go with it.
        drop(standby.disk("db", 4096));
        fs::remove_file(standby.path("db.img")).unwrap();
        let disk = source.disk("db", size);
        let served = disk.mount(&[]);
        let target = standby.path("standby.img");
        let mut pair =
            Self { source, standby, disk, served, target, rng: Rng::with_seed(seed(0xBEEF)) };
        noise(&pair.served, 0, size / 2, &mut pair.rng);
        pair.disk.cycle();
        pair
    }

    fn size(&self) -> u64 {
        fs::metadata(&self.served).unwrap().len()
    }

    /// Some writes and a discard, then a cycle.
    fn churn(&mut self) {
        self.write();
        self.disk.cycle();
    }

    fn write(&mut self) {
        let size = self.size();
        for _ in 0..self.rng.u64(1..6) {
            let len = self.rng.u64(1..256 << 10);
            let at = self.rng.u64(..size - len);
            noise(&self.served, at, len, &mut self.rng);
        }
        let at = self.rng.u64(..size / 4096 - 64) * 4096;
        must(
            "fallocate",
            [
                "-p",
                "-o",
                &at.to_string(),
                "-l",
                &(16 * 4096).to_string(),
                self.served.to_str().unwrap(),
            ],
        );
    }

    fn replica<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["replica", "db"], more].concat()
    }

    /// Begins the replica at the newest point.
    fn begin(&self) {
        let to = self.target.to_str().unwrap();
        self.standby.backstay(&self.replica(&["--to", to, "--once"]));
    }

    fn once(&self) -> Output {
        self.standby.try_backstay(&self.replica(&["--once"]))
    }

    fn follow(&self, more: &[&str]) -> Running {
        let args = self.replica(&[&["--follow", "--interval", "50ms"], more].concat());
        Running(self.standby.command().args(args).stdin(Stdio::null()).spawn().unwrap())
    }

    fn status(&self) -> serde_json::Value {
        self.standby.json(&self.replica(&["--status"]))
    }

    fn at(&self) -> Option<u64> {
        let status = self.status();
        (status["standing"] == "at").then(|| status["at"].as_u64().unwrap())
    }

    fn newest(&self) -> u64 {
        self.disk.points().last().unwrap().cycle
    }

    /// The target is the point it says it is at.
    #[track_caller]
    fn is_whole(&self, what: &str) -> u64 {
        let at = self.at().unwrap_or_else(|| panic!("{what}: {}", self.status()));
        let image = self.disk.restore(at, "restored.img");
        assert_eq!(hash(&image), hash(&self.target), "{what}: the target is not point {at}");
        at
    }

    #[track_caller]
    fn is_newest(&self, what: &str) {
        assert_eq!(self.is_whole(what), self.newest(), "{what}");
    }

    /// What a failover's commit does: the standby's disk is the writer from now on.
    fn commit(&self) {
        let disk = self.standby.renamed(&self.disk, "db").status()["driver"].clone();
        let vault = self.source.open_vault();
        let in_vault = vault.disk_named(&"db".parse().unwrap()).unwrap().disk;
        vault.claim_term(in_vault, &format!("source {}", disk["disk"].as_str().unwrap())).unwrap();
    }

    fn hide_vault(&self, hide: bool) {
        let (vault, away) = (self.source.path("vault"), self.source.path("vault-away"));
        if hide { fs::rename(vault, away).unwrap() } else { fs::rename(away, vault).unwrap() }
    }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Deref for Running {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended cannot be killed any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn terminate(mut child: Running) {
    must("kill", ["-TERM", &child.id().to_string()]);
    assert!(child.wait().unwrap().success());
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let text = said(output);
    assert!(output.status.code() == Some(3) && text.contains(why), "{:?}: {text}", output.status);
}

#[test]
fn it_follows_under_load_through_kills_merges_and_a_vault_that_goes_away() {
    let mut pair = Pair::sealed("replica-follow", 16 * MIB);
    pair.begin();
    let mut follower = pair.follow(&[]);
    let points = if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 300 } else { 55 };
    for point in 2..=points {
        pair.churn();
        if point % 9 == 0 {
            must("kill", ["-9", &follower.id().to_string()]);
            follower.wait().unwrap();
            follower = pair.follow(&[]);
        }
        if point % 13 == 0 {
            pair.source.backstay(&["prune", "db", "--keep", "last 4"]);
        }
        if point == 20 {
            // Between cycles, with nothing of the follower's on its way into the vault.
            let newest = pair.newest();
            wait_for("a quiet moment", || {
                let shown = pair.status()["shown"].clone();
                pair.at() == Some(newest)
                    && shown["pid"] == follower.id()
                    && shown["phase"] == "waiting"
                    && shown["newest"]["cycle"] == newest
            });
            pair.hide_vault(true);
            wait_for("the failure", || pair.status()["shown"]["failures"].as_u64() > Some(1));
            let status = pair.status();
            assert_eq!(status["shown"]["person_must_act"], false, "{status}");
            assert!(status["shown"]["next_try_unix_ns"].is_u64(), "{status}");
            pair.hide_vault(false);
            let newest = pair.newest();
            wait_for("going on", || pair.at() == Some(newest));
            wait_for("health", || pair.status()["shown"]["failure"].is_null());
        }
    }
    let newest = pair.newest();
    assert!(newest >= points);
    wait_for("the newest point", || pair.at() == Some(newest));
    let status = pair.status();
    assert!(status["running"] == true && status["needs_vault"] == false, "{status}");
    terminate(follower);
    pair.is_newest("after the load");
    println!("{}", pair.standby.backstay(&pair.replica(&["--status"])));
    assert_eq!(pair.status()["running"], false);
}

#[test]
fn killed_at_any_step_it_is_whole_without_the_vault() {
    let mut pair = Pair::new("replica-kill", 4 * MIB);
    pair.begin();
    let mut rounds = 0;
    for step in 0.. {
        pair.churn();
        let output = pair
            .standby
            .command()
            .args(pair.replica(&["--once"]))
            .env(DIE_AT, at(step))
            .output()
            .unwrap();
        if output.status.success() {
            break;
        }
        rounds = step + 1;
        let what = said(&output);
        assert!(what.contains("killed at step"), "{what}");
        assert_eq!(pair.status()["needs_vault"], false, "{what}");
        pair.hide_vault(true);
        let failed = pair.once();
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        pair.hide_vault(false);
        pair.is_whole(&what);
        assert!(pair.once().status.success());
        pair.is_newest(&what);
    }
    assert!(rounds >= 9, "{rounds} steps");
    println!("killed at each of {rounds} steps");
}

#[test]
fn a_take_over_is_a_protected_disk_at_once() {
    let mut pair = Pair::new("replica-takeover", 64 * MIB);
    pair.begin();
    let follower = pair.follow(&[]);
    pair.churn();
    let newest = pair.newest();
    wait_for("the newest point", || pair.at() == Some(newest));
    // Killed after it was made durable, before it is served; then again.
    let mut follower = Some(follower);
    for step in 0.. {
        let mut command = pair.standby.command();
        command.args(["--json", "replica", "db", "--take-over"]).env(DIE_AT, at(step));
        let output = command.stdin(Stdio::null()).output().unwrap();
        // Told to stop by the first one.
        if let Some(mut follower) = follower.take() {
            assert!(follower.wait().unwrap().success());
        }
        if !output.status.success() {
            println!("{}", said(&output));
            assert!(step < 4);
            continue;
        }
        let taken: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("taken over in {:.1} ms", taken["took_ns"].as_f64().unwrap() / 1e6);
        assert_eq!(taken["cycle"].as_u64(), Some(newest));
        assert_eq!(step, 2, "two steps to be killed at");
        break;
    }
    let standby = pair.standby.renamed(&pair.disk, "db");
    let status = standby.status();
    let driver = &status["driver"];
    assert_eq!(driver["dirty_sectors"], 0, "{status}");
    assert_eq!(driver["base"]["cycle"].as_u64(), Some(newest), "{status}");
    assert!(driver["resync"].is_null(), "{status}");
    assert_eq!(hash(&standby.served()), hash(&pair.disk.restore(newest, "restored.img")));
    // It is a disk now, and no replica any more.
    refused(&pair.once(), "was taken over");
    noise(&standby.served(), 5000, 10_000, &mut pair.rng);
    assert_eq!(standby.status()["driver"]["dirty_sectors"].as_u64(), Some(21));
    pair.standby.backstay(&["umount", "db"]);
    // Mounted again it is as it was left.
    pair.standby.backstay(&["mount", pair.target.to_str().unwrap(), "--name", "db"]);
    assert_eq!(standby.status()["driver"]["dirty_sectors"].as_u64(), Some(21));
}

#[test]
fn a_take_over_in_the_middle_finishes_the_point_without_the_vault() {
    let mut pair = Pair::sealed("replica-middle", 4 * MIB);
    pair.begin();
    pair.churn();
    // In the middle of applying: after the first record.
    let steps = [
        "log begun",
        "log written",
        "log synced",
        "standing said",
        "reserved",
        "applying",
        "resized",
        "marked",
        "record written",
    ];
    let die = at(steps.len() - 1);
    let killed =
        pair.standby.command().args(pair.replica(&["--once"])).env(DIE_AT, die).output().unwrap();
    assert!(said(&killed).contains("record written"), "{}", said(&killed));
    assert_eq!(pair.status()["standing"], "applying");
    pair.hide_vault(true);
    let before = Instant::now();
    let served = pair.standby.backstay(&["replica", "db", "--take-over"]);
    println!("taken over in the middle of a point in {:?}", before.elapsed());
    let served = Path::new(served.trim()).to_owned();
    let now = hash(&served);
    pair.hide_vault(false);
    assert_eq!(now, hash(&pair.disk.restore(pair.newest(), "restored.img")));
}

#[test]
fn what_would_not_be_safe_is_refused() {
    let mut pair = Pair::new("replica-refuse", 8 * MIB);
    let target = pair.target.clone();
    let to = target.to_str().unwrap();
    // Something is there.
    fs::write(&target, [7; 4096]).unwrap();
    refused(&pair.standby.try_backstay(&pair.replica(&["--to", to, "--once"])), "--force");
    assert_eq!(fs::read(&target).unwrap(), [7; 4096]);
    pair.standby.backstay(&pair.replica(&["--to", to, "--once", "--force"]));
    pair.is_newest("over what was there");
    // A second one: the same name, another name, a driver.
    let mut follower = pair.follow(&[]);
    wait_for("running", || pair.status()["running"] == true);
    refused(&pair.once(), "backstay replica db --stop");
    pair.source.backstay(&["cycle", "db"]);
    let other = Host::new("replica-refuse-other");
    fs::write(other.path("backstay.toml"), format!("vault = \"{}\"\n", pair.source.vault()))
        .unwrap();
    let second = ["replica", "db", "--to", to, "--once", "--force"];
    refused(&other.try_backstay(&second), "in use");
    refused(&other.try_backstay(&["mount", to, "--name", "x"]), "in use");
    refused(&pair.standby.try_backstay(&["mount", to, "--name", "db"]), "--replica");
    must("kill", ["-9", &follower.id().to_string()]);
    follower.wait().unwrap();
    // The source's own host has a disk of that name.
    let here = pair.source.path("here.img");
    let here = here.to_str().unwrap();
    refused(
        &pair.source.try_backstay(&["replica", "db", "--to", here, "--once"]),
        "failover handover db",
    );
    // Somebody else wrote to it.
    noise(&target, 4096, 512, &mut pair.rng);
    refused(&pair.once(), "somebody else changed");
    refused(&pair.standby.try_backstay(&pair.replica(&["--take-over"])), "somebody else changed");
    pair.standby.backstay(&pair.replica(&["--to", to, "--seed", "compare", "--force", "--once"]));
    pair.is_newest("compared");
    // Another file in its place.
    fs::rename(&target, target.with_extension("away")).unwrap();
    fs::copy(target.with_extension("away"), &target).unwrap();
    refused(&pair.once(), "not the file");
    fs::rename(target.with_extension("away"), &target).unwrap();
    assert!(pair.once().status.success());
    // It is kept elsewhere.
    let elsewhere = pair.standby.path("elsewhere.img");
    refused(
        &pair.standby.try_backstay(&pair.replica(&["--to", elsewhere.to_str().unwrap(), "--once"])),
        "it is kept on",
    );
}

#[test]
fn devices_are_looked_at_before_they_are_written() {
    let mut pair = Pair::new("replica-device", 8 * MIB);
    let image = pair.standby.path("device.img");
    File::create(&image).unwrap().set_len(4 * MIB).unwrap();
    let device = must("losetup", ["-f", "--show", image.to_str().unwrap()]);
    let device = device.trim().to_owned();
    let _detached = Detach(device.clone());
    let to = ["--to", &device, "--once", "--force"];
    refused(&pair.standby.try_backstay(&pair.replica(&to)), "use a larger one");
    File::options().write(true).open(&image).unwrap().set_len(8 * MIB).unwrap();
    must("losetup", ["-c", &device]);
    refused(&pair.standby.try_backstay(&pair.replica(&to[..3])), "--force");
    {
        must("mkfs.ext4", ["-q", "-F", &device]);
        let _mounted = FsMount::new(&pair.standby, &device, "mnt", "rw");
        refused(&pair.standby.try_backstay(&pair.replica(&to)), "in use");
        // And the file under it.
        let file = image.to_str().unwrap();
        refused(
            &pair.standby.try_backstay(&pair.replica(&["--to", file, "--once", "--force"])),
            "attached",
        );
    }
    pair.standby.backstay(&pair.replica(&to));
    let whole = |pair: &Pair| {
        let image = pair.disk.restore(pair.newest(), "restored.img");
        assert_eq!(hash(&image), hash(Path::new(&device)));
    };
    whole(&pair);
    pair.churn();
    assert!(pair.once().status.success());
    whole(&pair);
    // A device that is larger than the disk: taken over, the disk has its size, and what the point does
    // not have of it is dirty.
    File::options().write(true).open(&image).unwrap().set_len(9 * MIB).unwrap();
    must("losetup", ["-c", &device]);
    pair.churn();
    assert!(pair.once().status.success());
    pair.standby.backstay(&["replica", "db", "--take-over"]);
    let standby = pair.standby.renamed(&pair.disk, "db");
    let driver = standby.status()["driver"].clone();
    assert_eq!(driver["dirty_sectors"].as_u64(), Some(MIB / 512), "{driver}");
    pair.commit();
    pair.standby.backstay(&["cycle", "db"]);
    let newest = pair.disk.restore(pair.newest(), "restored.img");
    assert_eq!(hash(&newest), hash(&standby.served()));
    assert_eq!(fs::metadata(&newest).unwrap().len(), 9 * MIB);
}

struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        run("losetup", ["-d", &self.0]);
    }
}

#[test]
fn a_full_target_stays_at_its_point() {
    let mut pair = Pair::new("replica-full", 16 * MIB);
    let room = pair.standby.path("room");
    fs::create_dir_all(&room).unwrap();
    must("mount", ["-t", "tmpfs", "-o", "size=10m", "tmpfs", room.to_str().unwrap()]);
    // 8 MiB of the 16 hold data so far.
    pair.target = room.join("standby.img");
    pair.begin();
    let before = pair.is_whole("begun");
    noise(&pair.served, 9 * MIB, 6 * MIB, &mut pair.rng);
    pair.disk.cycle();
    let full = pair.once();
    assert_eq!(full.status.code(), Some(1), "{}", said(&full));
    assert!(said(&full).contains("No space left"), "{}", said(&full));
    assert_eq!(pair.is_whole("full"), before);
    must("mount", ["-o", "remount,size=20m", room.to_str().unwrap()]);
    assert!(pair.once().status.success());
    pair.is_newest("with more room");
}

#[test]
fn a_damaged_point_is_left_out_and_the_next_one_taken() {
    let mut pair = Pair::new("replica-damage", 8 * MIB);
    pair.begin();
    let before = pair.is_whole("begun");
    noise(&pair.served, MIB, 300 << 10, &mut pair.rng);
    let segments = |pair: &Pair| -> BTreeSet<PathBuf> {
        let disks = fs::read_dir(pair.source.path("vault/disks")).unwrap();
        let folders = disks.map(|disk| disk.unwrap().path().join("segments"));
        folders.flat_map(|dir| fs::read_dir(dir).unwrap()).map(|e| e.unwrap().path()).collect()
    };
    let old = segments(&pair);
    pair.disk.cycle();
    let new: Vec<_> = segments(&pair).difference(&old).cloned().collect();
    let mut bytes = fs::read(&new[0]).unwrap();
    let middle = bytes.len() / 3;
    bytes[middle] ^= 4;
    fs::write(&new[0], bytes).unwrap();
    let damaged = pair.once();
    assert_eq!(damaged.status.code(), Some(4), "{}", said(&damaged));
    assert!(said(&damaged).contains("checksum"), "{}", said(&damaged));
    assert_eq!(pair.is_whole("damaged"), before);
    // One that follows says so, waits for the next point, and goes there.
    let follower = pair.follow(&[]);
    wait_for("the failure", || {
        let shown = &pair.status()["shown"];
        shown["pid"] == follower.id() && shown["person_must_act"] == true
    });
    let looked = || pair.status()["shown"]["looked_unix_ns"].as_u64();
    let then = looked();
    wait_for("another look", || looked() > then);
    assert_eq!(pair.status()["shown"]["person_must_act"], true, "it still does");
    assert_eq!(pair.is_whole("following"), before);
    noise(&pair.served, MIB - 4096, 400 << 10, &mut pair.rng);
    pair.disk.cycle();
    let newest = pair.newest();
    wait_for("the next point", || pair.at() == Some(newest));
    terminate(follower);
    pair.is_newest("mended");
    assert!(pair.status()["shown"]["failure"].is_null(), "{}", pair.status());
}

#[test]
fn a_file_grows_with_the_disk() {
    let mut pair = Pair::new("replica-grow", 8 * MIB + 700);
    pair.begin();
    pair.churn();
    pair.source.backstay(&["grow", "db", "--size", &(12 * MIB + 100).to_string()]);
    noise(&pair.served, 11 * MIB, MIB, &mut pair.rng);
    pair.disk.cycle();
    assert!(pair.once().status.success());
    assert_eq!(fs::metadata(&pair.target).unwrap().len(), 12 * MIB + 100);
    pair.is_newest("grown");
}

/// The bytes of sectors that a run of a disk touches.
fn sectors(runs: &[(u64, u64)]) -> u64 {
    let mut set = BTreeSet::new();
    for &(at, len) in runs {
        set.extend(at / 512..(at + len).div_ceil(512));
    }
    set.len() as u64 * 512
}

#[test]
fn failback_to_a_source_with_its_bitmap_moves_the_union() {
    for stop in ["clean", "driver killed", "power loss"] {
        let mut pair = Pair::sealed("replica-changes", 64 * MIB);
        pair.begin();
        // Written on the source after the point that the standby goes on from: never shipped.
        let ours = [(MIB + 300, 5000), (9 * MIB, 64 << 10), (30 * MIB, 512)];
        for (at, len) in ours {
            noise(&pair.served, at, len, &mut pair.rng);
        }
        let pid = pair.disk.driver_pid().unwrap();
        let mount = pair.served.parent().unwrap().to_str().unwrap().to_owned();
        match stop {
            "clean" => drop(pair.source.backstay(&["umount", "db"])),
            _ => {
                pair.disk.kill_driver();
                run("umount", ["-l", &mount]);
            }
        }
        wait_gone(pid);
        if stop == "power loss" {
            fs::remove_dir_all(pair.source.runtime.join("db")).unwrap();
        }
        // The standby is the disk now, and ships what it writes.
        let served = pair.standby.backstay(&["replica", "db", "--take-over"]);
        let served = PathBuf::from(served.trim());
        let theirs = [(9 * MIB + (32 << 10), 64 << 10), (40 * MIB, 100), (50 * MIB, 200 << 10)];
        for (at, len) in theirs {
            noise(&served, at, len, &mut pair.rng);
        }
        pair.commit();
        pair.standby.backstay(&["cycle", "db"]);
        let newest = pair.newest();

        // Back: killed at each step first. The superblock is believed until it is put aside.
        let backing = pair.disk.backing.to_str().unwrap().to_owned();
        let back = ["--json", "replica", "db", "--to", &backing, "--seed", "changes", "--once"];
        let steps = if stop == "clean" { 4 } else { 0 };
        for step in 0..steps {
            let killed = pair.source.command().args(back).env(DIE_AT, at(step)).output().unwrap();
            assert!(said(&killed).contains("killed at step"), "{}", said(&killed));
            assert_eq!(pair.source.path("state/db/super").exists(), step < 2, "{}", said(&killed));
        }
        let moved = pair.source.json(&back[1..]);
        let union = sectors(&[&ours[..], &theirs[..]].concat());
        println!("{stop}: {moved}, the union is {union} bytes");
        let written = moved["written_bytes"].as_u64().unwrap();
        match stop {
            // Whole regions of 4 MiB with an intent count as dirty.
            "power loss" => assert!((union..=16 * MIB).contains(&written), "{written}"),
            _ => assert_eq!(written, union),
        }
        assert_eq!(moved["cycle"].as_u64(), Some(newest));
        let image = PathBuf::from(&backing);
        assert_eq!(hash(&image), hash(&served), "{stop}");
        assert_eq!(hash(&image), hash(&pair.disk.restore(newest, "restored.img")), "{stop}");
        // The old state is no disk any more; and the source goes on as a replica.
        noise(&served, 3 * MIB, 4096, &mut pair.rng);
        pair.standby.backstay(&["cycle", "db"]);
        let again = pair.source.json(&["replica", "db", "--once"]);
        assert_eq!(again["written_bytes"].as_u64(), Some(4096));
        assert_eq!(hash(&image), hash(&served), "{stop}");
        let taken = pair.source.backstay(&["replica", "db", "--take-over"]);
        assert_eq!(hash(Path::new(taken.trim())), hash(&served), "{stop}");
    }
}

#[test]
fn failback_without_a_bitmap_compares() {
    let mut pair = Pair::new("replica-nobitmap", 32 * MIB);
    pair.begin();
    noise(&pair.served, 5 * MIB, 100, &mut pair.rng);
    pair.source.backstay(&["umount", "db"]);
    // Somebody wrote behind the driver's back: its bitmap says nothing.
    noise(&pair.disk.backing, 12 * MIB, 512, &mut pair.rng);
    let backing = pair.disk.backing.to_str().unwrap().to_owned();
    let back = ["replica", "db", "--to", &backing, "--seed", "changes", "--once"];
    let moved = pair.source.json(&back);
    println!("compared: {moved}");
    assert!(moved["written_bytes"].as_u64().unwrap() <= 128 << 10, "{moved}");
    let newest = pair.newest();
    assert_eq!(hash(&pair.disk.backing), hash(&pair.disk.restore(newest, "restored.img")));
}

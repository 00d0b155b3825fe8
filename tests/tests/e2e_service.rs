//! The life of protected disks under a running sidecar: protect, jobs, phases, health, resync windows,
//! unprotect.
//!
//! Needs root, /dev/fuse, loop devices.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backstay_tests::harness::command::{must, said};
use backstay_tests::harness::host::hash;
use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::{Disk, Host};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// One that is never on: a minute that was, and comes again in a week.
const NEVER: &str = "1m";

fn noise(path: &Path, offset: u64, len: usize, seed: u64) {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes, offset).unwrap();
    file.sync_all().unwrap();
}

fn jobs(host: &Host) -> Vec<Value> {
    host.json(&["jobs"]).as_array().unwrap().clone()
}

fn points(disk: &Disk) -> usize {
    disk.points().len()
}

/// Asks the sidecar, once it has begun its work.
fn ask_for_a_cycle(host: &Host) {
    wait_for("the sidecar", || {
        host.try_backstay(&["cycle", "d", "--by-sidecar", "--no-wait"]).status.success()
    });
}

/// A window of one minute that is not now, nor soon.
fn closed_window() -> String {
    // Days of the week go by in the time that a test takes at most once; the one in three days is
    // far from both ends.
    let days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    // 1970-01-01 was a Thursday.
    let today = (now.as_secs() / 86_400 + 3) % 7;
    format!("{};0:00;{NEVER}", days[(today as usize + 3) % 7])
}

#[test]
fn what_is_missing_is_explained_and_nothing_is_changed() {
    let host = Host::new("prerequisites");
    let disk = host.disk("d", 4 * MIB);
    let backing = disk.backing.to_str().unwrap();
    let occupied = host.path("occupied");
    fs::write(&occupied, b"a file").unwrap();
    let vault = format!("file://{}/vault", occupied.display());
    let protect = |backing: &str, vault: &str, more: &[&str]| {
        let args = [&["protect", backing, "--name", "d", "--vault", vault], more].concat();
        host.try_backstay(&args)
    };
    let refused = protect(backing, &vault, &[]);
    let text = said(&refused);
    assert!(text.contains("FAILED") && text.contains("vault"), "{text}");
    assert!(text.contains("Nothing was changed"), "{text}");
    let missing = said(&protect("/nowhere.img", &host.vault(), &[]));
    assert!(missing.contains("FAILED") && missing.contains("/nowhere.img"), "{missing}");
    let policy = said(&protect(backing, &host.vault(), &["--policy", "gold"]));
    assert!(policy.contains("no policy \"gold\""), "{policy}");
    assert!(!host.path("state").join("d").exists());
    // Only to look.
    let look = protect(backing, &host.vault(), &["--check"]);
    let text = said(&look);
    assert!(look.status.success() && text.contains("ok") && text.contains("/dev/fuse"), "{text}");
    assert!(!host.path("state").join("d").exists());
}

#[test]
fn protect_ships_follows_its_policy_and_is_ended_as_told() {
    let host = Host::new("protect");
    write_config(
        &host,
        "interval = \"1d\"\n[policy.gold]\ninterval = \"1s\"\nheartbeat = \"0s\"\n",
    );
    let disk = host.disk("d", 8 * MIB);
    noise(&disk.backing, 0, 1 << 20, 1);
    let other = format!("file://{}", host.path("other-vault").display());
    let backing = disk.backing.to_str().unwrap();
    // Without a sidecar the first copy is made at once.
    host.backstay(&["protect", backing, "--name", "d", "--vault", &other, "--policy", "gold"]);
    assert_eq!(points(&disk), 1, "the vault is remembered");
    assert_eq!(jobs(&host)[0]["work"], "initial");
    assert_eq!(jobs(&host)[0]["state"], "done");
    let status = disk.status();
    assert_eq!(
        (status["policy"].as_str(), status["interval"].as_str()),
        (Some("gold"), Some("1s"))
    );
    // With one, the policy's interval holds.
    let service = Service::start(&host);
    wait_for("points by the policy", || points(&disk) >= 3);
    // A second one is refused.
    let second = host.try_backstay(&["sidecar"]);
    assert_eq!(second.status.code(), Some(3), "{}", said(&second));
    // It must be said what becomes of the points.
    let unsaid = host.try_backstay(&["unprotect", "d"]);
    assert_eq!(unsaid.status.code(), Some(3), "{}", said(&unsaid));
    host.backstay(&["unprotect", "d", "--keep-points"]);
    assert!(!host.path("state").join("d").exists());
    drop(service);
    let kept = host.json(&["points", "d", "--vault", &other]).as_array().unwrap().len();
    assert!(kept >= 3);
    // Protected again: its state is gone, so nothing proves that the disk is the newer side.
    let again = ["protect", backing, "--name", "d", "--vault", &other];
    let refused = said(&host.try_backstay(&again));
    assert!(refused.contains("--the-disk-is-right"), "{refused}");
    assert!(!host.path("state").join("d").exists(), "nothing was started");
    host.backstay(&[&again[..], &["--the-disk-is-right"]].concat());
    assert_eq!(points(&disk), kept + 1);
    // What is pinned is not deleted by the way.
    host.backstay(&["pin", "d", "latest", "--name", "audit"]);
    let held = host.try_backstay(&["unprotect", "d", "--delete-points", "--yes"]);
    assert!(held.status.code() == Some(3) && said(&held).contains("audit"), "{}", said(&held));
    assert_eq!(points(&disk), kept + 1);
    host.backstay(&["unpin", "d", "audit"]);
    host.backstay(&["unprotect", "d", "--delete-points", "--yes"]);
    let gone = host.try_backstay(&["--json", "points", "d", "--vault", &other]);
    assert!(gone.status.code() == Some(1) && said(&gone).contains("error"), "{}", said(&gone));
    let left = fs::read_dir(host.path("other-vault").join("disks"))
        .map_or(0, |dirs| dirs.flatten().map(|dir| walk(&dir.path())).sum());
    assert_eq!(left, 0, "nothing of it is left in the vault");
}

/// Points are for what changed: a disk at rest gets none, and is said to be as its newest point shows it; the age
/// that counts is the age of that. With a heartbeat it gets some.
#[test]
fn a_disk_at_rest_gets_no_points() {
    let host = Host::new("rest");
    write_config(&host, "interval = \"200ms\"\nretry = [\"1s\"]\n");
    let disk = host.disk("d", 4 * MIB);
    let served = disk.mount(&[]);
    noise(&served, 0, 4096, 1);
    disk.cycle();
    let service = Service::start(&host);
    let seen = || disk.status()["record"]["unchanged"]["at_unix_ns"].as_u64().unwrap_or(0);
    wait_for("the disk to be seen at rest", || seen() > 0);
    let first = seen();
    wait_for("it to be seen again", || seen() > first);
    assert_eq!(points(&disk), 1);
    let status = disk.status();
    let cut = status["record"]["last"]["cut_unix_ns"].as_u64().unwrap();
    let proven = status["record"]["unchanged"]["at_unix_ns"].as_u64().unwrap();
    assert!(proven > cut && status["rpo_ns"].as_u64().is_some(), "{status}");
    noise(&served, 8192, 4096, 2);
    wait_for("a point of what changed", || points(&disk) == 2);
    // The vault is asked each time: one that is away is no disk at rest.
    let (vault, aside) = (host.path("vault"), host.path("aside"));
    fs::rename(&vault, &aside).unwrap();
    let gone = || disk.status()["health"]["causes"].to_string().contains("vault-gone");
    wait_for("a cause", gone);
    fs::rename(&aside, &vault).unwrap();
    wait_for("its end", || !gone());
    write_config(&host, "interval = \"200ms\"\nheartbeat = \"0s\"\nretry = [\"1s\"]\n");
    wait_for("points by the heartbeat", || points(&disk) >= 4);
    drop(service);
}

fn walk(path: &Path) -> usize {
    let Ok(entries) = fs::read_dir(path) else { return 1 };
    entries.flatten().map(|entry| walk(&entry.path())).sum()
}

#[test]
fn jobs_and_phases_outlive_the_sidecar() {
    let host = Host::new("jobs");
    write_config(&host, "interval = \"1d\"\n[throttle]\nlimit = \"100kB/s\"\n");
    let disk = host.disk("d", 64 * MIB);
    noise(&disk.backing, 0, 48 << 20, 1);
    disk.mount(&[]);
    let mut service = Service::start(&host);
    let running = || jobs(&host).into_iter().find(|job| job["state"] == "running");
    wait_for("a job", || running().is_some_and(|job| job["done_bytes"].as_u64() > Some(0)));
    let job = running().unwrap();
    assert_eq!((job["work"].as_str(), job["disk"].as_str()), (Some("initial"), Some("d")));
    assert_eq!(disk.status()["state"], "initial-running");
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    assert_eq!(jobs(&host)[0]["state"], "interrupted");
    wait_for("the driver to notice", || disk.status()["driver"]["lease"].is_null());
    assert_ne!(disk.status()["state"], "initial-running");
    // The next one writes that down and begins again.
    write_config(&host, "interval = \"1d\"\n");
    let service = Service::start(&host);
    wait_for("the first point", || points(&disk) >= 1);
    wait_for("rest", || disk.status()["state"] == "protected");
    let all = jobs(&host);
    assert!(all.iter().any(|job| job["state"] == "interrupted"), "{all:?}");
    assert!(all.iter().any(|job| job["work"] == "initial" && job["state"] == "done"), "{all:?}");
    // Somebody asks for a cycle, though none is due for a day.
    let before = points(&disk);
    host.backstay(&["cycle", "d", "--by-sidecar", "--no-wait"]);
    wait_for("an on-demand cycle", || points(&disk) > before);
    wait_for("its job", || {
        jobs(&host).iter().any(|job| job["work"] == "on-demand" && job["state"] == "done")
    });
    drop(service);
    // One that starts again knows when the next cycle is due: not now.
    let service = Service::start(&host);
    let asked = points(&disk);
    ask_for_a_cycle(&host);
    wait_for("one cycle", || points(&disk) > asked);
    assert_eq!(points(&disk), asked + 1, "only the one that was asked for");
    drop(service);
}

#[test]
fn critical_waits_for_a_person() {
    let host = Host::new("critical");
    write_config(&host, "interval = \"1s\"\nheartbeat = \"0s\"\nretry = [\"1s\"]\n");
    let disk = host.disk("d", 4 * MIB);
    let served = disk.mount(&[]);
    disk.cycle();
    // Its record is damaged.
    let record = host.path("vault/vault.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, b"{").unwrap();
    let service = Service::start(&host);
    wait_for("critical", || disk.status()["health"]["level"] == "critical");
    let health = disk.status()["health"].clone();
    assert!(health["reason"].as_str().unwrap().contains("damaged"), "{health}");
    assert!(health["since_unix_ns"].as_u64().is_some(), "{health}");
    assert!(health["advice"].as_str().unwrap().contains("backstay resume d"), "{health}");
    assert!(health["next_retry_unix_ns"].is_null(), "{health}");
    let failed = jobs(&host).len();
    // Mended; but nobody said so: nothing is tried.
    fs::write(&record, &whole).unwrap();
    noise(&served, 0, 4096, 5);
    assert_eq!(disk.status()["health"]["level"], "critical");
    assert_eq!(jobs(&host).len(), failed);
    host.backstay(&["resume", "d"]);
    wait_for("a point", || points(&disk) >= 2);
    wait_for("health", || disk.status()["health"]["level"] == "ok");
    // A cycle by hand ends the stop as well: the sidecar goes on.
    fs::write(&record, b"{").unwrap();
    noise(&served, 0, 4096, 6);
    wait_for("critical again", || disk.status()["health"]["level"] == "critical");
    fs::write(&record, &whole).unwrap();
    host.backstay(&["cycle", "d"]);
    let by_hand = points(&disk);
    noise(&served, 0, 4096, 7);
    wait_for("a point of the sidecar", || points(&disk) > by_hand);
    drop(service);
}

#[test]
fn a_resync_waits_for_its_window_or_a_word() {
    let host = Host::new("resyncwindow");
    let closed =
        format!("interval = \"1s\"\nheartbeat = \"0s\"\nresync_window = \"{}\"\n", closed_window());
    write_config(&host, &closed);
    let disk = host.disk("d", 8 * MIB);
    let served = disk.mount(&[]);
    noise(&served, 0, 1 << 20, 1);
    disk.cycle();
    host.backstay(&["umount", "d"]);
    noise(&disk.backing, 3 * MIB, 4096, 2);
    disk.mount(&[]);
    let service = Service::start(&host);
    wait_for("to be held", || disk.status()["state"] == "resync-required");
    let health = disk.status()["health"].clone();
    assert_eq!(health["level"], "warning");
    assert!(health["advice"].as_str().unwrap().contains("resync d --now"), "{health}");
    assert_eq!(points(&disk), 1, "nothing is shipped outside the window");
    // The window is opened, without a restart.
    write_config(&host, "interval = \"1s\"\nheartbeat = \"0s\"\nresync_window = \"\"\n");
    wait_for("the resync", || points(&disk) >= 2);
    assert_eq!(host.json(&["points", "d"])[1]["kind"], "resync");
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&served));
    drop(service);
    // In a closed window a person's word is enough.
    write_config(&host, &closed);
    host.backstay(&["umount", "d"]);
    noise(&disk.backing, 4 * MIB, 4096, 3);
    disk.mount(&[]);
    let before = points(&disk);
    host.backstay(&["resync", "d", "--now"]);
    assert_eq!(points(&disk), before + 1);
}

/// At its limit the change log gives up the cycle's point in time, never the guest; the disk is marked
/// for a resync and that waits for its window.
#[test]
fn the_limit_of_the_change_log_marks_the_disk() {
    let host = Host::new("limit");
    // All of it takes more than two minutes: longer than anything is waited for here.
    let throttle = "[throttle]\nlimit = \"100kB/s\"\n[ship]\nsegment_size = \"1MiB\"\n";
    write_config(&host, &format!("resync_window = \"{}\"\n{throttle}", closed_window()));
    let disk = host.disk("d", 32 * MIB);
    let served = disk.mount(&["--change-log-limit", "64KiB"]);
    disk.cycle();
    noise(&served, 0, 16 << 20, 1);
    let service = Service::start(&host);
    ask_for_a_cycle(&host);
    wait_for("the cycle", || !disk.status()["driver"]["lease"].is_null());
    // Overwriting what it has still to ship: more than the log may hold.
    wait_for("the limit", || {
        noise(&served, 0, 16 << 20, 2);
        disk.status()["driver"]["lost_point_in_time"].is_string()
            || disk.status()["driver"]["open_cut"]["lost"].is_string()
    });
    // Nothing more is shipped for a point in time that is lost.
    wait_for("the mark", || disk.status()["state"] == "resync-required");
    write_config(&host, &format!("resync_window = \"{}\"\n", closed_window()));
    let health = disk.status()["health"].clone();
    assert!(health["reason"].as_str().unwrap().contains("limit"), "{health}");
    host.backstay(&["resync", "d", "--now"]);
    let newest = disk.points().pop().unwrap().cycle;
    assert_eq!(hash(&disk.restore(newest, "restored.img")), hash(&served));
    wait_for("rest", || disk.status()["state"] == "protected");
    drop(service);
}

#[test]
fn a_doctor_says_what_is_wrong_and_changes_nothing() {
    let host = Host::new("doctor");
    host.without_vault();
    let disk = host.disk("d", 4 * MIB);
    let look = |more: &[&str]| {
        let output = host.try_backstay(&[&["--json", "doctor"], more].concat());
        let findings: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let found = move |of: &str, what: &str| {
            let all = findings.as_array().unwrap();
            let found = all.iter().find(|f| f["of"] == of && f["what"] == what);
            let found = found.unwrap_or_else(|| panic!("no {what} of {of}: {findings}"));
            let word = |key: &str| found[key].as_str().unwrap().to_owned();
            (word("verdict"), word("found"))
        };
        (output.status.code(), found)
    };
    let (code, found) = look(&[]);
    assert_eq!(code, Some(0));
    for what in ["configuration", "rights", "kernel", "/dev/fuse", "io_uring", "programs"] {
        assert_eq!(found("host", what).0, "ok", "{what}");
    }
    // A vault that is not there yet is no failure, and is not made by looking.
    assert_eq!(found("vault", "reachable").0, "warning");
    assert!(!host.path("vault").exists() && !host.path("state").exists());

    disk.mount(&[]);
    host.backstay(&["vault", "init"]);
    disk.cycle();
    let (code, found) = look(&["d"]);
    assert_eq!((code, found("d", "driver").0.as_str()), (Some(0), "ok"));
    assert_eq!(
        (found("vault", "reachable").0, found("d", "program").0),
        ("ok".into(), "ok".into())
    );

    // With points in it, it is one.
    fs::rename(host.path("vault"), host.path("elsewhere")).unwrap();
    host.backstay(&["umount", "d"]);
    fs::remove_file(&disk.backing).unwrap();
    let (code, found) = look(&[]);
    assert_eq!(code, Some(1));
    let (verdict, why) = found("vault", "reachable");
    assert!(verdict == "failed" && why.contains("points"), "{why}");
    assert_eq!(
        (found("d", "driver").0, found("d", "backing").0),
        ("warning".into(), "failed".into())
    );
    let (code, found) = look(&["nobody"]);
    assert!(code == Some(1) && found("nobody", "driver").1.contains("no disk nobody"));

    // It works without a configuration, and says what is wrong with it.
    fs::write(host.path("backstay.toml"), "intervall = \"5m\"\n").unwrap();
    let (code, found) = look(&[]);
    let (verdict, why) = found("host", "configuration");
    assert!(code == Some(1) && verdict == "failed" && why.contains("intervall"), "{why}");
}

/// A cycle by hand beside a sidecar that cycles as fast as it can: each waits for the other or says who cycles, and
/// neither takes what the other wrote down for its own.
#[test]
fn cycles_by_hand_beside_a_sidecar_take_turns() {
    const BY_HAND: usize = 12;
    let host = Host::new("turns");
    write_config(&host, "interval = \"0s\"\n");
    let disk = host.disk("d", 4 * MIB);
    let served = disk.mount(&[]);
    disk.cycle();
    let log = host.path("sidecar.log");
    let mut command = host.command();
    command.args(["--verbose", "sidecar"]).stderr(fs::File::create(&log).unwrap());
    let mut sidecar = command.spawn().unwrap();
    ask_for_a_cycle(&host);
    let mut made = 0;
    std::thread::scope(|scope| {
        let hands = [0, 1].map(|hand| {
            let (host, served) = (&host, &served);
            scope.spawn(move || {
                let mut made = 0;
                for n in 0..BY_HAND {
                    noise(served, (hand as u64) << 20, 8192, (hand * BY_HAND + n) as u64);
                    let output = host.try_backstay(&["cycle", "d"]);
                    let said = said(&output);
                    assert!(!said.contains("fault of Backstay"), "{said}");
                    match output.status.code() {
                        Some(0) => made += 1,
                        Some(3) => assert!(said.contains("another cycle runs (process"), "{said}"),
                        other => panic!("{other:?}: {said}"),
                    }
                }
                made
            })
        });
        for hand in hands {
            made += hand.join().unwrap();
        }
    });
    let by_sidecar = || fs::read_to_string(&log).unwrap().matches(": recovery point ").count();
    let before = by_sidecar();
    noise(&served, 2 << 20, 8192, 99);
    wait_for("the sidecar's own", || by_sidecar() > before);
    wait_for("rest", || disk.status()["state"] == "protected");
    must("kill", ["-TERM", &sidecar.id().to_string()]);
    sidecar.wait().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(!said.contains("cannot happen") && !said.contains("ERROR"), "{said}");
    assert!(made > 0, "none by hand");
    println!("{made} by hand, {} by the sidecar", by_sidecar());
    host.backstay(&["verify", "d"]);
}

/// A cycle that the sidecar is asked for is waited for, and nobody is asked who does nothing.
#[test]
fn a_cycle_by_the_sidecar_is_waited_for() {
    let host = Host::new("by-sidecar");
    let disk = host.disk("d", MIB);
    let served = disk.mount(&[]);
    write_config(&host, "interval = \"1d\"\n");
    let by_sidecar = || host.try_backstay(&["cycle", "d", "--by-sidecar"]);
    let none = by_sidecar();
    assert!(
        !none.status.success() && said(&none).contains("no sidecar is running"),
        "{}",
        said(&none)
    );
    let service = Service::start(&host);
    wait_for("the first point", || points(&disk) == 1);
    wait_for("rest", || disk.status()["state"] == "protected");
    noise(&served, 0, 4096, 1);
    let made = by_sidecar();
    assert!(made.status.success(), "{}", said(&made));
    assert!(said(&made).contains("recovery point 2"), "{}", said(&made));
    assert_eq!(points(&disk), 2);
    // What the sidecar found out is what is said.
    let (vault, away) = (host.path("vault"), host.path("away"));
    fs::rename(&vault, &away).unwrap();
    let failed = by_sidecar();
    fs::rename(&away, &vault).unwrap();
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("no vault"), "{}", said(&failed));
    service.signal("-STOP");
    wait_for("the stop", || disk.causes().contains(&"sidecar-silent".to_owned()));
    let silent = by_sidecar();
    service.signal("-CONT");
    assert!(!silent.status.success() && said(&silent).contains("kill -CONT"), "{}", said(&silent));
    let asked = host.backstay(&["cycle", "d", "--by-sidecar", "--no-wait"]);
    assert!(asked.contains("asked for"), "{asked}");
}

//! Every status is the truth, for people and for programs: what `status`, `doctor`, exit codes and JSON say of
//! sidecars that do not work, full disks, points that are only looked at, damaged and missing points.
//!
//! Needs root, /dev/fuse, loop devices.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use backstay_tests::harness::command::{must, said};
use backstay_tests::harness::host::hash;
use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::{Disk, Host};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// The exit code for monitoring.
fn exit_code(host: &Host) -> Option<i32> {
    host.try_backstay(&["--quiet", "status", "--exit-code"]).status.code()
}

/// The error that a command printed as JSON.
fn error(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(error["error"]["exit_code"].as_i64(), output.status.code().map(i64::from));
    error["error"].clone()
}

/// Writes noise to the n-th 64 KiB of a disk.
fn noise(served: &Path, n: u64) {
    let mut bytes = vec![0; 64 << 10];
    fastrand::Rng::with_seed(n).fill(&mut bytes);
    let file = fs::File::options().write(true).open(served).unwrap();
    file.write_all_at(&bytes, n * (64 << 10)).unwrap();
    file.sync_all().unwrap();
}

/// A disk with so many points, each with other bytes.
fn with_points(host: &Arc<Host>, points: u64) -> Disk {
    let disk = host.disk("d", 4 * MIB);
    let served = disk.mount(&[]);
    for n in 0..points {
        noise(&served, n);
        disk.cycle();
    }
    disk
}

/// The objects of a vault whose path holds a word, in order.
fn objects(vault: &Path, word: &str) -> Vec<PathBuf> {
    let found =
        must("find", [vault.to_str().unwrap(), "-type", "f", "-path", &format!("*{word}*")]);
    let mut all: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
    all.sort();
    all
}

#[test]
fn a_sidecar_that_does_not_work_is_said_at_once() {
    let host = Host::new("status-sidecar");
    write_config(&host, "interval = \"1s\"\n");
    let disk = host.disk("d", 4 * MIB);
    disk.mount(&[]);
    disk.cycle();
    let doctor = || said(&host.try_backstay(&["doctor", "d"]));
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    assert_eq!(exit_code(&host), Some(10));
    let mut service = Service::start(&host);
    wait_for("all to be well", || disk.causes().is_empty());
    assert_eq!(exit_code(&host), Some(0));
    assert_eq!(disk.status()["sidecar"]["pid"], service.child.id());
    // Stopped: its lock is held all the same.
    let sidecar = Pid::from_raw(service.child.id() as i32);
    kill(sidecar, Signal::SIGSTOP).unwrap();
    wait_for("it to be stopped", || disk.causes().contains(&"sidecar-silent".into()));
    assert!(doctor().contains("stopped by a signal"), "{}", doctor());
    assert_eq!(exit_code(&host), Some(10));
    kill(sidecar, Signal::SIGCONT).unwrap();
    wait_for("all to be well again", || disk.causes().is_empty());
    service.child.kill().unwrap();
    service.child.wait().unwrap();
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    let health = disk.status()["health"].clone();
    assert!(health["since_unix_ns"].is_u64(), "{health}");
    assert!(doctor().contains("no sidecar runs"), "{}", doctor());
}

#[test]
fn a_full_or_read_only_state_directory_is_critical() {
    let host = Host::new("status-full");
    let state = host.path("state");
    fs::create_dir_all(&state).unwrap();
    let at = state.to_str().unwrap();
    must("mount", ["-t", "tmpfs", "-o", "size=128m,mode=700", "state", at]);
    let disk = with_points(&host, 1);
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    must("mount", ["-o", "remount,size=48m", at]);
    assert!(disk.causes().contains(&"state-full".into()));
    assert_eq!(exit_code(&host), Some(10));
    let free: u64 = {
        let fs = nix::sys::statvfs::statvfs(&state).unwrap();
        fs.blocks_available() * fs.fragment_size()
    };
    fs::write(state.join("filler"), vec![1; free as usize - (64 << 10)]).unwrap();
    assert_eq!(disk.causes()[0], "state-full");
    assert_eq!(exit_code(&host), Some(20));
    let doctor = host.try_backstay(&["doctor", "d"]);
    assert_eq!(doctor.status.code(), Some(1), "{}", said(&doctor));
    let text = host.backstay(&["status", "d"]);
    assert!(text.starts_with("d: NOT PROTECTED, CRITICAL"), "{text}");
    fs::remove_file(state.join("filler")).unwrap();
    must("mount", ["-o", "remount,size=128m", at]);
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    host.backstay(&["umount", "d"]);
    must("mount", ["-o", "remount,ro", at]);
    assert_eq!(disk.causes(), ["state-read-only", "not-served"]);
    must("umount", [at]);
}

#[test]
fn a_point_that_is_only_looked_at_is_nobodys_protected_disk() {
    let host = Host::new("status-look");
    write_config(&host, "interval = \"1s\"\n");
    let disk = with_points(&host, 1);
    let look = host.renamed(&disk, "look");
    host.backstay(&["mount", "--disk", "d", "--point", "1", "--name", "look"]);
    let before = disk.points().len();
    let service = Service::start(&host);
    noise(&host.runtime.join("d/mnt/disk"), 9);
    wait_for("a cycle of the disk", || disk.points().len() > before);
    let status = look.status();
    assert_eq!(status["health"]["level"], "ok", "{status}");
    assert!(status["state"].is_null() && status["headline"] == "mounted point", "{status}");
    let jobs = host.json(&["jobs", "look"]);
    assert_eq!(jobs, Value::Array(vec![]), "it is not cycled");
    host.backstay(&["umount", "look"]);
    assert_eq!(look.status()["health"]["level"], "ok", "nobody misses it");
    drop(service);
    host.backstay(&["umount", "look", "--forget"]);
}

#[test]
fn many_disks_are_a_table_that_fits_the_worst_first() {
    let host = Host::new("status-table");
    let names = ["a", "b-disk-with-a-long-name"];
    for name in names {
        host.disk(name, 4 * MIB).mount(&[]);
    }
    host.backstay(&["cycle", "a"]);
    // The vault refuses: a person must act.
    let record = host.path("vault/vault.json");
    let whole = fs::read(&record).unwrap();
    fs::write(&record, b"{").unwrap();
    assert!(!host.try_backstay(&["cycle", names[1]]).status.success());
    fs::write(&record, whole).unwrap();
    let text = host.backstay(&["status"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines[0].contains("VAULT"), "{text}");
    assert!(lines[1].starts_with("b-d") && lines[1].contains("NOT PROTECTED"), "{text}");
    assert!(lines[2].starts_with("a "), "{text}");
    let long = lines.iter().find(|line| line.chars().count() > 80 && line.contains(' '));
    assert!(long.is_none() || long.unwrap().contains(names[1]), "too long: {long:?}");
    assert!(!text.contains('\x1b'), "no colours where there is no terminal");
    assert_eq!(exit_code(&host), Some(20));
    // A person says once that all are mended.
    let resumed = host.json(&["resume", "--all"]);
    assert_eq!(resumed["resumed"], serde_json::json!([names[1]]));
    assert_eq!(exit_code(&host), Some(10));
}

#[test]
fn errors_are_json_and_nothing_is_not_an_answer() {
    let host = Host::new("status-json");
    let disk = with_points(&host, 1);
    for verb in [
        &["status", "nobody"][..],
        &["points", "nobody"],
        &["jobs", "nobody"],
        &["resume", "nobody"],
    ] {
        let failed = host.try_backstay(&[&["--json"], verb].concat());
        let error = error(&failed);
        assert_eq!(error["kind"], "failed", "{verb:?}");
        assert!(error["message"].as_str().unwrap().contains("nobody"), "{error}");
        assert!(failed.stdout.is_empty(), "{verb:?}");
    }
    let usage = host.try_backstay(&["--json", "status", "--no-such-flag"]);
    assert_eq!(error(&usage)["kind"], "usage");
    let backing = disk.backing.to_str().unwrap();
    let to = host.try_backstay(&["--json", "restore", "d", "--point", "1", "--to", backing]);
    assert_eq!(error(&to)["kind"], "refused");
    // Somebody without rights is told so, and not that there are no disks.
    for dir in [&host.dir, &host.runtime] {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir, open).unwrap();
    }
    for verb in [&["status"][..], &["status", "d"], &["jobs"]] {
        let mut command = host.command();
        command.arg("--json").args(verb).uid(65_534).gid(65_534);
        let failed = command.output().unwrap();
        assert!(!failed.status.success(), "{verb:?}: {}", said(&failed));
        assert!(error(&failed)["message"].as_str().unwrap().contains("denied"), "{verb:?}");
    }
}

#[test]
fn verify_goes_on_and_says_which_points_are_whole() {
    let host = Host::new("status-verify");
    let disk = with_points(&host, 4);
    let vault = host.path("vault");
    let id = host.json(&["vault", "ls"])[0]["disk"].as_str().unwrap().to_owned();
    let verify = || {
        let output = host.try_backstay(&["--json", "verify", "d"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |key: &str| -> Vec<u64> {
            let all = found[key].as_array().unwrap();
            all.iter().map(|p| p["cycle"].as_u64().or(p.as_u64()).unwrap()).collect()
        };
        (output.status.code(), of("whole"), of("damaged"), of("missing"))
    };
    assert_eq!(verify(), (Some(0), vec![1, 2, 3, 4], vec![], vec![]));
    // The segment of the newest point: the others do not need it.
    let newest = objects(&vault, "/segments/").pop().unwrap();
    let bytes = fs::read(&newest).unwrap();
    fs::remove_file(&newest).unwrap();
    assert_eq!(verify(), (Some(4), vec![1, 2, 3], vec![4], vec![]));
    // Everybody knows it from now on: health, the list, and anyone who wants the newest point.
    assert!(disk.causes().contains(&"vault-damaged".to_owned()), "{:?}", disk.causes());
    assert!(disk.status()["rpo_ns"].is_null(), "{}", disk.status());
    let shown = said(&host.try_backstay(&["status", "d"]));
    assert!(shown.contains("unknown") && !shown.contains("point 4 cut"), "{shown}");
    let listed = host.try_backstay(&["points", "d"]);
    assert!(said(&listed).contains("DAMAGED"), "{}", said(&listed));
    let latest = host.try_backstay(&["failover", "test", "d", "--as", "there"]);
    assert_eq!(latest.status.code(), Some(4), "{}", said(&latest));
    let listed = said(&listed);
    assert!(!listed.contains("DAMAGED;") && !listed.contains("segments: ;"), "{listed}");
    // No whole point goes for it, and the newest stays because the next one builds on it.
    let shown = host.backstay(&["prune", "d", "--keep", "last 1", "--dry-run"]);
    let line = |cycle: &str| shown.lines().find(|line| line.trim_start().starts_with(cycle));
    assert!(line("3 ").is_some_and(|line| line.contains("stays")), "{shown}");
    assert!(line("4 ").is_some_and(|line| line.contains("stays  DAMAGED")), "{shown}");
    fs::write(&newest, &bytes).unwrap();
    assert_eq!(verify(), (Some(0), vec![1, 2, 3, 4], vec![], vec![]));
    assert!(disk.status()["rpo_ns"].is_u64(), "{}", disk.status());
    assert!(!disk.causes().contains(&"vault-damaged".to_owned()), "{:?}", disk.causes());
    // A point itself: the rest are listed, and it cannot be mounted; nothing is left of the try.
    let point = objects(&vault, "/points/").remove(1);
    let whole = fs::read(&point).unwrap();
    let mut flipped = whole.clone();
    flipped[60] ^= 1;
    fs::write(&point, flipped).unwrap();
    assert_eq!(verify(), (Some(4), vec![1, 3, 4], vec![2], vec![]));
    let listed = host.try_backstay(&["--json", "points", "d"]);
    let points: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.status.code(), Some(4));
    assert_eq!(points.as_array().unwrap().len(), 4);
    assert!(points[1]["damaged"].is_string() && points[2]["cycle"] == 3, "{points}");
    for verb in ["mount", "attach"] {
        let mount = host.try_backstay(&[verb, "--disk", "d", "--point", "2", "--name", "look"]);
        assert_eq!(mount.status.code(), Some(4), "{verb}: {}", said(&mount));
        assert!(!host.path("state/look").exists() && !host.runtime.join("look").exists());
        let devices = must("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"]);
        assert!(!devices.contains(&*host.runtime.to_string_lossy()), "{devices}");
    }
    // One that is gone although nobody retired it.
    fs::remove_file(&point).unwrap();
    assert_eq!(verify(), (Some(4), vec![1, 3, 4], vec![], vec![2]));
    fs::write(&point, &whole).unwrap();
    fs::remove_file(objects(&vault, "/points/").pop().unwrap()).unwrap();
    assert_eq!(verify().3, [4], "this host knows that it made it");

    // By identity, when the name's documents are lost; by time; the last ones.
    let times: Vec<u64> = disk.points().iter().map(|point| point.cut_unix_ns).collect();
    let at = |unix_ns: u64| {
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(unix_ns);
        humantime::format_rfc3339_nanos(time).to_string()
    };
    let by_time = host.path("by-time.img");
    let to = by_time.to_str().unwrap();
    host.backstay(&["restore", "d", "--point", &at(times[1]), "--to", to]);
    assert_eq!(hash(&by_time), hash(&disk.restore(2, "two.img")));
    let pinned = host.json(&["pin", "d", &at(times[2] - 1)]);
    assert_eq!(pinned["first_cycle"], 2, "{pinned}");
    let cycles = |args: &[&str]| -> Vec<u64> {
        let points = host.json(&[&["points", "d"], args].concat());
        points.as_array().unwrap().iter().map(|p| p["cycle"].as_u64().unwrap()).collect()
    };
    assert_eq!(cycles(&["--last", "2"]), [2, 3]);
    assert_eq!(cycles(&["--since", &at(times[1])]), [2, 3]);
    for name in objects(&vault, "/names/") {
        fs::remove_file(name).unwrap();
    }
    let by_id = host.json(&["points", &id]);
    assert_eq!(by_id.as_array().unwrap().len(), 3, "{by_id}");
}

#[test]
fn a_vault_lists_its_disks_and_forgets_one() {
    let host = Host::new("status-vault");
    let disk = with_points(&host, 2);
    let listed = host.json(&["vault", "ls"]);
    assert_eq!((&listed[0]["name"], listed[0]["points"].as_u64()), (&"d".into(), Some(2)));
    assert_eq!(listed[0]["newest"]["cycle"], 2);
    assert!(listed[0]["stored_bytes"].as_u64().unwrap() > 64 << 10);
    assert!(listed[0]["writer"].is_string() && host.backstay(&["vault", "ls"]).contains("NAME"));
    let ours = host.try_backstay(&["vault", "forget", "d", "--yes"]);
    assert_eq!(ours.status.code(), Some(3), "{}", said(&ours));
    // Its host is gone.
    host.backstay(&["umount", "d"]);
    fs::remove_dir_all(host.path("state/d")).unwrap();
    assert_eq!(host.try_backstay(&["vault", "forget", "d"]).status.code(), Some(3), "it asks");
    host.backstay(&["pin", "d", "1", "--name", "audit"]);
    let held = host.try_backstay(&["vault", "forget", "d", "--yes"]);
    assert!(held.status.code() == Some(3) && said(&held).contains("audit"), "{}", said(&held));
    host.backstay(&["vault", "forget", "d", "--yes", "--even-if-held"]);
    assert_eq!(host.json(&["vault", "ls"]), Value::Array(vec![]));
    assert!(objects(&host.path("vault"), "/segments/").is_empty());
    drop(disk);
}

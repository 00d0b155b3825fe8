//! Keep rules, pins and prune as people use them, and the service that follows the rules by itself.
//!
//! Needs root, /dev/fuse.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::{Disk, Host, must};

const SIZE: u64 = 8 << 20;

/// A disk with points, each of another content; the hash of each.
fn with_points(host: &Arc<Host>, count: u64) -> (Disk, Vec<String>) {
    let disk = host.disk("db", SIZE);
    let served = disk.mount(&[]);
    let file = fs::OpenOptions::new().read(true).write(true).open(&served).unwrap();
    let mut hashes = vec![];
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..count {
        for _ in 0..8 {
            let mut block = vec![0; 40_960];
            rng.fill(&mut block);
            file.write_all_at(&block, rng.u64(..SIZE / 65_536) * 65_536).unwrap();
        }
        file.sync_all().unwrap();
        disk.cycle();
        hashes.push(hash(&served));
    }
    (disk, hashes)
}

fn cycles(disk: &Disk) -> Vec<u64> {
    disk.points().iter().map(|point| point.cycle).collect()
}

fn check(disk: &Disk, hashes: &[String]) {
    for cycle in cycles(disk) {
        let Some(expected) = hashes.get(cycle as usize - 1) else { continue };
        let image = disk.restore(cycle, &format!("{cycle}.img"));
        assert_eq!(&hash(&image), expected, "point {cycle}");
        fs::remove_file(image).unwrap();
    }
    disk.host.backstay(&["verify", &disk.name]);
}

/// A full vault becomes less full before anything is put; what does not fit is said in bytes, with a way on.
#[test]
fn prune_of_a_full_vault_frees_what_it_can_and_says_what_the_rest_needs() {
    let host = Host::new("retain-full");
    let at = host.path("vault");
    fs::create_dir_all(&at).unwrap();
    let at = at.to_str().unwrap();
    must("mount", ["-t", "tmpfs", "-o", "size=64m", "full", at]);
    let (disk, hashes) = with_points(&host, 12);
    // Nobody else leaves it a byte, and what points that go alone need is less than merging needs.
    let filler = host.path("vault").join("filler");
    let full = std::process::Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", "status=none", &format!("of={}", filler.display())])
        .output()
        .unwrap();
    assert!(said(&full).contains("No space left"), "{}", said(&full));
    let pruned = host.try_backstay(&["prune", "db", "--keep", "last 11"]);
    println!("{}", said(&pruned));
    assert_eq!(pruned.status.code(), Some(1), "{}", said(&pruned));
    let text = said(&pruned);
    for word in
        ["no room to merge", "bytes are needed", "are free", "1 recovery points", "--no-merge"]
    {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert_eq!(cycles(&disk), (2..=12).collect::<Vec<u64>>());
    // Which works.
    host.backstay(&["prune", "db", "--no-merge", "--keep", "last 2"]);
    assert_eq!(cycles(&disk), [11, 12]);
    fs::remove_file(&filler).unwrap();
    host.backstay(&["prune", "db", "--keep", "last 2"]);
    check(&disk, &hashes);
    host.backstay(&["umount", "db"]);
    must("umount", [at]);
}

#[test]
fn rules_pins_and_prune() {
    let host = Host::new("retain");
    let (disk, hashes) = with_points(&host, 12);
    let all: Vec<u64> = (1..=12).collect();
    // Without rules, nothing goes.
    assert!(host.backstay(&["prune", "db", "--dry-run"]).contains("all recovery points stay"));
    let merged = host.json(&["prune", "db"]);
    assert!(merged["report"]["merged"]["replaced"].as_u64().unwrap() > 0, "{merged}");
    assert_eq!(cycles(&disk), all);
    let pin = host.json(&["pin", "db", "2", "--name", "before", "--reason", "an upgrade"]);
    assert_eq!((&pin["name"], &pin["kind"]), (&"before".into(), &"pin".into()));
    // The same pin once more is the same; another point under its name is not.
    host.backstay(&["pin", "db", "2", "--name", "before"]);
    let taken = host.try_backstay(&["pin", "db", "3", "--name", "before"]);
    assert!(said(&taken).contains("a pin of point 2"), "{}", said(&taken));

    let dry = host.json(&["prune", "db", "--keep", "last 2", "--dry-run"]);
    let stay: Vec<u64> = dry["points"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|point| point["stays"].as_bool().unwrap())
        .map(|point| point["cycle"].as_u64().unwrap())
        .collect();
    assert_eq!(stay, [2, 11, 12]);
    assert_eq!(cycles(&disk), all, "a dry run deletes nothing");
    host.backstay(&["prune", "db", "--keep", "last 2", "--dry-run"]);

    let done = host.json(&["prune", "db", "--keep", "last 2"]);
    assert_eq!(done["report"]["retired"]["deleted"], 9);
    assert_eq!(cycles(&disk), stay);
    check(&disk, &hashes);
    let points = host.json(&["points", "db"]);
    assert_eq!(points[0]["held_by"][0], "before");
    assert!(host.backstay(&["points", "db"]).contains("before"));
    assert!(host.backstay(&["holds", "db"]).contains("before"));

    // The next point takes over what was merged, and the old segments go with their points.
    disk.cycle();
    let segments = |of: usize| host.json(&["points", "db"])[of]["segments"].as_u64().unwrap();
    assert!(segments(3) < segments(2), "{} and {}", segments(3), segments(2));
    host.backstay(&["unpin", "db", "before"]);
    let gone = host.json(&["prune", "db", "--keep", "last 1"]);
    assert!(gone["report"]["collected"]["deleted"].as_u64().unwrap() > 0, "{gone}");
    assert_eq!(cycles(&disk), [13]);
    host.backstay(&["verify", "db"]);
    let none = host.try_backstay(&["restore", "db", "--point", "2", "--to", "/dev/null"]);
    assert!(said(&none).contains("no recovery point 2"), "{}", said(&none));
    let none = host.try_backstay(&["unpin", "db", "before"]);
    assert_eq!(none.status.code(), Some(1), "{}", said(&none));
    let wrong = host.try_backstay(&["prune", "db", "--keep", "all 2h, dayly 3d"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("character 9"), "{}", said(&wrong));
}

#[test]
fn the_service_follows_the_rules() {
    let host = Host::new("upkeep");
    let (disk, _) = with_points(&host, 6);
    let config = host.path("backstay.toml");
    fs::write(
        &config,
        format!("vault = \"{}\"\nallow_local_vault = true\nkeep = \"last 2\"\n", host.vault()),
    )
    .unwrap();
    let mut sidecar = host.start(&["sidecar"]);
    // The cycle that is asked for makes point 7; the upkeep that follows leaves two.
    while !host.try_backstay(&["cycle", "db", "--by-sidecar", "--no-wait"]).status.success() {
        assert_eq!(sidecar.try_wait().unwrap(), None, "the service ended");
        std::thread::yield_now();
    }
    while cycles(&disk) != [6, 7] {
        assert_eq!(sidecar.try_wait().unwrap(), None, "the service ended");
        std::thread::yield_now();
    }
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
    host.backstay(&["verify", "db"]);
    disk.cycle();
    host.backstay(&["prune", "db"]);
    assert_eq!(cycles(&disk), [7, 8]);
}

/// A vault that cannot be looked after is a warning until it can be.
#[test]
fn failed_upkeep_shows_in_the_health() {
    let host = Host::new("upkeep-fails");
    let (disk, _) = with_points(&host, 3);
    let config = host.path("backstay.toml");
    fs::write(
        &config,
        format!("vault = \"{}\"\nallow_local_vault = true\nkeep = \"last 2\"\n", host.vault()),
    )
    .unwrap();
    host.backstay(&["pin", "db", "1", "--name", "audit"]);
    let hold = find(&host.path("vault"), "-audit");
    fs::write(&hold, b"not a hold").unwrap();
    let mut sidecar = host.start(&["sidecar"]);
    while !host.try_backstay(&["cycle", "db", "--by-sidecar", "--no-wait"]).status.success() {
        assert_eq!(sidecar.try_wait().unwrap(), None, "the service ended");
        std::thread::yield_now();
    }
    let health = || host.json(&["status", "db"])[0]["health"].clone();
    while health()["level"] != "warning" {
        assert_eq!(sidecar.try_wait().unwrap(), None, "the service ended");
        std::thread::yield_now();
    }
    let reason = health()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("looked after") && reason.contains("audit"), "{reason}");
    sidecar.kill().unwrap();
    sidecar.wait().unwrap();
    host.backstay(&["unpin", "db", "audit", "--force"]);
    host.backstay(&["prune", "db"]);
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    assert_eq!(cycles(&disk).len(), 2);
}

/// The file below a folder whose name ends so.
fn find(below: &Path, end: &str) -> PathBuf {
    let mut left = vec![below.to_path_buf()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else if entry.file_name().to_string_lossy().ends_with(end) {
                return entry.path();
            }
        }
    }
    panic!("no {end} below {}", below.display())
}

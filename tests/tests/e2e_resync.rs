//! Resync by checksums on a served disk: what moves, what proves the direction, what a kill leaves.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Output;

use backstay_tests::harness::command::{must, said};
use backstay_tests::harness::host::{Disk, Host, hash, wait_gone};

const MIB: u64 = 1 << 20;

fn noise(path: &Path, offset: u64, len: usize, seed: u64) {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// A disk of noise with one recovery point.
fn shipped(host: &std::sync::Arc<Host>, size: u64) -> (Disk, std::path::PathBuf) {
    let disk = host.disk("d", size);
    let served = disk.mount(&[]);
    noise(&served, 0, size as usize, 1);
    disk.cycle();
    (disk, served)
}

/// The machine goes down: the driver and what is on tmpfs are gone.
fn power_off(disk: &Disk, served: &Path) {
    disk.kill_driver();
    must("umount", ["-l", served.parent().unwrap().to_str().unwrap()]);
    fs::remove_dir_all(disk.host.runtime.join(&disk.name)).unwrap();
}

fn newest(disk: &Disk) -> serde_json::Value {
    disk.host.json(&["points", &disk.name]).as_array().unwrap().last().unwrap().clone()
}

/// The newest point is the disk as it is, and the vault is whole.
fn check(disk: &Disk, served: &Path) {
    let cycle = newest(disk)["cycle"].as_u64().unwrap();
    assert_eq!(hash(&disk.restore(cycle, "restored.img")), hash(served));
    disk.host.backstay(&["verify", &disk.name]);
}

fn refused(output: &Output) {
    let text = said(output);
    assert!(output.status.code() == Some(1) && text.contains("--the-disk-is-right"), "{text}");
}

#[test]
fn only_what_differs_moves() {
    let host = Host::new("resync");
    let (disk, served) = shipped(&host, 32 * MIB);
    // Nothing differs.
    let report = host.json(&["resync", "d", "--now"]);
    assert_eq!((report["kind"].as_str(), report["moved"].as_u64()), (Some("resync"), Some(0)));
    let from_vault = report["fetched"].as_u64().unwrap();
    // With the keyring, where the vault is encrypted.
    assert!(from_vault < 72 * 1024, "{from_vault} bytes were read from the vault");
    // The disk changes behind the driver's back, while it is not served.
    host.backstay(&["umount", "d"]);
    noise(&disk.backing, 5 * MIB + 777, 10, 2);
    noise(&disk.backing, 20 * MIB, 200_000, 3);
    let served_again = disk.mount(&[]);
    assert_eq!(disk.status()["driver"]["resync"], "backing-changed");
    disk.cycle();
    let point = newest(&disk);
    assert_eq!(point["kind"], "resync");
    // One chunk, and four of the second change.
    assert_eq!(point["moved_bytes"].as_u64().unwrap(), (1 + 4) * 64 * 1024);
    check(&disk, &served_again);
    assert_eq!(served, served_again);
    let deep = host.json(&["resync", "d", "--now", "--deep"]);
    assert_eq!(deep["moved"], 0);
    assert!(deep["fetched"].as_u64().unwrap() > 32 * MIB);
    let full = host.json(&["resync", "d", "--now", "--full"]);
    assert_eq!(full["moved"].as_u64().unwrap(), 32 * MIB);
    check(&disk, &served);
}

#[test]
fn a_lost_state_directory_needs_a_word_and_moves_little() {
    let host = Host::new("resyncstate");
    let (disk, served) = shipped(&host, 16 * MIB);
    host.backstay(&["umount", "d"]);
    fs::remove_dir_all(host.path("state")).unwrap();
    let served_again = disk.mount(&[]);
    noise(&served_again, 0, 4096, 9);
    refused(&host.try_backstay(&["cycle", "d"]));
    // Asked for without the word: still refused.
    refused(&host.try_backstay(&["resync", "d", "--now"]));
    assert_eq!(disk.points().len(), 1);
    host.backstay(&["resync", "d", "--now", "--the-disk-is-right"]);
    assert_eq!(newest(&disk)["moved_bytes"].as_u64().unwrap(), 64 * 1024);
    check(&disk, &served);
    // From now on the disk is known, under the identity that it had there.
    noise(&served, 8 * MIB, 512, 10);
    disk.cycle();
    assert_eq!(newest(&disk)["kind"], "delta");
    check(&disk, &served);
}

/// The disk and its state come back from a backup: older than the vault, and with nothing dirty.
#[test]
fn a_disk_from_a_backup_does_not_go_over_newer_points() {
    let host = Host::new("resyncbackup");
    let (disk, served) = shipped(&host, 8 * MIB);
    host.backstay(&["umount", "d"]);
    let (state, saved) = (host.path("state"), host.path("saved"));
    must("cp", ["-a", state.to_str().unwrap(), saved.to_str().unwrap()]);
    let image = host.path("saved.img");
    must("cp", ["-a", disk.backing.to_str().unwrap(), image.to_str().unwrap()]);
    disk.mount(&[]);
    noise(&served, MIB, 100_000, 4);
    disk.cycle();
    let newer = hash(&served);
    host.backstay(&["umount", "d"]);
    fs::remove_dir_all(&state).unwrap();
    must("cp", ["-a", saved.to_str().unwrap(), state.to_str().unwrap()]);
    must("cp", ["-a", image.to_str().unwrap(), disk.backing.to_str().unwrap()]);
    disk.mount(&[]);
    // A delta would be the newer point with the older disk's changes: a disk that never was.
    noise(&served, 2 * MIB, 512, 5);
    refused(&host.try_backstay(&["cycle", "d"]));
    assert_eq!(disk.points().len(), 2);
    assert_eq!(hash(&disk.restore(2, "newer.img")), newer, "the newer data is still there");
    let dirty = disk.status()["dirty"].as_u64().unwrap();
    assert!(dirty >= 512, "nothing was taken for shipped: {dirty}");
    // Told to, it goes on from the older disk; the newer point stays.
    host.backstay(&["resync", "d", "--now", "--the-disk-is-right"]);
    check(&disk, &served);
    assert_eq!(hash(&disk.restore(2, "newer.img")), newer);
    // The word was for that point only.
    noise(&served, 0, 512, 6);
    disk.cycle();
    assert_eq!(newest(&disk)["kind"], "delta");
}

/// A sidecar killed between commit and release: the next one knows the point as the disk's own.
#[test]
fn a_commit_whose_release_was_lost_is_the_disks_own() {
    let host = Host::new("resyncannounce");
    let (disk, served) = shipped(&host, 4 * MIB);
    noise(&served, 0, 4096, 2);
    disk.cycle();
    // As if the last release had been lost: the superblock of before it, announced point and all,
    // is what the driver finds. Its older slot is exactly that.
    power_off(&disk, &served);
    let path = host.path("state").join("d").join("super");
    let mut bytes = fs::read(&path).unwrap();
    let generation = |slot: usize| {
        let at = slot * 4096 + 16;
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let newer = usize::from(generation(1) > generation(0));
    bytes[newer * 4096..(newer + 1) * 4096].fill(0);
    fs::write(&path, bytes).unwrap();
    disk.mount(&[]);
    let driver = disk.status()["driver"].clone();
    assert_eq!(driver["base"]["cycle"], 1, "{driver}");
    assert_eq!(driver["announced"]["cycle"], 2, "{driver}");
    noise(&served, MIB, 4096, 3);
    // Nobody has to say anything. (A resync, because the release that was "lost" had removed the
    // epoch's files.)
    disk.cycle();
    assert_eq!(newest(&disk)["kind"], "resync");
    check(&disk, &served);
}

/// Writes go on during the resync; killed again and again, it goes on where it was, and what comes
/// out is the disk.
#[test]
fn killed_again_and_again_under_writes() {
    let host = Host::new("resynckill");
    let seed: u64 = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    eprintln!("seed {seed} (BACKSTAY_SEED)");
    let mut dice = fastrand::Rng::with_seed(seed);
    let size = 96 * MIB;
    let (disk, served) = shipped(&host, size);
    host.backstay(&["umount", "d"]);
    // A quarter of it differs.
    for n in 0..24 {
        noise(&disk.backing, n * 4 * MIB, MIB as usize, 100 + n);
    }
    disk.mount(&[]);
    let mut killed = 0;
    let log = host.path("resync.log");
    let progress = host.path("state").join("d").join("resync-progress.json");
    for round in 0..12 {
        let mut child = host
            .command()
            .args(["--verbose", "resync", "d", "--now"])
            .env("BACKSTAY_TEST_STRETCH", "8192")
            .stderr(File::options().append(true).create(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        // In every other round not before something was written down.
        let written = || fs::metadata(&progress).map(|m| m.ino()).ok();
        let before = written();
        while round % 2 == 1 && written() == before && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        // Some writes, then the kill: how far it gets is up to the machine.
        for _ in 0..dice.u64(1..20) {
            noise(&served, dice.u64(0..size / 4096) * 4096, 4096, dice.u64(..));
        }
        if round == 11 {
            assert!(child.wait().unwrap().success());
            break;
        }
        let pid = child.id() as i32;
        let _ = child.kill();
        killed += usize::from(!child.wait().unwrap().success());
        wait_gone(pid);
    }
    eprintln!("{killed} killed");
    let log = fs::read_to_string(&log).unwrap();
    assert!(killed > 0 && log.contains("the resync goes on"), "none was killed in time\n{log}");
    // All that was written before the last cut is in it.
    disk.cycle();
    check(&disk, &served);
}

/// A block that is damaged in the vault is shipped again by a deep resync, which goes on; points from then on are whole.
#[test]
fn a_deep_resync_ships_what_is_damaged_in_the_vault() {
    let host = Host::new("resync-damaged");
    let (disk, served) = shipped(&host, 8 * MIB);
    let segment = |n: usize| {
        let mut found: Vec<_> = walk(&host.path("vault"))
            .into_iter()
            .filter(|path| path.to_str().unwrap().contains("/segments/"))
            .collect();
        found.sort();
        found.remove(n)
    };
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        let at = if at == 0 { bytes.len() / 2 } else { bytes.len() - at };
        bytes[at] ^= 2;
        fs::write(path, bytes).unwrap();
    };
    let whole = || {
        let cycle = newest(&disk)["cycle"].to_string();
        assert_eq!(hash(&disk.restore(cycle.parse().unwrap(), "r.img")), hash(&served));
        host.backstay(&["verify", "d", "--point", &cycle]);
    };
    let first = segment(0);
    flip(&first, 0);
    assert_eq!(host.try_backstay(&["verify", "d"]).status.code(), Some(4));
    host.backstay(&["resync", "d", "--now", "--deep"]);
    whole();
    // All points but the damaged one are whole, and which one it is, is said.
    let verified = host.try_backstay(&["verify", "d"]);
    let text = said(&verified);
    assert_eq!(verified.status.code(), Some(4), "{text}");
    assert!(text.contains("1 of 2 recovery points"), "{text}");
    // Where not even the index can be read, the whole disk is shipped, and nothing of before is needed.
    flip(&first, 20);
    host.backstay(&["resync", "d", "--now", "--deep"]);
    fs::remove_file(&first).unwrap();
    whole();
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

//! What goes wrong in the field, each with what Backstay must do then.
//!
//! Needs root, /dev/fuse, tmpfs mounts.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use backstay_format::control::Request;
use backstay_front::control::ControlClient;
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::{Disk, Host, must, run};
use fastrand::Rng;

fn code_and_text(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), said(output))
}

fn write_noise(path: &Path, at: u64, len: usize, seed: u64) {
    let mut noise = vec![0; len];
    Rng::with_seed(seed).fill(&mut noise);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&noise, at).unwrap();
    file.sync_all().unwrap();
}

/// A disk with two recovery points of noise; not mounted any more.
fn two_points(host: &std::sync::Arc<Host>) -> Disk {
    let disk = host.disk("d", (8 << 20) + 100);
    let served = disk.mount(&[]);
    write_noise(&served, 0, 3 << 20, 1);
    disk.cycle();
    write_noise(&served, 1 << 20, 70_000, 2);
    disk.cycle();
    host.backstay(&["umount", "d"]);
    disk
}

/// The only file below the vault whose path contains this.
fn object(host: &Host, part: &str) -> Vec<PathBuf> {
    let list = must("find", [host.path("vault").to_str().unwrap(), "-type", "f"]);
    let mut found: Vec<PathBuf> =
        list.lines().filter(|line| line.contains(part)).map(PathBuf::from).collect();
    found.sort();
    assert!(!found.is_empty(), "no {part} in\n{list}");
    found
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// A store that nobody serves: who waits is told, and it ends when it was said to.
#[test]
fn a_store_that_does_not_answer_is_waited_for_with_a_word() {
    let host = Host::new("no-store");
    let settings = "vault = \"s3://bucket/vault\"\n[store]\nendpoint = \"http://127.0.0.1:1\"\n\
                    allow_http = true\n";
    fs::write(host.path("backstay.toml"), settings).unwrap();
    let mut command = host.command();
    command.args(["--vault-wait", "4s", "points", "db"]);
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "not-to-be-seen");
    let began = std::time::Instant::now();
    let (code, text) = code_and_text(&command.output().unwrap());
    let took = began.elapsed();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("does not answer as it should; trying again"), "{text}");
    assert!(!text.contains("not-to-be-seen"), "{text}");
    assert!(took.as_secs() < 30, "{took:?}: {text}");
}

#[test]
fn missing_and_impossible_backings() {
    let host = Host::new("backing");
    let missing = host.path("missing");
    let out = host.try_backstay(&["mount", missing.to_str().unwrap(), "--name", "d"]);
    let (code, text) = code_and_text(&out);
    assert!(code == Some(1) && text.contains("missing") && text.contains("No such file"), "{text}");
    let folder = host.dir.to_str().unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["mount", folder, "--name", "d"]));
    assert!(code == Some(1) && text.contains("neither a file nor a block device"), "{text}");
    let empty = host.disk("empty", 0);
    let empty = empty.backing.to_str().unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["mount", empty, "--name", "empty"]));
    assert!(code == Some(1) && text.contains("cannot be protected"), "{text}");
    let (code, text) = code_and_text(&host.try_backstay(&["mount", empty, "--name", "../up"]));
    assert!(code == Some(2) && text.contains("disk name"), "{text}");
}

#[test]
fn a_backing_that_shrank() {
    let host = Host::new("shrunk");
    let disk = host.disk("d", 8 << 20);
    let served = disk.mount(&[]);
    write_noise(&served, 0, 1 << 20, 1);
    disk.cycle();
    // While it is served: what is gone is an I/O error, the rest goes on.
    write_noise(&served, 6 << 20, 4096, 2);
    let resize = |size| {
        OpenOptions::new().write(true).open(&disk.backing).unwrap().set_len(size).unwrap();
    };
    resize(4 << 20);
    let file = fs::File::open(&served).unwrap();
    assert_eq!(file.read_at(&mut [0; 4096], 6 << 20).unwrap_err().raw_os_error(), Some(5));
    file.read_exact_at(&mut [0; 4096], 0).unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["cycle", "d"]));
    assert!(code == Some(1) && text.contains("no recovery point was made"), "{text}");
    drop(file);
    host.backstay(&["umount", "d"]);
    let out = host.try_backstay(&["mount", disk.backing.to_str().unwrap(), "--name", "d"]);
    let (code, text) = code_and_text(&out);
    assert!(code == Some(1) && text.contains("nothing was changed"), "{text}");
    resize(8 << 20);
    disk.mount(&[]);
    // It was changed behind the driver's back, so everything is looked at again.
    assert_eq!(disk.status()["driver"]["resync"], "backing-changed");
}

/// A small tmpfs as the vault's disk.
fn small_vault(host: &Host, size: &str) -> String {
    let at = host.path("vault");
    fs::create_dir_all(&at).unwrap();
    must("mount", ["-t", "tmpfs", "-o", &format!("size={size}"), "small", at.to_str().unwrap()]);
    at.to_string_lossy().into_owned()
}

#[test]
fn a_full_vault_fails_the_cycle_and_loses_nothing() {
    let host = Host::new("full");
    let vault = small_vault(&host, "2m");
    let disk = host.disk("d", 16 << 20);
    let served = disk.mount(&[]);
    write_noise(&served, 0, 6 << 20, 1);
    let (code, text) = code_and_text(&host.try_backstay(&["cycle", "d"]));
    assert!(code == Some(1) && text.contains("no space left"), "{text}");
    assert!(disk.points().is_empty());
    let health = &disk.status()["health"];
    assert_eq!(health["level"], "warning");
    assert!(health["reason"].as_str().unwrap().contains("space"), "{health}");
    write_noise(&served, 2 << 20, 4096, 2);
    must("mount", ["-o", "remount,size=64m", &vault]);
    disk.cycle();
    assert_eq!(hash(&disk.restore(1, "restored.img")), hash(&served));
    host.backstay(&["verify", "d"]);
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    host.backstay(&["umount", "d"]);
    must("umount", [&vault]);
}

#[test]
fn an_unwritable_vault_needs_a_person() {
    let host = Host::new("readonly");
    let vault = small_vault(&host, "64m");
    let disk = host.disk("d", 4 << 20);
    let served = disk.mount(&[]);
    disk.cycle();
    must("mount", ["-o", "remount,ro", &vault]);
    write_noise(&served, 0, 9_000, 1);
    let (code, text) = code_and_text(&host.try_backstay(&["cycle", "d"]));
    assert!(code == Some(1) && text.contains("permission"), "{text}");
    assert_eq!(disk.status()["health"]["level"], "critical");
    host.backstay(&["verify", "d"]);
    must("mount", ["-o", "remount,rw", &vault]);
    disk.cycle();
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&served));
    host.backstay(&["umount", "d"]);
    must("umount", [&vault]);
}

#[test]
fn damage_in_the_vault_is_found_and_never_written() {
    let host = Host::new("damage");
    let disk = two_points(&host);
    host.backstay(&["verify", "d"]);
    let good = hash(&disk.restore(2, "good.img"));
    assert_eq!(good, hash(&disk.backing), "an odd size comes back whole");
    let segment = object(&host, "/segments/").remove(0);
    let length = fs::metadata(&segment).unwrap().len();
    // Frames, index, footer; the manifest; the disk's record.
    let mut places: Vec<(PathBuf, u64)> =
        [70, length / 2, length - 130, length - 60].map(|at| (segment.clone(), at)).into();
    places.push((object(&host, "/points/").remove(1), 100));
    places.push((object(&host, "disk.json").remove(0), 120));
    for (path, at) in places {
        flip(&path, at);
        let (code, text) = code_and_text(&host.try_backstay(&["verify", "d"]));
        assert_eq!(code, Some(4), "{} at {at}: {text}", path.display());
        let to = host.path("bad.img");
        let to = to.to_str().unwrap();
        let out = host.try_backstay(&["restore", "d", "--point", "2", "--to", to, "--force"]);
        let (code, text) = code_and_text(&out);
        // Every bit of the newest point is behind a checksum, but what it does not need is not read.
        assert_eq!(code, Some(4), "{} at {at}: {text}", path.display());
        flip(&path, at);
    }
    host.backstay(&["verify", "d"]);
    fs::rename(&segment, host.path("away")).unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["verify", "d"]));
    assert!(code == Some(4) || code == Some(1), "{text}");
    assert!(text.contains("not there"), "{text}");
}

#[test]
fn another_version_is_refused_in_words() {
    let host = Host::new("version");
    two_points(&host);
    let point = object(&host, "/points/").remove(1);
    let mut bytes = fs::read(&point).unwrap();
    bytes[8] = 9;
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&point, bytes).unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["points", "d"]));
    assert!(code == Some(4) && text.contains("version 9") && text.contains("newer"), "{text}");
}

#[test]
fn a_vault_that_lost_its_newest_point_needs_a_word() {
    let host = Host::new("lostpoint");
    let disk = two_points(&host);
    fs::remove_file(object(&host, "/points/").remove(1)).unwrap();
    let served = disk.mount(&[]);
    write_noise(&served, 0, 512, 7);
    let (code, text) = code_and_text(&host.try_backstay(&["cycle", "d"]));
    assert!(code == Some(1) && text.contains("--the-disk-is-right"), "{text}");
    assert_eq!(disk.points().len(), 1, "nothing was shipped");
    assert_eq!(disk.status()["health"]["level"], "critical");
    host.backstay(&["resync", "d", "--now", "--the-disk-is-right"]);
    let points = host.json(&["points", "d"]);
    assert_eq!(points[1]["kind"], "resync", "{points}");
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&served));
    host.backstay(&["verify", "d"]);
}

#[test]
fn two_sidecars_on_one_disk() {
    let host = Host::new("two");
    let disk = host.disk("d", 4 << 20);
    disk.mount(&[]);
    let mut first = ControlClient::connect(&disk.control_socket()).unwrap();
    first.ask(&Request::Lease { client: "the first sidecar".into() }).unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["cycle", "d"]));
    assert!(code == Some(3) && text.contains("the first sidecar"), "{text}");
    drop(first);
    disk.cycle();
}

#[test]
fn another_disk_of_the_same_name() {
    let host = Host::new("name");
    let disk = two_points(&host);
    fs::remove_dir_all(host.path("state")).unwrap();
    disk.mount(&[]);
    let (code, text) = code_and_text(&host.try_backstay(&["cycle", "d"]));
    assert!(code == Some(1) && text.contains("another disk"), "{text}");
    host.backstay(&["verify", "d"]);
}

#[test]
fn what_exists_is_not_overwritten() {
    let host = Host::new("overwrite");
    let disk = two_points(&host);
    let there = host.path("there.img");
    fs::write(&there, "precious").unwrap();
    let to = there.to_str().unwrap();
    let (code, text) =
        code_and_text(&host.try_backstay(&["restore", "d", "--point", "latest", "--to", to]));
    assert!(code == Some(3) && text.contains("--force"), "{text}");
    assert_eq!(fs::read(&there).unwrap(), b"precious");
    for point in ["7", "first"] {
        let out = host.try_backstay(&["restore", "d", "--point", point, "--to", to, "--force"]);
        assert!(!out.status.success());
        assert_eq!(fs::read(&there).unwrap(), b"precious");
    }
    // A device: refused without --force, restored with it, old content gone.
    let image = host.path("device.img");
    fs::write(&image, vec![0xEE; 9 << 20]).unwrap();
    let device = must("losetup", ["-f", "--show", image.to_str().unwrap()]);
    let device = device.trim();
    let refused = host.try_backstay(&["restore", "d", "--point", "2", "--to", device]);
    let restored = host.try_backstay(&["restore", "d", "--point", "2", "--to", device, "--force"]);
    run("losetup", ["-d", device]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    assert!(restored.status.success(), "{}", said(&restored));
    let size = fs::metadata(&disk.backing).unwrap().len() as usize;
    assert!(fs::read(&image).unwrap()[..size] == fs::read(&disk.backing).unwrap());
}

/// What is refused before a byte is written says one thing: that nothing was.
#[test]
fn a_restore_that_is_refused_says_what_the_user_named() {
    let host = Host::new("restore-refused");
    two_points(&host);
    let small = host.path("small.img");
    fs::File::create(&small).unwrap().set_len(4 << 20).unwrap();
    let device = must("losetup", ["--find", "--show", small.to_str().unwrap()]);
    let device = device.trim();
    let (code, text) = code_and_text(
        &host.try_backstay(&["restore", "d", "--point", "latest", "--to", device, "--force"]),
    );
    must("losetup", ["-d", device]);
    assert_eq!(code, Some(3), "{text}");
    assert!(
        text.contains("use a larger device. Nothing was written") && !text.contains("may hold"),
        "{text}"
    );
    let to = host.path("back.img");
    let (code, text) = code_and_text(&host.try_backstay(&[
        "restore",
        "d",
        "--point",
        "2020-01-01T00:00:00Z",
        "--to",
        to.to_str().unwrap(),
    ]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("disk d has no recovery point that is not after 2020-01-01"), "{text}");
}

#[test]
fn a_damaged_change_log_means_everything_ships_again() {
    let host = Host::new("changelog");
    let disk = host.disk("d", 8 << 20);
    let served = disk.mount(&[]);
    write_noise(&served, 0, 1 << 20, 1);
    disk.cycle();
    write_noise(&served, 4096, 512, 2);
    disk.kill_driver();
    // The machine "went down": tmpfs is gone, and the intents' header is damaged.
    must("umount", ["-l", served.parent().unwrap().to_str().unwrap()]);
    fs::remove_dir_all(host.runtime.join("d")).unwrap();
    let state = host.path("state").join("d");
    let intents = must("find", [state.to_str().unwrap(), "-name", "intents-*"]);
    flip(Path::new(intents.trim()), 20);
    let served = disk.mount(&[]);
    assert_eq!(disk.status()["found"], "damaged");
    assert_eq!(disk.status()["health"]["level"], "warning");
    disk.cycle();
    assert_eq!(host.json(&["points", "d"])[1]["kind"], "resync");
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&served));
}

#[test]
fn bad_configuration_is_shown_where_it_is() {
    let host = Host::new("config");
    fs::write(host.path("backstay.toml"), "vault = \"/v\"\nintervall = \"5s\"\n").unwrap();
    let (code, text) = code_and_text(&host.try_backstay(&["status"]));
    assert!(code == Some(1) && text.contains("line 2") && text.contains("intervall"), "{text}");
    let output = host.command().arg("--config").arg("/nowhere.toml").arg("status").output();
    assert!(!output.unwrap().status.success());
}

/// `backstay points d | head -0`: no panic, no words.
#[test]
fn output_that_nobody_reads() {
    let host = Host::new("unread");
    let disk = two_points(&host);
    let vault = disk.host.vault();
    for args in [vec!["completions", "bash"], vec!["points", "d", "--vault", &vault]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = host.command().args(&args).stdout(writer).output().unwrap();
        assert_eq!(code_and_text(&output), (Some(141), String::new()), "{args:?}");
    }
}

/// What a restore or an export has not finished is no disk; and a start that fails leaves nothing.
#[test]
fn a_part_of_a_restore_is_no_disk() {
    let host = Host::new("part");
    let part = host.path("x.img.backstay-part");
    fs::File::create(&part).unwrap().set_len(1 << 20).unwrap();
    let link = host.path("x.img");
    std::os::unix::fs::symlink(&part, &link).unwrap();
    for verb in [&["attach"][..], &["mount"], &["mount", "--foreground"]] {
        for file in [&part, &link] {
            let args = [verb, &[file.to_str().unwrap(), "--name", "p"]].concat();
            let output = host.try_backstay(&args);
            let text = said(&output);
            assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
            assert!(text.contains("part of a restore"), "{args:?}: {text}");
            assert!(!host.path("state/p").exists(), "{args:?} left a folder");
            assert!(!host.runtime.join("p").exists(), "{args:?} left a folder");
        }
    }
}

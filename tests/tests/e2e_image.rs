//! Points as images and images as points, as people make them.
//!
//! Needs root, /dev/fuse, qemu-img and qemu-nbd (`scripts/setup test`).

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use backstay_tests::harness::command::{must, run, said};
use backstay_tests::harness::host::hash;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{Disk, Host};

/// Scattered content in a file that stays sparse.
fn scatter(path: &Path, size: u64, blocks: usize, seed: u64) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(size).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..blocks {
        let mut block = vec![0; rng.usize(1..100_000)];
        rng.fill(&mut block);
        let at = rng.u64(..size.saturating_sub(block.len() as u64).max(1));
        let fits = (size - at).min(block.len() as u64) as usize;
        file.write_all_at(&block[..fits], at).unwrap();
    }
    // The last byte counts, too.
    file.write_all_at(&[7], size - 1).unwrap();
}

/// A disk with two points.
fn with_points(host: &Arc<Host>, size: u64) -> Disk {
    let disk = host.disk("db", size);
    scatter(&disk.backing, size, 40, 1);
    let served = disk.mount(&[]);
    disk.cycle();
    scatter(&served, size, 10, 2);
    disk.cycle();
    disk
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn a_point_in_each_format_is_the_point() {
    for size in [24 << 20, (9 << 20) + 777] {
        let host = Host::new("export");
        let disk = with_points(&host, size);
        for point in ["1", "2"] {
            let restored = disk.restore(point.parse().unwrap(), "restored.img");
            let (raw, qcow2) = (text(&host.path("db.raw")), text(&host.path("db.qcow2")));
            host.backstay(&["export", "db", "--point", point, "--to", &raw, "--force"]);
            assert_eq!(hash(Path::new(&raw)), hash(&restored), "raw, point {point} of {size}");
            let said = host.json(&["export", "db", "--point", point, "--to", &qcow2, "--force"]);
            assert_eq!(said["format"], "qcow2");
            must("qemu-img", ["check", "-f", "qcow2", &qcow2]);
            must("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &raw, &qcow2]);

            let mut pipe = host
                .command()
                .args(["export", "db", "--point", point, "--to", "-"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(pipe.stdout.take().unwrap()).unwrap();
            assert!(pipe.wait().unwrap().success());
            assert_eq!(hasher.finalize().to_hex().to_string(), hash(&restored), "pipe");
        }
        assert_eq!(fs::metadata(host.path("db.raw")).unwrap().len(), size);
        let taken = host.try_backstay(&[
            "export",
            "db",
            "--point",
            "2",
            "--to",
            &text(&host.path("db.raw")),
        ]);
        assert_eq!(taken.status.code(), Some(3), "{}", said(&taken));
    }
}

#[test]
fn an_image_becomes_a_disk() {
    let host = Host::new("import");
    let size = (12 << 20) + 1_000;
    let raw = host.path("old.raw");
    scatter(&raw, size, 30, 3);
    let made = host.json(&["import", &text(&raw), "--name", "old"]);
    assert_eq!((&made["cycle"], &made["format"]), (&1.into(), &"raw".into()));
    let old = host.disk("old", 1);
    assert_eq!(hash(&old.restore(1, "old.back")), hash(&raw));
    host.backstay(&["verify", "old"]);

    // The name is taken now, and nothing of the disk changes.
    let again = host.try_backstay(&["import", &text(&raw), "--name", "old"]);
    assert_eq!(again.status.code(), Some(3), "{}", said(&again));
    assert_eq!(old.points().len(), 1);

    // QEMU's disks are whole sectors.
    let qcow2 = host.path("old.qcow2");
    must("qemu-img", ["convert", "-O", "qcow2", &text(&raw), &text(&qcow2)]);
    let made = host.json(&["import", &text(&qcow2), "--name", "new"]);
    assert_eq!(
        (&made["format"], &made["size_bytes"]),
        (&"qcow2".into(), &(size.next_multiple_of(512)).into())
    );
    let back = host.disk("new", 1).restore(1, "new.back");
    must("qemu-img", ["compare", "-f", "raw", "-F", "raw", &text(&raw), &text(&back)]);
    assert!(
        fs::metadata(&back).unwrap().blocks() * 512 < size,
        "what was not there was not shipped"
    );

    // A block device, and one that is in use.
    let device = must("losetup", ["--find", "--show", &text(&qcow2)]).trim().to_owned();
    host.backstay(&["import", &device, "--name", "device", "--format", "raw"]);
    assert_eq!(hash(&host.disk("device", 1).restore(1, "device.back")), hash(&qcow2));
    must("mkfs.ext4", ["-q", &device]);
    let at = host.path("mnt");
    fs::create_dir(&at).unwrap();
    must("mount", [&device, &text(&at)]);
    let busy = host.try_backstay(&["import", &device, "--name", "busy"]);
    must("umount", [&at]);
    must("losetup", ["-d", &device]);
    assert_eq!(busy.status.code(), Some(3), "{}", said(&busy));

    // A file that somebody has open as a disk.
    let device = must("losetup", ["--find", "--show", &text(&raw)]).trim().to_owned();
    let busy = host.try_backstay(&["import", &text(&raw), "--name", "busy"]);
    must("losetup", ["-d", &device]);
    assert_eq!(busy.status.code(), Some(3), "{}", said(&busy));
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw", &text(&raw)])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // When it has read something, it has the image open.
    qemu.stdin.as_mut().unwrap().write_all(b"read 0 512\n").unwrap();
    let mut first = String::new();
    BufReader::new(qemu.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("read 512"), "{first}");
    let busy = host.try_backstay(&["import", &text(&raw), "--name", "busy"]);
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    assert_eq!(busy.status.code(), Some(3), "{}", said(&busy));
    assert!(said(&busy).contains("locked"), "{}", said(&busy));
    host.backstay(&["import", &text(&raw), "--name", "busy"]);

    // An image that would have other files of this host shipped.
    let secret = host.path("secret.qcow2");
    must(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-b", &text(&raw), "-F", "raw", &text(&secret)],
    );
    let refused = host.try_backstay(&["import", &text(&secret), "--name", "secret"]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
}

/// The image that was imported is protected later: nothing proves that it is newer than the point, so a
/// person must say so; then only what differs moves.
#[test]
fn an_imported_image_is_protected_later() {
    let host = Host::new("import-protect");
    let disk = host.disk("old", 8 << 20);
    scatter(&disk.backing, 8 << 20, 30, 4);
    host.backstay(&["import", &text(&disk.backing), "--name", "old"]);
    scatter(&disk.backing, 8 << 20, 1, 5);
    let served = disk.mount(&[]);
    let refused = host.try_backstay(&["cycle", "old"]);
    assert!(said(&refused).contains("--the-disk-is-right"), "{}", said(&refused));
    assert_eq!(disk.points().len(), 1);
    host.backstay(&["resync", "old", "--the-disk-is-right", "--now"]);
    disk.cycle();
    assert_eq!(hash(&disk.restore(2, "old.back")), hash(&served));
    let moved = host.json(&["points", "old"])[1]["moved_bytes"].as_u64().unwrap();
    assert!(moved < 1 << 20, "{moved} bytes moved");
}

#[test]
fn a_terabyte_of_nothing_is_quick() {
    let host = Host::new("sparse");
    let raw = host.path("tib.raw");
    scatter(&raw, 1 << 40, 20, 6);
    let began = Instant::now();
    host.backstay(&["import", &text(&raw), "--name", "tib"]);
    let imported = began.elapsed();
    let (back, qcow2) = (host.path("back.raw"), host.path("back.qcow2"));
    host.backstay(&["export", "tib", "--point", "1", "--to", &text(&back)]);
    let exported = began.elapsed() - imported;
    host.backstay(&["export", "tib", "--point", "1", "--to", &text(&qcow2)]);
    println!("1 TiB: import {imported:?}, raw {exported:?}, all {:?}", began.elapsed());
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    assert_eq!(fs::metadata(&back).unwrap().len(), 1 << 40);
    must("qemu-img", ["compare", "-f", "raw", "-F", "raw", &text(&raw), &text(&back)]);
    must("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", &text(&raw), &text(&qcow2)]);
    host.backstay(&["import", &text(&qcow2), "--name", "again"]);
}

fn segments(host: &Host) -> Vec<std::path::PathBuf> {
    let mut found = vec![];
    for disk in fs::read_dir(host.path("vault/disks")).into_iter().flatten().flatten() {
        for entry in fs::read_dir(disk.path().join("segments")).into_iter().flatten().flatten() {
            let whole = !entry.file_name().to_string_lossy().contains('#');
            found.extend(whole.then(|| entry.path()));
        }
    }
    found
}

#[test]
fn a_damaged_vault_makes_no_image() {
    let host = Host::new("export-damage");
    let disk = with_points(&host, 24 << 20);
    let whole = disk.restore(2, "whole.img");
    let largest = segments(&host).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let largest = largest.unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&largest).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 4], middle).unwrap();
    for to in ["bad.raw", "bad.qcow2"] {
        let to = host.path(to);
        let failed = host.try_backstay(&["export", "db", "--point", "2", "--to", &text(&to)]);
        assert_eq!(failed.status.code(), Some(4), "{}", said(&failed));
        assert!(!to.exists());
    }
    let left: Vec<_> = fs::read_dir(&host.dir)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let piped = host.try_backstay(&["export", "db", "--point", "2", "--to", "-"]);
    assert_eq!(piped.status.code(), Some(4));
    let mut beginning = vec![];
    File::open(whole).unwrap().read_to_end(&mut beginning).unwrap();
    assert!(piped.stdout.len() < beginning.len() && beginning.starts_with(&piped.stdout));
}

#[test]
fn a_full_target_keeps_nothing() {
    let host = Host::new("export-full");
    with_points(&host, 24 << 20);
    let small = host.path("small");
    fs::create_dir(&small).unwrap();
    must("mount", ["-t", "tmpfs", "-o", "size=400k", "none", &text(&small)]);
    for to in ["db.raw", "db.qcow2"] {
        let failed =
            host.try_backstay(&["export", "db", "--point", "1", "--to", &text(&small.join(to))]);
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        assert!(said(&failed).contains("No space"), "{}", said(&failed));
        assert_eq!(fs::read_dir(&small).unwrap().count(), 0, "{to}");
    }
    run("umount", [&small]);
    // A reader that goes away.
    let mut pipe = host
        .command()
        .args(["export", "db", "--point", "1", "--to", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(pipe.stdout.take());
    assert!(!pipe.wait().unwrap().success());
}

#[test]
fn killed_and_run_again() {
    let host = Host::new("image-kill");
    let raw = host.path("old.raw");
    let mut content = vec![0; 24 << 20];
    fastrand::Rng::with_seed(7).fill(&mut content);
    fs::write(&raw, &content).unwrap();
    let config = host.path("backstay.toml");
    let slow = "[throttle]\nlimit = \"4MiB/s\"\n[ship]\nsegment_size = \"1MiB\"\n";
    fs::write(&config, format!("vault = \"{}\"\n{slow}", host.vault())).unwrap();
    for put in [1, 3] {
        let mut import = host.start(&["import", &text(&raw), "--name", "old"]);
        let before = segments(&host).len();
        wait_for("a segment", || segments(&host).len() >= before + put);
        import.kill().unwrap();
        import.wait().unwrap();
        assert_eq!(host.json(&["points", "old"]).as_array().unwrap().len(), 0);
    }
    // Told to end, it takes away what it put.
    let before = segments(&host).len();
    let mut import = host.start(&["import", &text(&raw), "--name", "old"]);
    wait_for("a segment", || segments(&host).len() > before);
    must("kill", ["-TERM", &import.id().to_string()]);
    assert_eq!(import.wait().unwrap().code(), Some(1));
    assert_eq!(segments(&host).len(), before);

    fs::write(&config, format!("vault = \"{}\"\n", host.vault())).unwrap();
    host.backstay(&["import", &text(&raw), "--name", "old"]);
    let disk = host.disk("old", 1);
    assert_eq!(hash(&disk.restore(1, "back.raw")), hash(&raw));
    host.backstay(&["prune", "old"]);
    assert!(segments(&host).len() <= 2, "what killed imports put is collected");
    host.backstay(&["verify", "old"]);

    for name in ["out.raw", "out.qcow2"] {
        let (to, part) = (host.path(name), host.path(&format!("{name}.backstay-part")));
        let mut export = host.start(&["export", "old", "--point", "1", "--to", &text(&to)]);
        wait_for("an image in the making", || part.exists() || to.exists());
        export.kill().unwrap();
        export.wait().unwrap();
        if to.exists() {
            must("qemu-img", ["compare", &text(&to), &text(&raw)]);
        }
        host.backstay(&["export", "old", "--point", "1", "--to", &text(&to), "--force"]);
        must("qemu-img", ["compare", &text(&to), &text(&raw)]);
        assert!(!part.exists());
    }
}

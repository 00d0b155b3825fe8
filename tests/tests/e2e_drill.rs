//! Drills as people and the sidecar make them: on real file systems, with QEMU, killed in the middle.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, xfsprogs, btrfs-progs, partx, qemu-system-x86_64
//! (`scripts/setup test`).

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_tests::harness::command::{must, run, said};
use backstay_tests::harness::postgres;
use backstay_tests::harness::service::{Service, wait_for};
use backstay_tests::harness::{Disk, FsMount, Host};

/// A disk with an ext4 in use at its first point, as after a power loss.
fn with_ext4(host: &Arc<Host>) -> Disk {
    let disk = host.disk("db", 24 << 20);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let mounted = FsMount::new(host, &device, "mnt", "noatime");
    fs::write(mounted.at.join("note"), b"here").unwrap();
    must("sync", ["-f", &mounted.at.to_string_lossy()]);
    disk.cycle();
    disk
}

/// What a drill leaves on its host: nothing but its lock and what it remembers.
fn nothing_left(host: &Host) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&*host.runtime.join(".drills").to_string_lossy()), "{mounts}");
    let loops = run("losetup", ["-l", "-n", "-O", "BACK-FILE"]);
    assert!(!said(&loops).contains(&*host.runtime.join(".drills").to_string_lossy()));
    for dir in [host.runtime.join(".drills"), host.path("state/.drills")] {
        let left: Vec<PathBuf> =
            fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let kept =
            |path: &PathBuf| path.extension().is_some_and(|end| end == "lock" || end == "record");
        assert!(left.iter().all(kept), "{left:?}");
    }
    let held: Vec<String> = host.json(&["holds", "db"])["holds"]
        .as_array()
        .map(|holds| holds.iter().map(ToString::to_string).collect())
        .unwrap_or_default();
    assert!(held.is_empty(), "{held:?}");
}

fn proven(host: &Host, point: usize) -> Vec<String> {
    let points = host.json(&["points", "db"]);
    let proven = points[point]["proven"].as_array().expect("proven").clone();
    proven.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

#[test]
fn file_systems_are_mounted_and_checked() {
    let host = Host::sealed("drill-fsck");
    let disk = with_ext4(&host);
    assert!(proven(&host, 0).is_empty());
    let before = disk.points();
    let verdict = host.json(&["drill", "db"]);
    assert_eq!(
        (&verdict["passed"], &verdict["check"]),
        (&true.into(), &"fsck".into()),
        "{verdict}"
    );
    assert!(verdict["message"].as_str().unwrap().contains("ext4 on the whole disk: mounts, clean"));
    nothing_left(&host);
    assert_eq!(proven(&host, 0), ["mounts"]);
    assert!(host.backstay(&["points", "db"]).contains("mounts "));
    assert_eq!(disk.status()["drill"]["verdict"]["passed"], true);
    assert!(host.backstay(&["status", "db"]).contains("last drill  point 1 fsck passed"));
    assert_eq!(host.json(&["jobs", "db"])[0]["work"], "drill");

    // A point whose file system is broken: the verdict is on that point alone.
    let served = OpenOptions::new().write(true).open(disk.served()).unwrap();
    run("umount", ["-l", &*host.path("mnt").to_string_lossy()]);
    // Its block bitmaps and inodes, not its superblock: it still mounts.
    served.write_all_at(&vec![0xA5; 300 << 10], 200 << 10).unwrap();
    served.sync_all().unwrap();
    disk.cycle();
    let failed = host.try_backstay(&["drill", "db"]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("point 2 failed"), "{}", said(&failed));
    nothing_left(&host);
    assert!(proven(&host, 1).is_empty());
    assert_eq!(proven(&host, 0), ["mounts"]);
    assert!(host.backstay(&["points", "db"]).contains("mounts FAILED"));
    let status = disk.status();
    assert_eq!(status["health"]["level"], "warning", "{status}");
    assert!(status["health"]["reason"].as_str().unwrap().contains("drill of point 2 failed"));
    // The older one passes again, and health with it.
    host.backstay(&["drill", "db", "--point", "1", "--check", "fsck"]);
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    assert_eq!(disk.points().len(), before.len() + 1, "a drill makes no points");

    // Verdicts go with their points.
    host.backstay(&["prune", "db", "--keep", "last 1"]);
    let drills = fs::read_dir(host.path("vault/disks")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_dir(drills.join("drills")).unwrap().count(), 1);
}

#[test]
fn partitions_commands_and_what_cannot_be_tried() {
    let host = Host::new("drill-parts");
    let disk = host.disk("db", 400 << 20);
    let table = host.path("table");
    fs::write(&table, "label: gpt\nsize=32MiB\nsize=320MiB\n").unwrap();
    let image = disk.backing.to_string_lossy().into_owned();
    must("sh", ["-c", &format!("sfdisk -q {image} < {}", table.display())]);
    for (offset, size, mkfs) in [(1, 32, "mkfs.ext4 -q"), (33, 320, "mkfs.xfs -q")] {
        let device = must(
            "losetup",
            [
                "--find",
                "--show",
                &format!("--offset={}", offset << 20),
                &format!("--sizelimit={}", size << 20),
                &image,
            ],
        );
        must("sh", ["-c", &format!("{mkfs} {}", device.trim())]);
        must("losetup", ["-d", device.trim()]);
    }
    disk.mount(&[]);
    disk.cycle();
    let verdict = host.json(&["drill", "db", "--check", "fsck"]);
    let message = verdict["message"].as_str().unwrap();
    assert!(
        message.contains("ext4 on partition 1: mounts")
            && message.contains("xfs on partition 2: mounts")
    );

    let line = "test $BACKSTAY_NAME = db && test $BACKSTAY_POINT = 1 && cmp -n 1048576 \
                $BACKSTAY_DISK $BACKSTAY_DEVICE && echo fine > $BACKSTAY_DEVICE && echo fine";
    let verdict = host.json(&["drill", "db", "--command", line]);
    assert_eq!(verdict["check"], "command");
    assert!(verdict["message"].as_str().unwrap().contains("fine"));
    let late = host.try_backstay(&["drill", "db", "--command", "sleep 1000", "--timeout", "1s"]);
    assert!(said(&late).contains("did not end within 1s"), "{}", said(&late));
    nothing_left(&host);

    // It says nothing of a point that could not be tried.
    let before = host.json(&["points", "db"])[0]["drills"].as_array().unwrap().len();
    let none = host.try_backstay(&["drill", "db", "--point", "7"]);
    assert_eq!(none.status.code(), Some(1));
    let nobody = host.try_backstay(&["drill", "nobody"]);
    assert!(said(&nobody).contains("its state is unknown"), "{}", said(&nobody));
    assert_eq!(host.json(&["points", "db"])[0]["drills"].as_array().unwrap().len(), before);
    nothing_left(&host);
}

/// The kernel takes two file systems of one identity for one. So a btrfs whose disk is in use on this host is
/// checked, and not mounted.
/// The script of docs/howto/postgresql.md, as it stands there: the database runs as its own user, which cannot reach our folders.
#[test]
fn the_drill_of_the_page_about_postgresql_starts_the_database() {
    let host = Host::new("drill-postgresql");
    let disk = host.disk("db", 256 << 20);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let mounted = FsMount::new(&host, &device, "mnt", "noatime");
    let data = mounted.at.join("15/main");
    fs::create_dir(mounted.at.join("15")).unwrap();
    postgres::init(&data);
    // As on Debian, which keeps them elsewhere.
    for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::remove_file(data.join(file)).unwrap();
    }
    must("sync", ["-f", &mounted.at.to_string_lossy()]);
    disk.cycle();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(page.join("docs/howto/postgresql.md")).unwrap();
    let script = page.split("```\n").find(|part| part.starts_with("#!/bin/sh")).expect("a script");
    let bin = postgres::bin("pg_ctl");
    let script = script.replace("/usr/lib/postgresql/15/bin", bin.trim_end_matches("/pg_ctl"));
    let path = host.path("drill-postgresql");
    fs::write(&path, script).unwrap();
    must("chmod", ["0755", &path.to_string_lossy()]);
    let verdict =
        host.json(&["drill", "db", "--timeout", "5m", "--command", &path.to_string_lossy()]);
    assert_eq!(verdict["passed"], true, "{verdict}");
    assert!(verdict["message"].as_str().unwrap().contains("databases: 3"), "{verdict}");
    nothing_left(&host);
}

#[test]
fn a_btrfs_is_checked_and_mounted_unless_its_twin_is_here() {
    let host = Host::new("drill-btrfs");
    let disk = host.disk("db", 160 << 20);
    let device = disk.attach();
    must("mkfs.btrfs", ["-q", &device]);
    let mounted = FsMount::new(&host, &device, "mnt", "noatime");
    fs::write(mounted.at.join("note"), b"here").unwrap();
    must("sync", ["-f", &mounted.at.to_string_lossy()]);
    disk.cycle();
    let drill = || {
        let said = host.try_backstay(&["--json", "drill", "db", "--check", "fsck"]);
        let verdict: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
        nothing_left(&host);
        (verdict["passed"] == true, verdict["message"].as_str().unwrap().to_owned())
    };
    let (passed, message) = drill();
    assert!(
        passed && message.contains("not mounted, as its twin is on this host, clean"),
        "{message}"
    );
    drop(mounted);
    must("losetup", ["-d", &device]);
    let (passed, message) = drill();
    assert!(passed && message.contains("btrfs on the whole disk: mounts, clean"), "{message}");
    // All but its superblocks is gone.
    let served = OpenOptions::new().write(true).open(disk.served()).unwrap();
    for (from, to) in [(1_u64, 60_u64), (66, 159)] {
        served.write_all_at(&vec![0xA5; ((to - from) << 20) as usize], from << 20).unwrap();
    }
    served.sync_all().unwrap();
    disk.cycle();
    let (passed, message) = drill();
    assert!(!passed && message.contains("btrfs on the whole disk: it does not mount"), "{message}");
}

/// A boot sector that writes to the serial port: what a machine needs least.
fn boot_sector(says: &str) -> Vec<u8> {
    let code = [
        0x31, 0xC0, 0x8E, 0xD8, 0xBE, 0x15, 0x7C, 0xAC, 0x08, 0xC0, 0x74, 0x06, 0xBA, 0xF8, 0x03,
        0xEE, 0xEB, 0xF5, 0xF4, 0xEB, 0xFD,
    ];
    let mut sector = [&code[..], says.as_bytes(), &[0]].concat();
    sector.resize(510, 0);
    sector.extend([0x55, 0xAA]);
    sector
}

#[test]
fn a_machine_boots_from_a_point() {
    let host = Host::new("drill-boot");
    let disk = host.disk("db", 8 << 20);
    let served = disk.mount(&[]);
    let file = OpenOptions::new().write(true).open(&served).unwrap();
    file.write_all_at(&boot_sector("the system is up\r\n"), 0).unwrap();
    file.sync_all().unwrap();
    disk.cycle();
    let boot = ["drill", "db", "--boot", "--memory", "64MiB", "--timeout", "60s", "--expect"];
    let verdict = host.json(&[&boot[..], &["system is up"]].concat());
    assert_eq!(
        (&verdict["passed"], &verdict["check"]),
        (&true.into(), &"boot".into()),
        "{verdict}"
    );
    assert_eq!(proven(&host, 0), ["boots"]);
    let boot = ["drill", "db", "--boot", "--memory", "64MiB", "--timeout", "4s", "--expect"];
    let failed = host.try_backstay(&[&boot[..], &["login:"]].concat());
    assert_eq!(failed.status.code(), Some(1));
    assert!(said(&failed).contains("the system is up"), "what it did say: {}", said(&failed));
    assert!(proven(&host, 0).is_empty(), "the last verdict counts");
    nothing_left(&host);
    // Linux, from a point of an imported image.
    let image = backstay_tests::harness::guest::image();
    host.backstay(&["import", &image.to_string_lossy(), "--name", "guest"]);
    let boot = ["drill", "guest", "--boot", "--expect", "GUEST booted", "--timeout", "3m"];
    assert_eq!(host.json(&boot)["passed"], true);
    host.backstay(&["drill", "guest", "--check", "fsck"]);
    assert_eq!(
        host.json(&["points", "guest"])[0]["proven"],
        serde_json::json!(["boots", "mounts"])
    );
}

#[test]
fn killed_drills_are_cleaned_up_by_the_next() {
    let host = Host::sealed("drill-kill");
    with_ext4(&host);
    let mark = host.path("begun");
    let line =
        format!("mount $BACKSTAY_DEVICE $BACKSTAY_WORK; touch {}; sleep 1000", mark.display());
    let mut drill = host.start(&["drill", "db", "--command", &line]);
    wait_for("the check", || mark.exists());
    let busy = host.try_backstay(&["drill", "db"]);
    assert_eq!(busy.status.code(), Some(3), "{}", said(&busy));
    drill.kill().unwrap();
    drill.wait().unwrap();
    host.backstay(&["drill", "db"]);
    nothing_left(&host);
    let jobs = host.json(&["jobs", "db"]);
    assert!(jobs.as_array().unwrap().iter().any(|job| job["state"] == "interrupted"), "{jobs}");

    // Told to end, it cleans up by itself, and has no verdict.
    fs::remove_file(&mark).unwrap();
    let line = format!("touch {}; sleep 1000", mark.display());
    let mut drill = host.start(&["drill", "db", "--command", &line]);
    wait_for("the check", || mark.exists());
    must("kill", ["-TERM", &drill.id().to_string()]);
    assert_eq!(drill.wait().unwrap().code(), Some(1));
    nothing_left(&host);
    assert_eq!(host.json(&["points", "db"])[0]["drills"].as_array().unwrap().len(), 1);
    // The children of killed drills are not ours to find by name: end what we started.
    end_sleepers(&mark);
}

fn end_sleepers(mark: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&*mark.to_string_lossy()) {
            run("kill", ["-9", &*entry.file_name().to_string_lossy()]);
        }
    }
}

#[test]
fn the_sidecar_drills_by_itself() {
    let host = Host::new("drill-sidecar");
    let disk = with_ext4(&host);
    let config = host.path("backstay.toml");
    let drill = "drill = { every = \"1h\", check = \"fsck\" }";
    fs::write(
        &config,
        format!(
            "vault = \"{}\"\nallow_local_vault = true\ninterval = \"1h\"\n{drill}\n",
            host.vault()
        ),
    )
    .unwrap();
    let service = Service::start(&host);
    wait_for("a drill", || disk.status()["drill"]["verdict"]["passed"] == true);
    assert_eq!(proven(&host, 0), ["mounts"]);
    // Due every so often from then on, and told when it fails.
    let drill = "drill = { every = \"1s\", check = \"command\", command = \"exit 5\" }";
    fs::write(
        &config,
        format!(
            "vault = \"{}\"\nallow_local_vault = true\ninterval = \"1h\"\n{drill}\n",
            host.vault()
        ),
    )
    .unwrap();
    wait_for("a drill that fails", || disk.status()["health"]["level"] == "warning");
    assert!(disk.status()["health"]["reason"].as_str().unwrap().contains("exit status: 5"));
    let jobs = host.json(&["jobs", "db"]);
    assert!(jobs.as_array().unwrap().iter().any(|job| job["work"] == "drill"), "{jobs}");
    drop(service);
    nothing_left(&host);
    // What a timer does where the sidecar may not mount.
    fs::write(
        &config,
        format!(
            "vault = \"{}\"\nallow_local_vault = true\n{}\n",
            host.vault(),
            drill.replace("5", "0")
        ),
    )
    .unwrap();
    wait_for("a drill that is due", || {
        host.backstay(&["drill", "--due"]);
        disk.status()["drill"]["verdict"]["passed"] == true
    });
    nothing_left(&host);
}

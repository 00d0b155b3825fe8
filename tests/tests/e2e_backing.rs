//! The points are of the disk that is served, and of nothing else: what happens to a backing behind its
//! driver, and who else may stand on its bytes.
//!
//! Needs root, /dev/fuse, loop devices.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::{Disk, hash};
use backstay_tests::harness::{FsMount, Host, must, run};

const MIB: u64 = 1 << 20;

fn write(path: &Path, byte: u8, at: u64, len: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![byte; len], at).unwrap();
    file.sync_all().unwrap();
}

fn resize(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

/// A loop device of the test; detached when dropped.
struct Loop(String);

impl Loop {
    fn new(more: &[&str], file: &Path) -> Self {
        let file = file.to_str().unwrap();
        let device = must("losetup", [&["--find", "--show"], more, &[file]].concat());
        Self(device.trim().to_owned())
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // Partitions that were added by hand do not go with the file.
        run("partx", ["--delete", &self.0]);
        run("losetup", ["-d", &self.0]);
    }
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

/// Nothing may call the disk well, and each place names the cause.
#[track_caller]
fn seen(disk: &Disk, kind: &str, word: &str) {
    let (host, name) = (&disk.host, disk.name.as_str());
    let status = disk.status();
    assert_eq!(status["health"]["level"], "critical", "{status}");
    assert_eq!(status["driver"]["backing_fault"]["kind"], kind, "{status}");
    assert!(status["health"]["reason"].as_str().unwrap().contains(word), "{status}");
    let cycle = host.try_backstay(&["cycle", name]);
    assert_ne!(cycle.status.code(), Some(0), "{}", said(&cycle));
    assert!(said(&cycle).contains(word), "{}", said(&cycle));
    // The cycle failed for what is told already: it is not told twice.
    let status = said(&host.try_backstay(&["status", name]));
    assert_eq!(status.matches(word).count(), 1, "{status}");
    let doctor = host.try_backstay(&["doctor", name]);
    assert_ne!(doctor.status.code(), Some(0), "{}", said(&doctor));
    assert!(said(&doctor).contains(word), "{}", said(&doctor));
}

#[test]
fn no_point_is_made_of_a_backing_that_was_replaced_or_moved() {
    let host = Host::new("replaced");
    let disk = host.disk("d", 8 * MIB);
    let served = disk.mount(&[]);
    write(&served, 1, 0, 4096);
    disk.cycle();
    let (new, aside) = (host.path("new.img"), host.path("aside.img"));
    File::create(&new).unwrap().set_len(8 * MIB).unwrap();
    // As rsync, qemu-img convert && mv, and export --force do.
    fs::rename(&disk.backing, &aside).unwrap();
    seen(&disk, "moved", "moved away");
    fs::rename(&new, &disk.backing).unwrap();
    write(&served, 2, MIB, 4096);
    seen(&disk, "replaced", "was replaced");
    assert_eq!(disk.points().len(), 1);
    // The right file is back: what was written meanwhile is in it, and in the next point.
    fs::rename(&aside, &disk.backing).unwrap();
    host.backstay(&["cycle", "d"]);
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&served));
}

#[test]
fn no_point_is_made_of_a_backing_that_was_deleted_or_changed_its_length() {
    let host = Host::new("shortened");
    let disk = host.disk("d", 8 * MIB);
    let served = disk.mount(&[]);
    write(&served, 1, 0, 8 * MIB as usize);
    disk.cycle();
    for bytes in [4 * MIB, 0] {
        resize(&disk.backing, bytes);
        seen(&disk, "shortened", "was shortened");
    }
    resize(&disk.backing, 9 * MIB);
    seen(&disk, "grown", "was extended");
    resize(&disk.backing, 8 * MIB);
    // It has its length again and not its bytes: no bitmap knows of that.
    assert_eq!(disk.status()["driver"]["resync"], "backing-changed");
    host.backstay(&["cycle", "d"]);
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&disk.backing));
    fs::remove_file(&disk.backing).unwrap();
    seen(&disk, "deleted", "was deleted");
    // The driver has the last way to these bytes.
    for verb in ["umount", "detach"] {
        refused(&host.try_backstay(&[verb, "d"]), &["was deleted", "copy the disk", "--force"]);
    }
    let copy = host.path("copy.img");
    fs::copy(&served, &copy).unwrap();
    host.backstay(&["umount", "d", "--force"]);
    assert!(disk.driver_pid().is_none() && copy.metadata().unwrap().len() == 8 * MIB);
}

#[test]
fn a_second_driver_on_the_same_bytes_is_refused_whatever_way_it_comes() {
    let host = Host::new("ways");
    // Another state and another runtime directory, as of another installation or a test of it.
    let stranger = Host::new("stranger");
    let disk = host.disk("d", 8 * MIB);
    let served = disk.mount(&[]);
    let other = |path: &Path| {
        let path = path.to_str().unwrap();
        stranger.try_backstay(&["mount", path, "--name", "e"])
    };
    let looped = Loop::new(&[], &disk.backing);
    refused(&other(looped.path()), &["in use"]);
    drop(looped);
    let part = Loop::new(&["--offset", "1048576", "--sizelimit", "1048576"], &disk.backing);
    refused(&other(part.path()), &["in use"]);
    drop(part);
    let link = host.path("link.img");
    fs::hard_link(&disk.backing, &link).unwrap();
    refused(&other(&link), &["in use"]);
    let bound = host.path("bound.img");
    File::create(&bound).unwrap();
    must("mount", ["--bind", disk.backing.to_str().unwrap(), bound.to_str().unwrap()]);
    refused(&other(&bound), &["in use"]);
    must("umount", [&bound]);
    refused(&other(&served), &["is served at"]);
    let device = Loop::new(&[], &served);
    refused(&other(device.path()), &["is served at"]);
    drop(device);
    host.backstay(&["umount", "d"]);
    // Free again; and the first one is refused as the second was.
    let looped = Loop::new(&[], &disk.backing);
    stranger.backstay(&["mount", &looped.0, "--name", "e"]);
    let back = host.try_backstay(&["mount", disk.backing.to_str().unwrap(), "--name", "d"]);
    refused(&back, &[]);
    stranger.backstay(&["umount", "e"]);
}

/// Gives a file an MBR: one partition of 4 MiB from 1 MiB on, one from 5 MiB on.
fn partitioned(path: &Path) {
    let mut table = [0u8; 512];
    for (entry, start) in [(446, 2048u32), (462, 10240)] {
        table[entry + 4] = 0x83;
        table[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        table[entry + 12..entry + 16].copy_from_slice(&8192u32.to_le_bytes());
    }
    table[510..].copy_from_slice(&[0x55, 0xAA]);
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(&table, 0).unwrap();
}

#[test]
fn partitions_are_parts_of_their_disk_and_not_of_each_other() {
    let host = Host::new("partitions");
    let file = host.disk("one", 16 * MIB).backing.clone();
    host.disk("two", MIB);
    partitioned(&file);
    // Not every kernel reads partition tables itself.
    let parted = || {
        let device = Loop::new(&[], &file);
        must("partx", ["--add", &device.0]);
        device
    };
    let device = parted();
    let part = |n: u8| format!("{}p{n}", device.0);
    host.backstay(&["mount", &part(1), "--name", "one"]);
    host.backstay(&["mount", &part(2), "--name", "two"]);
    let whole = host.try_backstay(&["mount", &device.0, "--name", "whole"]);
    refused(&whole, &["in use"]);
    let again = parted();
    let same = host.try_backstay(&["mount", &format!("{}p1", again.0), "--name", "same"]);
    refused(&same, &[]);
    host.backstay(&["umount", "one"]);
    host.backstay(&["umount", "two"]);
}

#[test]
fn attach_gives_the_device_that_is_there() {
    let host = Host::new("twice");
    let disk = host.disk("db", 16 * MIB);
    let first = disk.attach();
    assert_eq!(disk.attach(), first);
    let more: Vec<_> = (0..3).map(|_| host.start(&["attach", "--name", "db"])).collect();
    for mut child in more {
        assert!(child.wait().unwrap().success());
    }
    let all = run("losetup", ["-n", "-O", "NAME", "-j", disk.served().to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&all.stdout).trim(), first);
    host.backstay(&["detach", "db"]);
}

#[test]
fn the_loop_device_has_the_backings_sectors_and_partitions() {
    let host = Host::new("sectors");
    let disk = host.disk("d", 16 * MIB);
    let native = Loop::new(&["--sector-size", "4096"], &disk.backing);
    let device = host.backstay(&["attach", &native.0, "--name", "d"]);
    let device = device.trim();
    assert_eq!(must("blockdev", ["--getss", device]).trim(), "4096");
    host.backstay(&["detach", "d"]);
    drop(native);
    // A file says what it must be addressed in by its partition table.
    let file = host.disk("p", 16 * MIB);
    let table = OpenOptions::new().write(true).open(&file.backing).unwrap();
    table.write_all_at(b"EFI PART", 4096).unwrap();
    drop(table);
    let device = file.attach();
    assert_eq!(must("blockdev", ["--getss", &device]).trim(), "4096");
    let scans = device.replace("/dev/", "/sys/block/") + "/loop/partscan";
    assert_eq!(fs::read_to_string(scans).unwrap().trim(), "1");
    host.backstay(&["detach", "p"]);
}

#[test]
fn an_image_of_another_format_is_no_disk() {
    let host = Host::new("image");
    let disk = host.disk("d", 8 * MIB);
    write(&disk.backing, b'Q', 0, 1);
    write(&disk.backing, 0, 0, 4);
    let put = |bytes: &[u8]| {
        let file = OpenOptions::new().write(true).open(&disk.backing).unwrap();
        file.write_all_at(bytes, 0).unwrap();
    };
    put(b"QFI\xfb");
    let backing = disk.backing.to_str().unwrap();
    refused(&host.try_backstay(&["mount", backing, "--name", "d"]), &["qcow2", "backstay import"]);
    refused(&host.try_backstay(&["protect", backing, "--name", "d"]), &["qcow2"]);
    put(&[0; 4]);
    let served = disk.mount(&[]);
    // What a guest writes never keeps its disk from being served.
    OpenOptions::new().write(true).open(&served).unwrap().write_all_at(b"QFI\xfb", 0).unwrap();
    host.backstay(&["umount", "d"]);
    disk.mount(&[]);
}

#[test]
fn a_path_that_is_no_text_is_refused_before_anything_is_started() {
    let host = Host::new("text");
    let folder = host.path("plain").with_file_name(OsStr::from_bytes(b"caf\xe9"));
    fs::create_dir(&folder).unwrap();
    let path = folder.join("d.img");
    File::create(&path).unwrap().set_len(8 * MIB).unwrap();
    let mut command = host.command();
    let output = command.arg("mount").arg(&path).args(["--name", "d"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("UTF-8"), "{}", said(&output));
    let link = host.path("link.img");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let output = host.try_backstay(&["mount", link.to_str().unwrap(), "--name", "d"]);
    assert!(!output.status.success() && said(&output).contains("UTF-8"), "{}", said(&output));
    assert!(!host.path("state").join("d").join("super").exists());
    assert!(host.json(&["status"]).as_array().is_none_or(Vec::is_empty));
}

/// A disk on a loop device, which is a block device that Backstay knows as such.
struct OnDevice {
    host: Arc<Host>,
    disk: Disk,
    device: Loop,
}

impl OnDevice {
    fn new(test: &str) -> Self {
        let host = Host::new(test);
        let disk = host.disk("d", 64 * MIB);
        let device = Loop::new(&[], &disk.backing);
        Self { host, disk, device }
    }

    fn attach(&self, more: &[&str]) -> String {
        let args = [&["attach", &self.device.0, "--name", "d"], more].concat();
        self.host.backstay(&args).trim().to_owned()
    }

    /// A point of it, made by a cycle, is the disk.
    #[track_caller]
    fn point_is_the_disk(&self, cycle: u64) {
        self.host.backstay(&["cycle", "d"]);
        let restored = self.disk.restore(cycle, "restored.img");
        assert_eq!(hash(&restored), hash(self.device.path()));
    }
}

#[test]
fn a_device_that_was_written_while_nobody_served_it_is_compared() {
    let on = OnDevice::new("unserved");
    let device = on.attach(&[]);
    must("mkfs.ext4", ["-q", &device]);
    on.host.backstay(&["cycle", "d"]);
    on.host.backstay(&["detach", "d"]);
    // As an old line of fstab does.
    let mounted = FsMount::new(&on.host, &on.device.0, "mnt", "rw");
    fs::write(mounted.at.join("file"), vec![7; 3 << 20]).unwrap();
    drop(mounted);
    on.attach(&[]);
    let status = on.disk.status();
    assert_eq!(status["driver"]["resync"], "backing-changed", "{status}");
    on.point_is_the_disk(2);
    on.host.backstay(&["detach", "d"]);
    on.attach(&[]);
    assert_eq!(on.disk.status()["driver"]["resync"], serde_json::Value::Null, "as it was left");
    on.host.backstay(&["detach", "d"]);
}

/// The kernel's counters are of one attachment of the device: another one starts from zero.
#[test]
fn a_device_that_went_and_came_back_is_told_by_its_content() {
    let mut on = OnDevice::new("content");
    let device = on.attach(&[]);
    must("mkfs.ext4", ["-q", &device]);
    on.host.backstay(&["cycle", "d"]);
    on.host.backstay(&["detach", "d"]);
    let again = |on: &mut OnDevice| {
        must("losetup", ["-d", &on.device.0]);
        must("losetup", [&on.device.0, on.disk.backing.to_str().unwrap()]);
    };
    again(&mut on);
    on.attach(&[]);
    assert_eq!(on.disk.status()["driver"]["resync"], serde_json::Value::Null);
    on.host.backstay(&["detach", "d"]);
    let mounted = FsMount::new(&on.host, &on.device.0, "mnt", "rw");
    fs::write(mounted.at.join("file"), b"a few bytes").unwrap();
    drop(mounted);
    again(&mut on);
    on.attach(&[]);
    assert_eq!(on.disk.status()["driver"]["resync"], "backing-changed");
    on.point_is_the_disk(2);
    on.host.backstay(&["detach", "d"]);
}

#[test]
fn a_file_whose_time_was_set_back_is_compared_and_a_comparison_can_be_asked_for() {
    let host = Host::new("setback");
    let disk = host.disk("d", 8 * MIB);
    let served = disk.mount(&[]);
    write(&served, 1, 0, 4096);
    disk.cycle();
    host.backstay(&["umount", "d"]);
    disk.mount(&[]);
    assert_eq!(disk.status()["driver"]["resync"], serde_json::Value::Null);
    host.backstay(&["umount", "d"]);
    // As rsync --inplace --times does.
    let before = fs::metadata(&disk.backing).unwrap().modified().unwrap();
    write(&disk.backing, 2, 5 * MIB, 4096);
    let file = OpenOptions::new().write(true).open(&disk.backing).unwrap();
    file.set_modified(before).unwrap();
    drop(file);
    disk.mount(&[]);
    assert_eq!(disk.status()["driver"]["resync"], "backing-changed");
    disk.cycle();
    assert_eq!(hash(&disk.restore(2, "restored.img")), hash(&disk.backing));
    host.backstay(&["umount", "d"]);
    disk.mount(&["--compare"]);
    assert_eq!(disk.status()["driver"]["resync"], "backing-changed");
    disk.cycle();
    assert_eq!(disk.points().len(), 3);
    let _: PathBuf = served;
}

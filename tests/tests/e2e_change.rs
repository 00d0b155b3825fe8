//! Disks change: grown, renamed, moved to another backing; every point of before and after restores
//! byte for byte, and nothing ships that need not.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, xfsprogs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::{Disk, FsMount, Host, must};

const MIB: u64 = 1 << 20;

/// Exit code of what is refused to stay safe.
const REFUSED: i32 = 3;

fn noise(path: &Path, seed: u64, mib: u64) {
    let mut bytes = vec![0; (mib * MIB) as usize];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Makes a point of a mounted file system; its cycle and the disk's content at its cut.
fn frozen_point(disk: &Disk, mounted: &FsMount) -> (u64, String) {
    must("fsfreeze", ["-f", &mounted.at.to_string_lossy()]);
    let content = hash(&disk.backing);
    let cycled = disk.host.try_backstay(&["cycle", &disk.name]);
    must("fsfreeze", ["-u", &mounted.at.to_string_lossy()]);
    assert!(cycled.status.success(), "{}", said(&cycled));
    (disk.points().last().unwrap().cycle, content)
}

fn must_restore(disk: &Disk, points: &[(u64, String)]) {
    disk.host.backstay(&["verify", &disk.name]);
    for (cycle, content) in points {
        let image = disk.restore(*cycle, "restored.img");
        assert_eq!(&hash(&image), content, "point {cycle}");
        fs::remove_file(image).unwrap();
    }
}

fn refused(disk: &Disk, args: &[&str], says: &str) {
    let output = disk.host.try_backstay(args);
    assert_eq!(output.status.code(), Some(REFUSED), "{args:?}: {}", said(&output));
    assert!(said(&output).contains(says), "{args:?}: {}", said(&output));
}

fn point(disk: &Disk, cycle: u64) -> serde_json::Value {
    let points = disk.host.json(&["points", &disk.name]);
    let all = points.as_array().unwrap();
    all.iter().find(|point| point["cycle"].as_u64() == Some(cycle)).expect("the point").clone()
}

/// A disk with one point, stopped, with exactly these bytes dirty.
fn stopped(host: &Arc<Host>, name: &str, size: u64) -> (Disk, (u64, String)) {
    let disk = host.disk(name, size);
    let served = disk.mount(&[]);
    let file = OpenOptions::new().write(true).open(&served).unwrap();
    file.write_all_at(&vec![7; 3 << 20], 5 << 20).unwrap();
    file.sync_all().unwrap();
    let content = hash(&disk.backing);
    disk.cycle();
    let point = (disk.points()[0].cycle, content);
    file.write_all_at(&[8; 8192], 64 << 10).unwrap();
    file.sync_all().unwrap();
    drop(file);
    host.backstay(&["umount", &disk.name]);
    (disk, point)
}

/// After the disk was changed: not one sector more or less than before is dirty, and the next cycle is
/// a delta of just these.
fn only_what_was_dirty_ships(disk: &Disk, dirty: u64) -> (u64, String) {
    let status = disk.status();
    assert_eq!(status["dirty"].as_u64(), Some(dirty), "{status}");
    assert_eq!(status["driver"]["found"], "clean", "{status}");
    let content = hash(&disk.backing);
    disk.cycle();
    let newest = disk.points().last().unwrap().cycle;
    let listed = point(disk, newest);
    assert_eq!(listed["kind"], "delta");
    assert_eq!(listed["moved_bytes"].as_u64(), Some(dirty), "{listed}");
    (newest, content)
}

/// XFS grows while it is mounted; ext4 may not do that here (it takes CAP_SYS_RESOURCE, which
/// containers lack), so it is taken down for it, with its disk in use all the same.
#[test]
fn xfs_grows_with_its_disk() {
    a_file_system_grows_with_its_disk("xfs", &["mkfs.xfs", "-q"], &["xfs_repair", "-n"]);
}

#[test]
fn ext4_grows_with_its_disk() {
    a_file_system_grows_with_its_disk("ext4", &["mkfs.ext4", "-q"], &["e2fsck", "-fn"]);
}

fn a_file_system_grows_with_its_disk(fs_type: &str, mkfs: &[&str], fsck: &[&str]) {
    let host = Host::new("grow");
    let disk = host.disk("data", 320 * MIB);
    let device = disk.attach();
    must(mkfs[0], mkfs[1..].iter().copied().chain([device.as_str()]));
    let mut mounted = FsMount::new(&host, &device, "mnt", "rw");
    noise(&mounted.at.join("before"), 1, 20);
    let mut points = vec![frozen_point(&disk, &mounted)];

    // While it is written to, and again while the driver has been killed since.
    for (round, mib) in [(1, 400), (2, 500)] {
        let writer = Writer::start(&mounted.at.join("busy"));
        host.backstay(&["grow", &disk.name, "--size", &format!("{mib}MiB")]);
        drop(writer);
        assert_eq!(fs::metadata(&disk.backing).unwrap().len(), mib * MIB);
        assert_eq!(must("blockdev", ["--getsize64", &device]).trim(), (mib * MIB).to_string());
        if fs_type == "xfs" {
            must("xfs_growfs", [&mounted.at]);
        } else {
            drop(mounted);
            must("e2fsck", ["-fp", &device]);
            must("resize2fs", [&device]);
            mounted = FsMount::new(&host, &device, "mnt", "rw");
        }
        let room = must("df", ["--output=size", "-B1", &mounted.at.to_string_lossy()]);
        let room: u64 = room.lines().last().unwrap().trim().parse().unwrap();
        assert!(room > (mib - 80) * MIB, "the file system has {room} bytes");
        noise(&mounted.at.join(format!("after{round}")), round, 40);
        points.push(frozen_point(&disk, &mounted));
        let newest = point(&disk, points.last().unwrap().0);
        assert_eq!(newest["kind"], "delta");
        assert_eq!(newest["size_bytes"].as_u64(), Some(mib * MIB));
    }
    let again = host.json(&["grow", &disk.name, "--size", "500MiB"]);
    assert_eq!(again["from_bytes"], again["size_bytes"], "there is nothing to do");
    let output = host.try_backstay(&["grow", &disk.name, "--size", "100MiB"]);
    assert!(
        !output.status.success() && said(&output).contains("never shrinks"),
        "{}",
        said(&output)
    );
    drop(mounted);
    host.backstay(&["detach", &disk.name]);
    assert_eq!(point(&disk, points[0].0)["size_bytes"].as_u64(), Some(320 * MIB));
    must_restore(&disk, &points);
    let image = disk.restore(points.last().unwrap().0, "restored.img");
    // The frozen file system still has its journal to replay.
    drop(FsMount::new(&host, &image.to_string_lossy(), "restored", "loop"));
    let path = image.to_string_lossy();
    must(fsck[0], fsck[1..].iter().copied().chain([path.as_ref()]));
}

/// What a sparse disk grew by is a hole: it ships as zeroes, without being read, but for what was
/// written there since.
#[test]
fn a_sparse_disk_grows_by_much() {
    let host = Host::new("growmuch");
    let (disk, first) = stopped(&host, "data", 64 * MIB);
    let served = disk.mount(&[]);
    let size = 4096 * MIB;
    host.backstay(&["grow", &disk.name, "--size", "4GiB"]);
    let file = OpenOptions::new().write(true).open(&served).unwrap();
    for at in [64 * MIB - 512, 1000 * MIB, size - 4096] {
        file.write_all_at(&[at as u8 | 1; 4096], at.min(size - 4096)).unwrap();
    }
    file.sync_all().unwrap();
    let content = hash(&disk.backing);
    disk.cycle();
    let newest = disk.points().last().unwrap().cycle;
    let listed = point(&disk, newest);
    assert_eq!(listed["kind"], "delta");
    assert!(listed["moved_bytes"].as_u64().unwrap() >= size - 64 * MIB, "{listed}");
    assert!(listed["stored_bytes"].as_u64().unwrap() < MIB, "{listed}");
    assert!(fs::metadata(&disk.backing).unwrap().blocks() * 512 < 6 * MIB);
    must_restore(&disk, &[first, (newest, content)]);
}

/// A driver that is killed right after a growth comes back with the new size.
#[test]
fn a_growth_outlives_the_driver() {
    let host = Host::new("growkill");
    let (disk, first) = stopped(&host, "data", 64 * MIB);
    disk.mount(&[]);
    host.backstay(&["grow", &disk.name, "--size", "96MiB"]);
    disk.kill_driver();
    let served = disk.mount(&[]);
    assert_eq!(fs::metadata(&served).unwrap().len(), 96 * MIB);
    let file = OpenOptions::new().write(true).open(&served).unwrap();
    file.write_all_at(&[9; 4096], 96 * MIB - 4096).unwrap();
    file.sync_all().unwrap();
    let content = hash(&disk.backing);
    disk.cycle();
    let newest = disk.points().last().unwrap().cycle;
    assert_eq!(point(&disk, newest)["kind"], "delta");
    must_restore(&disk, &[first, (newest, content)]);
}

#[test]
fn a_device_that_was_extended_is_noticed() {
    let host = Host::new("growdev");
    let backing = host.path("device.img");
    File::create(&backing).unwrap().set_len(32 * MIB).unwrap();
    let under = must("losetup", ["--find", "--show", &backing.to_string_lossy()]);
    let under = under.trim().to_owned();
    let undo = Detach(under.clone());
    let disk = Disk { backing: under.clone().into(), ..host.disk("data", 512) };
    let served = disk.mount(&[]);
    disk.cycle();
    let output = host.try_backstay(&["grow", &disk.name, "--size", "48MiB"]);
    assert!(
        !output.status.success() && said(&output).contains("extend it first"),
        "{}",
        said(&output)
    );
    OpenOptions::new().write(true).open(&backing).unwrap().set_len(48 * MIB).unwrap();
    must("losetup", ["--set-capacity", &under]);
    assert_eq!(fs::metadata(&served).unwrap().len(), 32 * MIB, "not before it is told");
    host.backstay(&["grow", &disk.name]);
    assert_eq!(fs::metadata(&served).unwrap().len(), 48 * MIB);
    disk.cycle();

    // And offline: only when told to.
    host.backstay(&["umount", &disk.name]);
    OpenOptions::new().write(true).open(&backing).unwrap().set_len(50 * MIB).unwrap();
    must("losetup", ["--set-capacity", &under]);
    let output = host.try_backstay(&["mount", &under, "--name", &disk.name]);
    assert!(!output.status.success() && said(&output).contains("--grow"), "{}", said(&output));
    let served = disk.mount(&["--grow"]);
    assert_eq!(fs::metadata(&served).unwrap().len(), 50 * MIB);
    assert_eq!(disk.status()["dirty"].as_u64(), Some(2 * MIB));
    disk.cycle();
    let sizes: Vec<_> = disk
        .points()
        .iter()
        .map(|one| {
            (point(&disk, one.cycle)["size_bytes"].clone(), point(&disk, one.cycle)["kind"].clone())
        })
        .collect();
    let expected = [(32, "initial"), (48, "delta"), (50, "delta")];
    assert_eq!(sizes, expected.map(|(mib, kind)| (serde_json::json!(mib * MIB), kind.into())));
    for one in disk.points() {
        disk.restore(one.cycle, "restored.img");
    }
    host.backstay(&["umount", &disk.name]);
    drop(undo);
}

#[test]
fn a_renamed_disk_keeps_its_points() {
    let host = Host::new("rename");
    let (disk, first) = stopped(&host, "old", 32 * MIB);
    let other = host.disk("other", 16 * MIB);
    other.mount(&[]);
    other.cycle();
    refused(&disk, &["rename", "other", "new"], "umount");
    host.backstay(&["umount", "other"]);
    refused(&disk, &["rename", "old", "other"], "another disk named other");
    host.backstay(&["rename", "old", "new"]);
    host.backstay(&["rename", "old", "new"]);

    let disk = host.renamed(&disk, "new");
    let asked = host.try_backstay(&["points", "old"]);
    assert!(said(&asked).contains("it is new now"), "{}", said(&asked));
    refused(&disk, &["rename", "never", "new"], "never had");
    let gone = host.try_backstay(&["rename", "old", "newer"]);
    assert!(said(&gone).contains("no disk old"), "{}", said(&gone));
    disk.mount(&[]);
    let second = only_what_was_dirty_ships(&disk, 8192);
    must_restore(&disk, &[first, second]);
    host.backstay(&["umount", "new"]);

    // The old name is free for another disk, here and in the vault.
    host.backstay(&["rename", "other", "old"]);
    let asked = host.json(&["points", "old"]);
    assert_eq!(asked.as_array().unwrap().len(), 1);
}

/// Kills a command as soon as something is there; whether it was still running.
fn kill_when(mut child: Child, there: impl Fn() -> bool) -> bool {
    while !there() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::yield_now();
    }
    must("kill", ["-9", &child.id().to_string()]);
    !child.wait().unwrap().success()
}

#[test]
fn a_rename_that_is_killed_is_finished_by_the_next() {
    let host = Host::new("renamekill");
    let (disk, first) = stopped(&host, "a", 32 * MIB);
    let (mut now, mut killed, mut half) = ("a".to_owned(), 0, 0);
    for round in 0..24 {
        let to = format!("n{round}");
        let vault = host.dir.join("vault/names").join(&to);
        let state = host.dir.join("state").join(&to);
        let child = host.start(&["rename", &now, &to]);
        // After the vault knows; or in the middle of that; or after the state was renamed.
        killed += u32::from(kill_when(child, || match round % 3 {
            0 => vault.exists(),
            1 => vault.join(format!("{:020}", 1)).exists(),
            _ => state.exists(),
        }));
        // One name works, whichever it is.
        let (name, other) = if state.exists() { (&to, &now) } else { (&now, &to) };
        half += u32::from(name == &now);
        assert!(!host.dir.join("state").join(other).join("super").exists());
        let served = host.renamed(&disk, name);
        served.mount(&[]);
        assert_eq!(served.status()["dirty"].as_u64(), Some(8192));
        host.backstay(&["umount", name]);
        host.backstay(&["rename", &now, &to]);
        let points = host.json(&["points", &to]);
        assert_eq!(points.as_array().unwrap().len(), 1);
        now = to;
    }
    println!("{killed} killed, {half} of them before the state was renamed");
    assert!(killed > 0);
    let disk = host.renamed(&disk, &now);
    disk.mount(&[]);
    let second = only_what_was_dirty_ships(&disk, 8192);
    must_restore(&disk, &[first, second]);
}

#[test]
fn a_moved_disk_needs_no_resync() {
    let host = Host::new("move");
    let (mut disk, first) = stopped(&host, "data", 64 * MIB);
    let to = host.path("new.img");
    let to_text = to.to_string_lossy().into_owned();
    disk.mount(&[]);
    refused(&disk, &["move", "data", "--to", &to_text], "umount");
    host.backstay(&["umount", "data"]);
    fs::write(&to, b"precious").unwrap();
    refused(&disk, &["move", "data", "--to", &to_text], "--force");
    let itself = disk.backing.to_string_lossy().into_owned();
    let stays = host.json(&["move", "data", "--to", &itself, "--force"]);
    assert_eq!(stays["copied_bytes"], 0, "it is there already");
    let moved = host.json(&["move", "data", "--to", &to_text, "--force"]);
    assert!(moved["copied_bytes"].as_u64().unwrap() < 5 * MIB, "holes stay holes: {moved}");
    assert!(fs::metadata(&to).unwrap().blocks() * 512 < 6 * MIB);
    assert_eq!(hash(&to), hash(&disk.backing));

    let again = host.json(&["move", "data", "--to", &to_text, "--force"]);
    assert_eq!(again["copied_bytes"], 0, "once more: nothing to do");
    let old = std::mem::replace(&mut disk.backing, to);
    refused(&disk, &["mount", &old.to_string_lossy(), "--name", "data"], "was moved");
    disk.mount(&[]);
    let second = only_what_was_dirty_ships(&disk, 8192);
    must_restore(&disk, &[first, second]);
    host.backstay(&["umount", "data"]);

    // Back again: what the first move left behind may be overwritten.
    host.backstay(&["move", "data", "--to", &old.to_string_lossy(), "--force"]);
    disk.backing = old;
    disk.mount(&[]);
    assert_eq!(disk.status()["dirty"].as_u64(), Some(0));
}

#[test]
fn a_move_to_a_larger_device_grows_the_disk() {
    let host = Host::new("movedev");
    let (mut disk, first) = stopped(&host, "data", 64 * MIB);
    let image = host.path("device.img");
    fs::write(&image, vec![0xEE; 80 << 20]).unwrap();
    let under = must("losetup", ["--find", "--show", &image.to_string_lossy()]);
    let under = under.trim().to_owned();
    let undo = Detach(under.clone());
    refused(&disk, &["move", "data", "--to", &under], "--force");
    refused(&disk, &["move", "data", "--to", &under, "--force"], "--grow");
    host.backstay(&["move", "data", "--to", &under, "--force", "--grow"]);
    disk.backing = under.into();
    let served = disk.mount(&[]);
    assert_eq!(fs::metadata(&served).unwrap().len(), 80 * MIB);
    // The rest of the device is new to the vault, whatever it holds.
    let second = only_what_was_dirty_ships(&disk, 16 * MIB + 8192);
    must_restore(&disk, &[first, second]);
    host.backstay(&["umount", "data"]);
    drop(undo);
}

/// Killed in the middle, the old backing is the disk's and the new one is refused; the next move
/// finishes, and nothing is lost.
#[test]
fn a_move_that_is_killed_is_finished_by_the_next() {
    let host = Host::new("movekill");
    let (mut disk, first) = stopped(&host, "data", 256 * MIB);
    let served = disk.mount(&[]);
    must(
        "dd",
        [
            "if=/dev/urandom",
            &format!("of={}", served.display()),
            "bs=1M",
            "seek=64",
            "count=96",
            "conv=notrunc,fsync",
        ],
    );
    host.backstay(&["umount", "data"]);
    let dirty = 96 * MIB + 8192;
    let noted = host.dir.join("state/data/backing.json");
    let mut killed = 0;
    for (round, least) in [0, 1, 30 * MIB, 90 * MIB].into_iter().enumerate() {
        let to = host.path(&format!("to{round}.img"));
        let to_text = to.to_string_lossy().into_owned();
        let child = host.start(&["move", "data", "--to", &to_text]);
        let moving =
            || fs::read_to_string(&noted).is_ok_and(|text| text.contains("moving_to\": {"));
        let copied = || fs::metadata(&to).is_ok_and(|meta| meta.blocks() * 512 >= least);
        if kill_when(child, || moving() && copied()) {
            killed += 1;
            refused(&disk, &["mount", &to_text, "--name", "data"], "not finished");
            // The old one is the disk's, exactly as it was.
            disk.mount(&[]);
            assert_eq!(disk.status()["dirty"].as_u64(), Some(dirty));
            host.backstay(&["umount", "data"]);
            host.backstay(&["move", "data", "--to", &to_text, "--force"]);
        }
        let old = std::mem::replace(&mut disk.backing, to);
        assert_eq!(hash(&old), hash(&disk.backing));
        fs::remove_file(old).unwrap();
    }
    assert!(killed > 0);
    disk.mount(&[]);
    let second = only_what_was_dirty_ships(&disk, dirty);
    must_restore(&disk, &[first, second]);
}

/// Writes to a file, over and over, until it is dropped.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Writer {
    /// Starts, and returns when the first writes are done.
    fn start(path: &Path) -> Self {
        let file = File::create(path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, (begun, first)) = (Arc::clone(&stop), mpsc::channel());
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let block = [count as u8; 4096];
                file.write_all_at(&block, count * 7919 % 256 * 4096).expect("write");
                file.sync_data().expect("fsync");
                count += 1;
                let _ = begun.send(());
            }
            count
        });
        first.recv().unwrap();
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no write fails while the disk grows");
        }
    }
}

/// Detaches a loop device below a disk.
struct Detach(String);

impl Drop for Detach {
    fn drop(&mut self) {
        backstay_tests::harness::run("losetup", ["-d", &self.0]);
    }
}

//! The served disk as its users see it: sizes, alignment, discards, signals, short memory.
//!
//! Needs root, /dev/fuse, loop devices, a memory cgroup.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::{hash, wait_gone};
use backstay_tests::harness::{FsMount, Host, must, run};
use fastrand::Rng;

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Random reads, writes, flushes, holes and zeroes of any alignment behave like bytes in memory.
fn behaves_like_memory(engine: &str, size: u64) {
    let host = Host::new("memory");
    let disk = host.disk("odd", size);
    let served = disk.mount(&["--engine", engine]);
    // What was read to start it.
    forget_cached(&disk.backing);
    let file = open(&served);
    let mut rng = Rng::with_seed(0xA11);
    let mut oracle = vec![0u8; size as usize];
    for step in 0..2_000 {
        let at = rng.usize(0..oracle.len());
        let most = if rng.u8(0..10) == 0 { 600_000 } else { 9_000 };
        let len = rng.usize(1..=most).min(oracle.len() - at);
        match rng.u8(0..10) {
            0..5 => {
                rng.fill(&mut oracle[at..at + len]);
                file.write_all_at(&oracle[at..at + len], at as u64).unwrap();
            }
            5..8 => {
                let mut got = vec![0; len];
                file.read_exact_at(&mut got, at as u64).unwrap();
                assert!(got == oracle[at..at + len], "step {step}: {len} bytes at {at}");
            }
            8 => {
                let mode = if rng.bool() { "--punch-hole" } else { "--zero-range" };
                let range = ["-o", &at.to_string(), "-l", &len.to_string()];
                must(
                    "fallocate",
                    [mode].iter().chain(&range).copied().chain([served.to_str().unwrap()]),
                );
                oracle[at..at + len].fill(0);
            }
            _ => file.sync_all().unwrap(),
        }
    }
    drop(file);
    if engine == "direct" {
        assert_eq!(cached_pages(&disk.backing), 0, "something went through the page cache");
    }
    host.backstay(&["umount", "odd"]);
    assert!(fs::read(&disk.backing).unwrap() == oracle, "the backing holds what was written");
}

#[test]
fn any_alignment_buffered() {
    behaves_like_memory("buffered", (3 << 20) + 100);
}

#[test]
fn any_alignment_direct() {
    behaves_like_memory("direct", (3 << 20) + 512);
}

/// Past the page cache the last bytes of an odd size cannot be written.
#[test]
fn the_direct_engine_refuses_a_size_that_it_would_need_the_page_cache_for() {
    let host = Host::new("direct-odd");
    let disk = host.disk("odd", (1 << 20) + 100);
    let backing = disk.backing.to_str().unwrap();
    let output = host.try_backstay(&["mount", backing, "--name", "odd", "--engine", "direct"]);
    assert!(!output.status.success(), "{}", said(&output));
    for word in ["the engine direct needs a size", "--engine buffered"] {
        assert!(said(&output).contains(word), "{}", said(&output));
    }
    disk.mount(&["--engine", "buffered"]);
    host.backstay(&["umount", "odd"]);
}

fn forget_cached(path: &Path) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    assert_eq!(cached_pages(path), 0);
}

fn cached_pages(path: &Path) -> u64 {
    let pages = must("fincore", ["--noheadings", "--output", "PAGES", path.to_str().unwrap()]);
    pages.trim().parse().unwrap()
}

#[test]
fn the_served_file_has_the_backings_size_and_keeps_it() {
    let host = Host::new("size");
    let disk = host.disk("odd", 1_000_001);
    let served = disk.mount(&[]);
    let meta = fs::metadata(&served).unwrap();
    assert_eq!((meta.len(), meta.mode() & 0o777), (1_000_001, 0o600));
    let file = open(&served);
    assert!(file.set_len(5).is_err(), "truncated");
    assert!(file.set_len(2_000_000).is_err(), "grown");
    assert!(file.write_at(b"x", 1_000_001).is_err(), "written past the end");
    assert_eq!(file.read_at(&mut [0; 10], 1_000_001).unwrap(), 0, "end of file");
    assert_eq!(file.read_at(&mut [0; 10], 999_997).unwrap(), 4, "short at the end");
    file.write_all_at(b"tail", 999_997).unwrap();
    // Opening with O_TRUNC must not change it either.
    let _ = OpenOptions::new().write(true).truncate(true).open(&served);
    assert_eq!(fs::metadata(&served).unwrap().len(), 1_000_001);
    let names: Vec<_> = fs::read_dir(served.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["disk"]);
}

#[test]
fn discards_through_the_loop_device_read_as_zero_and_ship_as_zero() {
    let host = Host::new("discard");
    let disk = host.disk("d", 64 << 20);
    let device = disk.attach();
    let noise: Vec<u8> = std::iter::repeat_with({
        let mut rng = Rng::with_seed(1);
        move || rng.u8(..)
    })
    .take(16 << 20)
    .collect();
    open(Path::new(&device)).write_all_at(&noise, 0).unwrap();
    must("blockdev", ["--flushbufs", &device]);
    disk.cycle();
    let stored =
        |point: usize| host.json(&["points", "d"])[point]["stored_bytes"].as_u64().unwrap();
    assert!(stored(0) > 15 << 20);
    must("blkdiscard", ["-o", "0", "-l", "8M", &device]);
    must("blkdiscard", ["-z", "-o", "8M", "-l", "4M", &device]);
    disk.cycle();
    assert!(stored(1) < 100_000, "{} bytes for discarded sectors", stored(1));
    let image = disk.restore(2, "restored.img");
    assert_eq!(hash(&image), hash(&disk.backing));
    let image = fs::read(&image).unwrap();
    assert!(image[..12 << 20].iter().all(|&b| b == 0));
    assert!(image[12 << 20..16 << 20] == noise[12 << 20..]);
    host.backstay(&["detach", "d"]);
}

#[test]
fn a_disk_in_use_is_refused_to_others() {
    let host = Host::new("busy");
    let disk = host.disk("one", 4 << 20);
    disk.mount(&[]);
    let backing = disk.backing.to_str().unwrap();
    let second = host.try_backstay(&["mount", backing, "--name", "two"]);
    assert_eq!(second.status.code(), Some(3), "{}", said(&second));
    assert!(said(&second).contains("in use"), "{}", said(&second));
    let again = host.try_backstay(&["mount", backing, "--name", "one"]);
    assert_eq!(again.status.code(), Some(3), "{}", said(&again));
    host.backstay(&["umount", "one"]);
    let device = must("losetup", ["-f", "--show", backing]);
    let looped = host.try_backstay(&["mount", backing, "--name", "one"]);
    must("losetup", ["-d", device.trim()]);
    assert_eq!(looped.status.code(), Some(3), "{}", said(&looped));
    assert!(said(&looped).contains(device.trim()), "{}", said(&looped));
}

#[test]
fn told_to_stop_while_in_use_it_serves_until_closed() {
    let host = Host::new("sigterm");
    let disk = host.disk("d", 4 << 20);
    let served = disk.mount(&[]);
    let pid = disk.driver_pid().unwrap();
    let file = open(&served);
    must("kill", ["-TERM", &pid.to_string()]);
    for block in 0..200 {
        file.write_all_at(&[7; 4096], block * 4096).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    wait_gone(pid);
    assert_eq!(&fs::read(&disk.backing).unwrap()[..4096], &[7; 4096]);
    disk.mount(&[]);
    assert_eq!(disk.status()["found"], "clean");
}

#[test]
fn garbage_on_the_control_socket_hurts_nobody() {
    let host = Host::new("garbage");
    let disk = host.disk("d", 4 << 20);
    let served = disk.mount(&[]);
    let socket = disk.control_socket();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let mut rng = Rng::with_seed(3);
    for round in 0..200 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let mut bytes = vec![0; rng.usize(1..200)];
        rng.fill(&mut bytes);
        if round % 2 == 0 {
            // A header that announces more than there may be.
            bytes.splice(..0, *b"BSTYCTRL\x01\0\0\0\xff\xff\xff\xff");
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut vec![]);
    }
    assert_eq!(disk.status()["name"], "d");
    open(&served).write_all_at(b"still here", 0).unwrap();
}

/// A memory cgroup that is removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str, limit_bytes: u64) -> Self {
        // cgroup v2 in one hierarchy, or v1's memory controller.
        let (root, limit) =
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
                .into_iter()
                .find(|(root, _)| Path::new(root).join("cgroup.procs").exists())
                .expect("this test needs a memory cgroup");
        if limit == "memory.max" {
            let _ = fs::write(Path::new(root).join("cgroup.subtree_control"), "+memory");
        }
        let dir = Path::new(root).join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(limit), limit_bytes.to_string()).expect("a memory limit");
        Self(dir)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A writer that has far less memory than it writes makes the kernel write pages back under memory
/// pressure, through the driver. If the driver waited for that memory, this would never end.
#[test]
fn a_writer_short_of_memory_does_not_hang() {
    let host = Host::new("memory");
    let disk = host.disk("d", 1 << 30);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let mounted = FsMount::new(&host, &device, "mnt", "rw");
    let cgroup = Cgroup::new("backstay-test", 48 << 20);
    let script = format!(
        "echo $$ > {0}/cgroup.procs && dd if=/dev/zero bs=1M count=200 2>/dev/null | tr '\\0' x > {1}/big \
         && sync {1}/big && cp {1}/big {1}/copy && sync {1}/copy && cmp {1}/big {1}/copy",
        cgroup.0.display(),
        mounted.at.display()
    );
    let output = run("timeout", ["-k", "5", "90", "sh", "-c", &script]);
    assert!(output.status.success(), "{}: {}", output.status, said(&output));
    disk.cycle();
    drop(mounted);
    host.backstay(&["detach", "d"]);
}

//! Mounted recovery points on a host that has nothing but the vault's URL: right bytes, writes that stay, a
//! vault that goes away and comes back, damage, hydration, retention.
//!
//! Needs root, /dev/fuse, loop devices.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_recovery::failover::{FailoverRecord, Kind, State};
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::{Disk, hash, wait_gone};
use backstay_tests::harness::seed::seed;
use backstay_tests::harness::{FsMount, Host, must};
use backstay_types::Term;
use fastrand::Rng;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 96 * MIB + 512;

/// A disk with points, and a host that has none of it but the vault.
struct Site {
    source: Disk,
    other: Arc<Host>,
    vault: String,
}

impl Site {
    fn new(test: &str, size: u64) -> Self {
        let host = Host::new(test);
        let vault = host.vault();
        Self { source: host.disk("db", size), other: Host::new(&format!("{test}-other")), vault }
    }

    /// Writes all over the disk, and makes a point.
    fn point(&self, rng: &mut Rng, pieces: u64) -> u64 {
        let file = OpenOptions::new().write(true).open(self.source.served()).unwrap();
        for _ in 0..pieces {
            let mut bytes = vec![0; rng.usize(1..512) * 512];
            // Some that compresses, some that does not, some zeroes.
            match rng.u8(0..4) {
                0 => {}
                1 => bytes.fill(rng.u8(..)),
                _ => rng.fill(&mut bytes),
            }
            let at = rng.u64(0..SIZE / 512 - 512) * 512;
            file.write_all_at(&bytes, at).unwrap();
        }
        self.source.cycle();
        self.source.points().last().unwrap().cycle
    }

    /// A name on the other host, taken down when that is dropped.
    fn disk(&self, name: &str) -> Disk {
        self.other.disk(name, 512)
    }

    fn try_mount(&self, disk: &Disk, more: &[&str]) -> Output {
        let first = ["mount", "--vault", &self.vault, "--disk", "db", "--name", &disk.name];
        self.other.try_backstay(&[&first, more].concat())
    }

    /// Mounts a point there; what is served.
    fn mount(&self, disk: &Disk, more: &[&str]) -> PathBuf {
        let output = self.try_mount(disk, more);
        assert!(output.status.success(), "{}", said(&output));
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    }

    fn again(&self, disk: &Disk, more: &[&str]) -> PathBuf {
        let first = ["mount", "--name", &disk.name];
        PathBuf::from(self.other.backstay(&[&first, more].concat()).trim())
    }

    fn folder(&self) -> PathBuf {
        PathBuf::from(self.vault.strip_prefix("file://").unwrap())
    }
}

/// What a mounted point says of itself, once `that` holds: it says so every second.
fn when(disk: &Disk, what: &str, that: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let status = disk.status()["mounted_point"].clone();
        if that(&status) {
            return status;
        }
        assert!(Instant::now() < until, "{what}: {status}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn eio(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EIO))
}

#[test]
fn every_point_is_the_disk_as_it_was() {
    let mut rng = Rng::with_seed(seed(11));
    let site = Site::new("points", SIZE);
    let device = site.source.attach();
    must("mkfs.ext4", ["-q", &device]);
    let mut times = vec![];
    for n in 0..4 {
        let fs = FsMount::new(&site.source.host, &device, "fs", "defaults");
        fs::write(fs.at.join(format!("file{n}")), vec![n; 300_000]).unwrap();
        drop(fs);
        if n == 3 {
            // All over the disk, also where no file system is any more.
            site.point(&mut rng, 60);
        } else {
            site.source.cycle();
        }
        times.push(site.source.points().last().unwrap().cut_unix_ns);
    }
    for cycle in 1..=4 {
        let restored = hash(&site.source.restore(cycle, "restored"));
        let disk = site.disk(&format!("point{cycle}"));
        let begun = Instant::now();
        let served = site.mount(&disk, &["--point", &cycle.to_string()]);
        let mut first = [0; 4096];
        File::open(&served).unwrap().read_exact_at(&mut first, 0).unwrap();
        println!("point {cycle}: first read {:?} after the command", begun.elapsed());
        assert_eq!(fs::metadata(&served).unwrap().len(), SIZE);
        assert_eq!(hash(&served), restored, "point {cycle}");
        assert_eq!(hash(&served), restored, "point {cycle}, from the cache");
        let status = disk.status();
        assert_eq!(status["driver"]["base"]["cycle"], cycle);
        assert_eq!(status["dirty"], 0, "nothing was written: {status}");
        // Its holes are holes.
        let copy = site.other.path("copy").display().to_string();
        must("cp", ["--sparse=never", "--reflink=never", &*served.to_string_lossy(), &copy]);
        assert_eq!(hash(Path::new(&copy)), restored, "point {cycle}, copied");
        let file = File::open(&served).unwrap();
        assert!(holes(&file) > SIZE / 4, "{} bytes of holes", holes(&file));
    }
    // As a block device with a file system on it, by a time; nobody can write to it.
    let time = jiff_time(times[1]);
    let disk = site.disk("bytime");
    let args = ["--vault", &site.vault, "--disk", "db", "--name", "bytime", "--point", &time];
    let args = [&["attach", "--read-only"], &args[..]].concat();
    let device = site.other.backstay(&args).trim().to_owned();
    let fs = FsMount::new(&site.other, &device, "fs", "ro,noload");
    assert_eq!(fs::read(fs.at.join("file1")).unwrap(), vec![1; 300_000]);
    assert!(!fs.at.join("file2").exists());
    drop(fs);
    assert!(OpenOptions::new().write(true).open(disk.served()).is_err());
    // What is no point of it, and what is something else already.
    let none = site.try_mount(&site.disk("none"), &["--point", "1970-01-01T00:00:00Z"]);
    assert_eq!(none.status.code(), Some(1), "{}", said(&none));
    assert!(said(&none).contains("not after 1970"), "{}", said(&none));
    must("losetup", ["-d", &device]);
    site.other.backstay(&["umount", "bytime"]);
    let other = site.try_mount(&disk, &["--point", "4"]);
    assert_eq!(other.status.code(), Some(3), "{}", said(&other));
    let name = ["mount", "--vault", &site.vault, "--disk", "db", "--name", "db"];
    let taken = site.source.host.try_backstay(&name);
    assert_eq!(taken.status.code(), Some(3), "{}", said(&taken));
}

/// Bytes in holes, each of which reads as zeroes.
fn holes(file: &File) -> u64 {
    use nix::unistd::{Whence, lseek};
    let (mut at, mut sum) = (0, 0);
    while at < SIZE as i64 {
        let hole = lseek(file, at, Whence::SeekHole).unwrap();
        at = match lseek(file, hole, Whence::SeekData) {
            Ok(data) => data,
            Err(nix::errno::Errno::ENXIO) => SIZE as i64,
            Err(e) => panic!("{e}"),
        };
        let mut bytes = vec![0; (at - hole) as usize];
        file.read_exact_at(&mut bytes, hole as u64).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "a hole at {hole}");
        sum += bytes.len() as u64;
    }
    sum
}

/// A time in words, to the nanosecond.
fn jiff_time(unix_ns: u64) -> String {
    let date = must("date", ["-u", "-d", &format!("@{}", unix_ns / 1_000_000_000), "+%FT%T"]);
    format!("{}.{:09}Z", date.trim(), unix_ns % 1_000_000_000)
}

#[test]
fn what_is_written_stays_and_is_tracked() {
    let mut rng = Rng::with_seed(seed(12));
    let site = Site::new("writes", SIZE);
    site.source.mount(&[]);
    site.point(&mut rng, 80);
    let cycle = site.point(&mut rng, 40);
    let model = site.source.restore(cycle, "model");
    site.other.backstay(&["points", "db", "--vault", &site.vault]);
    let disk = site.disk("new");
    site.mount(&disk, &[]);
    let model = OpenOptions::new().read(true).write(true).open(model).unwrap();
    for round in 0..4 {
        let served = disk.served();
        let file = OpenOptions::new().read(true).write(true).open(&served).unwrap();
        for _ in 0..150 {
            // Of any alignment, also up to the disk's end.
            let at = rng.u64(0..SIZE);
            let len = rng.u64(1..100_000).min(SIZE - at);
            let mut bytes = vec![0; len as usize];
            if rng.u8(0..5) == 0 {
                nix::fcntl::fallocate(
                    &file,
                    nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE
                        | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
                    at as i64,
                    len as i64,
                )
                .unwrap();
            } else {
                rng.fill(&mut bytes);
                file.write_all_at(&bytes, at).unwrap();
            }
            model.write_all_at(&bytes, at).unwrap();
        }
        file.sync_data().unwrap();
        assert_eq!(hash(&served), hash(&site.source.host.path("model")), "round {round}");
        drop(file);
        if round % 2 == 0 {
            disk.kill_driver();
        } else {
            site.other.backstay(&["umount", "new"]);
        }
        let served = site.again(&disk, &[]);
        assert_eq!(hash(&served), hash(&site.source.host.path("model")), "round {round}, again");
    }
    // The deltas of what was written, in a term of its own.
    let status = disk.status();
    assert_eq!(status["driver"]["base"]["cycle"], cycle);
    assert!(status["driver"]["resync"].is_null(), "{status}");
    let dirty = status["dirty"].as_u64().unwrap();
    assert!(dirty > 0 && dirty < SIZE, "{dirty}");
    let vault = backstay_vault::Vaults::default().open(&site.vault).unwrap();
    let known = vault.disk_named(&"db".parse().unwrap()).unwrap();
    let local = status["driver"]["disk"].as_str().unwrap();
    vault.claim_term(known.disk, &format!("source {local}")).unwrap();
    // As a committed failover leaves it.
    let record = FailoverRecord {
        name: "new".parse().unwrap(),
        kind: Kind::Unplanned,
        state: State::Committed,
        vault: site.vault.clone(),
        disk: known.disk,
        disk_name: "db".parse().unwrap(),
        point: None,
        after: Term(1),
        backing: None,
        next: None,
        group: None,
        since_unix_ns: 1,
    };
    record.begin(&site.other.path("state")).unwrap();
    fs::write(site.other.path("backstay.toml"), format!("vault = \"{}\"\n", site.vault)).unwrap();
    disk.cycle();
    let newest = site.source.points().last().unwrap().cycle;
    assert_eq!(newest, cycle + 1);
    let listed = site.other.json(&["points", "db"]);
    let moved = listed.as_array().unwrap().last().unwrap()["moved_bytes"].as_u64().unwrap();
    assert!(moved.abs_diff(dirty) <= 512, "{moved} bytes moved of {dirty}");
    assert_eq!(hash(&site.source.restore(newest, "shipped")), hash(&disk.served()));
    // Nothing of it stays.
    record.end(&site.other.path("state")).unwrap();
    site.other.backstay(&["umount", "new", "--forget"]);
    assert!(
        !site.other.path("state").join("new").exists() && !site.other.runtime.join("new").exists()
    );
    assert_eq!(vault.holds(known.disk).unwrap(), []);
}

#[test]
fn a_vault_that_goes_and_comes_back() {
    let mut rng = Rng::with_seed(seed(13));
    let site = Site::new("gone", SIZE);
    site.source.mount(&[]);
    site.point(&mut rng, 120);
    let model = site.source.restore(1, "model");
    let right = hash(&model);
    let disk = site.disk("away");
    let served = site.mount(&disk, &["--vault-timeout", "1s"]);
    let file = OpenOptions::new().read(true).write(true).open(&served).unwrap();
    let model = OpenOptions::new().read(true).write(true).open(model).unwrap();
    let (mut here, mut expected) = (vec![0; MIB as usize], vec![0; MIB as usize]);
    file.read_exact_at(&mut here, 0).unwrap();
    let away = site.folder().with_extension("away");
    fs::rename(site.folder(), &away).unwrap();
    // What was read is still there, what was not is an error soon, and writes go on.
    file.read_exact_at(&mut here, 0).unwrap();
    model.read_exact_at(&mut expected, 0).unwrap();
    assert!(here == expected);
    let far = |file: &File| {
        let mut failed = 0;
        for mib in 2..SIZE / MIB {
            let begun = Instant::now();
            let mut bytes = [0; 4096];
            let read = file.read_exact_at(&mut bytes, mib * MIB);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            match read {
                // It may have come along, or be known to be zero.
                Ok(()) => {
                    let mut right = [0; 4096];
                    model.read_exact_at(&mut right, mib * MIB).unwrap();
                    assert!(bytes == right, "MiB {mib}");
                }
                read => {
                    assert!(eio(&read), "{read:?}");
                    failed += 1;
                }
            }
            if failed == 3 {
                break;
            }
        }
        failed
    };
    assert_eq!(far(&file), 3, "a vault that is gone");
    for _ in 0..50 {
        let mut bytes = vec![0; rng.usize(1..200) * 512];
        rng.fill(&mut bytes);
        let at = rng.u64(0..SIZE / 512 - 200) * 512;
        file.write_all_at(&bytes, at).unwrap();
        model.write_all_at(&bytes, at).unwrap();
    }
    file.sync_data().unwrap();
    when(&disk, "says so", |now| {
        !now["vault_trouble"].is_null() && now["local_bytes"].as_u64() > Some(0)
    });
    // Also after a restart without it.
    drop(file);
    disk.kill_driver();
    let served = site.again(&disk, &["--vault-timeout", "300ms"]);
    let file = File::open(&served).unwrap();
    file.read_exact_at(&mut here, 0).unwrap();
    model.read_exact_at(&mut expected, 0).unwrap();
    assert!(here == expected);
    far(&file);
    // It is back: as if nothing had been.
    fs::rename(&away, site.folder()).unwrap();
    assert_ne!(hash(&site.source.host.path("model")), right);
    when(&disk, "is back", |now| now["vault_trouble"].is_null());
    assert_eq!(hash(&served), hash(&site.source.host.path("model")));
    when(&disk, "holds again", |now| now["held"] == true);
}

/// A vault that takes a request and never answers: the segment is a pipe that nobody writes to.
#[test]
fn a_vault_that_hangs_holds_up_nothing_local() {
    let mut rng = Rng::with_seed(seed(17));
    let site = Site::new("hangs", SIZE);
    let source = OpenOptions::new().write(true).open(site.source.mount(&[])).unwrap();
    for mib in 0..SIZE / MIB {
        let mut bytes = vec![0; 256 * 1024];
        rng.fill(&mut bytes);
        source.write_all_at(&bytes, mib * MIB).unwrap();
    }
    site.source.cycle();
    let model = File::open(site.source.restore(1, "model")).unwrap();
    let disk = site.disk("stuck");
    let served = site.mount(&disk, &["--vault-timeout", "3s"]);
    let file = OpenOptions::new().read(true).write(true).open(&served).unwrap();
    let mut here = vec![0; MIB as usize];
    file.read_exact_at(&mut here, 0).unwrap();
    let folder = site.folder().join("disks");
    let found = must("find", [&*folder.to_string_lossy(), "-path", "*/segments/*", "-size", "+1M"]);
    let segments: Vec<PathBuf> = found.lines().map(PathBuf::from).collect();
    let aside = |segment: &Path| segment.with_extension("aside");
    for segment in &segments {
        fs::rename(segment, aside(segment)).unwrap();
        nix::unistd::mkfifo(segment, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    std::thread::scope(|scope| {
        // More that wait for the vault than there are threads to wait in.
        let far: Vec<_> = (0..60)
            .map(|n| {
                let file = &file;
                scope.spawn(move || {
                    let begun = Instant::now();
                    let mut bytes = [0; 4096];
                    let read = file.read_exact_at(&mut bytes, (30 + n) * MIB);
                    (read, begun.elapsed())
                })
            })
            .collect();
        let mut slowest = Duration::ZERO;
        while far.iter().any(|far| !far.is_finished()) {
            let begun = Instant::now();
            let mut again = vec![0; 4096];
            file.read_exact_at(&mut again, 8192).unwrap();
            file.write_all_at(&[3; 4096], 20 * MIB).unwrap();
            file.sync_data().unwrap();
            slowest = slowest.max(begun.elapsed());
        }
        let results: Vec<_> = far.into_iter().map(|far| far.join().unwrap()).collect();
        let failed = results.iter().filter(|(read, _)| eio(read)).count();
        let longest = results.iter().map(|(_, took)| *took).max().unwrap();
        println!("{failed} of 60 far reads failed, the last after {longest:?}; here: {slowest:?}");
        assert!(failed > 10, "the vault hangs");
        assert!(longest < Duration::from_secs(25), "{longest:?}");
        assert!(slowest < Duration::from_secs(2), "what is local took {slowest:?}");
    });
    // It answers again: those that hang are let go, and all is as it was.
    for segment in &segments {
        let pipe = segment.with_extension("pipe");
        fs::rename(segment, &pipe).unwrap();
        fs::rename(aside(segment), segment).unwrap();
        // A writer ends the wait of those who opened it.
        let flags = nix::fcntl::OFlag::O_RDWR | nix::fcntl::OFlag::O_NONBLOCK;
        drop(nix::fcntl::open(&pipe, flags, nix::sys::stat::Mode::empty()).unwrap());
    }
    when(&disk, "is back", |now| now["vault_trouble"].is_null());
    let (mut all, mut expected) = (vec![0; SIZE as usize], vec![0; SIZE as usize]);
    File::open(&served).unwrap().read_exact_at(&mut all, 0).unwrap();
    model.read_exact_at(&mut expected, 0).unwrap();
    expected[20 * MIB as usize..][..4096].fill(3);
    assert!(all == expected);
}

#[test]
fn a_damaged_segment_costs_what_is_in_it() {
    let mut rng = Rng::with_seed(seed(14));
    let site = Site::new("damaged", SIZE);
    let served = site.source.mount(&[]);
    // Bytes that no compression makes smaller: frames of 256 KiB, one after the other.
    let mut bytes = vec![0; 8 * MIB as usize];
    rng.fill(&mut bytes);
    OpenOptions::new().write(true).open(&served).unwrap().write_all_at(&bytes, 0).unwrap();
    site.source.cycle();
    let segments = site.folder().join("disks");
    let found =
        must("find", [&*segments.to_string_lossy(), "-path", "*/segments/*", "-size", "+1M"]);
    let segment = Path::new(found.lines().next().unwrap());
    let file = OpenOptions::new().read(true).write(true).open(segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 * MIB).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 3 * MIB).unwrap();
    let disk = site.disk("hurt");
    let served = File::open(site.mount(&disk, &[])).unwrap();
    let mut bad = vec![];
    for page in 0..8 * MIB / 4096 {
        let mut read = [0; 4096];
        let begun = Instant::now();
        match served.read_exact_at(&mut read, page * 4096) {
            Ok(()) => assert!(read == bytes[page as usize * 4096..][..4096], "page {page}"),
            result => {
                assert!(eio(&result) && begun.elapsed() < Duration::from_secs(5), "{result:?}");
                bad.push(page);
            }
        }
    }
    assert_eq!(bad.len(), 64, "one frame: {bad:?}");
    let log = fs::read_to_string(site.other.path("state").join("hurt/driver.log")).unwrap();
    assert!(log.contains("segments/") && log.contains("checksum"), "{log}");
    // Overwritten, it is whole again.
    let file = OpenOptions::new().read(true).write(true).open(disk.served()).unwrap();
    file.write_all_at(&[7; 256 * 1024], bad[0] * 4096).unwrap();
    let mut read = vec![0; MIB as usize];
    file.read_exact_at(&mut read, bad[0] * 4096 / MIB * MIB).unwrap();
}

#[test]
fn hydrated_it_needs_no_vault() {
    let mut rng = Rng::with_seed(seed(15));
    let site = Site::new("hydrate", SIZE);
    site.source.mount(&[]);
    site.point(&mut rng, 150);
    site.point(&mut rng, 50);
    let model = site.source.restore(2, "model");
    let disk = site.disk("whole");
    let served = site.mount(&disk, &["--hydrate", "--hydrate-limit", "4MiB"]);
    let model = OpenOptions::new().write(true).open(model).unwrap();
    let write = |rng: &mut Rng, served: &Path| {
        let file = OpenOptions::new().write(true).open(served).unwrap();
        for _ in 0..40 {
            let mut bytes = vec![0; rng.usize(1..200) * 512];
            rng.fill(&mut bytes);
            let at = rng.u64(0..SIZE / 512 - 200) * 512;
            file.write_all_at(&bytes, at).unwrap();
            model.write_all_at(&bytes, at).unwrap();
        }
        file.sync_data().unwrap();
    };
    // Killed in the middle, with writes before and behind it.
    let mut reached = 0;
    for _ in 0..2 {
        let at = |now: &Value| now["hydrated_bytes"].as_u64().unwrap_or(0);
        let now = when(&disk, "goes on", |now| at(now) > reached + 8 * MIB);
        write(&mut rng, &served);
        reached = at(&now);
        disk.kill_driver();
        site.again(&disk, &[]);
        // What was written was flushed, and the mark with it.
        let now = when(&disk, "is served", |now| now["pid"].is_u64());
        assert!(at(&now) >= reached, "{now}, it was {reached}");
    }
    // It is a job from its beginning, and says how long it will still take.
    let jobs = || {
        let jobs = site.other.json(&["jobs", "whole"]).as_array().cloned().unwrap();
        jobs.iter().map(|job| job["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(jobs(), ["running", "interrupted", "interrupted"]);
    when(&disk, "is seen to go on", |_| site.other.backstay(&["jobs"]).contains(" left"));
    site.other.backstay(&["hydrate", "whole"]);
    let status = when(&disk, "is whole", |now| now["hydration"] == "done");
    assert_eq!(status["local_bytes"], SIZE, "{status}");
    let vault = backstay_vault::Vaults::default().open(&site.vault).unwrap();
    let known = vault.disk_named(&"db".parse().unwrap()).unwrap();
    assert_eq!(jobs(), ["done", "interrupted", "interrupted"]);
    when(&disk, "lets go", |now| now["held"] == false);
    assert_eq!(vault.holds(known.disk).unwrap(), []);
    fs::remove_dir_all(site.folder()).unwrap();
    disk.kill_driver();
    let served = site.again(&disk, &[]);
    write(&mut rng, &served);
    assert_eq!(hash(&served), hash(&site.source.host.path("model")));
    site.other.backstay(&["umount", "whole"]);
    let served = site.again(&disk, &[]);
    assert_eq!(hash(&served), hash(&site.source.host.path("model")));
}

#[test]
fn a_mounted_point_outlives_retention_and_its_cache_is_bounded() {
    let mut rng = Rng::with_seed(seed(16));
    let site = Site::new("retain", SIZE);
    site.source.mount(&[]);
    site.point(&mut rng, 100);
    let restored = hash(&site.source.restore(1, "restored"));
    let disk = site.disk("old");
    let served = site.mount(&disk, &["--point", "1", "--cache", "2MiB"]);
    for _ in 0..12 {
        site.point(&mut rng, 20);
    }
    site.source.host.backstay(&["prune", "db", "--keep", "last 1"]);
    let left: Vec<u64> = site.source.points().iter().map(|point| point.cycle).collect();
    assert_eq!(left, [1, 13]);
    for _ in 0..2 {
        assert_eq!(hash(&served), restored);
    }
    let status = when(&disk, "tells", |now| now["cache_bytes"].as_u64().is_some_and(|n| n > MIB));
    assert!(status["cache_bytes"].as_u64().unwrap() <= 2 * MIB, "{status}");
    let folder = site.other.path("state").join("old/mounted");
    let used = must("du", ["-sk", &*folder.to_string_lossy()]);
    let used: u64 = used.split_whitespace().next().unwrap().parse().unwrap();
    assert!(used < 6 * 1024, "{used} KiB for a cache of 2 MiB and nothing written");
    // Killed, it finds its hold again; forgotten, retention has its way.
    let pid = disk.driver_pid().unwrap();
    must("kill", ["-9", &pid.to_string()]);
    wait_gone(pid);
    site.again(&disk, &[]);
    when(&disk, "holds", |now| now["held"] == true);
    site.other.backstay(&["umount", "old", "--forget"]);
    site.source.host.backstay(&["prune", "db", "--keep", "last 1"]);
    assert_eq!(site.source.points().len(), 1);
}

/// Killed at every step of mounting and of forgetting: the command run again finishes, and nothing is left.
#[test]
fn killed_at_every_step_of_mounting_and_forgetting() {
    let mut rng = Rng::with_seed(seed(18));
    let site = Site::new("steps", SIZE);
    site.source.mount(&[]);
    site.point(&mut rng, 20);
    let restored = hash(&site.source.restore(1, "restored"));
    let vault = backstay_vault::Vaults::default().open(&site.vault).unwrap();
    let known = vault.disk_named(&"db".parse().unwrap()).unwrap().disk;
    let overlay = site.other.path("overlay");
    let elsewhere = overlay.display().to_string();
    let disk = site.disk("steps");
    let die = |step: u32, args: &[&str]| {
        let mut command = site.other.command();
        command.env("BACKSTAY_TEST_DIE_AT", format!("mount:{step}")).args(args);
        command.stdin(std::process::Stdio::null()).output().unwrap()
    };
    let mount = ["mount", "--vault", &site.vault, "--disk", "db", "--name", "steps"];
    let mount = [&mount[..], &["--overlay", &elsewhere]].concat();
    let forget = ["umount", "steps", "--forget"];
    let (mut mounts, mut forgets) = (0, 0);
    loop {
        let died = !die(mounts, &mount).status.success();
        if died {
            assert!(vault.holds(known).unwrap().len() <= 1);
            site.other.backstay(&mount);
        }
        assert_eq!(hash(&disk.served()), restored, "killed at step {mounts} of mounting");
        assert_eq!(vault.holds(known).unwrap().len(), 1, "step {mounts}");
        mounts += 1;
        // Each time the same, so not each time at every step.
        let mut step = if mounts == 1 { 0 } else { 100 };
        loop {
            let killed = !die(step, &forget).status.success();
            if !killed {
                break;
            }
            // One by one: each goes on where the one before was killed.
            step += 1;
            forgets += 1;
            assert!(step < 20, "it never ends");
        }
        assert_eq!(vault.holds(known).unwrap(), []);
        assert!(!overlay.exists() && !site.other.path("state").join("steps").exists());
        // Forgotten after it was only begun.
        if died {
            die(mounts - 1, &mount);
            let output = site.other.try_backstay(&forget);
            let nothing = said(&output).contains("no mounted point");
            assert!(output.status.success() || nothing, "{}", said(&output));
            assert_eq!(vault.holds(known).unwrap(), []);
            assert!(!overlay.exists());
        } else {
            break;
        }
    }
    println!("killed at {} steps of mounting, {forgets} times while forgetting", mounts - 1);
    assert!(mounts > 6 && forgets > 3);
    // A file that is somebody else's stays.
    fs::write(&overlay, b"precious").unwrap();
    assert!(!site.other.try_backstay(&mount).status.success());
    assert!(!site.other.try_backstay(&mount).status.success());
    assert_eq!(fs::read(&overlay).unwrap(), b"precious");
}

/// Its state was lost, or it never was here: an old point, which nobody protects, must not be taken for the disk.
#[test]
fn a_name_that_this_host_does_not_know_serves_nothing() {
    let host = Host::new("unknown");
    let disk = host.disk("d", 1 << 20);
    disk.mount(&[]);
    disk.cycle();
    host.backstay(&["umount", "d"]);
    let (state, away) = (host.path("state/d"), host.path("away"));
    fs::rename(&state, &away).unwrap();
    for verb in ["mount", "attach"] {
        let refused = host.try_backstay(&[verb, "--name", "d"]);
        assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
        assert!(said(&refused).contains("backstay attach BACKING --name d"), "{}", said(&refused));
        assert!(disk.driver_pid().is_none() && !state.exists());
    }
    fs::rename(&away, &state).unwrap();
    host.backstay(&["mount", "--name", "d"]);
    assert_eq!(hash(&disk.served()), hash(&disk.backing));
}

//! First reads of mounted points where there are many: a thousand points, a disk of 1 TiB, empty or full of data;
//! and the memory that a disk of 16 TiB with data all over takes (long form).
//!
//! Needs root, /dev/fuse.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_tests::harness::Host;
use backstay_tests::harness::host::Disk;
use backstay_types::{ByteLen, CycleNo, DiskId, PointId, SectorRange, Term};
use backstay_vault::format::document::DiskRecord;
use backstay_vault::format::segment::SegmentId;
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::{
    Base, Consistency, CycleKind, Manifest, Pass, PointMeta, SectorSet, Vault, Vaults, verify_cycle,
};

#[path = "../../sidecar/vault/examples/full_disk/lay.rs"]
mod lay;

const TIB: u64 = 1 << 40;

/// A vault on tmpfs with a disk that no driver has ever served: only the vault matters here.
struct Large {
    host: Arc<Host>,
    url: String,
    vault: Vault,
    disk: DiskId,
    size: ByteLen,
    newest: Option<Manifest>,
    compressor: Compressor,
}

impl Large {
    fn new(test: &str, size: u64) -> Self {
        let host = Host::new(test);
        let url = host.runtime.join("vault").display().to_string();
        let vault = Vaults::default().create(&url).unwrap();
        let (disk, size) = (DiskId::random(), ByteLen(size));
        let name = "big".parse().unwrap();
        let record =
            DiskRecord { disk, name, size_bytes: size, sector_bytes: 512, created_unix_ns: 1 };
        vault.create_disk(&record).unwrap();
        vault.claim_name(&record.name, disk).unwrap();
        vault.term_or_first(disk, "test").unwrap();
        let compressor = Compressor::new(1).unwrap();
        Self { host, url, vault, disk, size, newest: None, compressor }
    }

    /// A point in which these sectors have these bytes; in the first one all others are zero.
    fn point(&mut self, cycle: u64, writes: impl Iterator<Item = (u64, u8)>) {
        let attempt = cycle;
        let cycle = CycleNo(cycle);
        let (mut number, mut segments, mut moved) = (0, vec![], SectorSet::new());
        let mut builder = SegmentBuilder::new(self.disk, cycle, attempt, number);
        let mut chunk = Chunk::with_room();
        let mut zero_from = self.newest.is_none().then_some(0);
        let whole = SectorRange::whole(self.size);
        for (sector, byte) in writes {
            let run = SectorRange::new(sector, sector + 1);
            if chunk.room() < 512 {
                builder.push(self.compressor.seal(&mut chunk).unwrap());
            }
            if builder.extents() > 1 << 20 {
                let next = SegmentBuilder::new(self.disk, cycle, attempt, number + 1);
                let full = std::mem::replace(&mut builder, next);
                segments.push(
                    self.vault.put_segment(full.finish(&mut self.compressor).unwrap()).unwrap(),
                );
                number += 1;
            }
            chunk.push(run, &[byte; 512]);
            moved.insert(run);
            if let Some(from) = zero_from.replace(sector + 1).filter(|&from| from < sector) {
                builder.push_zero(SectorRange::new(from, sector));
            }
            if self.newest.is_some() {
                zero_from = None;
            }
        }
        builder.push(self.compressor.seal(&mut chunk).unwrap());
        if let Some(from) = zero_from {
            builder.push_zero(SectorRange::new(from, whole.end.0));
            moved.insert(whole);
        }
        segments
            .push(self.vault.put_segment(builder.finish(&mut self.compressor).unwrap()).unwrap());
        let pass = Pass { must_move: moved, segments };
        let verified = verify_cycle(&self.vault, self.disk, self.size, cycle, vec![pass]).unwrap();
        let is_first = self.newest.is_none();
        let meta = PointMeta {
            term: Term(1),
            predecessor: self.newest.take(),
            base: if is_first { Base::Nothing { continues: None } } else { Base::Newest },
            kind: if is_first { CycleKind::Initial } else { CycleKind::Delta },
            point: PointId::random(),
            consistency: Consistency::Crash,
            cut_unix_ns: cycle.0 * 1_000_000_000,
            written: ByteLen(0),
        };
        self.newest = Some(self.vault.commit(verified, meta).unwrap());
    }

    /// Mounts a point; the time until the first byte of `sector` was read, which must be `byte`.
    fn first_read(&self, point: &str, sector: u64, byte: u8) -> (Disk, File, Duration) {
        let disk = self.host.disk(&format!("at-{}", point.replace(':', "-").to_lowercase()), 512);
        let begun = Instant::now();
        let args = ["mount", "--vault", &self.url, "--disk", "big", "--point", point];
        let served = self.host.backstay(&[&args[..], &["--name", &disk.name]].concat());
        let file = File::open(PathBuf::from(served.trim())).unwrap();
        expect(&file, sector, byte);
        (disk, file, begun.elapsed())
    }
}

fn expect(file: &File, sector: u64, byte: u8) {
    let mut read = [0; 512];
    file.read_exact_at(&mut read, sector * 512).unwrap();
    assert!(read == [byte; 512], "sector {sector}: {:#x}, not {byte:#x}", read[0]);
}

fn rss_mib(disk: &Disk) -> u64 {
    let status =
        fs::read_to_string(format!("/proc/{}/status", disk.driver_pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn any_of_a_thousand_points_of_a_tebibyte_is_there_at_once() {
    let mut large = Large::new("thousand", TIB);
    // Each point writes its number to a place of its own, and to one they all share.
    let place = |cycle: u64| cycle * 0x1FF_FFF7 % (TIB / 512);
    let byte = |cycle: u64| (cycle % 251 + 1) as u8;
    for cycle in 1..=1000 {
        let mut writes = [(5_000_000, byte(cycle)), (place(cycle), byte(cycle))];
        writes.sort_unstable();
        large.point(cycle, writes.into_iter());
    }
    for (point, cycle) in [("1", 1), ("500", 500), ("1970-01-01T00:10:00Z", 600), ("latest", 1000)]
    {
        let (disk, file, took) = large.first_read(point, 5_000_000, byte(cycle));
        println!("point {point} of 1000 on 1 TiB: {took:?}, {} MiB", rss_mib(&disk));
        // A debug build on a machine that does other things: only so that it is noticed.
        assert!(took < Duration::from_secs(15), "{took:?}");
        for before in [1, cycle / 2, cycle] {
            if before > 0 {
                expect(&file, place(before), byte(before));
            }
        }
        if cycle < 1000 {
            expect(&file, place(cycle + 1), 0);
        }
        expect(&file, TIB / 512 - 1, 0);
    }
}

/// 16 million runs, one sector each, from the start of the disk to its end, and as many of zeroes between
/// them.
#[test]
fn sixteen_tebibytes_with_data_all_over() {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let (tib, runs) = if long { (16, 16_u64 << 20) } else { (16, 1 << 18) };
    let mut large = Large::new("sixteen", tib * TIB);
    let apart = tib * TIB / 512 / runs;
    let byte = |run: u64| (run % 253 + 1) as u8;
    large.point(1, (0..runs).map(|run| (run * apart + run % apart, byte(run))));
    let (disk, file, took) = large.first_read("1", 0, byte(0));
    println!("{runs} runs on {tib} TiB: first read {took:?}");
    let mut rng = fastrand::Rng::with_seed(17);
    for _ in 0..if long { 20_000 } else { 300 } {
        let run = rng.u64(0..runs);
        expect(&file, run * apart + run % apart, byte(run));
    }
    let rss = rss_mib(&disk);
    println!("{rss} MiB");
    assert!(rss < 512, "{rss} MiB");
}

/// What the first read of a mounted point took, as its driver says: requests somebody waited for, indexes in all.
fn first_read_took(disk: &Disk) -> (u64, u64) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let path = disk.host.runtime.join(format!("{}/mounted.json", disk.name));
        let status = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let status: serde_json::Value = status.unwrap_or_default();
        let number = |of: &serde_json::Value| of.as_u64().unwrap();
        let first = &status["first_read"];
        if first.is_object() {
            println!("{first}");
            let waited_for = number(&first["requests"]) - number(&first["in_background"]);
            return (waited_for, number(&status["indexes"][1]));
        }
        assert!(Instant::now() < until, "{}: {status}", path.display());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A disk of 1 TiB without a hole, in segments of its order, and changes all over it since.
#[test]
fn a_full_tebibyte_needs_few_indexes() {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let (segments, points) = if long { (32_768, 1000) } else { (2048, 100) };
    let large = Large::new("full", 512);
    let mut laid = lay::Laid::new(large.vault.clone(), "full", ByteLen(TIB)).unwrap();
    laid.full(segments, 1).unwrap();
    let sectors = TIB / 512;
    // Sixteen pages a point, no two of them the same.
    let page = |point: u64, n: u64| (n * sectors / 16 + point * 8 * 101) / 8 * 8;
    for point in 2..=points {
        let places: Vec<u64> = (0..16).map(|n| page(point, n)).collect();
        laid.write(&places, (point % 250 + 2) as u8).unwrap();
    }
    let mount = |name: &str| {
        let disk = large.host.disk(name, 512);
        let begun = Instant::now();
        let args = ["mount", "--vault", &large.url, "--disk", "full", "--name", name];
        let served = large.host.backstay(&args);
        (disk, File::open(served.trim()).unwrap(), begun)
    };
    let (disk, file, begun) = mount("far");
    expect(&file, sectors - 700, 1);
    let took = begun.elapsed();
    let (requests, all) = first_read_took(&disk);
    println!(
        "{segments} segments, {points} points: first byte after {took:?}, {requests} requests, {} MiB",
        rss_mib(&disk)
    );
    assert_eq!(all, segments + points - 1);
    // Each later point's, and of the base those few that may reach there.
    assert!(requests < points + 40, "{requests} requests");
    for point in [2, points / 2, points] {
        for n in [0, 7, 15] {
            expect(&file, page(point, n), (point % 250 + 2) as u8);
            expect(&file, page(point, n) + 8, 1);
        }
    }
    // Killed, it finds the indexes where it had put them.
    drop(file);
    disk.kill_driver();
    let (disk, file, begun) = mount("far");
    expect(&file, sectors / 3, 1);
    let took = begun.elapsed();
    println!("after a kill: first byte after {took:?}, {:?}", first_read_took(&disk));
    // One damaged index costs what its segment may hold.
    let number = segments / 2;
    let segment =
        SegmentId { disk: laid.disk, cycle: CycleNo(1), attempt: 1, number: number as u32 };
    let segment = format!("{}/{}", large.url, segment.key());
    let bytes = File::options().read(true).write(true).open(&segment).unwrap();
    let mut byte = [0];
    // In its footer, whose checksum does not match then.
    let at = bytes.metadata().unwrap().len() - 100;
    bytes.read_exact_at(&mut byte, at).unwrap();
    bytes.write_all_at(&[byte[0] ^ 1], at).unwrap();
    let (disk, file, _) = mount("hurt");
    let of = |number: u64| number * sectors / segments + 4096;
    let mut read = [0; 512];
    let failed = file.read_exact_at(&mut read, of(number) * 512).unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(libc::EIO), "{failed}");
    // Away from it by more than bounds are rounded.
    for other in [0, number - 16, number + 16, segments - 1] {
        expect(&file, of(other), 1);
    }
    drop((file, disk));
}

//! kill -9 of driver and sidecar at random moments under load: nothing flushed is lost, every
//! committed point verifies and holds what it must. Short form a few kills of each, long form
//! (`BACKSTAY_TEST_LONG`) fifty.
//!
//! Needs root, /dev/fuse.

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::thread;

use backstay_tests::harness::stamp::{
    Log, StopOnDrop, check_at, check_flushed, open_direct, write_until,
};
use backstay_tests::harness::{Host, must};
use fastrand::Rng;

const BLOCKS: u64 = 16_384;

fn rounds() -> u32 {
    if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 50 } else { 4 }
}

fn seed() -> u64 {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let seed = if long { fastrand::u64(..) } else { 0x1C11 };
    println!("seed {seed:#x}");
    seed
}

/// Lets load run until the writer got `writes` further: an event, not a time.
fn wait_for_writes(count: &dyn Fn() -> u64, writes: u64) {
    let from = count();
    while count() < from + writes {
        thread::yield_now();
    }
}

#[test]
fn killing_the_driver_loses_nothing_flushed() {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let host = Host::new("killdriver");
    let disk = host.disk("busy", BLOCKS * 4096);
    let mut all = Log::default();
    for round in 0..rounds() {
        let served = disk.mount(&[]);
        let file = open_direct(&served);
        check_flushed(&all, 0..BLOCKS, &file).unwrap_or_else(|e| panic!("round {round}: {e}"));
        let stop = AtomicBool::new(false);
        let pid = disk.driver_pid().expect("a driver runs");
        let writes = rng.u64(200..20_000);
        let writer_seed = rng.u64(..);
        let with_cycle = rng.bool();
        let log = thread::scope(|scope| {
            let first = all.writes.last().map_or(0, |write| write.sequence);
            let (stop, file) = (&stop, &file);
            let _ends = StopOnDrop(stop);
            let writer =
                scope.spawn(move || write_until(stop, file, 0..BLOCKS, first, writer_seed));
            let mut cycle = with_cycle.then(|| host.start(&["cycle", &disk.name]));
            let written = || disk_writes(&host, &disk.name);
            wait_for_writes(&written, writes);
            must("kill", ["-9", &pid.to_string()]);
            if let Some(cycle) = &mut cycle {
                cycle.wait().unwrap();
            }
            // The writer ends by itself: its disk is gone.
            writer.join().unwrap()
        });
        assert!(log.disk_gone);
        all.flushed = all.flushed.max(log.flushed);
        all.writes.extend(log.writes);
    }
    let served = disk.mount(&[]);
    check_flushed(&all, 0..BLOCKS, &open_direct(&served)).unwrap();
    let found = disk.status()["found"].as_str().map(str::to_owned);
    println!("the driver found: {found:?}");
    disk.cycle();
    host.backstay(&["verify", &disk.name]);
    for point in disk.points() {
        let image = disk.restore(point.cycle, "restored.img");
        check_at(&all.writes, 0..BLOCKS, &File::open(image).unwrap(), point.cut_unix_ns)
            .unwrap_or_else(|e| panic!("seed {seed:#x}, point {}: {e}", point.cycle));
    }
}

fn disk_writes(host: &Host, name: &str) -> u64 {
    let status = host.json(&["status", name]);
    let one = status.as_array().map_or(&status, |all| &all[0]);
    one["driver"]["counters"]["writes"].as_u64().expect("writes in status")
}

#[test]
fn killing_the_sidecar_leaves_the_vault_as_it_was() {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let host = Host::new("killsidecar");
    let disk = host.disk("busy", BLOCKS * 4096);
    let served = disk.mount(&[]);
    let stop = AtomicBool::new(false);
    let log = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&stop, &open_direct(&served), 0..BLOCKS, 0, seed));
        let ends = StopOnDrop(&stop);
        for _ in 0..rounds() {
            let mut cycle = host.start(&["cycle", &disk.name]);
            // Somewhere in the life of a cycle, from its start to after its end.
            wait_for_writes(&|| disk_writes(&host, &disk.name), rng.u64(1..4_000));
            must("kill", ["-9", &cycle.id().to_string()]);
            cycle.wait().unwrap();
            if !disk.points().is_empty() {
                host.backstay(&["verify", &disk.name]);
            }
            if rng.bool() {
                disk.cycle();
            }
        }
        drop(ends);
        writer.join().unwrap()
    });
    disk.cycle();
    host.backstay(&["verify", &disk.name]);
    let points = disk.points();
    assert!(!points.is_empty());
    for point in points {
        let image = disk.restore(point.cycle, "restored.img");
        check_at(&log.writes, 0..BLOCKS, &File::open(image).unwrap(), point.cut_unix_ns)
            .unwrap_or_else(|e| panic!("seed {seed:#x}, point {}: {e}", point.cycle));
    }
}

//! I2 under load: stamped writers on a protected disk while cycles run back to back; every
//! recovery point is checked against the log of what was acknowledged before its cut and begun
//! before it. Short form some seconds, long form (`BACKSTAY_TEST_LONG`) a minute.
//!
//! Needs root, /dev/fuse, loop devices.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use backstay_tests::harness::Host;
use backstay_tests::harness::stamp::{StopOnDrop, check_at, open_direct, write_until};

const BLOCKS_PER_WRITER: u64 = 8_192;
const WRITERS: u64 = 4;

fn points_hold_exactly_what_was_written_before_their_cut(through_loop: bool) {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let seed = if long { fastrand::u64(..) } else { 0x57AE55 };
    println!("seed {seed:#x}");
    let host = Host::new("stress");
    let disk = host.disk("busy", WRITERS * BLOCKS_PER_WRITER * 4096);
    let path =
        if through_loop { disk.attach() } else { disk.mount(&[]).to_string_lossy().into_owned() };
    let load_for = Duration::from_secs(if long { 60 } else { 8 });
    let stop = AtomicBool::new(false);
    let range = |writer: u64| writer * BLOCKS_PER_WRITER..(writer + 1) * BLOCKS_PER_WRITER;

    let logs: Vec<_> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (stop, path) = (&stop, &path);
                scope.spawn(move || {
                    let file = open_direct(Path::new(path));
                    write_until(stop, &file, range(writer), 0, seed ^ writer)
                })
            })
            .collect();
        let ends = StopOnDrop(&stop);
        let started = Instant::now();
        while started.elapsed() < load_for {
            disk.cycle();
        }
        drop(ends);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let written: usize = logs.iter().map(|log| log.writes.len()).sum();
    let points = disk.points();
    println!("{written} writes, {} recovery points", points.len());
    assert!(logs.iter().all(|log| !log.disk_gone), "a write failed");
    assert!(points.len() >= 5, "too few cycles ran to prove anything");

    // All points of a short run; of a long one the newest and an even spread.
    let step = points.len().div_ceil(40);
    for point in points.iter().rev().step_by(step) {
        let image = disk.restore(point.cycle, "restored.img");
        let file = File::open(&image).unwrap();
        for (writer, log) in logs.iter().enumerate() {
            check_at(&log.writes, range(writer as u64), &file, point.cut_unix_ns)
                .unwrap_or_else(|e| panic!("seed {seed:#x}, point {}: {e}", point.cycle));
        }
    }
    host.backstay(&["verify", &disk.name]);
}

#[test]
fn through_a_loop_device() {
    points_hold_exactly_what_was_written_before_their_cut(true);
}

#[test]
fn on_the_served_file() {
    points_hold_exactly_what_was_written_before_their_cut(false);
}

/// The oracle must be able to fail.
#[test]
fn the_oracle_sees_a_stale_block() {
    use backstay_tests::harness::stamp::{Write, stamp};
    use std::os::unix::fs::FileExt;
    let host = Host::new("oracle");
    let path = host.path("image");
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(8192).unwrap();
    file.write_all_at(&stamp(1, 7).0, 4096).unwrap();
    let write = |sequence, begun_ns, acked_ns| Write { block: 1, sequence, begun_ns, acked_ns };
    let log = [write(7, 10, Some(20)), write(8, 30, Some(40))];
    assert!(check_at(&log, 0..2, &file, 35).is_ok(), "8 was begun, not acknowledged");
    assert!(check_at(&log, 0..2, &file, 50).is_err(), "8 was acknowledged and is missing");
    assert!(check_at(&log, 0..2, &file, 5).is_err(), "7 was not begun");
}

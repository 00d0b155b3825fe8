//! The throttle against the clock on the wall: how even the line is that a vault sees, how fair, and how
//! soon a change is felt. Takes some 10 seconds.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use backstay_engine::config::Ship;
use backstay_engine::pipeline::{Shipment, ship};
use backstay_engine::throttle::{Rate, Throttle, ThrottleSettings};
use backstay_engine::windows::Zone;
use backstay_types::{CycleNo, DiskId, SectorRange};
use backstay_vault::Vaults;

const MIB: u64 = 1 << 20;

fn settings(bytes_per_second: u64) -> ThrottleSettings {
    let limit = Rate::bytes_per_second(bytes_per_second);
    ThrottleSettings { limit, ..ThrottleSettings::default() }
}

/// Bytes of all files below a folder, staged ones too: what has gone into the vault so far.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        // It was renamed between the two looks.
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

/// Two disks ship at once into real vaults, in segments that take longer than the measurement: what
/// the vaults have grown by, in 10 seconds and in each of them, is what the limit says.
#[test]
fn ten_seconds_are_within_five_percent_and_disks_share_fairly() {
    const LIMIT: u64 = MIB;
    let throttle = Throttle::new(settings(LIMIT), Zone::default());
    // In memory: a disk that stalls would be measured, too.
    let dirs = [(); 2].map(|()| tempfile::tempdir_in("/dev/shm").unwrap());
    let stop = AtomicBool::new(false);
    let (mut seconds, mut shares) = (vec![], vec![]);
    thread::scope(|scope| {
        for (number, dir) in dirs.iter().enumerate() {
            let (throttle, stop) = (&throttle, &stop);
            scope.spawn(move || {
                let vault = Vaults::default().create(dir.path().to_str().unwrap()).unwrap();
                let settings = Ship { upload_parallel: 1, ..Ship::default() };
                let to = Shipment {
                    vault: &vault,
                    disk: DiskId::from_bytes([number as u8 + 1; 16]),
                    cycle: CycleNo(1),
                    attempt: 1,
                    first_segment: 0,
                    ship: &settings,
                    throttle,
                    stop,
                };
                let shipped = ship(to, |feed| {
                    for n in 0.. {
                        let mut chunk = feed.chunk()?;
                        let mut bytes = vec![0; 256 << 10];
                        fastrand::Rng::with_seed(n).fill(&mut bytes);
                        chunk.push(SectorRange::new(n * 512, n * 512 + 512), &bytes);
                        feed.send(chunk)?;
                    }
                    Ok(())
                });
                assert!(shipped.result.is_err() && shipped.segments.is_empty());
            });
        }
        let all = || dirs.iter().map(|dir| bytes_below(dir.path())).sum::<u64>();
        // From when both have begun.
        while dirs.iter().any(|dir| bytes_below(dir.path()) < 64 << 10) {
            thread::yield_now();
        }
        let each = dirs.each_ref().map(|dir| bytes_below(dir.path()));
        let (began, before) = (Instant::now(), all());
        let mut last = (Duration::ZERO, 0);
        for second in 1..=10 {
            thread::sleep(Duration::from_secs(second).saturating_sub(began.elapsed()));
            let now = (began.elapsed(), all() - before);
            seconds.push((now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64());
            last = now;
        }
        for (dir, before) in dirs.iter().zip(each) {
            shares.push((bytes_below(dir.path()) - before) as f64);
        }
        let rate = last.1 as f64 / last.0.as_secs_f64();
        println!("limit {LIMIT}: {rate:.0} bytes a second; each: {seconds:.0?}; {shares:.0?}");
        stop.store(true, Ordering::Relaxed);
        assert!((rate / LIMIT as f64 - 1.0).abs() < 0.05, "{rate} bytes a second");
    });
    for second in seconds {
        // 0.4 s may be saved up, and the clock of a busy machine may be late by as much.
        assert!((second / LIMIT as f64 - 1.0).abs() < 0.6, "one second had {second} bytes");
    }
    let difference = (shares[0] - shares[1]).abs() / (shares[0] + shares[1]);
    assert!(difference < 0.1, "shares {shares:?}");
}

#[test]
fn a_new_limit_is_felt_by_those_who_wait() {
    // At this rate they would take days.
    let throttle = Throttle::new(settings(1), Zone::default());
    let (sent, done) = channel();
    let go_on = AtomicBool::new(true);
    let took = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            let (sent, throttle, go_on, took) = (sent.clone(), &throttle, &go_on, &took);
            scope.spawn(move || {
                let mut left: u64 = 100_000;
                while left > 0 {
                    let Some(some) = throttle.take(left, &|| go_on.load(Ordering::Relaxed)) else {
                        break;
                    };
                    left -= some;
                    took.fetch_add(some, Ordering::Relaxed);
                }
                sent.send(left).unwrap();
            });
        }
        // All wait by now or will; the limit goes, and all are through.
        throttle.set(settings(0), Zone::default());
        for _ in 0..4 {
            assert_eq!(done.recv_timeout(Duration::from_secs(20)).unwrap(), 0);
        }
        assert_eq!(took.load(Ordering::Relaxed), 400_000);
        assert_eq!(throttle.limit(), Rate::NONE);
    });
}

#[test]
fn who_gives_up_leaves_the_line_to_the_others() {
    let throttle = Throttle::new(settings(1), Zone::default());
    let go_on = AtomicBool::new(true);
    thread::scope(|scope| {
        let throttle = &throttle;
        let first = scope.spawn(|| {
            // Takes what is there, then waits for ever.
            while throttle.take(1 << 30, &|| go_on.load(Ordering::Relaxed)).is_some() {}
        });
        let second = scope.spawn(|| throttle.take(1 << 30, &|| true));
        go_on.store(false, Ordering::Relaxed);
        first.join().unwrap();
        throttle.set(settings(0), Zone::default());
        assert!(second.join().unwrap().is_some());
    });
}

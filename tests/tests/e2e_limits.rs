//! The sidecar as a service under limits: blackout windows, the throttle, and settings that change
//! while it runs.
//!
//! Needs root, /dev/fuse.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::{Disk, Host};

const MIB: u64 = 1 << 20;
/// A mounted disk with so many MiB on it that do not compress.
fn disk(host: &Arc<Host>, name: &str, mib: u64) -> Disk {
    let disk = host.disk(name, 64 * MIB);
    let mut noise = vec![0; (mib * MIB) as usize];
    fastrand::Rng::with_seed(7).fill(&mut noise);
    use std::os::unix::fs::FileExt;
    let backing = fs::OpenOptions::new().write(true).open(&disk.backing).unwrap();
    backing.write_all_at(&noise, 0).unwrap();
    drop(backing);
    disk.mount(&[]);
    disk
}

#[track_caller]
fn wait_for_points(disk: &Disk, count: usize) {
    wait_for("a point", || disk.points().len() >= count);
}

/// Whether a cycle runs: who runs it holds the driver's lease.
fn is_shipping(disk: &Disk) -> bool {
    !disk.status()["driver"]["lease"].is_null()
}

const ALWAYS: &str = "Monday;0:00;4d | Friday;0:00;3d";

#[test]
fn no_cycle_begins_in_a_blackout_and_a_change_applies_without_a_restart() {
    let host = Host::new("blackout");
    let (held, free) = (disk(&host, "held", 1), disk(&host, "free", 1));
    let settings = |blackout: &str| {
        format!(
            "interval = \"100ms\"\nheartbeat = \"0s\"\nslots = 2\nblackout = \"{blackout}\"\n[disk.free]\nblackout = \"\"\n"
        )
    };
    write_config(&host, &settings(ALWAYS));
    let service = Service::start(&host);
    wait_for_points(&free, 3);
    assert!(held.points().is_empty(), "it is blackout");
    let blackout = held.status()["blackout"].clone();
    assert!(blackout.as_str().unwrap().contains("never ends"), "{blackout}");
    assert!(free.status()["blackout"].is_null());
    // By hand it works at any time.
    held.cycle();
    let free_has = free.points().len();
    wait_for_points(&free, free_has + 2);
    assert_eq!(held.points().len(), 1, "it is blackout");

    // A longer interval, from now on.
    write_config(&host, &settings(ALWAYS).replace("100ms", "1h"));
    service.says("the configuration has changed");
    wait_for("the end of the last cycle", || !is_shipping(&free));
    let free_has = free.points().len();
    write_config(&host, &settings(ALWAYS));
    service.says("the configuration has changed");
    wait_for_points(&free, free_has + 2);

    // A mistake is reported where it is, and changes nothing.
    write_config(&host, &settings("Monday;0:00;4d | Fryday;0:00;3d"));
    service.says("Friday is meant?");
    for _ in 0..3 {
        let line = service.says("recovery point");
        assert!(line.contains("disk free"), "the old windows hold: {line}");
    }

    write_config(&host, &settings(""));
    wait_for_points(&held, 2);

    // Asked for by a signal, which does not end the service.
    write_config(&host, &settings(ALWAYS));
    service.signal("-HUP");
    service.says("the configuration has changed");
    // One that began before may still end.
    let free_has = free.points().len();
    wait_for_points(&free, free_has + 2);
    let held_has = held.points().len();
    let free_has = free.points().len();
    wait_for_points(&free, free_has + 2);
    assert_eq!(held.points().len(), held_has, "it is blackout");
}

/// A cycle that runs when a blackout begins completes; how slow it is follows the settings at once.
#[test]
fn a_running_cycle_completes_in_a_blackout_and_feels_a_new_limit() {
    let host = Host::new("throttled");
    let slow = disk(&host, "slow", 8);
    // At this rate the disk takes two hours.
    write_config(
        &host,
        "interval = \"100ms\"\nheartbeat = \"0s\"\n[throttle]\nlimit = \"1KiB/s\"\n",
    );
    let service = Service::start(&host);
    wait_for("the cycle", || is_shipping(&slow));
    assert_eq!(slow.status()["limit"], "1KiB/s");
    write_config(
        &host,
        &format!(
            "interval = \"100ms\"\nheartbeat = \"0s\"\nblackout = \"{ALWAYS}\"\n[throttle]\nlimit = \"1KiB/s\"\n\
             [[throttle.timetable]]\nwhen = \"{ALWAYS}\"\nlimit = \"0\"\n"
        ),
    );
    service.says("throttle: no limit");
    wait_for_points(&slow, 1);
    wait_for("the end of the cycle", || !is_shipping(&slow));
    assert_eq!(slow.points().len(), 1, "and no other begins");
    host.backstay(&["verify", "slow"]);
}

/// A service that is told to stop does not wait for the throttle.
#[test]
fn a_throttled_service_stops_at_once() {
    let host = Host::new("throttlestop");
    let slow = disk(&host, "slow", 8);
    write_config(&host, "[throttle]\nlimit = \"1KiB/s\"\n");
    let service = Service::start(&host);
    wait_for("the cycle", || is_shipping(&slow));
    let began = Instant::now();
    drop(service);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    write_config(&host, "");
    slow.cycle();
    host.backstay(&["verify", "slow"]);
}

/// What the command ships by itself is limited, too: 4 MiB at 1 MiB a second.
#[test]
fn a_cycle_by_hand_keeps_to_the_limit() {
    let host = Host::new("throttlecycle");
    let disk = disk(&host, "db", 4);
    write_config(&host, "[throttle]\nlimit = \"1MiB/s\"\n");
    let began = Instant::now();
    disk.cycle();
    let took = began.elapsed().as_secs_f64();
    println!("4 MiB at 1 MiB/s: {took:.2} s");
    assert!((3.8..6.0).contains(&took), "{took:.2} s");
}

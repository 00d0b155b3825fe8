//! Servers that are killed, answer errors, stall and trickle: what that costs, and that it costs nothing else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::{SOON, Service, wait_for};
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, PARTS, SIZE, SMALL, each_kind, noise, source};

/// Killed in the middle of an upload and started again: the cycle ends well, by trying again or by the next.
#[test]
fn a_server_that_is_killed_in_the_middle() {
    each_kind(|kind| {
        // Its own, so that others do not notice.
        let store = Store::start(kind);
        let proxy = Proxy::start(store.port);
        let (in_the_middle, reached) = std::sync::mpsc::channel();
        let parts = AtomicU64::new(0);
        proxy.choose(move |request| {
            if request.is_part() && parts.fetch_add(1, Ordering::Relaxed) == 2 {
                in_the_middle.send(()).unwrap();
            }
            Fault::Pass
        });
        let host = Host::new("stores-killed");
        let slow = format!("{SMALL}[throttle]\nlimit = \"20MB/s\"\n");
        let store_settings = format!("{PARTS}retry_timeout = \"30s\"\n");
        Backend::through(&store, &proxy).connect(&host, Role::Source, &slow, &store_settings);
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 20 * MIB, 1);
        let served = disk.mount(&[]);
        let mut cycle = host.start(&["cycle", "db"]);
        reached.recv_timeout(SOON).unwrap();
        store.kill();
        // I4: the guest notices nothing.
        noise(&served, 22 * MIB, MIB, 2);
        store.bring_back();
        if !cycle.wait().unwrap().success() {
            assert_ne!(disk.status()["health"]["level"], "critical", "{kind:?}");
        }
        disk.cycle();
        let newest = disk.points().pop().unwrap().cycle;
        assert_eq!(hash(&disk.restore(newest, "restored.img")), hash(&served), "{kind:?}");
        host.backstay(&["verify", "db"]);
    });
}

/// Storms and stalls that outlast all patience cost the cycle and nothing else, and are tried again by
/// themselves.
#[test]
fn storms_and_stalls_pass() {
    each_kind(|kind| {
        let store = Store::shared(kind);
        let proxy = Proxy::start(store.port);
        let backend = Backend::through(store, &proxy);
        let (host, disk) = source("stores-storm", &backend);
        let served = disk.served();
        disk.cycle();
        let points = disk.points().len();
        let impatient =
            "part_size = \"5MiB\"\ntimeout = \"300ms\"\nslowest = \"100MiB/s\"\nretries = 1\n";
        backend.connect(&host, Role::Source, SMALL, impatient);
        let faults = [Fault::Answer(500), Fault::Answer(503), Fault::Answer(429), Fault::Close];
        for (n, fault) in faults.into_iter().chain([Fault::Stall]).enumerate() {
            // The vault is found; what is put then meets the storm.
            proxy.choose(move |request| match &request.method[..] {
                "PUT" => fault,
                _ => Fault::Pass,
            });
            noise(&served, 16 * MIB, MIB, n as u64);
            let failed = host.try_backstay(&["cycle", "db"]);
            let (text, health) = (said(&failed), disk.status()["health"].clone());
            assert_eq!(failed.status.code(), Some(1), "{kind:?} {fault:?}: {text}");
            assert_eq!(health["level"], "warning", "{kind:?} {fault:?}: {health} {text}");
            assert_eq!(disk.points().len(), points);
        }
        proxy.choose(|_| Fault::Pass);
        proxy.release();
        backend.connect(&host, Role::Source, SMALL, PARTS);
        disk.cycle();
        let newest = disk.points().pop().unwrap().cycle;
        assert_eq!(hash(&disk.restore(newest, "restored.img")), hash(&served));
        host.backstay(&["prune", "db"]);
        host.backstay(&["verify", "db"]);
    });
}

/// What is read comes through server errors, broken, stalled and trickling connections, each of which ends in its
/// time; if it does not come at all, that is said in bounded time and nothing wrong is restored.
#[test]
fn reading_through_storms_and_trickles() {
    const TRICKLE: Fault = Fault::Trickle(Duration::from_millis(20));
    each_kind(|kind| {
        let store = Store::shared(kind);
        let proxy = Proxy::start(store.port);
        let backend = Backend::through(store, &proxy);
        let (host, disk) = source("stores-reading", &backend);
        disk.cycle();
        let was = hash(&disk.served());
        let settings = "timeout = \"300ms\"\nslowest = \"64KiB/s\"\n";
        backend.connect(&host, Role::Recovery, SMALL, settings);
        let faults = [Fault::Answer(503), Fault::Close, TRICKLE, Fault::Answer(500), Fault::Stall];
        let gets = AtomicU64::new(0);
        proxy.choose(move |request| match &request.method[..] {
            "GET" => match gets.fetch_add(1, Ordering::Relaxed) as usize {
                odd if odd % 2 == 1 => faults[odd / 2 % faults.len()],
                _ => Fault::Pass,
            },
            _ => Fault::Pass,
        });
        let before = proxy.faults();
        assert_eq!(hash(&disk.restore(1, "restored.img")), was, "{kind:?}");
        assert!(proxy.faults() - before >= faults.len() as u64, "{} faults", proxy.faults());
        // A list that trickles or breaks off is asked for again.
        let lists = AtomicU64::new(0);
        proxy.choose(move |request| match request.lists("") {
            true => match lists.fetch_add(1, Ordering::Relaxed) {
                0 => TRICKLE,
                1 => Fault::Half,
                _ => Fault::Pass,
            },
            false => Fault::Pass,
        });
        let before = proxy.faults();
        assert_eq!(disk.points().len(), 1, "{kind:?}");
        assert_eq!(proxy.faults() - before, 2, "{kind:?}");
        // Every one of them, and no end of it.
        backend.connect(&host, Role::Recovery, SMALL, &format!("{settings}retries = 1\n"));
        for fault in faults {
            proxy.choose(move |request| match &request.method[..] {
                "GET" => fault,
                _ => Fault::Pass,
            });
            let began = Instant::now();
            let to = host.path("never.img");
            let to = to.to_str().unwrap();
            let failed = host.try_backstay(&["restore", "db", "--point", "1", "--to", to]);
            assert!(!failed.status.success(), "{kind:?} {fault:?}: {}", said(&failed));
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        }
        proxy.choose(|_| Fault::Pass);
        proxy.release();
    });
}

/// The service ships again by itself when a store that was gone is back.
#[test]
fn the_service_goes_on_when_the_store_is_back() {
    let store = Store::shared(Kind::S3);
    let proxy = Proxy::start(store.port);
    let host = Host::new("stores-service");
    let settings = "interval = \"1s\"\nheartbeat = \"0s\"\nretry = [\"1s\"]\n";
    Backend::through(store, &proxy).connect(&host, Role::Source, settings, "retries = 1\n");
    let disk = host.disk("db", SIZE);
    let served = disk.mount(&[]);
    let service = Service::start(&host);
    wait_for("the first point", || !disk.points().is_empty());
    proxy.choose(|_| Fault::Close);
    noise(&served, 0, MIB, 1);
    wait_for("a warning", || disk.status()["health"]["level"] == "warning");
    let before = disk.status()["health"]["since_unix_ns"].clone();
    assert!(before.is_u64(), "{}", disk.status()["health"]);
    proxy.choose(|_| Fault::Pass);
    let points = disk.points().len();
    wait_for("the next points", || disk.points().len() > points);
    drop(service);
    disk.cycle();
    let newest = disk.points().pop().unwrap().cycle;
    assert_eq!(hash(&disk.restore(newest, "restored.img")), hash(&served));
}

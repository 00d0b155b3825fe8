//! Behind a gateway: everybody has a certificate for what they do, retention runs where no client is, and what the
//! store behind it does is the gateway's to bear.

use std::fs;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::forward::ForwardProxy;
use backstay_tests::harness::gateway::Gateway;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::netns::Cable;
use backstay_tests::harness::pki::Pki;
use backstay_tests::harness::proxy::{Fault, Proxy, Request};
use backstay_tests::harness::service::{SOON, Service};
use backstay_tests::harness::store::{Kind, Store};
use backstay_tests::harness::{Disk, Host};

use super::life::life;
use super::lines::all_lead_to;
use super::{MIB, PARTS, SIZE, is_long, noise, source};

/// A gateway before a vault, and its authority.
struct Site {
    store: Backend,
    pki: Pki,
    gateway: Gateway,
    host: Arc<Host>,
}

impl Site {
    /// These are lines of the gateway's configuration.
    fn new(test: &str, store: Backend, settings: &str) -> Self {
        let host = Host::new(test);
        let pki = Pki::new(&host.dir);
        let gateway = Gateway::before(&store, &pki, &host.path("gateway"), settings);
        Self { store, pki, gateway, host }
    }

    fn backend(&self) -> Backend {
        Backend::behind(&self.gateway, &self.pki, "db")
    }

    /// Retention, by another gateway before the same store: no client is let.
    fn prune(&self, keeper: &Host, keep: &str) {
        let refused = keeper.try_backstay(&["prune", "db", "--keep", keep]);
        assert!(said(&refused).contains("retention runs there"), "{}", said(&refused));
        let rules = format!("keep = \"{keep}\"\n[gateway]\nretention = \"50ms\"\n");
        let dir = self.host.path("retention");
        let second = Gateway::before(&self.store, &self.pki, &dir, &rules);
        second.wait_for("retention_total", |rounds| rounds > 0);
        assert_eq!(second.number("retention_failed_total"), 0);
    }
}

const NO_RETENTION: &str = "[gateway]\nretention = \"0s\"\n";

fn live(test: &str, store: Backend) {
    let site = Site::new(test, store, NO_RETENTION);
    let backend = site.backend();
    life(&backend, source(test, &backend), &|keeper, keep| site.prune(keeper, keep));
}

/// Before a directory and before S3, at the same time.
#[test]
fn a_life_behind_a_gateway() {
    let there = Host::new("stores-there");
    thread::scope(|scope| {
        scope.spawn(|| live("stores-gateway-s3", Backend::direct(Store::shared(Kind::S3))));
        live("stores-gateway", Backend::folder(&there.path("vault")));
    });
}

/// Whether it puts a segment, in one piece or in parts.
fn puts_segment(request: &Request) -> bool {
    request.method == "PUT" && request.target.contains("/segments/")
}

/// The store is killed in the middle of a cycle, for longer than what is known of it is believed. The source does not
/// notice: what it sends is taken into the cache, and the cycle ends when the store is back.
#[test]
fn a_store_behind_a_gateway_is_killed_in_the_middle() {
    // Its own, so that others do not notice.
    let store = Store::start(Kind::S3);
    let proxy = Proxy::start(store.port);
    let (in_the_middle, reached) = channel();
    let puts = AtomicU64::new(0);
    proxy.choose(move |request| {
        if puts_segment(request) && puts.fetch_add(1, Ordering::Relaxed) == 2 {
            in_the_middle.send(()).unwrap();
        }
        Fault::Pass
    });
    let site = Site::new("stores-behind-killed", Backend::through(&store, &proxy), NO_RETENTION);
    let host = Host::new("stores-killed");
    // In the long form it is away for longer than the gateway believes whose the disk is.
    let rate = if is_long() { "1200KB/s" } else { "20MB/s" };
    let slow = format!(
        "interval = \"1d\"\n[ship]\nsegment_size = \"1MiB\"\n[throttle]\nlimit = \"{rate}\"\n"
    );
    let backend = site.backend();
    backend.connect(&host, Role::Source, &slow, "");
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 20 * MIB, 1);
    let served = disk.mount(&[]);
    let mut cycle = host.command();
    let mut cycle = cycle.args(["cycle", "db"]).stdin(Stdio::null()).spawn().unwrap();
    reached.recv_timeout(SOON).unwrap();
    store.kill();
    // I4: the guest notices nothing.
    noise(&served, 22 * MIB, MIB, 2);
    site.gateway.wait_for("received_bytes_total", |bytes| bytes >= 20 * MIB);
    assert_eq!(cycle.try_wait().unwrap(), None, "a point without its segments");
    assert_eq!(site.gateway.told("/readyz").0, 503);
    assert_eq!(site.gateway.told("/healthz").0, 200);
    store.bring_back();
    assert!(cycle.wait().unwrap().success());
    disk.cycle();
    restores(&backend, &disk);
    site.gateway.wait_for("cache_bytes", |left| left == 0);
}

/// Storms and stalls of the store that outlast the source's patience cost its cycle and nothing else: it is tried
/// again, what it had sent goes on to the store by itself, and the gateway takes no more memory for all of it.
#[test]
fn storms_behind_a_gateway_pass() {
    let store = Store::shared(Kind::S3);
    let proxy = Proxy::start(store.port);
    let impatient = format!("{NO_RETENTION}[store]\ntimeout = \"300ms\"\nretries = 1\n");
    let site = Site::new("stores-behind-storm", Backend::through(store, &proxy), &impatient);
    let backend = site.backend();
    let (host, disk) = source("stores-storm", &backend);
    let served = disk.served();
    disk.cycle();
    let (points, before) = (disk.points().len(), site.gateway.memory_high());
    backend.connect(&host, Role::Source, super::SMALL, "timeout = \"1s\"\nretries = 1\n");
    let faults = [Fault::Answer(503), Fault::Stall, Fault::Answer(500), Fault::Close];
    for (n, fault) in faults.into_iter().take(if is_long() { 4 } else { 2 }).enumerate() {
        proxy.choose(move |request| match puts_segment(request) {
            true => fault,
            false => Fault::Pass,
        });
        noise(&served, 16 * MIB, MIB, n as u64);
        let failed = host.try_backstay(&["cycle", "db"]);
        let (text, health) = (said(&failed), disk.status()["health"].clone());
        assert_eq!(failed.status.code(), Some(1), "{fault:?}: {text}");
        assert_eq!(health["level"], "warning", "{fault:?}: {health} {text}");
        assert_eq!(disk.points().len(), points);
    }
    proxy.choose(|_| Fault::Pass);
    proxy.release();
    backend.connect(&host, Role::Source, super::SMALL, PARTS);
    disk.cycle();
    restores(&backend, &disk);
    site.gateway.wait_for("cache_bytes", |left| left == 0);
    let after = site.gateway.memory_high();
    println!("the gateway took {before} KiB at most before the storms, {after} KiB after");
    assert!(after < before + (32 << 10), "{before} KiB, then {after} KiB");
}

/// What is read through a gateway comes through server errors, broken, stalled and trickling answers of its store.
#[test]
fn reading_behind_a_gateway_through_storms_and_trickles() {
    const TRICKLE: Fault = Fault::Trickle(Duration::from_millis(20));
    let store = Store::shared(Kind::S3);
    let proxy = Proxy::start(store.port);
    let impatient = format!("{NO_RETENTION}[store]\ntimeout = \"300ms\"\nslowest = \"64KiB/s\"\n");
    let site = Site::new("stores-behind-reading", Backend::through(store, &proxy), &impatient);
    let backend = site.backend();
    let (_, disk) = source("stores-reading", &backend);
    disk.cycle();
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
    restores(&backend, &disk);
    assert!(proxy.faults() - before >= faults.len() as u64, "{} faults", proxy.faults());
    proxy.choose(|_| Fault::Pass);
    proxy.release();
}

/// Only outbound, and only to an HTTP proxy: the source is in a network of its own where nothing else answers, not
/// even a name server. The gateway is reached by CONNECT, so that the proxy sees neither certificate nor data.
#[test]
fn only_out_to_a_gateway_through_an_http_proxy() {
    let store = Store::shared(Kind::S3);
    let before_store = Proxy::start(store.port);
    let test = "stores-behind-proxy";
    let site = Site::new(test, Backend::through(store, &before_store), NO_RETENTION);
    let cable = Cable::new();
    let name = format!("gateway.example:{}", site.gateway.listen.port());
    let proxy = ForwardProxy::start(cable.listen(1), &[(name.clone(), site.gateway.listen)]);
    let mut backend = site.backend();
    backend.url = format!("https://{name}");
    // As everybody has it, for the source; as a setting, for who recovers.
    let recovery = Host::new(test);
    let setting = format!("proxy = \"{}\"\n", proxy.url());
    backend.connect(&recovery, Role::Recovery, "", &setting);
    backend.variables.push(("HTTPS_PROXY".into(), proxy.url()));
    let source = Host::new(test);
    backend.connect(
        &source,
        Role::Source,
        "interval = \"1s\"\nheartbeat = \"0s\"\nretry = [\"1s\"]\n",
        "",
    );
    let disk = source.disk("db", SIZE);
    noise(&disk.backing, 0, 6 * MIB, 1);
    let served = disk.mount(&[]);
    // In the middle of a cycle the source's sockets are looked at.
    let (reached, in_the_middle) = channel();
    let (go_on, goes_on) = channel::<()>();
    let (goes_on, puts) = (Mutex::new(goes_on), AtomicU64::new(0));
    before_store.choose(move |request| {
        if puts_segment(request) && puts.fetch_add(1, Ordering::Relaxed) == 0 {
            reached.send(()).unwrap();
            let _ = goes_on.lock().unwrap().recv();
        }
        Fault::Pass
    });
    let service = Service::start_as(&source, |command| cable.on(0, command));
    in_the_middle.recv_timeout(SOON).unwrap();
    all_lead_to(&proxy, &cable.sockets(0));
    go_on.send(()).unwrap();
    service.says("recovery point 1");
    drop(service);
    let inside = |host: &Host, args: &[&str]| {
        let mut command = host.command();
        cable.on(0, command.args(args)).output().unwrap()
    };
    let done = inside(&source, &["cycle", "db"]);
    assert!(done.status.success(), "{}", said(&done));
    let to = recovery.path("restored.img");
    let args = ["restore", "db", "--point", "latest", "--to", to.to_str().unwrap()];
    let done = inside(&recovery, &args);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(hash(&to), hash(&served));
    assert!(proxy.tunnels() > 1 && proxy.plain() == 0, "{} {}", proxy.tunnels(), proxy.plain());
    assert_eq!(proxy.refused(), 0);
    // Without it there is no other way out.
    proxy.stop();
    let requests = site.gateway.number("requests_total");
    backend.connect(&source, Role::Source, "", "retries = 1\n");
    let failed = inside(&source, &["cycle", "db"]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert_eq!(site.gateway.number("requests_total"), requests);
}

/// The newest point is what is served, on a host that has nothing but a recovery certificate.
fn restores(backend: &Backend, disk: &Disk) {
    let recovery = Host::new("stores-recovery");
    backend.connect(&recovery, Role::Recovery, "", "");
    let to = recovery.path("restored.img");
    let to_text = to.to_str().unwrap();
    recovery.backstay(&["restore", "db", "--point", "latest", "--to", to_text]);
    assert_eq!(hash(&to), hash(&disk.served()));
    fs::remove_file(to).unwrap();
}

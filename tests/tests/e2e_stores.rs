//! The same life of a disk on every kind of store, against real servers: Ceph's S3 gateway and Azurite.
//!
//! Needs root, /dev/fuse and what `scripts/setup stores` installs.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use backstay_tests::harness::command::said;
use backstay_tests::harness::forward::ForwardProxy;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::netns::{Authority, Cable};
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::{SOON, Service, wait_for, write_config};
use backstay_tests::harness::store::{Kind, Store};
use backstay_tests::harness::{Disk, Host};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;
/// Segments of several parts.
const SMALL: &str = "interval = \"1d\"\n[ship]\nsegment_size = \"11MiB\"\n";
const PARTS: &str = "[store]\npart_size = \"5MiB\"\n";
const BOTH: [Kind; 2] = [Kind::S3, Kind::Azure];

/// The server of a kind that all tests share; it ends with this process.
fn server(kind: Kind) -> &'static Store {
    static RUNNING: [OnceLock<Store>; 2] = [const { OnceLock::new() }; 2];
    RUNNING[usize::from(kind == Kind::Azure)].get_or_init(|| Store::start(kind))
}

fn noise(path: &Path, at: u64, len: u64, seed: u64) {
    let mut bytes = vec![0; len as usize];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// A host whose vault is in a store, and a disk of it that is served.
fn disk_in(test: &str, store: &Store, settings: &str) -> (Arc<Host>, Disk) {
    let host = Host::new(test);
    store.serve(&host);
    write_config(&host, &format!("{SMALL}{settings}"));
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 14 * MIB, 1);
    disk.mount(&[]);
    (host, disk)
}

/// From the first copy to restore, mount and failover on another host.
fn life(host: &Arc<Host>, disk: &Disk, variables: &[(String, String)]) {
    let served = disk.served();
    disk.cycle();
    let mut hashes = vec![hash(&served)];
    for n in 2..=4 {
        noise(&served, n * 3 * MIB + 4096 * n, MIB, n);
        disk.cycle();
        hashes.push(hash(&served));
    }
    // Rules, a pin, merging and collecting.
    host.backstay(&["pin", "db", "2", "--name", "before"]);
    host.backstay(&["prune", "db", "--keep", "last 1"]);
    let cycles: Vec<u64> = disk.points().iter().map(|point| point.cycle).collect();
    assert_eq!(cycles, [2, 4]);
    // A comparison by checksums, after the backing was changed behind our back.
    host.backstay(&["umount", "db"]);
    noise(&disk.backing, 20 * MIB, 4096, 9);
    disk.mount(&[]);
    host.backstay(&["resync", "db", "--now"]);
    assert_eq!(host.json(&["points", "db"])[2]["kind"], "resync");
    host.backstay(&["unpin", "db", "before"]);
    host.backstay(&["prune", "db", "--keep", "last 2"]);
    host.backstay(&["verify", "db"]);
    // Another host has nothing but the URL and the credentials.
    let other = another(&host.vault(), variables);
    for (cycle, expected) in [(4, hashes.pop().unwrap()), (5, hash(&disk.served()))] {
        let to = other.path("restored.img");
        let (to, point) = (to.to_str().unwrap(), cycle.to_string());
        other.backstay(&["restore", "db", "--point", &point, "--to", to, "--force"]);
        assert_eq!(hash(Path::new(to)), expected, "point {cycle}");
    }
    let gone = other.try_backstay(&["restore", "db", "--point", "2", "--to", "/dev/null"]);
    assert!(said(&gone).contains("no recovery point 2"), "{}", said(&gone));
    mount(&another(&host.vault(), variables), &hash(&disk.served()));
    there_and_back(disk, variables);
    noise(&served, 10 * MIB, MIB, 19);
    disk.cycle();
    fail_over(disk, &other);
}

/// Another host, with nothing but a vault's URL and the credentials.
fn another(vault: &str, variables: &[(String, String)]) -> Arc<Host> {
    let other = Host::new("stores-other");
    other.ship_to(vault, variables);
    write_config(&other, "");
    other
}

/// A point is mounted and read as a disk.
fn mount(host: &Arc<Host>, expected: &str) {
    // For its clean-up.
    host.disk("tried", SIZE);
    let of = ["--disk", "db", "--name", "tried", "--point", "5"];
    let file = host.backstay(&[&["mount", "--vault", &host.vault()], &of[..]].concat());
    assert_eq!(hash(Path::new(file.trim())), expected, "mounted");
    host.backstay(&["umount", "tried"]);
}

/// The disk goes to another host by plan, is written there, and comes back.
fn there_and_back(source: &Disk, variables: &[(String, String)]) {
    let there = another(&source.host.vault(), variables);
    let was = hash(&source.served());
    source.host.backstay(&["failover", "handover", "db"]);
    let target = there.disk("db", SIZE);
    there.backstay(&["failover", "planned", "db"]);
    assert_eq!(hash(&target.served()), was, "handed over");
    there.backstay(&["failover", "commit", "db"]);
    noise(&target.served(), 6 * MIB, MIB, 20);
    there.backstay(&["cycle", "db"]);
    noise(&target.served(), 8 * MIB, MIB, 21);
    let now = hash(&target.served());
    there.backstay(&["failover", "handover", "db"]);
    source.host.backstay(&["failback", "db", "--to", source.backing.to_str().unwrap()]);
    assert_eq!(hash(&source.served()), now, "failed back");
}

/// Another host takes the disk over; the old source is shut out (I5).
fn fail_over(source: &Disk, other: &Arc<Host>) {
    let was = hash(&source.served());
    let target = other.disk("db", SIZE);
    other.backstay(&["failover", "unplanned", "db"]);
    assert_eq!(hash(&target.served()), was, "failed over");
    noise(&target.served(), 9 * MIB, MIB, 21);
    other.backstay(&["failover", "commit", "db"]);
    other.backstay(&["cycle", "db"]);
    let newest = target.points().pop().unwrap().cycle;
    assert!(newest > 5);
    assert_eq!(hash(&target.restore(newest, "after.img")), hash(&target.served()));
    noise(&source.served(), 9 * MIB, MIB, 22);
    let fenced = source.host.try_backstay(&["cycle", "db"]);
    assert!(said(&fenced).contains("is over"), "{}", said(&fenced));
    assert_eq!(target.points().pop().unwrap().cycle, newest, "the old source committed");
}

#[test]
fn a_life_in_a_directory() {
    let host = Host::new("stores-file");
    write_config(&host, &format!("{SMALL}{PARTS}"));
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 14 * MIB, 1);
    disk.mount(&[]);
    life(&host, &disk, &[]);
}

#[test]
fn a_life_on_s3() {
    let store = server(Kind::S3);
    let (host, disk) = disk_in("stores-s3", store, PARTS);
    life(&host, &disk, store.variables());
}

#[test]
fn a_life_on_azure() {
    let store = server(Kind::Azure);
    let (host, disk) = disk_in("stores-azure", store, PARTS);
    life(&host, &disk, store.variables());
}

/// Each put that only one writer can win is done and its answer lost; every third part of a segment arrives
/// by half; one answer in thirteen is a server error. Nothing of that costs a cycle or shows in a point.
fn bad_day(kind: Kind) {
    let store = server(kind);
    let proxy = Proxy::start(store.port);
    let (puts, parts) = (AtomicU64::new(0), AtomicU64::new(0));
    proxy.choose(move |request| match request {
        // The first of each pair: the library sends it again, and it finds itself.
        _ if request.only_if_absent && puts.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) => {
            Fault::LoseAnswer
        }
        _ if request.is_part() && parts.fetch_add(1, Ordering::Relaxed).is_multiple_of(3) => {
            Fault::Tear
        }
        _ if request.number.is_multiple_of(13) => Fault::Answer(503),
        _ => Fault::Pass,
    });
    let host = Host::new("stores-bad-day");
    let variables = store.variables_through(&proxy);
    host.ship_to(&store.url(), &variables);
    write_config(&host, &format!("{SMALL}{PARTS}"));
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 14 * MIB, 1);
    disk.mount(&[]);
    life(&host, &disk, &variables);
    assert!(proxy.faults() > 20, "{} faults", proxy.faults());
}

#[test]
fn a_life_on_a_bad_day_on_s3() {
    bad_day(Kind::S3);
}

#[test]
fn a_life_on_a_bad_day_on_azure() {
    bad_day(Kind::Azure);
}

/// Killed in the middle of an upload and started again: the cycle ends well, by trying again or by the next.
#[test]
fn a_server_that_is_killed_in_the_middle() {
    for kind in BOTH {
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
        host.ship_to(&store.url(), &store.variables_through(&proxy));
        write_config(
            &host,
            &format!("{SMALL}{PARTS}retry_timeout = \"30s\"\n[throttle]\nlimit = \"20MB/s\"\n"),
        );
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
    }
}

/// Storms and stalls that outlast all patience cost the cycle and nothing else, and are tried again by
/// themselves.
#[test]
fn storms_and_stalls_pass() {
    for kind in BOTH {
        let store = server(kind);
        let proxy = Proxy::start(store.port);
        let host = Host::new("stores-storm");
        host.ship_to(&store.url(), &store.variables_through(&proxy));
        write_config(&host, &format!("{SMALL}{PARTS}"));
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 14 * MIB, 1);
        let served = disk.mount(&[]);
        disk.cycle();
        let points = disk.points().len();
        let impatient = "[store]\npart_size = \"5MiB\"\ntimeout = \"1s\"\nslowest = \"100MiB/s\"\n\
                         retries = 1\n";
        write_config(&host, &format!("{SMALL}{impatient}"));
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
        write_config(&host, &format!("{SMALL}{PARTS}"));
        disk.cycle();
        let newest = disk.points().pop().unwrap().cycle;
        assert_eq!(hash(&disk.restore(newest, "restored.img")), hash(&served));
        host.backstay(&["prune", "db"]);
        host.backstay(&["verify", "db"]);
    }
}

/// What is read comes through server errors, broken, stalled and trickling connections, each of which ends in its
/// time; if it does not come at all, that is said in bounded time and nothing wrong is restored.
#[test]
fn reading_through_storms_and_trickles() {
    const TRICKLE: Fault = Fault::Trickle(Duration::from_millis(20));
    for kind in BOTH {
        let store = server(kind);
        let proxy = Proxy::start(store.port);
        let host = Host::new("stores-reading");
        host.ship_to(&store.url(), &store.variables_through(&proxy));
        write_config(&host, &format!("{SMALL}{PARTS}"));
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 14 * MIB, 1);
        disk.mount(&[]);
        disk.cycle();
        let was = hash(&disk.served());
        let settings = "[store]\ntimeout = \"1s\"\nslowest = \"64KiB/s\"\n";
        write_config(&host, &format!("{SMALL}{settings}"));
        let faults = [Fault::Answer(503), Fault::Close, TRICKLE, Fault::Answer(500), Fault::Stall];
        let gets = AtomicU64::new(0);
        proxy.choose(move |request| match &request.method[..] {
            // The library asks for a list once more only if its answer does not begin.
            "GET" if !request.lists("") => match gets.fetch_add(1, Ordering::Relaxed) as usize {
                odd if odd % 2 == 1 => faults[odd / 2 % faults.len()],
                _ => Fault::Pass,
            },
            _ => Fault::Pass,
        });
        let before = proxy.faults();
        assert_eq!(hash(&disk.restore(1, "restored.img")), was, "{kind:?}");
        assert!(proxy.faults() - before >= faults.len() as u64, "{} faults", proxy.faults());
        // Every one of them, and no end of it.
        write_config(&host, &format!("{SMALL}{settings}retries = 1\n"));
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
    }
}

/// The service ships again by itself when a store that was gone is back.
#[test]
fn the_service_goes_on_when_the_store_is_back() {
    let store = server(Kind::S3);
    let proxy = Proxy::start(store.port);
    let host = Host::new("stores-service");
    host.ship_to(&store.url(), &store.variables_through(&proxy));
    write_config(&host, "interval = \"1s\"\nretry = [\"1s\"]\n[store]\nretries = 1\n");
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

/// I5: a store that does not keep puts apart is refused, before anything is begun in it.
#[test]
fn a_store_without_conditional_puts_is_refused() {
    for kind in BOTH {
        let store = server(kind);
        let proxy = Proxy::start(store.port);
        proxy.choose(|_| Fault::DenyConditions);
        let host = Host::new("stores-unfit");
        host.ship_to(&store.url(), &store.variables_through(&proxy));
        let disk = host.disk("db", SIZE);
        let backing = disk.backing.to_str().unwrap();
        let refused = host.try_backstay(&["protect", backing, "--name", "db"]);
        let text = said(&refused);
        assert!(text.contains("no place for a vault") && text.contains("If-None-Match"), "{text}");
        assert!(text.contains("Nothing was changed"), "{text}");
        // Switched off by the library's own setting.
        if kind == Kind::S3 {
            let mut variables = store.variables().to_vec();
            variables.push(("AWS_CONDITIONAL_PUT".into(), "disabled".into()));
            host.ship_to(&store.url(), &variables);
            let text = said(&host.try_backstay(&["protect", backing, "--name", "db"]));
            assert!(text.contains("no place for a vault"), "{text}");
        }
        // Nothing is left of the attempt.
        host.ship_to(&store.url(), store.variables());
        host.backstay(&["protect", backing, "--name", "db", "--check"]);
    }
}

/// What only a person can mend says so, at once, and gives away no secret.
#[test]
fn mistakes_are_explained_and_secrets_kept() {
    const SECRET: &str = "aHVudGVyMmh1bnRlcjJodW50ZXIy";
    for kind in BOTH {
        let store = server(kind);
        let host = Host::new("stores-mistakes");
        let url = store.url();
        let disk = host.disk("db", SIZE);
        let backing = disk.backing.to_str().unwrap();
        let tried = |url: &str, variables: &[(String, String)]| {
            host.ship_to(url, variables);
            let args = ["-vv", "protect", backing, "--name", "db", "--vault", url, "--check"];
            let output = host.try_backstay(&args);
            assert_eq!(output.status.code(), Some(1), "{}", said(&output));
            let text = said(&output);
            assert!(!text.contains(SECRET) && !text.contains("for-tests-only"), "{text}");
            text
        };
        let wrong_key: Vec<(String, String)> = store
            .variables()
            .iter()
            .map(|(name, value)| match name.contains("SECRET") || name.ends_with("ACCOUNT_KEY") {
                true => (name.clone(), SECRET.into()),
                false => (name.clone(), value.clone()),
            })
            .collect();
        let text = tried(&url, &wrong_key);
        assert!(text.contains("permission denied"), "{text}");
        let no_bucket = url.replace("//vault/", "//no-such-bucket/");
        let text = tried(&no_bucket, store.variables());
        assert!(text.contains("no such bucket or container"), "{text}");
        let no_key: Vec<(String, String)> =
            wrong_key.iter().filter(|(name, _)| !name.contains("KEY")).cloned().collect();
        let text = tried(&url, &no_key);
        assert!(text.contains("no credentials"), "{text}");
        let text = tried(&url.replace("//", &format!("//me:{SECRET}@")), store.variables());
        assert!(text.contains("no credentials or parameters in a vault's URL"), "{text}");
    }
}

/// A service has its secrets in a file that nobody else can read, and the rest in the configuration.
#[test]
fn secrets_come_from_a_private_file() {
    let store = server(Kind::S3);
    let host = Host::new("stores-file-of-secrets");
    let url = store.url();
    let of = |wanted: &str| {
        store.variables().iter().find(|(name, _)| name == wanted).map(|(_, value)| value).unwrap()
    };
    host.ship_to(&url, &[]);
    let secrets = host.path("credentials");
    let mut file = fs::File::create(&secrets).unwrap();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        writeln!(file, "{name}={}", of(name)).unwrap();
    }
    let mode = |mode| fs::set_permissions(&secrets, fs::Permissions::from_mode(mode)).unwrap();
    let settings = format!(
        "[store]\nendpoint = \"{}\"\nallow_http = true\nregion = \"us-east-1\"\n\
         credentials_file = \"{}\"\n",
        of("AWS_ENDPOINT"),
        secrets.display()
    );
    write_config(&host, &settings);
    let disk = host.disk("db", SIZE);
    disk.mount(&[]);
    mode(0o644);
    let refused = host.try_backstay(&["cycle", "db"]);
    assert!(said(&refused).contains("chmod 600"), "{}", said(&refused));
    mode(0o600);
    disk.cycle();
    assert_eq!(disk.points().len(), 1);
}

/// A certificate that nobody vouches for is refused at once, before anything is sent; with its authority in
/// `ca_file` the store is reached.
#[test]
fn a_store_with_tls() {
    for kind in BOTH {
        let store = server(kind);
        let (ours, others) = (Authority::new(), Authority::new());
        let proxy = Proxy::start_tls(store.port, ours.server("127.0.0.1"));
        let host = Host::new("stores-tls");
        let origin = format!("https://127.0.0.1:{}", proxy.port());
        host.ship_to(&store.url(), &store.variables_at(&origin));
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 6 * MIB, 1);
        let backing = disk.backing.to_str().unwrap();
        let trust = |file: &Path| write_config(&host, &format!("{PARTS}ca_file = {file:?}\n"));
        let refused = |why: &str| {
            let args = ["protect", backing, "--name", "db", "--check"];
            let output = host.try_backstay(&args);
            let text = said(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(why) && text.contains("store.ca_file"), "{text}");
        };
        write_config(&host, PARTS);
        refused("certificate is not trusted");
        trust(&others.ca_file(host.path("others.pem")));
        refused("certificate is not trusted");
        // The right authority, another machine's name.
        let elsewhere = Proxy::start_tls(store.port, ours.server("other.example"));
        trust(&ours.ca_file(host.path("ours.pem")));
        let there = format!("https://127.0.0.1:{}", elsewhere.port());
        host.ship_to(&host.vault(), &store.variables_at(&there));
        refused("certificate is not trusted");
        // No TLS where TLS is said to be needed, and none where it is not there.
        host.ship_to(
            &host.vault(),
            &store.variables_at(&format!("http://127.0.0.1:{}", store.port)),
        );
        assert_eq!((proxy.seen(), elsewhere.seen()), (0, 0), "{kind:?}: something was sent");
        host.ship_to(&host.vault(), &store.variables_at(&origin));
        disk.mount(&[]);
        disk.cycle();
        assert_eq!(hash(&disk.restore(1, "restored.img")), hash(&disk.served()), "{kind:?}");
        assert!(proxy.seen() > 5);
    }
}

/// Only outbound, and only to an HTTP proxy: the source is in a network of its own where nothing else answers, not
/// even a name server. Encrypted stores are reached by CONNECT, plain ones by requests for whole URLs. No socket of
/// the source waits for connections.
#[test]
fn only_out_through_an_http_proxy() {
    // Azurite takes the first part of a name for the account; and so it is an address that leads nowhere.
    for (kind, tls, name) in [(Kind::S3, true, "store.example"), (Kind::Azure, false, "192.0.2.7")]
    {
        let store = server(kind);
        let authority = Authority::new();
        let server = match tls {
            true => Proxy::start_tls(store.port, authority.server(name)),
            false => Proxy::start(store.port),
        };
        let cable = Cable::new();
        let to = format!("{name}:{}", server.port());
        let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let proxy = ForwardProxy::start(cable.listen(1), &[(to.clone(), address)]);
        let host = Host::new("stores-proxy");
        let scheme = if tls { "https" } else { "http" };
        let mut variables = store.variables_at(&format!("{scheme}://{to}"));
        let ca = authority.ca_file(host.path("ca.pem"));
        // As a setting, and as everybody else has it.
        let setting = match tls {
            true => format!("proxy = \"{}\"\nca_file = {ca:?}\n", proxy.url()),
            false => {
                variables.push(("HTTP_PROXY".into(), proxy.url()));
                String::new()
            }
        };
        host.ship_to(&store.url(), &variables);
        let settings = format!("interval = \"1s\"\nretry = [\"1s\"]\n{PARTS}{setting}");
        write_config(&host, &settings);
        let disk = host.disk("db", SIZE);
        noise(&disk.backing, 0, 6 * MIB, 1);
        let served = disk.mount(&[]);
        let inside = |args: &[&str]| {
            let mut command = host.command();
            let output = cable.on(0, command.args(args)).output().unwrap();
            assert!(output.status.success(), "{kind:?} {args:?}: {}", said(&output));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        // In the middle of an upload the sidecar's sockets are looked at.
        let (reached, in_the_middle) = std::sync::mpsc::channel();
        let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
        let goes_on = Mutex::new(goes_on);
        let parts = AtomicU64::new(0);
        server.choose(move |request| {
            if request.is_part() && parts.fetch_add(1, Ordering::Relaxed) == 0 {
                reached.send(()).unwrap();
                let _ = goes_on.lock().unwrap().recv();
            }
            Fault::Pass
        });
        let service = Service::start_as(&host, |command| cable.on(0, command));
        in_the_middle.recv_timeout(SOON).unwrap();
        let sockets = cable.sockets(0);
        go_on.send(()).unwrap();
        // Address and port as the kernel writes them.
        let port: u16 = proxy.url().rsplit(':').next().unwrap().parse().unwrap();
        let of_proxy = format!("{:08X}:{port:04X}", u32::from_le_bytes([10, 99, 7, 2]));
        assert!(sockets.iter().any(|socket| socket.remote == of_proxy), "{sockets:?}");
        for socket in &sockets {
            assert!(!socket.listens && socket.protocol == "tcp", "{socket:?}");
            assert_eq!(socket.remote, of_proxy, "{kind:?}");
        }
        service.says("recovery point 1");
        drop(service);
        let restored = host.path("restored.img");
        let point = inside(&["cycle", "db"]);
        assert!(point.contains("recovery point"), "{point}");
        inside(&["restore", "db", "--point", "latest", "--to", restored.to_str().unwrap()]);
        assert_eq!(hash(&restored), hash(&served), "{kind:?}");
        let (tunnels, plain) = (proxy.tunnels(), proxy.plain());
        match tls {
            true => assert!(tunnels > 0 && plain == 0, "{tunnels} {plain}"),
            false => assert!(plain > 5 && tunnels == 0, "{tunnels} {plain}"),
        }
        assert_eq!(proxy.refused(), 0);
        // Without it there is no other way out.
        proxy.stop();
        let seen = server.seen();
        write_config(&host, &format!("{settings}retries = 1\n"));
        let mut command = host.command();
        let failed = cable.on(0, command.args(["cycle", "db"])).output().unwrap();
        assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
        assert_eq!(server.seen(), seen, "{kind:?}");
    }
}

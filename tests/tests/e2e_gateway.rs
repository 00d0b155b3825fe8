//! A vault behind gateways: its whole life through them; one killed in the middle of a cycle, a store that does not
//! take anything, what is refused, and how much a client may do.
//!
//! Needs root: disks are mounted.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use backstay_tests::harness::command::said;
use backstay_tests::harness::gateway::Gateway;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::https::Line;
use backstay_tests::harness::pki::Pki;
use backstay_tests::harness::{Disk, Host};

#[path = "e2e_gateway/checks.rs"]
mod checks;

const MIB: usize = 1 << 20;

/// An authority, a host whose vault is at gateways, and where the vault really is.
struct Site {
    source: Arc<Host>,
    pki: Pki,
    vault: PathBuf,
}

impl Site {
    fn new(test: &str) -> Self {
        let source = Host::new(test);
        let pki = Pki::new(&source.dir);
        let vault = source.path("vault");
        Self { source, pki, vault }
    }

    fn gateway(&self, name: &str, more: &str) -> Gateway {
        let store = format!("file://{}", self.vault.display());
        Gateway::start(&self.pki, &self.source.path(name), &store, more)
    }

    /// Has a host ship to a URL with a certificate.
    fn configure(&self, host: &Host, url: &str, bundle: &Path, more: &str) {
        let text = format!(
            "vault = \"{url}\"\n{more}\n[store]\nclient_cert = \"{}\"\nca_file = \"{}\"\n\
             retry_timeout = \"30s\"\n",
            bundle.display(),
            self.pki.ca().display()
        );
        fs::write(host.path("backstay.toml"), text).unwrap();
    }

    /// The folder of the segments of the vault's only disk.
    fn segments(&self) -> PathBuf {
        let disk = fs::read_dir(self.vault.join("disks")).unwrap().next().unwrap().unwrap();
        disk.path().join("segments")
    }
}

/// Writes what zstd cannot make smaller, another each time.
fn write(disk: &Disk, at: usize, len: usize, seed: u64) {
    let file = OpenOptions::new().write(true).open(disk.served()).unwrap();
    let mut bytes = vec![0; len];
    let mut random = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    random.fill(&mut bytes);
    file.write_all_at(&bytes, at as u64).unwrap();
    file.sync_all().unwrap();
}

fn pin(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn a_life_through_a_gateway() {
    let site = Site::new("gateway-life");
    let gateway = site.gateway("gw", "keep = \"last 2\"\n[gateway]\nretention = \"1s\"\n");
    let url = gateway.url();
    site.configure(&site.source, &url, &site.pki.source("src", &["db"]), "");
    let db = site.source.disk("db", 16 * MIB as u64);
    db.mount(&[]);
    write(&db, 0, 4 * MIB, 1);
    db.cycle();
    write(&db, MIB, 8192, 2);
    db.cycle();
    let shipped = hash(&db.served());

    // A source adds to its disk; it reads nothing back, deletes nothing, sees no other disk.
    let to = pin(&site.source.path("no"));
    let refused = site.source.try_backstay(&["restore", "db", "--point", "2", "--to", &to]);
    assert!(!refused.status.success() && said(&refused).contains("a source reads of a segment"));
    let refused = site.source.try_backstay(&["prune", "db"]);
    assert!(said(&refused).contains("retention runs there"), "{}", said(&refused));
    let stranger = Host::new("gateway-stranger");
    site.configure(&stranger, &url, &site.pki.source("other", &["web"]), "");
    let refused = stranger.try_backstay(&["points", "db", "--vault", &url]);
    assert!(said(&refused).contains("does not name this disk"), "{}", said(&refused));
    // What checksums do not tell it ships instead of reading it.
    site.source.backstay(&["resync", "db", "--now"]);

    // Anyone who recovers reads, mounts, and takes over.
    let recovery = Host::new("gateway-recovery");
    site.configure(&recovery, &url, &site.pki.recovery("dr", &["db"]), "");
    let out = pin(&recovery.path("out.img"));
    recovery.backstay(&["restore", "db", "--point", "latest", "--to", &out]);
    assert_eq!(hash(Path::new(&out)), shipped);
    recovery.backstay(&["failover", "unplanned", "db", "--vault", &url]);
    recovery.backstay(&["failover", "commit", "db"]);
    let there = Disk { host: Arc::clone(&recovery), name: "db".into(), backing: out.into() };
    assert_eq!(hash(&there.served()), shipped);
    write(&there, 0, 4096, 3);
    there.cycle();
    write(&db, 0, 4096, 4);
    let fenced = site.source.try_backstay(&["cycle", "db"]);
    assert!(!fenced.status.success() && said(&fenced).contains("failed over"), "{}", said(&fenced));

    // Points go by the gateway's rules. Two stay, and what the failover holds.
    let oldest = site.segments().with_file_name("points").join(format!("{:020}", 1));
    let began = Instant::now();
    while oldest.exists() {
        assert!(began.elapsed().as_secs() < 60, "retention does not run");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    recovery.backstay(&["verify", "db"]);
    recovery.backstay(&["umount", "db"]);
    assert_eq!(gateway.told("/healthz").0, 200);
    assert_eq!(gateway.told("/readyz").0, 200);
}

/// What the first cycle would be refused for is found before anything is started: a certificate for another disk, or
/// for no shipping at all; a name that another host has.
#[test]
fn protect_asks_for_rights_and_the_name_first() {
    let site = Site::new("gateway-protect");
    let gateway = site.gateway("gw", "");
    let url = gateway.url();
    let host = &site.source;
    let disk = host.disk("db", MIB as u64);
    let backing = pin(&disk.backing);
    let refused = |name: &str, words: &[&str]| {
        for more in [&[][..], &["--check"]] {
            let args = [&["protect", &backing, "--name", name], more].concat();
            let output = host.try_backstay(&args);
            let text = said(&output);
            assert!(words.iter().all(|word| text.contains(word)), "{args:?}: {text}");
            assert!(more.len() == 1 || output.status.code() == Some(1), "{args:?}: {text}");
            let left = [host.path("state").join(name), host.runtime.join(name)];
            assert!(left.iter().all(|left| !left.exists()), "{args:?}: {left:?} is left");
        }
    };
    site.configure(host, &url, &site.pki.source("web", &["web"]), "");
    refused("db", &["FAILED", "name in the vault", "(web)", "pki"]);
    site.configure(host, &url, &site.pki.client("keeper", "maintainer", &["*"]), "");
    refused("db", &["FAILED", "name in the vault", "(keeper)"]);
    let other = Host::new("gateway-protect-other");
    site.configure(&other, &url, &site.pki.source("both", &["db"]), "");
    let theirs = other.disk("db", MIB as u64);
    theirs.mount(&[]);
    theirs.cycle();
    site.configure(host, &url, &site.pki.source("src", &["db", "free"]), "");
    refused("db", &["FAILED", "another name", "--the-disk-is-right"]);
    assert_eq!(theirs.points().len(), 1);
    host.backstay(&["protect", &backing, "--name", "free"]);
    host.backstay(&["unprotect", "free", "--keep-points"]);
}

/// Nobody deletes points through a gateway, whatever the certificate; on the host of the vault there is a verb that does.
#[test]
fn the_points_of_a_source_are_deleted_on_the_vaults_host() {
    let site = Site::new("gateway-forget");
    let gateway = site.gateway("gw", "");
    let url = gateway.url();
    site.configure(&site.source, &url, &site.pki.source("src", &["db"]), "");
    let db = site.source.disk("db", 4 * MIB as u64);
    db.mount(&[]);
    write(&db, 0, MIB, 1);
    db.cycle();
    let before = db.status()["driver"]["pid"].clone();
    let refused = site.source.try_backstay(&["unprotect", "db", "--delete-points", "--yes"]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    for command in ["backstay unprotect db --keep-points", "backstay vault forget db --vault"] {
        assert!(said(&refused).contains(command), "{}", said(&refused));
    }
    assert_eq!(db.status()["driver"]["pid"], before, "it is served as before");
    db.cycle();
    site.source.backstay(&["unprotect", "db", "--keep-points"]);
    // Not through the gateway either, from anywhere.
    let recovery = Host::new("gateway-forget-dr");
    site.configure(&recovery, &url, &site.pki.recovery("dr", &["db"]), "");
    let refused = recovery.try_backstay(&["vault", "forget", "db", "--yes"]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    assert!(fs::read_dir(site.segments()).unwrap().next().is_some());
    // What the message names.
    let there = Host::new("gateway-forget-there");
    there.without_vault();
    let direct = format!("file://{}", site.vault.display());
    there.backstay(&["vault", "forget", "db", "--vault", &direct, "--yes"]);
    let left = there.json(&["vault", "ls", "--vault", &direct]);
    assert_eq!(left, serde_json::json!([]));
    drop(gateway);
}

/// Nothing is lost when a gateway is killed that has segments which nobody else has: the cycle fails at the other,
/// its sectors ship with the next, and the first finishes what it had when it is back.
#[test]
fn a_gateway_killed_in_a_cycle_loses_nothing() {
    let site = Site::new("gateway-kill");
    let (first, second) = (site.gateway("gw1", ""), site.gateway("gw2", ""));
    let both = format!("https://{},{}", first.listen, second.listen);
    site.configure(&site.source, &both, &site.pki.source("src", &["db"]), "");
    let db = site.source.disk("db", 16 * MIB as u64);
    db.mount(&[]);
    write(&db, 0, MIB, 1);
    db.cycle();
    // The store takes no segments for a while.
    let (segments, away) = (site.segments(), site.segments().with_file_name("away"));
    fs::rename(&segments, &away).unwrap();
    fs::write(&segments, "").unwrap();
    write(&db, 2 * MIB, 3 * MIB, 2);
    let mut cycle = site.source.command();
    let cycle = cycle.args(["cycle", "db"]).stderr(Stdio::piped()).spawn().unwrap();
    // Acknowledged, and nowhere but here; the cycle waits for its point.
    first.wait_for("uploads_failed_total", |failed| failed > 0);
    let (cache, gw1) = (first.cache.clone(), first.listen.to_string());
    assert!(first.number("cache_bytes") > 3 * MIB as u64);
    first.kill();
    fs::remove_file(&segments).unwrap();
    fs::rename(&away, &segments).unwrap();
    let failed = cycle.wait_with_output().unwrap();
    let why = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && why.contains("not there"), "{why}");
    assert_eq!(db.points().len(), 1);
    db.cycle();
    assert_eq!(db.points().len(), 2);
    let shipped = hash(&db.served());
    // Back again, it brings what it had.
    assert!(fs::read_dir(cache.join("segments")).unwrap().next().is_some());
    let store = format!("file://{}", site.vault.display());
    let first = Gateway::start_at(&site.pki, &site.source.path("gw1"), &store, "", &gw1);
    first.wait_for("cache_segments", |left| left == 0);
    let taken = site.gateway("gw2b", "");
    let recovery = Host::new("gateway-kill-recovery");
    site.configure(&recovery, &taken.url(), &site.pki.recovery("dr", &["*"]), "");
    let out = pin(&recovery.path("out.img"));
    recovery.backstay(&["restore", "db", "--point", "latest", "--to", &out]);
    assert_eq!(hash(Path::new(&out)), shipped);
}

/// A store that takes nothing: sources go on until the cache is full, and then wait. Nothing is lost, and the
/// cache never has more than it may.
#[test]
fn a_full_cache_makes_sources_wait() {
    let site = Site::new("gateway-full");
    let gateway = site.gateway("gw", "[gateway]\ncache_size = \"4MiB\"\n");
    let small = "[ship]\nsegment_size = \"1MiB\"\n";
    site.configure(&site.source, &gateway.url(), &site.pki.source("src", &["db"]), small);
    let db = site.source.disk("db", 16 * MIB as u64);
    db.mount(&[]);
    write(&db, 0, MIB, 1);
    db.cycle();
    let (segments, away) = (site.segments(), site.segments().with_file_name("away"));
    fs::rename(&segments, &away).unwrap();
    fs::write(&segments, "").unwrap();
    write(&db, 0, 12 * MIB, 2);
    let mut cycle = site.source.command();
    let cycle = cycle.args(["cycle", "db"]).stderr(Stdio::piped()).spawn().unwrap();
    // Full: what fits is there, and what does not is not read.
    gateway.wait_for("uploads_failed_total", |failed| failed > 6);
    let (kept, received) = (gateway.number("cache_bytes"), gateway.number("received_bytes_total"));
    assert!((2 * MIB as u64..=4 * MIB as u64).contains(&kept), "{kept}");
    assert!(received < 8 * MIB as u64, "{received}");
    fs::remove_file(&segments).unwrap();
    fs::rename(&away, &segments).unwrap();
    let done = cycle.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    gateway.wait_for("cache_bytes", |left| left == 0);
    assert_eq!(db.points().len(), 2);
}

/// What a client may not do, asked by one that does not keep to what ours does.
#[test]
fn limits_and_refusals() {
    let site = Site::new("gateway-limits");
    let limits = "[gateway]\nconnections_per_client = 2\nrequests_per_second = 1\nstall = \"5s\"\n";
    let gateway = site.gateway("gw", limits);
    let source = site.pki.source("src", &["db"]);
    let open = || {
        let tls = &[&rustls::version::TLS13];
        Line::open(gateway.listen, &site.pki.ca(), Some(&source), tls).unwrap()
    };
    let mut line = open();
    let mut ask = |method: &str, path: &str, headers: &[&str], body: &[u8]| {
        line.ask(method, path, headers, body).unwrap().status
    };
    assert_eq!(ask("GET", "/v1/whoami", &[], b""), 200);
    assert_eq!(ask("GET", "/v1/objects/../vault.json", &[], b""), 400);
    assert_eq!(ask("GET", "/v1/objects/names/web/00000000000000000001", &[], b""), 403);
    assert_eq!(ask("DELETE", "/v1/objects/vault.json", &[], b""), 403);
    let name = "/v1/objects/names/db/00000000000000000001";
    assert_eq!(ask("PUT", name, &[], b"{}"), 400);
    assert_eq!(ask("PUT", name, &["If-None-Match: *"], b"{}"), 422);
    assert_eq!(ask("PUT", name, &["If-None-Match: *"], &vec![b' '; 65 << 10]), 413);
    let slow = (0..20).map(|_| ask("GET", "/v1/whoami", &[], b"")).find(|status| *status == 429);
    assert_eq!(slow, Some(429));

    // Two connections are open; a third is closed. TLS 1.3 tells with the first answer.
    let mut second = open();
    second.ask("GET", "/v1/whoami", &[], b"").unwrap();
    let third =
        Line::open(gateway.listen, &site.pki.ca(), Some(&source), &[&rustls::version::TLS13]);
    let third = third.and_then(|mut line| line.ask("GET", "/v1/whoami", &[], b""));
    assert!(third.is_err(), "{third:?}");
    drop(second);
    // Who sends nothing is not waited for.
    gateway.wait_for("connections", |open| open < 2);
    let mut silent = std::net::TcpStream::connect(gateway.listen).unwrap();
    silent.write_all(&[22]).unwrap();
    silent.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let mut nothing = vec![];
    let _ = std::io::Read::read_to_end(&mut silent, &mut nothing);
    assert!(gateway.number("connections_refused_total") >= 2);
}

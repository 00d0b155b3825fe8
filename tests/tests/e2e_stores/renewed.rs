//! What changes about a store while we run: its credentials, and whether it still keeps puts apart.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, SIZE, SMALL, noise};

/// Gives a host credentials that are the store's, or were.
fn credentials(host: &Host, store: &Store, right: bool) {
    let of = |name: &str| store.variables().iter().find(|(n, _)| n == name).unwrap().1.clone();
    let secret = match right {
        true => of("AWS_SECRET_ACCESS_KEY"),
        false => "bm90IGFueSBtb3JlIG5vdCBhbnkgbW9yZQ".into(),
    };
    let new = host.path("credentials.new");
    let text =
        format!("AWS_ACCESS_KEY_ID={}\nAWS_SECRET_ACCESS_KEY={secret}\n", of("AWS_ACCESS_KEY_ID"));
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, host.path("credentials")).unwrap();
}

/// Has a host reach a store with the credentials in its file.
fn connect(host: &Host, store: &Store, url: &str, settings: &str) {
    let endpoint = &store.variables().iter().find(|(name, _)| name == "AWS_ENDPOINT").unwrap().1;
    host.without_vault();
    host.ship_to(url, &[]);
    credentials(host, store, true);
    let settings = format!(
        "{settings}[store]\nendpoint = {endpoint:?}\nallow_http = true\nregion = \"us-east-1\"\n\
         credentials_file = {:?}\nretries = 1\nretry_timeout = \"1s\"\n",
        host.path("credentials")
    );
    write_config(host, &settings);
}

/// Ceph checks signatures.
#[test]
fn new_credentials_are_used_at_once() {
    let store = Store::shared(Kind::S3);
    let url = store.url();
    let host = Host::new("stores-credentials");
    let settings = "interval = \"1s\"\nheartbeat = \"1s\"\nretry = [\"1h\"]\n[ship]\nsegment_size = \"1MiB\"\n";
    connect(&host, store, &url, settings);
    host.backstay(&["vault", "init"]);
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 16 * MIB, 1);
    disk.mount(&[]);
    let service = Service::start(&host);
    service.says("recovery point 1");
    // A point that is mounted elsewhere; its blocks are fetched as they are read.
    let other = Host::new("stores-credentials-other");
    connect(&other, store, &url, "");
    let look = other.disk("look", SIZE);
    let of = ["mount", "--disk", "db", "--name", "look", "--point", "1", "--vault-timeout", "2s"];
    let file = other.backstay(&of);
    let file = File::open(file.trim()).unwrap();
    let block = |n: u64| file.read_at(&mut [0; 4096], n * (64 << 10));
    block(0).unwrap();
    credentials(&host, store, false);
    credentials(&other, store, false);
    wait_for("the store's refusal", || disk.causes().contains(&"store-refused".into()));
    let mut next = 1;
    let mut fails = || {
        next += 4;
        block(next).is_err()
    };
    wait_for("a read that fails", &mut fails);
    wait_for("the cause", || look.causes().contains(&"point-unreachable".into()));
    let unfetched = next;
    assert!(block(unfetched).is_err());
    assert_ne!(look.status()["health"]["level"], "ok");
    // Renewed: both go on, the sidecar before its retry.
    credentials(&other, store, true);
    credentials(&host, store, true);
    wait_for("a point", || disk.causes().is_empty());
    wait_for("a read that works", || block(unfetched).is_ok());
    wait_for("no cause", || !look.causes().contains(&"point-unreachable".into()));
    drop((service, file));
    other.backstay(&["umount", "look"]);
}

/// A proxy that drops If-None-Match later: nothing is put by a sidecar that starts then, and no failover takes a term.
#[test]
fn a_store_that_forgets_conditions_later_is_found_out() {
    let store = Store::start(Kind::Locking);
    let proxy = Proxy::start(store.port);
    let backend = Backend::through(&store, &proxy);
    let host = Host::new("stores-forgets");
    let settings = "interval = \"1s\"\nheartbeat = \"1s\"\nretry = [\"1s\"]\n";
    backend.connect(&host, Role::Source, settings, "");
    let disk = host.disk("db", SIZE);
    let served = disk.mount(&[]);
    disk.cycle();
    proxy.choose(|_| Fault::DenyConditions);
    let service = Service::start(&host);
    let text = service.says("If-None-Match");
    assert!(text.contains("cannot hold a vault"), "{text}");
    wait_for("the cause", || disk.causes().contains(&"store-refused".into()));
    assert_eq!(disk.points().len(), 1);
    let other = Host::new("stores-forgets-other");
    backend.connect(&other, Role::Recovery, SMALL, "");
    let target = other.disk("db", SIZE);
    other.backstay(&["failover", "unplanned", "db"]);
    let refused = other.try_backstay(&["failover", "commit", "db"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("If-None-Match"), "{}", said(&refused));
    // It keeps them apart again: both go on by themselves.
    proxy.choose(|_| Fault::Pass);
    wait_for("a point", || disk.points().len() > 1);
    drop(service);
    assert_eq!(hash(&target.served()), hash(&served));
    other.backstay(&["failover", "commit", "db"]);
}

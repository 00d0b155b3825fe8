//! What a store answers is checked before it is believed: lists that are none, flipped bytes, refusals.
//!
//! moto keeps nothing itself and lets everybody in, so what is found here is found by us.

use std::sync::atomic::{AtomicBool, Ordering};

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::command::said;
use backstay_tests::harness::proxy::{Fault, Proxy, Request};
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, SIZE, SMALL, noise};

const IMPATIENT: &str = "part_size = \"5MiB\"\nretries = 3\nretry_timeout = \"5s\"\n";

/// Does a fault to the first request of each object, or of each list, that a test chooses.
fn once_each(
    fault: Fault,
    of: impl Fn(&Request) -> bool + Send + Sync + 'static,
) -> impl Fn(&Request) -> Fault + Send + Sync {
    let seen = std::sync::Mutex::new(std::collections::HashSet::new());
    move |request| {
        // Each part of an upload has another number, each upload another name.
        let path = request.target.split('?').next().unwrap_or_default().to_owned();
        match of(request) && seen.lock().unwrap().insert((request.method.clone(), path)) {
            true => fault,
            false => Fault::Pass,
        }
    }
}

#[test]
fn odd_answers_cost_nothing_and_are_told() {
    let store = Store::start(Kind::Locking);
    let proxy = Proxy::start(store.port);
    let backend = Backend::through(&store, &proxy);
    let host = Host::new("stores-answers");
    backend.connect(&host, Role::Source, SMALL, IMPATIENT);
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 14 * MIB, 1);
    let served = disk.mount(&[]);
    // Every object arrives changed once, and every answer with one does.
    proxy.choose(once_each(Fault::FlipPut, |request| {
        request.method == "PUT" && request.body_bytes > 0 && request.target.contains("/disks/")
    }));
    disk.cycle();
    noise(&served, 16 * MIB, MIB, 2);
    disk.cycle();
    noise(&served, 17 * MIB, MIB, 3);
    disk.cycle();
    assert!(proxy.faults() > 5);
    proxy.choose(once_each(Fault::FlipAnswer, |request| {
        request.method == "GET" && request.target.contains("/disks/") && !request.lists("")
    }));
    host.backstay(&["verify", "db"]);
    // A list that is none, once and always.
    host.backstay(&["pin", "db", "1"]);
    for body in ["<html>busy</html>", "<Error><Code>SlowDown</Code></Error>", ""] {
        proxy.choose(move |request| match request.lists("") {
            true => Fault::Say(200, body),
            false => Fault::Pass,
        });
        for args in [&["prune", "db", "--keep", "last 1"][..], &["verify", "db"]] {
            let failed = host.try_backstay(args);
            assert_eq!(failed.status.code(), Some(1), "{body}: {}", said(&failed));
        }
    }
    // A list that is one, and shows no hold.
    proxy.choose(|request| match request.lists("/holds") {
        true => Fault::Say(200, "<ListBucketResult></ListBucketResult>"),
        false => Fault::Pass,
    });
    let withheld = host.try_backstay(&["prune", "db", "--keep", "last 1"]);
    assert_eq!(withheld.status.code(), Some(3), "{}", said(&withheld));
    assert!(said(&withheld).contains("unpin NAME pin-1 --force"), "{}", said(&withheld));
    assert!(disk.causes().contains(&"hold-not-listed".into()), "{:?}", disk.causes());
    proxy.choose(|_| Fault::Pass);
    host.backstay(&["prune", "db", "--keep", "last 1"]);
    let left: Vec<u64> = disk.points().iter().map(|point| point.cycle).collect();
    assert_eq!(left, [1, 3], "the pinned one is there");
    host.backstay(&["verify", "db"]);
    // A refusal is told with the store's words, and is no end.
    const SKEWED: &str =
        "<Error><Code>RequestTimeTooSkewed</Code><Message>too far</Message></Error>";
    proxy.choose(|request| match &request.method[..] {
        "PUT" => Fault::Say(403, SKEWED),
        _ => Fault::Pass,
    });
    noise(&served, 18 * MIB, MIB, 4);
    let failed = said(&host.try_backstay(&["cycle", "db"]));
    assert!(failed.contains("RequestTimeTooSkewed") && failed.contains("clock"), "{failed}");
    let health = disk.status()["health"].clone();
    assert_eq!(health["level"], "critical", "{health}");
    assert_eq!(health["causes"][0]["id"], "store-refused", "{health}");
    proxy.choose(|_| Fault::Pass);
    disk.cycle();
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
    // All points go behind our back: nothing is shipped, and one way out is named.
    let uploads = std::sync::Arc::new(AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&uploads);
    let hidden = |request: &Request| {
        (request.target.contains("/points/") && request.method != "PUT") || request.lists("/points")
    };
    proxy.choose(move |request| {
        if request.method == "PUT" && request.target.contains("/segments/") {
            seen.store(true, Ordering::Relaxed);
        }
        match hidden(request) {
            true if request.lists("/points") => {
                Fault::Say(200, "<ListBucketResult></ListBucketResult>")
            }
            true => Fault::Answer(404),
            false => Fault::Pass,
        }
    });
    let failed = said(&host.try_backstay(&["cycle", "db"]));
    assert!(failed.contains("no recovery point of disk db any more"), "{failed}");
    assert!(failed.contains("resync db --now --the-disk-is-right"), "{failed}");
    assert_eq!(disk.status()["health"]["causes"][0]["id"], "points-vanished");
    assert!(!uploads.load(Ordering::Relaxed), "nothing is shipped");
}

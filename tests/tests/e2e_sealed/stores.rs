//! Encrypted vaults on object stores.

use std::thread;

use backstay_tests::harness::Host;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::seed::seed;
use backstay_tests::harness::store::{Kind, Store};

use super::{MIB, scribble};

/// Keyring, slots, a rotation, merging and recovery where put-if-absent, lists and ranges are a server's.
#[test]
fn an_encrypted_vault_on_object_stores() {
    thread::scope(|scope| {
        for kind in [Kind::S3, Kind::Azure] {
            scope.spawn(move || on(kind));
        }
    });
}

fn on(kind: Kind) {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA8));
    let store = Store::start(kind);
    let source = Host::sealed(&format!("sealed-on-{kind:?}"));
    source.ship_to(&store.url(), store.variables());
    let disk = source.disk("db", 8 * MIB);
    let served = disk.mount(&[]);
    for round in 0..4 {
        scribble(&served, &mut rng, true);
        disk.cycle();
        if round == 1 {
            source.backstay(&["key", "rotate"]);
        }
    }
    source.backstay(&["prune", "db", "--keep", "last 2"]);
    scribble(&served, &mut rng, true);
    disk.cycle();
    let right = hash(&disk.backing);
    // A host that has the URL and the key.
    let recovery = source.another(&format!("sealed-from-{kind:?}"));
    recovery.ship_to(&source.vault(), store.variables());
    recovery.backstay(&["verify", "db"]);
    let checked = recovery.json(&["key", "check"]);
    assert_eq!(checked["ok"], true, "{checked}");
    recovery.disk("db", 512);
    recovery.backstay(&["failover", "unplanned", "db"]);
    let there = recovery.runtime.join("db/mnt/disk");
    assert_eq!(hash(&there), right);
    recovery.backstay(&["failover", "commit", "db"]);
    scribble(&there, &mut rng, false);
    recovery.backstay(&["cycle", "db"]);
    let to = recovery.path("restored.img").to_string_lossy().into_owned();
    recovery.backstay(&["restore", "db", "--point", "latest", "--to", &to]);
    assert_eq!(hash(to.as_ref()), hash(&there));
    recovery.backstay(&["umount", "db"]);
    drop(served);
    source.backstay(&["umount", "db"]);
}

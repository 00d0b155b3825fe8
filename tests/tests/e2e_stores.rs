//! The same life of a disk on every kind of store, against real servers: Ceph's S3 gateway, Azurite and fake-gcs-server, each
//! reached directly, through faults, and through a gateway of ours.
//!
//! - `answers`: what a store answers is checked before it is believed
//! - `life`: from the first copy to failover, on any backend
//! - `lives`, `bad_day`: the backends that it is lived on, and how it is when much goes wrong
//! - `behind`: gateways: their lives and the faults of the stores behind them
//! - `faults`: servers that are killed, slow, or answer errors
//! - `refusals`: what cannot hold a vault, and mistakes that only a person can mend
//! - `at_rest`: damage that a scrub finds
//! - `renewed`: credentials and conditional puts that change while we run
//! - `resumed`: what a failed cycle has put is used again
//! - `silent`: a store that takes connections and says nothing
//! - `lines`: TLS and HTTP proxies
//! - `locks`: object lock, and bringing back what a thief deleted
//!
//! Needs root, /dev/fuse and what `scripts/setup stores` installs.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use backstay_tests::harness::backend::{Backend, Role};
use backstay_tests::harness::store::Kind;
use backstay_tests::harness::{Disk, Host};

#[path = "e2e_stores/answers.rs"]
mod answers;
#[path = "e2e_stores/at_rest.rs"]
mod at_rest;
#[path = "e2e_stores/bad_day.rs"]
mod bad_day;
#[path = "e2e_stores/behind.rs"]
mod behind;
#[path = "e2e_stores/faults.rs"]
mod faults;
#[path = "e2e_stores/life.rs"]
mod life;
#[path = "e2e_stores/lines.rs"]
mod lines;
#[path = "e2e_stores/lives.rs"]
mod lives;
#[path = "e2e_stores/locks.rs"]
mod locks;
#[path = "e2e_stores/refusals.rs"]
mod refusals;
#[path = "e2e_stores/renewed.rs"]
mod renewed;
#[path = "e2e_stores/resumed.rs"]
mod resumed;
#[path = "e2e_stores/silent.rs"]
mod silent;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;
/// Segments of several parts.
const SMALL: &str = "interval = \"1d\"\n[ship]\nsegment_size = \"11MiB\"\n";
/// The parts; below `[store]`.
const PARTS: &str = "part_size = \"5MiB\"\n";

fn is_long() -> bool {
    std::env::var_os("BACKSTAY_TEST_LONG").is_some()
}

/// Does something with each kind of store, all at the same time: most of it is waiting.
fn each_kind(test: impl Fn(Kind) + Sync) {
    thread::scope(|scope| {
        for kind in Kind::ALL {
            let test = &test;
            // What it says when it fails begins with its name.
            let named = thread::Builder::new().name(format!("{kind:?}"));
            named.spawn_scoped(scope, move || test(kind)).unwrap();
        }
    });
}

/// Writes what no compressor makes smaller.
fn noise(path: &Path, at: u64, len: u64, seed: u64) {
    let mut bytes = vec![0; len as usize];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&bytes, at).unwrap();
    file.sync_all().unwrap();
}

/// A host that ships to a backend, and a disk of it, half full, that is served.
fn source(test: &str, backend: &Backend) -> (Arc<Host>, Disk) {
    let host = Host::new(test);
    backend.connect(&host, Role::Source, SMALL, PARTS);
    let disk = host.disk("db", SIZE);
    noise(&disk.backing, 0, 14 * MIB, 1);
    disk.mount(&[]);
    (host, disk)
}

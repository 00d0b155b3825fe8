//! The life of a disk on each kind of store, on a day when nothing works at once.
//!
//! It mostly waits, and for longer than any other test here: so its name comes first.

use std::sync::atomic::{AtomicU64, Ordering};

use backstay_tests::harness::backend::Backend;
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::store::{Kind, Store};

use super::life::{by_command, life};
use super::{each_kind, source};

/// Each put that only one writer can win is done and its answer lost; every third part of a segment arrives
/// by half; one answer in thirteen is a server error. Nothing of that costs a cycle or shows in a point.
fn bad_day(kind: Kind) {
    let store = Store::shared(kind);
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
    let backend = Backend::through(store, &proxy);
    life(&backend, source("stores-bad-day", &backend), &by_command);
    assert!(proxy.faults() > 20, "{} faults", proxy.faults());
}

#[test]
fn a_life_on_each_store() {
    each_kind(bad_day);
}

//! The life of a disk on each kind of store, on good days and on bad ones.

use std::sync::atomic::{AtomicU64, Ordering};

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::Backend;
use backstay_tests::harness::proxy::{Fault, Proxy};
use backstay_tests::harness::store::{Kind, Store};

use super::life::{by_command, life};
use super::source;

#[test]
fn a_life_in_a_directory() {
    let there = Host::new("stores-there");
    let backend = Backend::folder(&there.path("vault"));
    life(&backend, source("stores-file", &backend), &by_command);
}

fn good_day(kind: Kind) {
    let backend = Backend::direct(Store::shared(kind));
    life(&backend, source("stores-life", &backend), &by_command);
}

#[test]
fn a_life_on_s3() {
    good_day(Kind::S3);
}

#[test]
fn a_life_on_azure() {
    good_day(Kind::Azure);
}

#[test]
fn a_life_on_google() {
    good_day(Kind::Google);
}

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
fn a_life_on_a_bad_day_on_s3() {
    bad_day(Kind::S3);
}

#[test]
fn a_life_on_a_bad_day_on_azure() {
    bad_day(Kind::Azure);
}

#[test]
fn a_life_on_a_bad_day_on_google() {
    bad_day(Kind::Google);
}

//! The life of a disk in a directory and on each kind of store.

use backstay_tests::harness::Host;
use backstay_tests::harness::backend::Backend;
use backstay_tests::harness::store::Store;

use super::life::{by_command, life};
use super::{each_kind, source};

#[test]
fn a_life_in_a_directory() {
    let there = Host::new("stores-there");
    let backend = Backend::folder(&there.path("vault"));
    life(&backend, source("stores-file", &backend), &by_command);
}

#[test]
fn a_life_on_each_store() {
    each_kind(|kind| {
        let backend = Backend::direct(Store::shared(kind));
        life(&backend, source("stores-life", &backend), &by_command);
    });
}

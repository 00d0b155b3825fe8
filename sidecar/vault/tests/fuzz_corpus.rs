//! The fuzz targets as an ordinary test: over their corpus, the golden files, and mutations of
//! both from a fixed seed. Needs no nightly compiler; `cargo fuzz` goes deeper where there is one.

#[path = "../fuzz/entry.rs"]
mod entry;

#[path = "common/survives.rs"]
mod survives;

use survives::survives;

#[test]
fn segment_index() {
    survives("segment_index", entry::segment_index);
}

#[test]
fn signed() {
    survives("signed", entry::signed);
}

#[test]
fn manifest() {
    survives("manifest", entry::manifest);
}

#[test]
fn ledger() {
    survives("ledger", entry::ledger);
}

#[test]
fn document() {
    survives("document", entry::document);
}

#[test]
fn keyring() {
    survives("keyring", entry::keyring);
}

#[test]
fn envelope() {
    survives("envelope", entry::envelope);
}

#[test]
fn gateway_list() {
    survives("gateway_list", entry::gateway_list);
}

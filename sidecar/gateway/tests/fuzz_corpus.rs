//! The fuzz targets as an ordinary test: over their corpus and mutations of it from a fixed seed. Needs no nightly
//! compiler; `cargo fuzz` goes deeper where there is one.

#[path = "../fuzz/entry.rs"]
mod entry;

#[path = "../../vault/tests/common/survives.rs"]
mod survives;

use survives::survives;

#[test]
fn certificate() {
    survives("certificate", entry::certificate);
}

#[test]
fn revocations() {
    survives("revocations", entry::revocations);
}

#[test]
fn request() {
    survives("request", entry::request);
}

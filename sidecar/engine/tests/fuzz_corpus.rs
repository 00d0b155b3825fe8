//! The fuzz target as an ordinary test: over its corpus, the golden file, and mutations of
//! both from a fixed seed. Needs no nightly compiler; `cargo fuzz` goes deeper where there is one.

#[path = "../fuzz/entry.rs"]
mod entry;

#[path = "../../vault/tests/common/survives.rs"]
mod survives;

use survives::survives;

#[test]
fn group_message() {
    survives("group_message", entry::group_message);
}

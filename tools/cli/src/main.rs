//! The `backstay` command.
fn main() {}

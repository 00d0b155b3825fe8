//! Metrics in a file, for the textfile collector of Prometheus' node exporter.

use std::io;
use std::path::Path;

use backstay_host::atomic::{Durability, replace_with_mode};

use crate::Snapshot;
use crate::text::{Format, text};

/// The collector runs as another user.
const MODE: u32 = 0o644;

/// Replaces the file as a whole: who reads it sees the old metrics or the new ones.
///
/// # Errors
/// If it cannot be written; it is as before then, and its timestamp tells.
pub fn write(path: &Path, of: &Snapshot) -> io::Result<()> {
    replace_with_mode(path, text(of, Format::Prometheus).as_bytes(), Durability::Relaxed, MODE)
}

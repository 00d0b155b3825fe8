//! A driver that died (kill -9, a crash, out of memory) in this boot: one that ends in order takes its socket away, and
//! one that serves holds the lock of the state.
//!
//! When it died nobody saw. Who finds it out first leaves the empty file `died` beside the socket; who serves the disk
//! next, or ends it for good, takes both away.

use std::fs::{self, File};

use backstay_host::loop_device;

use super::silence::{lock_holder, since};
use crate::paths::DiskPaths;

const FILE: &str = "died";

/// What is known of a driver that died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Died {
    /// Since when that is known, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// The loop devices that are still attached to the file it served.
    pub devices: Vec<String>,
}

impl Died {
    /// Whether the driver of a disk died, and nobody has served the disk since.
    #[must_use]
    pub fn of(paths: &DiskPaths) -> Option<Self> {
        // Without the lock's file nothing says that nobody holds it.
        let here = paths.control_socket().exists() && paths.lock_file().exists();
        if !here || lock_holder(&paths.lock_file()).is_some() {
            return None;
        }
        let note = paths.runtime.join(FILE);
        if !note.exists() {
            let _ = File::create_new(&note);
        }
        let devices = loop_device::on_dead(&paths.mount_point().join("disk")).unwrap_or_default();
        Some(Self { since_unix_ns: since(&note), devices })
    }

    /// Forgets it: the disk is served again, or somebody has taken away what was left of it.
    pub fn is_over(paths: &DiskPaths) {
        let _ = fs::remove_file(paths.runtime.join(FILE));
    }
}

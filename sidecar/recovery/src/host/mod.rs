//! The disks of this host: listing them, serving them, finding their users, and ending their service.
//!
//! - [`error`]: why an action failed
//! - [`told`]: progress reports, for a caller that shows them
//! - [`program`]: starting a driver as a separate process
//! - [`serve`]: serving a disk, a point or a replica
//! - [`devices`]: loop devices and file systems on a served disk
//! - [`replica`]: ending and taking over the replica of a name
//! - [`serving`]: how a disk was served, to put it back as it was
//! - [`ending`]: ending a disk's service once nobody uses it
//! - [`cycle`]: one cycle in this process
//! - [`last`]: the cycles of a handover, by the sidecar or here

pub mod cycle;
pub mod devices;
pub mod ending;
pub mod error;
pub mod last;
pub mod ours;
pub mod program;
pub mod replica;
pub mod serve;
pub mod serving;
pub mod told;

use std::path::{Path, PathBuf};

use backstay_engine::config::Config;
use backstay_engine::protection::Protection;
use backstay_format::control::DriverStatus;
use backstay_front::backing::record::BackingRecord;
use backstay_front::control::ControlClient;
use backstay_front::paths::Roots;
use backstay_host::own_dir;
use backstay_types::DiskName;

pub use ending::{Devices, Ending};
pub(crate) use error::Doing;
pub use error::HostError;
pub use program::Program;
pub use serving::Serving;
pub use told::{Listener, Silent};

/// This host, for code that works on its disks.
pub struct LocalHost<'a> {
    /// Where state and sockets are.
    pub roots: &'a Roots,
    /// The configuration.
    pub config: &'a Config,
    /// The program that serves disks.
    pub program: Program,
    /// Receives progress reports.
    pub told: Box<dyn Listener + 'a>,
}

impl LocalHost<'_> {
    /// Connects to the driver of a disk.
    ///
    /// # Errors
    /// If it is not served.
    pub fn driver(&self, name: &DiskName) -> Result<ControlClient, HostError> {
        ControlClient::connect(&self.roots.disk(name).control_socket())
            .doing(|| format!("disk {name}"))
    }

    /// The status of a disk's driver, if one answers.
    #[must_use]
    pub fn status(&self, name: &DiskName) -> Option<DriverStatus> {
        self.driver(name).ok()?.status().ok()
    }
}

/// All disks of this host: those that have state, and those that are served.
#[must_use]
pub fn disks(roots: &Roots) -> Vec<DiskName> {
    let state = std::fs::read_dir(&roots.state).into_iter().flatten().flatten();
    let mut names: Vec<DiskName> = state
        .filter(|entry| entry.path().join("super").exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .chain(roots.disks_with_socket())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The backing that a disk was served from; none for a mounted point.
///
/// # Errors
/// If a record of the backing cannot be read.
pub fn backing(roots: &Roots, name: &DiskName) -> Result<Option<PathBuf>, HostError> {
    let state = roots.disk(name).state;
    if state.join("mounted").exists() {
        return Ok(None);
    }
    if let Some(seen) = BackingRecord::load(&state)?.backing {
        return Ok(Some(seen.path));
    }
    Ok(Protection::load(&state)?.map(|protection| protection.backing))
}

/// Removes a folder if it is there.
///
/// # Errors
/// The error of the system call.
pub fn remove_folder(path: &Path) -> Result<(), HostError> {
    own_dir::remove(path).doing(|| format!("removing {}", path.display()))
}

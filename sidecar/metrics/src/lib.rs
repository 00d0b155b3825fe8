//! Metrics for Prometheus: what `backstay status` says of this host's disks, as numbers.
//!
//! Nothing is found out here. A [`Snapshot`] is what status said just now; [`families::FAMILIES`] lists the metrics and
//! how each is read from it; [`text`] writes them as OpenMetrics or in Prometheus' older format. The sidecar
//! [serves](serve) them and [writes](textfile) them to a file.
//!
//! A metric is never better than status (I10). What is not known is NaN, or `state="unknown"`; a counter that is not
//! known is not there. docs/reference/metrics.md is made from the list.

mod cycles;
mod disks;
pub mod families;
pub mod page;
pub mod serve;
pub mod text;
pub mod textfile;
mod vaults;

use backstay_engine::service::alive::Sidecar;
use backstay_engine::status::DiskStatus;
use backstay_types::DiskName;

/// What status said of this host.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// When, nanoseconds since 1970.
    pub at_unix_ns: u64,
    /// The version of the program.
    pub version: &'static str,
    /// Whether the sidecar is at work.
    pub sidecar: Sidecar,
    /// Whether the configuration's file makes sense.
    pub config_valid: bool,
    /// The disks of this host; `None` if they cannot be seen.
    pub disks: Option<Vec<Disk>>,
}

/// What status said of a disk.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its name.
    pub name: DiskName,
    /// Its status; `None` if it could not be found out.
    pub status: Option<Box<DiskStatus>>,
}

impl Snapshot {
    fn disks(&self) -> impl Iterator<Item = &Disk> {
        self.disks.iter().flatten()
    }
}

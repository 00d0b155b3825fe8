//! How a disk's service is ended.

use std::time::Duration;

use clap::Args;

/// How a disk's service is ended.
#[derive(Args, Clone, Copy)]
pub struct Ending {
    /// How long to wait while the disk is in use
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Stop serving even if the disk is in use: its users get I/O errors and lose unsynced data. Also stops a driver
    /// that does not answer
    #[arg(long)]
    pub force: bool,
}

impl Ending {
    /// Without force.
    pub fn how(self) -> backstay_recovery::host::Ending {
        backstay_recovery::host::Ending { wait: self.wait }
    }
}

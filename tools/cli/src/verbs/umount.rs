//! `backstay umount`: stop serving a disk.

use anyhow::Context as _;
use backstay_driver::control::ControlClient;
use backstay_format::DiskName;
use backstay_format::control::Request;
use clap::Args;

use crate::context::Context;

/// Stop serving a disk, cleanly
#[derive(Args)]
#[command(after_help = "\
A disk that is open (by QEMU, a loop device) is served until its last user closes it; this \
command waits for that.")]
pub struct Umount {
    /// The disk's name
    name: DiskName,
}

impl Umount {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        stop(&self.name, context.driver(&self.name)?)
    }
}

/// Asks a driver to stop and waits until it is gone.
pub fn stop(name: &DiskName, mut driver: ControlClient) -> anyhow::Result<()> {
    driver.ask(&Request::Stop).with_context(|| format!("disk {name}"))?;
    driver.wait_until_gone();
    Ok(())
}

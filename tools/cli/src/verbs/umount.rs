//! `backstay umount`: stop serving a disk.

use anyhow::Context as _;
use backstay_format::control::Request;
use backstay_front::control::ControlClient;
use backstay_recovery::failover::refuse_to_forget;
use backstay_recovery::lazy;
use backstay_types::DiskName;
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
    /// Remove all that this host has of a mounted recovery point, too: what was written to it is gone
    /// then. The vault keeps the point
    #[arg(long)]
    forget: bool,
}

impl Umount {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        if !self.forget {
            return stop(&self.name, context.driver(&self.name)?);
        }
        refuse_to_forget(&context.roots.state, &self.name)?;
        let paths = context.roots.disk(&self.name);
        if let Ok(driver) = context.driver(&self.name)
            && lazy::MountedPoint::load(&self.name, &paths).map_or(true, |of| of.is_some())
        {
            stop(&self.name, driver)?;
        }
        Ok(lazy::forget(&self.name, &paths)?)
    }
}

/// Asks a driver to stop and waits until it is gone.
pub fn stop(name: &DiskName, mut driver: ControlClient) -> anyhow::Result<()> {
    driver.ask(&Request::Stop).with_context(|| format!("disk {name}"))?;
    driver.wait_until_gone();
    Ok(())
}

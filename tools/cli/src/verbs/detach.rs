//! `backstay detach`: detach the loop devices of a disk and stop its driver.

use anyhow::Context as _;
use backstay_format::DiskName;
use clap::Args;

use super::attach::loop_devices;
use super::umount::stop;
use crate::context::Context;
use crate::exit::Refused;
use crate::programs::command;

/// Detach a disk's loop devices and stop serving it
#[derive(Args)]
#[command(after_help = "\
Example:
  umount /mnt && backstay detach data

A device that is still mounted is refused; nothing is changed then. With --when-unused it goes as soon as it
is unmounted, and this waits for that: for services that stop in any order.")]
pub struct Detach {
    /// The disk's name
    name: DiskName,
    /// Do not refuse while a device is mounted: wait until it is unmounted
    #[arg(long)]
    when_unused: bool,
}

impl Detach {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut driver = context.driver(&self.name)?;
        let served = driver.status()?.served;
        let devices = loop_devices(&served)?;
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let mounted = |device: &&String| {
            mounts.lines().any(|line| line.split(' ').next() == Some(device.as_str()))
        };
        if !self.when_unused
            && let Some(device) = devices.iter().find(mounted)
        {
            let message = format!(
                "disk {}: {device} is mounted; unmount it first. Nothing was changed",
                self.name
            );
            return Err(Refused(message).into());
        }
        for device in &devices {
            let_go(device)?;
        }
        stop(&self.name, driver)
    }
}

/// Detaches a loop device; one that is mounted is detached by the kernel when it is unmounted.
pub fn let_go(device: &str) -> anyhow::Result<()> {
    let detached = command("losetup")
        .args(["--detach", device])
        .status()
        .context("losetup could not be started (package mount)")?;
    anyhow::ensure!(detached.success(), "losetup --detach {device} failed");
    Ok(())
}

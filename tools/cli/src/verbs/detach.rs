//! `backstay detach`: detach the loop devices of a disk and stop its driver.

use std::process::Command;

use anyhow::Context as _;
use backstay_format::DiskName;
use clap::Args;

use super::attach::loop_devices;
use super::umount::stop;
use crate::context::Context;
use crate::exit::Refused;

/// Detach a disk's loop devices and stop serving it
#[derive(Args)]
#[command(after_help = "\
Example:
  umount /mnt && backstay detach data

A device that is still mounted is refused; nothing is changed then.")]
pub struct Detach {
    /// The disk's name
    name: DiskName,
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
        if let Some(device) = devices.iter().find(mounted) {
            let message = format!(
                "disk {}: {device} is mounted; unmount it first. Nothing was changed",
                self.name
            );
            return Err(Refused(message).into());
        }
        for device in &devices {
            let detached = Command::new("losetup")
                .args(["--detach", device])
                .status()
                .context("losetup could not be started (package util-linux)")?;
            anyhow::ensure!(detached.success(), "losetup --detach {device} failed");
        }
        stop(&self.name, driver)
    }
}

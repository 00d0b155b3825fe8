//! `backstay detach`: detach the loop devices of a disk and stop its driver.

use std::path::Path;

use backstay_front::control::Died;
use backstay_front::fuse::drop_stale;
use backstay_host::loop_device;
use backstay_recovery::failover::rules::Verb;
use backstay_recovery::host::devices::{self, detach_free, loop_devices, mounted};
use backstay_recovery::host::ending::{Devices, stop, wait_until_free};
use backstay_types::DiskName;
use clap::Args;

use super::ending::Ending;
use crate::context::Context;
use crate::error::{Context as _, Result, refused};

/// Detach a disk's loop devices and stop serving it
#[derive(Args)]
#[command(after_help = "\
Example:
  umount /mnt && backstay detach data

A device that is mounted (in any mount namespace), used as swap, part of another device, or open in a process is in \
use. If it still is after --wait, the command names its users and changes nothing. With --unmount, the file systems \
on the disk are unmounted first, as soon as they are idle.")]
pub struct Detach {
    /// The disk's name
    name: DiskName,
    /// First unmount the disk's file systems, once they are idle
    #[arg(long)]
    unmount: bool,
    #[command(flatten)]
    how: Ending,
}

impl Detach {
    pub fn run(self, context: &Context) -> Result<()> {
        let name = &self.name;
        // What is left of a driver is no disk: whatever a failover does with that, it may go.
        if let Some(died) = Died::of(&context.roots.disk(name)) {
            return self.after_death(context, &died);
        }
        context.may(name, Verb::Detach)?;
        if self.how.force {
            let paths = context.roots.disk(name);
            let loops = loop_devices(&paths.mount_point().join("disk"))?;
            context.host().abort(name)?;
            // Those that are still open go when they are closed: there is no disk behind them any more.
            loops.iter().try_for_each(|device| loop_device::detach(Path::new(device)))?;
            return Ok(());
        }
        let mut driver = context.host().driver_to_end(name)?;
        let status = driver.status()?;
        let loops = loop_devices(&status.served)?;
        if self.unmount {
            devices::unmount(name, &loops, self.how.how())?;
        }
        if let Some(entry) = mounted(&loops)?.pop() {
            let message = format!(
                "disk {name}: {} is mounted on {}; unmount it first. Nothing was changed",
                entry.source.display(),
                entry.at.display()
            );
            return Err(refused(message));
        }
        wait_until_free(&status, Devices::Spare, self.how.how())?;
        for device in &loops {
            detach_free(name, device)?;
        }
        Ok(stop(name, driver, self.how.how())?)
    }

    /// Takes away what a driver that died has left.
    fn after_death(&self, context: &Context, died: &Died) -> Result<()> {
        let name = &self.name;
        let loops = &died.devices;
        if self.unmount {
            devices::unmount(name, loops, self.how.how())?;
        }
        if let Some(entry) = mounted(loops)?.pop().filter(|_| !self.how.force) {
            let message = format!(
                "disk {name}: its driver died, and {} is mounted on {}; unmount it first, or pass --force: the device \
                 then goes when it is unmounted. Nothing was changed",
                entry.source.display(),
                entry.at.display()
            );
            return Err(refused(message));
        }
        let paths = context.roots.disk(name);
        drop_stale(&paths.mount_point())
            .with_context(|| format!("disk {name}: taking away what its driver left"))?;
        std::fs::remove_file(paths.control_socket())
            .with_context(|| format!("{}", paths.control_socket().display()))?;
        Died::is_over(&paths);
        Ok(())
    }
}

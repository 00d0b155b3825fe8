//! `backstay detach`: detach the loop devices of a disk and stop its driver.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use backstay_host::clock;
use backstay_types::DiskName;
use clap::Args;

use super::attach::loop_devices;
use super::umount::stop;
use crate::context::Context;
use crate::exit::Refused;
use crate::helper::table::{self, Entry};
use crate::programs::command;

/// Detach a disk's loop devices and stop serving it
#[derive(Args)]
#[command(after_help = "\
Example:
  umount /mnt && backstay detach data

A device that is still mounted is refused; nothing is changed then. With --unmount what is on it is unmounted
first, and as long as somebody uses that, this waits: for services, which are stopped in any order.")]
pub struct Detach {
    /// The disk's name
    name: DiskName,
    /// Unmount what is on it first, as soon as nobody uses it
    #[arg(long)]
    unmount: bool,
}

/// How long to wait before looking again whether a file system is still used: nothing tells.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

impl Detach {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut driver = context.driver(&self.name)?;
        let served = driver.status()?.served;
        let devices = loop_devices(&served)?;
        if self.unmount {
            unmount(&self.name, &devices)?;
        }
        if let Some(entry) = mounted(&devices)?.pop() {
            let message = format!(
                "disk {}: {} is mounted on {}; unmount it first. Nothing was changed",
                self.name,
                entry.source.display(),
                entry.target.display()
            );
            return Err(Refused(message).into());
        }
        for device in &devices {
            let_go(device)?;
        }
        stop(&self.name, driver)
    }
}

/// Unmounts all that is mounted from these devices, the newest first, and waits while it is used.
fn unmount(name: &DiskName, devices: &[String]) -> anyhow::Result<()> {
    let mut said = false;
    while let Some(entry) = mounted(devices)?.pop() {
        let done = command("umount")
            .arg(&entry.target)
            .output()
            .context("umount could not be started (package mount)")?;
        if !done.status.success() {
            if !std::mem::replace(&mut said, true) {
                let why = String::from_utf8_lossy(&done.stderr).into_owned();
                tracing::warn!("disk {name}: waiting until it can be unmounted: {}", why.trim());
            }
            clock::sleep(LOOK_AGAIN);
        }
    }
    Ok(())
}

/// What is mounted from these devices or their partitions, the newest last.
pub fn mounted(devices: &[String]) -> anyhow::Result<Vec<Entry>> {
    let is_of = |source: &Path, device: &str| {
        let rest = source.to_str().and_then(|source| source.strip_prefix(device));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    let mut table = table::read().context("reading the table of mounts")?;
    table.retain(|entry| devices.iter().any(|device| is_of(&entry.source, device)));
    Ok(table)
}

/// Detaches a loop device; one that is mounted is detached by the kernel when it is unmounted.
pub fn let_go(device: &str) -> anyhow::Result<()> {
    let attached = || table::loop_file(Path::new(device)).is_some();
    // Whoever unmounts at this instant may be quicker.
    if !attached() {
        return Ok(());
    }
    let detached = command("losetup")
        .args(["--detach", device])
        .output()
        .context("losetup could not be started (package mount)")?;
    let said = String::from_utf8_lossy(&detached.stderr).into_owned();
    anyhow::ensure!(detached.status.success() || !attached(), "{}", said.trim());
    Ok(())
}

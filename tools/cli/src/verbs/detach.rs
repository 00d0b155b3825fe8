//! `backstay detach`: detach the loop devices of a disk and stop its driver.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use backstay_host::child::program;
use backstay_host::clock;
use backstay_host::in_use::{self, Subject};
use backstay_host::loop_device;
use backstay_host::mounts::{self, Mount};
use backstay_recovery::failover::rules::Verb;
use backstay_types::DiskName;
use clap::Args;

use super::attach::loop_devices;
use super::ending::{self, Devices, Ending};
use crate::context::Context;
use crate::exit::Refused;

/// Detach a disk's loop devices and stop serving it
#[derive(Args)]
#[command(after_help = "\
Example:
  umount /mnt && backstay detach data

A device that is mounted (in any mount namespace), used as swap, part of another device, or open in a process is \
refused after --wait, with the names of its users; nothing is changed then. With --unmount what is mounted from it \
is unmounted first, as soon as nobody uses that.")]
pub struct Detach {
    /// The disk's name
    name: DiskName,
    /// Unmount what is on the disk first, once nobody uses it
    #[arg(long)]
    unmount: bool,
    #[command(flatten)]
    how: Ending,
}

/// How long to wait before looking again whether a file system is still used: nothing tells.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long the kernel may take to detach a device that nobody uses.
const DETACHED_WITHIN: Duration = Duration::from_secs(5);

impl Detach {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let name = &self.name;
        context.may(name, Verb::Detach)?;
        if self.how.force {
            let paths = context.roots.disk(name);
            let devices = loop_devices(&paths.mount_point().join("disk"))?;
            ending::abort(context, name)?;
            // Those that are still open go when they are closed: there is no disk behind them any more.
            devices.iter().try_for_each(|device| loop_device::detach(Path::new(device)))?;
            return Ok(());
        }
        let mut driver = ending::driver(context, name)?;
        let status = driver.status()?;
        let devices = loop_devices(&status.served)?;
        if self.unmount {
            unmount(name, &devices, self.how)?;
        }
        if let Some(entry) = mounted(&devices)?.pop() {
            let message = format!(
                "disk {name}: {} is mounted on {}; unmount it first. Nothing was changed",
                entry.source.display(),
                entry.at.display()
            );
            return Err(Refused(message).into());
        }
        ending::wait_until_free(&status, Devices::Spare, self.how)?;
        for device in &devices {
            detach_free(name, device)?;
        }
        ending::stop(name, driver, self.how)
    }
}

/// Unmounts all that is mounted from these devices, the newest first, and waits while it is used.
fn unmount(name: &DiskName, devices: &[String], how: Ending) -> anyhow::Result<()> {
    let until = clock::monotonic() + how.wait();
    let mut said = false;
    while let Some(entry) = mounted(devices)?.pop() {
        let done = program("umount")
            .arg(&entry.at)
            .output()
            .context("umount could not be started (package mount)")?;
        if done.status.success() {
            continue;
        }
        let by = users_of(&entry);
        if clock::monotonic() > until {
            let message = format!(
                "disk {name} is in use: {} cannot be unmounted: {}. Nothing else was changed",
                entry.at.display(),
                by.unwrap_or_else(|| String::from_utf8_lossy(&done.stderr).trim().to_owned())
            );
            return Err(Refused(message).into());
        }
        if !std::mem::replace(&mut said, true) {
            let by = by.map_or_else(String::new, |by| format!(": {by}"));
            let at = entry.at.display();
            tracing::warn!("disk {name}: waiting until {at} can be unmounted{by}");
        }
        clock::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// Who is at work in a mounted file system, in words.
pub fn users_of(entry: &Mount) -> Option<String> {
    let users = in_use::inside(entry.device).unwrap_or_default();
    (!users.is_empty()).then(|| in_use::list(&users))
}

/// Detaches a device that nobody used a moment ago. If somebody has come meanwhile, it stays attached: the
/// kernel would otherwise detach it later, when that one closes it.
pub fn detach_free(name: &DiskName, device: &str) -> anyhow::Result<()> {
    loop_device::detach(Path::new(device))?;
    let until: Instant = clock::monotonic() + DETACHED_WITHIN;
    while loop_device::file_of(Path::new(device)).is_some() {
        if clock::monotonic() > until {
            let users = Subject::at(Path::new(device))
                .and_then(|of| {
                    in_use::users(&of, &in_use::Look { readers: true, ..Default::default() })
                })
                .unwrap_or_default();
            loop_device::keep_attached(Path::new(device))
                .with_context(|| format!("disk {name}: keeping {device} attached"))?;
            return Err(ending::refused(name, &users).into());
        }
        clock::sleep(LOOK_AGAIN);
    }
    Ok(())
}

/// What is mounted from these devices or their partitions, the newest last.
pub fn mounted(devices: &[String]) -> anyhow::Result<Vec<Mount>> {
    let is_of = |source: &Path, device: &str| {
        let rest = source.to_str().and_then(|source| source.strip_prefix(device));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    let mut table = mounts::read().context("reading the table of mounts")?;
    table.retain(|entry| devices.iter().any(|device| is_of(&entry.source, device)));
    Ok(table)
}

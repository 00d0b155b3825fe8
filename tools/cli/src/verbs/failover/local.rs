//! What is on this host: disks, their drivers and devices, and this command run again for them.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use backstay_format::control::{DriverStatus, Request};
use backstay_host::clock;
use backstay_host::{in_use, own_dir};
use backstay_recovery::failover::FailoverRecord;
use backstay_types::DiskName;

use super::super::attach::{device_of, loop_devices};
use super::super::detach::detach_free;
use super::super::ending::{self, Devices, Ending};
use crate::context::Context;
use crate::exit::Refused;

/// The failover of a name.
pub fn record(context: &Context, name: &DiskName) -> anyhow::Result<FailoverRecord> {
    FailoverRecord::load(&context.roots.state, name)?.with_context(|| {
        format!("there is no failover of disk {name} on this host; see backstay failover status")
    })
}

/// The status of a disk's driver, if one answers.
pub fn driver(context: &Context, name: &DiskName) -> Option<DriverStatus> {
    context.driver(name).ok()?.status().ok()
}

/// A disk of this host that has a name's state, served or not.
pub fn disk_of(context: &Context, name: &DiskName) -> Option<DiskName> {
    context.disks().into_iter().find(|disk| disk == name)
}

/// Runs this command once more, with the same flags; what it printed.
pub fn again(context: &Context, args: &[&str]) -> anyhow::Result<String> {
    let mut command = context.again()?;
    command.args(args).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output =
        command.output().with_context(|| format!("running backstay {}", args.join(" ")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    match output.status.code() {
        Some(3) => Err(Refused(format!("backstay {} refused (see above)", args.join(" "))).into()),
        _ => bail!("backstay {} failed (see above)", args.join(" ")),
    }
}

/// Refuses if anybody uses a served disk or a loop device on it, in any mount namespace; the devices.
pub fn refuse_if_used(name: &DiskName, status: &DriverStatus) -> anyhow::Result<Vec<String>> {
    let devices = loop_devices(&status.served)?;
    let users = ending::users(status, Devices::Spare)?;
    if users.is_empty() {
        return Ok(devices);
    }
    Err(Refused(format!(
        "disk {name} is in use: {}. Stop that first; nothing was changed",
        in_use::list(&users)
    ))
    .into())
}

/// Detaches devices and stops a driver, if it runs. Nobody uses the disk.
pub fn stop(context: &Context, name: &DiskName) -> anyhow::Result<()> {
    let Some(status) = driver(context, name) else { return Ok(()) };
    ending::wait_until_free(&status, Devices::Spare, Ending::default())?;
    for device in loop_devices(&status.served)? {
        detach_free(name, &device)?;
    }
    ending::stop(name, context.driver(name)?, Ending::default())
}

/// Stops a driver after the cycle that runs; none can begin any more.
pub fn stop_after_cycle(context: &Context, name: &DiskName) -> anyhow::Result<()> {
    let Some(mut driver) = context.driver(name).ok() else { return Ok(()) };
    // The lease is free when the cycle that runs has ended, and there is no event for that.
    while let Err(e) = driver.ask(&Request::Lease { client: "failover".into() }) {
        if !e.is_busy() {
            return Err(e).with_context(|| format!("disk {name}"));
        }
        clock::sleep(std::time::Duration::from_millis(100));
        driver = context.driver(name)?;
    }
    ending::stop(name, driver, Ending::default())
}

/// Prints where a disk is served; attaches a device if that is wished and none is there.
pub fn print_place(context: &Context, name: &DiskName, attach: bool) -> anyhow::Result<()> {
    let status = driver(context, name).with_context(|| format!("disk {name} is not served"))?;
    let device = match loop_devices(&status.served)?.into_iter().next() {
        None if attach => Some(device_of(context, name, &status.served, false)?.path),
        device => device,
    };
    if context.globals.json {
        return context.print_json(&serde_json::json!({
            "name": name, "served": status.served, "device": device,
            "cycle": status.base.map(|base| base.cycle),
        }));
    }
    println!("{}", device.unwrap_or_else(|| status.served.display().to_string()));
    Ok(())
}

/// Removes a folder if it is there.
pub fn remove_folder(path: &Path) -> anyhow::Result<()> {
    own_dir::remove(path).with_context(|| format!("removing {}", path.display()))
}

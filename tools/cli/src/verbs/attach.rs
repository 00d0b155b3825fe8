//! `backstay attach`: mount a disk and attach a loop device to it.

use crate::programs::command;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use backstay_format::DiskName;
use clap::Args;

use super::mount::{How, backing_of, options, start};
use crate::context::Context;

/// Protect a disk and attach a block device to it: mount and losetup in one
#[derive(Args)]
#[command(after_help = "\
Examples:
  dev=$(backstay attach /srv/data.img --name data)
  mkfs.ext4 $dev && mount $dev /mnt
  umount /mnt && backstay detach data

If a driver serves the disk already, only the loop device is attached.")]
pub struct Attach {
    /// The file or block device that holds the disk [default: the one it was served from last]
    backing: Option<PathBuf>,
    /// The disk's name
    #[arg(long)]
    name: DiskName,
    #[command(flatten)]
    how: How,
}

impl Attach {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let served = served(context, &self.name, self.backing, &self.how)?.file;
        let device = losetup(&served)?;
        if context.globals.json {
            return context.print_json(
                &serde_json::json!({ "name": self.name, "device": device, "served": served }),
            );
        }
        println!("{device}");
        Ok(())
    }
}

/// A disk that is served.
pub struct Served {
    /// The file it is served as.
    pub file: PathBuf,
    /// Whether its driver was started for this.
    pub started: bool,
}

/// Has a disk served, by the driver that runs or by a new one in the background.
pub fn served(
    context: &Context,
    name: &DiskName,
    backing: Option<PathBuf>,
    how: &How,
) -> anyhow::Result<Served> {
    let running = context.driver(name).ok().and_then(|mut driver| driver.status().ok());
    let Some(status) = running else {
        let backing = backing_of(context, name, backing)?;
        let file = start(options(context, &backing, name, how)?)?;
        return Ok(Served { file, started: true });
    };
    let asked = backing.map(|backing| backing.canonicalize().unwrap_or(backing));
    match asked {
        Some(asked) if asked != status.backing => bail!(
            "disk {name} is served from {} already, not from {}",
            status.backing.display(),
            asked.display()
        ),
        _ => Ok(Served { file: status.served, started: false }),
    }
}

/// Attaches a free loop device past the page cache: the guest's page cache is enough.
pub fn losetup(served: &Path) -> anyhow::Result<String> {
    let output = command("losetup")
        .args(["--find", "--show", "--direct-io=on"])
        .arg(served)
        .output()
        .context("losetup could not be started (package mount)")?;
    if !output.status.success() {
        bail!(
            "losetup {}: {}; the disk stays mounted",
            served.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The loop devices attached to a served disk.
pub fn loop_devices(served: &Path) -> anyhow::Result<Vec<String>> {
    let output = command("losetup")
        .args(["--noheadings", "--raw", "--output", "NAME,BACK-FILE"])
        .output()
        .context("losetup could not be started (package mount)")?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let attached = |line: &str| {
        let (device, file) = line.split_once(' ')?;
        (Path::new(file) == served).then(|| device.to_owned())
    };
    Ok(list.lines().filter_map(attached).collect())
}

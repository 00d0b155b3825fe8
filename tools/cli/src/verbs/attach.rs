//! `backstay attach`: mount a disk and attach a loop device to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use backstay_format::DiskName;
use clap::Args;

use super::mount::{How, options, start};
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
    /// The file or block device that holds the disk
    backing: PathBuf,
    /// The disk's name
    #[arg(long)]
    name: DiskName,
    #[command(flatten)]
    how: How,
}

impl Attach {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let backing = self.backing.canonicalize().unwrap_or(self.backing.clone());
        let running = context.driver(&self.name).ok().and_then(|mut driver| driver.status().ok());
        let served = match running {
            Some(status) if status.backing == backing => status.served,
            Some(status) => bail!(
                "disk {} is served from {} already, not from {}",
                self.name,
                status.backing.display(),
                backing.display()
            ),
            None => start(options(context, &self.backing, &self.name, &self.how)?)?,
        };
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

/// Attaches a free loop device past the page cache: the guest's page cache is enough.
pub fn losetup(served: &Path) -> anyhow::Result<String> {
    let output = Command::new("losetup")
        .args(["--find", "--show", "--direct-io=on"])
        .arg(served)
        .output()
        .context("losetup could not be started (package util-linux)")?;
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
    let output = Command::new("losetup")
        .args(["--noheadings", "--raw", "--output", "NAME,BACK-FILE"])
        .output()
        .context("losetup could not be started (package util-linux)")?;
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let attached = |line: &str| {
        let (device, file) = line.split_once(' ')?;
        (Path::new(file) == served).then(|| device.to_owned())
    };
    Ok(list.lines().filter_map(attached).collect())
}

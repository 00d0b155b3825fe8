//! `umount.backstay`: the file system goes, and with the last one the driver that a mount had started.

use std::path::{Path, PathBuf};

use backstay_front::control::ControlClient;
use backstay_front::paths::Roots;
use backstay_host::child::program;
use backstay_host::{loop_device, mounts};
use backstay_recovery::host::Ending;
use backstay_recovery::host::ending::stop;
use backstay_types::DiskName;
use clap::Parser;

use super::{STARTED_BY_MOUNT, code};
use crate::context::Globals;
use crate::error::{Context as _, Result};

/// Unmount the file system on a protected disk; umount calls it
#[derive(Parser)]
#[command(name = "umount.backstay", version)]
pub struct Args {
    /// Where it is mounted, or the device
    what: PathBuf,
    /// Even if it does not answer
    #[arg(short)]
    force: bool,
    /// Take it out of sight now, unmount when nobody uses it
    #[arg(short)]
    lazy: bool,
    /// Write no table of mounts
    #[arg(short)]
    no_table: bool,
    /// If it cannot be unmounted, make it read-only
    #[arg(short)]
    read_only: bool,
    /// Say more
    #[arg(short)]
    verbose: bool,
    /// Another mount namespace
    #[arg(short = 'N')]
    namespace: Option<String>,
    /// The type umount(8) was called with
    #[arg(short = 't')]
    fs_type: Option<String>,
}

/// The driver behind a mount.
struct Behind {
    name: DiskName,
    driver: ControlClient,
    pid: u32,
    mark: PathBuf,
}

/// Unmounts; the exit code.
pub fn run(args: Args) -> Result<u8> {
    Globals::default().start_logging(false);
    let what = args.what.canonicalize().unwrap_or(args.what.clone());
    let table = mounts::read()?;
    let entry = mounts::at(&table, &what)
        .or_else(|| table.iter().rev().find(|entry| entry.source == what))
        .with_context(|| format!("{} is not mounted", what.display()))?;
    let behind = behind(&entry.source);

    let mut command = program("umount");
    command.arg("-i").args(args.flags()).arg(&entry.at);
    let gone = command.status().context("umount could not be started (package mount)")?;
    if !gone.success() {
        return Ok(gone.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(code::FAILED));
    }
    let elsewhere = mounts::read()?.iter().any(|other| other.device == entry.device);
    if let Some(behind) = behind
        && !elsewhere
    {
        end(behind)?;
    }
    Ok(0)
}

/// Ends a driver if a mount had started it; others are left alone.
fn end(behind: Behind) -> Result<()> {
    let Behind { name, driver, pid, mark } = behind;
    let by_mount = std::fs::read_to_string(&mark).ok().and_then(|text| text.trim().parse().ok());
    if by_mount != Some(pid) {
        return Ok(());
    }
    let _ = std::fs::remove_file(&mark);
    // Also after a lazy one: anyone who looks at the device in this instant (losetup, udev) is gone soon. While
    // somebody really uses it, the driver goes on: it ends with the next umount, or by hand.
    if let Err(e) = stop(&name, driver, Ending::default()) {
        std::fs::write(&mark, format!("{pid}\n")).with_context(|| format!("{}", mark.display()))?;
        eprintln!(
            "umount.backstay: disk {name} is unmounted, but its driver goes on: {e}. End it with backstay \
             umount {name}"
        );
    }
    Ok(())
}

/// Finds the driver that serves what a loop device is attached to.
fn behind(device: &Path) -> Option<Behind> {
    let file = loop_device::file_of(device)?;
    // Usually RUNTIME/NAME/mnt/disk; a disk that is served elsewhere is looked for.
    let beside = file.parent().and_then(Path::parent).map(|dir| dir.join("control.sock"));
    let roots = Roots::new(None, None);
    let known = roots.disks_with_socket();
    let known = known.iter().map(|name| roots.disk(name).control_socket());
    beside.into_iter().chain(known).find_map(|socket| {
        let mut driver = ControlClient::connect(&socket).ok()?;
        let status = driver.status().ok().filter(|status| status.served == file)?;
        let mark = socket.with_file_name(STARTED_BY_MOUNT);
        Some(Behind { name: status.name, driver, pid: status.pid, mark })
    })
}

impl Args {
    fn flags(&self) -> Vec<&'static str> {
        let flags = [
            (self.force, "-f"),
            (self.lazy, "-l"),
            (self.no_table, "-n"),
            (self.read_only, "-r"),
            (self.verbose, "-v"),
        ];
        flags.into_iter().filter_map(|(set, flag)| set.then_some(flag)).collect()
    }
}

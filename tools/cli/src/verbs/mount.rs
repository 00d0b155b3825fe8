//! `backstay mount`: serve a protected disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use backstay_driver::backing::Engine;
use backstay_driver::backing::record::BackingRecord;
use backstay_driver::life::{DriverOptions, Outcome, in_background, run};
use backstay_format::{ByteLen, DiskName};
use bytesize::ByteSize;
use clap::Args;

use crate::context::Context;
use crate::exit::Refused;

/// Protect a file or block device: serve it as a disk whose writes are tracked
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay mount /srv/vm.img --name vm1      serve vm.img; prints where
  qemu-system-x86_64 -drive file=$(backstay mount /srv/vm.img --name vm1),format=raw
  backstay mount /dev/sdb --name db --change-log-limit 20GiB
  backstay mount /dev/vg/db --name db --grow     after lvextend
  backstay mount --name db --foreground          as the service does: its backing is known

The backing must not be used in any other way while it is served.")]
pub struct Mount {
    /// The file or block device that holds the disk [default: the one it was served from last]
    backing: Option<PathBuf>,
    /// The disk's name
    #[arg(long)]
    name: DiskName,
    #[command(flatten)]
    how: How,
    /// Stay in the foreground (for systemd, with sd_notify)
    #[arg(long)]
    foreground: bool,
}

/// How a disk is served; also for `attach`.
#[derive(Args, Clone)]
pub struct How {
    /// How to read and write the backing: auto, buffered or direct
    #[arg(long, default_value = "auto")]
    engine: Engine,
    /// Where to mount it [default: mnt in the disk's runtime directory]
    #[arg(long, value_name = "DIR")]
    mount_point: Option<PathBuf>,
    /// Most space for blocks preserved during a cycle [default: half the disk]
    #[arg(long, value_name = "SIZE")]
    change_log_limit: Option<ByteSize>,
    /// Threads that serve requests
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    event_loops: u16,
    /// Let the disk grow if its backing is larger than it was
    #[arg(long)]
    grow: bool,
    /// Track nothing: only to measure what tracking costs
    #[arg(long, hide = true)]
    no_tracking: bool,
}

impl How {
    /// The most space for preserved blocks, if it was said.
    pub fn change_log_limit(&self) -> Option<ByteSize> {
        self.change_log_limit
    }
}

impl Mount {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let backing = backing_of(context, &self.name, self.backing)?;
        let options = options(context, &backing, &self.name, &self.how)?;
        if self.foreground {
            return Ok(run(options, || ())?);
        }
        let served = start(options)?;
        if context.globals.json {
            return context.print_json(&serde_json::json!({ "name": self.name, "served": served }));
        }
        println!("{}", served.display());
        Ok(())
    }
}

/// The backing that was named, or the one the disk was served from or moved to last.
pub fn backing_of(
    context: &Context,
    name: &DiskName,
    named: Option<PathBuf>,
) -> anyhow::Result<PathBuf> {
    let recorded = || Some(BackingRecord::load(&context.roots.disk(name).state).backing?.path);
    named.or_else(recorded).with_context(|| {
        format!(
            "disk {name} was never served on this host, so its backing is not known: name the file \
             or block device that holds it"
        )
    })
}

/// Makes the driver's options of what was asked.
pub fn options(
    context: &Context,
    backing: &Path,
    name: &DiskName,
    how: &How,
) -> anyhow::Result<DriverOptions> {
    let paths = context.roots.disk(name);
    let mount_point = match &how.mount_point {
        Some(dir) => std::path::absolute(dir)?,
        None => paths.mount_point(),
    };
    Ok(DriverOptions {
        name: name.clone(),
        backing: std::path::absolute(backing)?,
        paths,
        mount_point,
        engine: how.engine,
        change_log_limit: how.change_log_limit.map(|size| ByteLen(size.as_u64())),
        tracking: !how.no_tracking,
        grow: how.grow,
        base: None,
        event_loops: how.event_loops.into(),
    })
}

/// Starts a driver in the background; the file it serves.
pub fn start(options: DriverOptions) -> anyhow::Result<PathBuf> {
    let served = options.mount_point.join("disk");
    let name = options.name.clone();
    std::fs::create_dir_all(&options.paths.state)
        .with_context(|| format!("making {}", options.paths.state.display()))?;
    // Errors that leave another driver at work must keep their exit code across the fork.
    let log = options.paths.driver_log();
    let outcome = in_background(&log, |ready| {
        run(options, ready)
            .map_err(|e| if e.is_busy() { format!("{BUSY}{e}") } else { e.to_string() })
    })?;
    match outcome {
        Outcome::Serving => Ok(served),
        Outcome::Failed(said) => match said.strip_prefix(BUSY) {
            Some(said) => Err(Refused(format!("disk {name} was not mounted: {said}")).into()),
            None if said.is_empty() => bail!("disk {name}: the driver said nothing"),
            None => Err(anyhow!("disk {name} was not mounted: {said}")),
        },
    }
}

const BUSY: &str = "busy: ";

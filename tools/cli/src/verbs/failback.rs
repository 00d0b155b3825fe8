//! `backstay failback`: an old source takes its disk back.

use std::path::PathBuf;
use std::time::Duration;

use backstay_recovery::failover::back::{self, Back};
use backstay_types::DiskName;
use clap::Args;

use super::failover::{print_place, say_cycle};
use super::target::InVault;
use crate::context::Context;
use crate::error::Result;

/// Bring a disk back to its old source, while the other side goes on serving it
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failback db --to /srv/db.img --vault file:///mnt/vault
  backstay failback db --to /srv/db.img --full    fetch everything
  backstay failback db --to /dev/sdc --new-disk   not on the old backing
  backstay failback db --to /srv/db.img --now     the other side is gone

If the old disk's state is intact, only the changes are copied. Otherwise the disk is compared by checksums, and the \
differences are copied. Then BACKING follows the vault. Once the other side has run backstay failover handover, this \
host serves the disk again at exactly that point, commits at once and replicates. If the command is killed, run it \
again: it continues.")]
pub struct Failback {
    /// The disk's name
    name: DiskName,
    #[command(flatten)]
    vault: InVault,
    /// The file or block device that will hold the disk
    #[arg(long, value_name = "BACKING")]
    to: PathBuf,
    /// Fetch everything; compare nothing
    #[arg(long)]
    full: bool,
    /// Ignore the disk's old state, because BACKING is not the old backing
    #[arg(long)]
    new_disk: bool,
    /// Overwrite BACKING: compare it by checksums and fetch the differences
    #[arg(long)]
    force: bool,
    /// Do not wait for a handover, because the other side is gone. Its writes after the newest point are lost
    #[arg(long, conflicts_with = "once")]
    now: bool,
    /// Go to the newest point, then exit; run again to continue
    #[arg(long)]
    once: bool,
    /// How often to look for newer points and for the handover
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

impl Failback {
    pub fn run(self, context: &Context) -> Result<()> {
        self.vault.note(context, &self.name);
        let Self { name, vault, to, full, new_disk, force, now, once, interval } = self;
        let vault = vault.vault;
        let job = back::Failback { name, to, vault, full, new_disk, force, now, once, interval };
        match job.run(&context.host())? {
            Back::Following => {}
            Back::Already(cycle) => say_cycle(context, &job.name, cycle.as_ref()),
            Back::Done(place, cycle) => {
                say_cycle(context, &job.name, cycle.as_ref());
                print_place(context, &place)?;
            }
        }
        Ok(())
    }
}

//! `backstay resync`: compare a disk with its newest recovery point and ship what differs.

use backstay_engine::cycle::newest_point;
use backstay_engine::cycle::resync::Request;
use backstay_engine::requests::{Asked, ask};
use backstay_recovery::failover::rules::Verb;
use backstay_types::{Classified, DiskName};
use clap::Args;

use backstay_recovery::host::cycle::run_once;

use super::cycle::say;
use super::target::time;
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Compare a disk with its newest recovery point by checksums and ship only what differs
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay resync db --now           now, in the foreground
  backstay resync db                 by the sidecar, in its resync window
  backstay resync db --now --deep    read the vault's data, too
  backstay resync db --now --the-disk-is-right

Checksums cover chunks of 64 KiB (ship.chunk_size). Writes go on, and their changes are shipped, too. An interrupted \
resync continues where it stopped.

If nothing proves that the disk is newer than the vault (it came back from a backup, or its state was lost), \
Backstay ships nothing until you pass --the-disk-is-right. The existing points stay in the vault.")]
pub struct Resync {
    /// The disk's name
    name: DiskName,
    /// Resync now, in the foreground
    #[arg(long)]
    now: bool,
    /// Read the vault's data back instead of relying on its checksums
    #[arg(long)]
    deep: bool,
    /// Ship everything, compare nothing
    #[arg(long, conflicts_with = "deep")]
    full: bool,
    /// Ship the disk's content on top of the vault's newest point, although nothing proves that the disk is newer;
    /// ship all of it if no point is left
    #[arg(long)]
    the_disk_is_right: bool,
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

impl Resync {
    pub fn run(self, context: &Context) -> Result<()> {
        context.may(&self.name, Verb::Cycle)?;
        let status = context.driver(&self.name)?.status()?;
        let paths = context.roots.disk(&self.name);
        let url = self.vault.as_deref().unwrap_or_else(|| context.config.vault_of(&self.name));
        let vault = context.config.vaults.open(url)?;
        let newest = match newest_point(&vault, &status) {
            // A full copy needs nothing of what is there, and is the way out when it is damaged or gone.
            Err(e) if self.full && e.is_damage() => None,
            newest => newest?,
        };
        // Where no point is left, all of the disk is what differs.
        let full = self.full || (self.the_disk_is_right && newest.is_none());
        if newest.is_none() && !full {
            bail!(
                "disk {} has no recovery point in {url}: there is nothing to compare with. Run \
                 backstay cycle {}",
                self.name,
                self.name
            );
        }
        let right = newest.as_ref().filter(|_| self.the_disk_is_right);
        let request = Request {
            disk_is_right: right.map(|newest| newest.point),
            deep: self.deep,
            full,
            now: self.now,
            asked_unix_ns: backstay_host::clock::now_unix_ns(),
        };
        request.save(&paths.state).with_context(|| format!("disk {}", self.name))?;
        if self.now {
            let report = run_once(&context.host(), &self.name, self.vault.as_deref())?;
            return say(context, &self.name, &report);
        }
        ask(&context.roots.state, &Asked::Look(self.name.clone()))?;
        match newest {
            _ if context.globals.quiet => {}
            Some(newest) if !full => println!(
                "{}: the sidecar will compare it with recovery point {} (cut {}) in its resync \
                 window",
                self.name,
                newest.cycle,
                time(newest.cut_unix_ns)
            ),
            _ => println!("{}: the sidecar will ship all of it in its resync window", self.name),
        }
        Ok(())
    }
}

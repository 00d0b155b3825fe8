//! `backstay rename`: give a disk another name.

use anyhow::Context as _;
use backstay_driver::offline::{Renaming, Stage};
use backstay_format::{DiskId, DiskName};
use backstay_sidecar::record::Record;
use backstay_vault::{Vault, VaultError};
use clap::Args;

use crate::context::Context;
use crate::exit::Refused;

/// Give a disk that is not mounted another name, on this host and in its vault
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay umount db && backstay rename db db-main && backstay mount /srv/db.img --name db-main

Its points stay, and are found under the new name; the old one says where the disk has gone to. If
this is killed, run it again: one of the two names works until then. Settings in the configuration
file ([disk.db]) are yours to rename.")]
pub struct Rename {
    /// The disk's name
    old: DiskName,
    /// Its new name
    new: DiskName,
    /// The vault's URL [default: where the disk was shipped last, or the configuration's]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
}

impl Rename {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (old, new) = (&self.old, &self.new);
        let (disk, shipped, renaming) = match Renaming::begin(&context.roots, old, new)? {
            Stage::Ready(renaming) => {
                let sb = renaming.superblock();
                (sb.disk, sb.base.is_some(), Some(renaming))
            }
            Stage::Done(sb) => (sb.disk, sb.base.is_some(), None),
        };
        let name_here = if renaming.is_some() { old } else { new };
        let record = Record::load(&context.roots.disk(name_here).state);
        let url = self.vault_url(context, &record);
        if renaming.is_some() {
            self.same_vault_later(context, &record, &url)?;
        }
        let in_vault = self.in_vault(&url, disk, shipped || record.last.is_some())?;
        if renaming.is_none() && !in_vault {
            return Err(Refused(format!(
                "there is no disk {old} on this host, and {new} is not it as far as {url} knows. \
                 Nothing was changed"
            ))
            .into());
        }
        if let Some(renaming) = renaming {
            renaming.finish()?;
        }
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "old": old, "name": new, "disk": disk, "vault": in_vault.then_some(&url),
            }));
        }
        if !context.globals.quiet {
            println!("disk {old} is {new} now");
            if !in_vault {
                println!("it was never shipped: no vault had to be told");
            }
            if context.config.disk.contains_key(old) {
                println!("rename [disk.{old}] in the configuration to [disk.{new}]");
            }
        }
        Ok(())
    }

    fn vault_url(&self, context: &Context, record: &Record) -> String {
        let given = self.vault.clone().or_else(|| record.vault.clone());
        given.unwrap_or_else(|| context.config.vault_of(&self.old).to_owned())
    }

    /// Under its new name the disk must ship to where its points are: into another vault it would go
    /// whole, and its points would seem to be gone.
    fn same_vault_later(
        &self,
        context: &Context,
        record: &Record,
        url: &str,
    ) -> Result<(), Refused> {
        let later = context.config.vault_of(&self.new);
        let configured = context.config.disk.contains_key(&self.old);
        if !configured || record.last.is_none() || later == url {
            return Ok(());
        }
        Err(Refused(format!(
            "the configuration has [disk.{old}], and without it the disk would ship to {later} \
             instead of {url}: copy that section to [disk.{new}] first. Nothing was changed",
            old = self.old,
            new = self.new,
        )))
    }

    /// Renames the disk in its vault; whether the vault has it. A disk that was never shipped need not
    /// have one.
    fn in_vault(&self, url: &str, disk: DiskId, shipped: bool) -> anyhow::Result<bool> {
        let must = shipped || self.vault.is_some();
        let vault = match Vault::open(url) {
            Ok(vault) => vault,
            Err(VaultError::Url { .. } | VaultError::NotFound { .. }) if !must => return Ok(false),
            Err(e) => return Err(e).context("nothing was changed"),
        };
        match vault.rename_disk(disk, &self.new) {
            Ok(()) => Ok(true),
            Err(VaultError::NotFound { .. }) if !must => Ok(false),
            Err(VaultError::NameTaken { name, .. }) => {
                Err(Refused(format!("another disk in {url} is named {name}. Nothing was changed"))
                    .into())
            }
            Err(e) => Err(e).context("the disk has its old name on this host; run this again"),
        }
    }
}

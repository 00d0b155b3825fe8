//! `backstay rename`: give a disk another name.

use backstay_engine::config::DiskConfig;
use backstay_engine::hooks;
use backstay_engine::protection::Protection;
use backstay_engine::record::Record;
use backstay_front::offline::{Renaming, Stage};
use backstay_recovery::failover::refuse_to_serve;
use backstay_types::{DiskId, DiskName};
use backstay_vault::VaultError;
use clap::Args;

use super::mount::refuse_mounted_point;
use crate::context::Context;
use crate::error::{Context as _, Result, refused};

/// Give a disk that is not mounted another name, on this host and in its vault
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay umount db
  backstay rename db db-main
  backstay mount /srv/db.img --name db-main

Its points stay, and are found under the new name; the old name refers to the new one. If the command is killed, run \
it again: until then one of the two names works. Rename the disk's section in the configuration file ([disk.db]) \
yourself.")]
pub struct Rename {
    /// The disk's name
    old: DiskName,
    /// Its new name
    new: DiskName,
    /// The vault's URL [default: where the disk was shipped last, or the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

impl Rename {
    pub fn run(self, context: &Context) -> Result<()> {
        refuse_mounted_point(context, &self.old)?;
        refuse_to_serve(&context.roots.state, &self.old)?;
        let (old, new) = (&self.old, &self.new);
        // What hooks keep is kept under the old name: nobody would look there any more.
        if let Some(did) = hooks::mend(&context.roots.disk(old).runtime) {
            tracing::warn!("disk {old}: {did}");
        }
        let (superblock, renaming) = match Renaming::begin(&context.roots, old, new)? {
            Stage::Ready(renaming) => (renaming.superblock().clone(), Some(renaming)),
            Stage::Done(superblock) => (superblock, None),
        };
        // A disk that was adopted has another identity in the vault.
        let base = superblock.base.or(superblock.announced.last().copied());
        let disk = base.map_or(superblock.disk, |base| base.vault_disk);
        let shipped = base.is_some();
        let name_here = if renaming.is_some() { old } else { new };
        let record = Record::load(&context.roots.disk(name_here).state);
        let url = self.vault_url(context, &record);
        let protection = Protection::load(&context.roots.disk(name_here).state)?;
        let must = shipped || record.last.is_some();
        let in_vault = self.in_vault(context, &url, disk, must, renaming.is_none())?;
        if renaming.is_none() && !in_vault {
            return Err(refused(format!(
                "there is no disk {old} on this host, and as far as {url} knows {new} never had \
                 that name. Nothing was changed"
            )));
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
                println!("it was never shipped, so no vault had to be changed");
            }
            if self.is_configured(context, protection.as_ref()) {
                println!("rename [disk.{old}] in the configuration to [disk.{new}]");
            }
        }
        Ok(())
    }

    fn vault_url(&self, context: &Context, record: &Record) -> String {
        let given = self.vault.clone().or_else(|| record.vault.clone());
        given.unwrap_or_else(|| context.config.vault_of(&self.old).to_owned())
    }

    /// Whether the configuration file has a section for the old name.
    fn is_configured(&self, context: &Context, protection: Option<&Protection>) -> bool {
        let Some(mut section) = context.config.disk.get(&self.old).cloned() else { return false };
        // Where its points are, and what `backstay protect` was told, stands in its state and goes with it.
        section.vault = None;
        if section.policy == protection.and_then(|protection| protection.policy.clone()) {
            section.policy = None;
        }
        section != DiskConfig::default()
    }

    /// Renames the disk in its vault; whether the vault has it. A disk that was never shipped need not
    /// have one. `again`: only if it had the old name.
    fn in_vault(
        &self,
        context: &Context,
        url: &str,
        disk: DiskId,
        shipped: bool,
        again: bool,
    ) -> Result<bool> {
        let must = shipped || self.vault.is_some();
        let vault = match context.config.vaults.open(url) {
            Ok(vault) => vault,
            Err(VaultError::NoVault { .. } | VaultError::NotFound { .. }) if !must => {
                return Ok(false);
            }
            Err(e) => return Err(e).context("nothing was changed"),
        };
        if again && !vault.had_name(disk, &self.old)? {
            return Ok(false);
        }
        match vault.rename_disk(disk, &self.new) {
            Ok(()) => Ok(true),
            Err(VaultError::NotFound { .. }) if !must => Ok(false),
            Err(VaultError::NameTaken { name, .. }) => {
                Err(refused(format!("another disk in {url} is named {name}. Nothing was changed")))
            }
            Err(e) => Err(e).context("the disk has its old name on this host; run this again"),
        }
    }
}

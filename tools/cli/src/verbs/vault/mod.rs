//! `backstay vault`: what is in a vault, making one, saying which one is meant, and what its store keeps beneath
//! it: older versions and locks.

mod disks;

use std::time::SystemTime;

use backstay_vault::remote::lock::Versions;
use backstay_vault::{Vault, VaultError};
use clap::{Args, Subcommand};
use serde_json::json;

use super::target::past;
use crate::context::Context;
use crate::error::{Result, bail, refused};
use disks::{Forget, Ls};

/// Make a vault, list its disks, accept another one, bring back what was deleted
#[derive(Args)]
pub struct VaultVerb {
    #[command(subcommand)]
    what: Action,
}

#[derive(Subcommand)]
enum Action {
    Init(Init),
    Accept(Accept),
    Ls(Ls),
    Forget(Forget),
    Undelete(Undelete),
    Extend(Extend),
}

/// Make a new vault that is not encrypted
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay vault init --vault file:///mnt/backup/vault
  backstay vault init --vault s3://backups/prod

Vaults are made by this command, by backstay key init (encrypted ones) and by backstay protect. Nothing else makes one:
an empty directory may be a file system that is not mounted.

A host remembers which vault it has met at a URL. If that vault is lost for good and a new one is to take its \
place, add --replace-missing.")]
struct Init {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    #[command(flatten)]
    place: InPlace,
}

/// Of verbs that make vaults.
#[derive(Args)]
pub struct InPlace {
    /// Make it although this host knows another vault at this URL, which is missing now
    #[arg(long)]
    replace_missing: bool,
}

impl InPlace {
    /// Forgets a vault that is missing, if that was said. One that is there stays known.
    pub fn prepare(&self, context: &Context, url: &str) -> Result<()> {
        match context.config.vaults.open_whichever(url) {
            Err(e) if self.replace_missing && e.is_no_vault() => {
                Ok(context.config.vaults.known().forget(url)?)
            }
            _ => Ok(()),
        }
    }
}

/// Accept the vault that is at a URL now, in place of the one that this host knew there
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay vault accept --vault file:///mnt/backup/vault

A host remembers which vault it has met at a URL, and refuses another one there: its file system may not be mounted, \
or somebody else's may be. Look first: backstay points NAME on a host that knows the vault, ls of the directory.

The points of a disk stay where they are: to ship a disk to another vault, use backstay set NAME --vault URL.")]
struct Accept {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

/// Bring back what was deleted or overwritten in an S3 bucket that keeps versions
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay vault undelete --vault s3://backups --check \\
      --since 2026-11-21T03:00:00Z
  backstay vault undelete --vault s3://backups/prod --since 6h

For after somebody with the store's keys has deleted recovery points. What was there at that time is there again \
as it \
was; what is new since stays. Name a time shortly before it happened: what retention deleted since comes back, too, \
and goes with the next prune. Change the store's keys first. Then look: backstay verify NAME.

Versions that a life-cycle rule of the bucket has removed are gone. See docs/reference/stores.md, Object lock.")]
struct Undelete {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// As it was then: a time (2026-11-21T03:00:00Z) or how long ago (6h)
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: SystemTime,
    /// Say what would be done, and do nothing
    #[arg(long)]
    check: bool,
}

/// Lock all that is in a vault for the whole period from now on
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay vault extend --vault s3://backups/prod

A lock begins when an object is put (store.object_lock says how long it lasts). What recovery points need may be older:
run this by a timer, at least twice in each period, on a host that retention runs on. One request for each object.")]
struct Extend {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

impl VaultVerb {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.what {
            Action::Init(verb) => verb.run(context),
            Action::Accept(verb) => verb.run(context),
            Action::Ls(verb) => verb.run(context),
            Action::Forget(verb) => verb.run(context),
            Action::Undelete(verb) => verb.run(context),
            Action::Extend(verb) => verb.run(context),
        }
    }
}

impl Init {
    fn run(self, context: &Context) -> Result<()> {
        let url = self.vault.as_deref().unwrap_or(&context.config.vault);
        self.place.prepare(context, url)?;
        let vault = match context.config.vaults.create(url) {
            Err(e @ VaultError::VaultGone { .. }) => return Err(refused(e.to_string())),
            made => made?,
        };
        if context.globals.json {
            return context.print_json(&json!({ "vault": url, "id": vault.id() }));
        }
        if !context.globals.quiet {
            println!("{url} is a new vault{}. Its store can read what is in it", id(&vault));
        }
        Ok(())
    }
}

/// A vault's identity, in brackets.
pub fn id(vault: &Vault) -> String {
    vault.id().map_or_else(String::new, |id| format!(" ({id})"))
}

impl Accept {
    fn run(self, context: &Context) -> Result<()> {
        let url = self.vault.as_deref().unwrap_or(&context.config.vault);
        let vault = context.config.vaults.open_whichever(url)?;
        let before = context.config.vaults.known().at(url).ok().flatten().map(|known| known.vault);
        if let Some(found) = vault.id() {
            context.config.vaults.known().accept(url, found)?;
        }
        if context.globals.json {
            let value = json!({ "vault": url, "id": vault.id(), "before": before });
            return context.print_json(&value);
        }
        if !context.globals.quiet {
            println!("{url}: this host means the vault that is there now{}", id(&vault));
        }
        Ok(())
    }
}

impl Undelete {
    fn run(self, context: &Context) -> Result<()> {
        let url = self.vault.as_deref().unwrap_or(&context.config.vault);
        let done = Versions::of(&context.config.vaults, url)?.undelete(self.since, self.check)?;
        if context.globals.json {
            context.print_json(&json!({
                "deleted": done.deleted,
                "overwritten": done.overwritten,
                "hidden": done.hidden,
                "done": !self.check,
            }))?;
        } else if !context.globals.quiet {
            let verb = if self.check { "would be" } else { "are" };
            println!(
                "{url}: {} deleted and {} overwritten objects {verb} back as they were at {}",
                done.deleted,
                done.overwritten,
                humantime::format_rfc3339_seconds(self.since)
            );
        }
        if let Some(first) = done.hidden.first() {
            bail!(
                "{} objects are hidden by newer versions that cannot be removed, such as {first}: anyone who put those \
                 has locked them, too. The old ones are there: see docs/reference/stores.md, Object lock",
                done.hidden.len()
            );
        }
        Ok(())
    }
}

impl Extend {
    fn run(self, context: &Context) -> Result<()> {
        let url = self.vault.as_deref().unwrap_or(&context.config.vault);
        let done = Versions::of(&context.config.vaults, url)?.extend()?;
        let until = humantime::format_rfc3339_seconds(done.until).to_string();
        if context.globals.json {
            return context.print_json(&json!({ "objects": done.objects, "until": until }));
        }
        if !context.globals.quiet {
            println!("{url}: {} objects are locked until {until}", done.objects);
        }
        Ok(())
    }
}

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

Only this command, backstay key init (for encrypted vaults) and backstay protect make vaults, \
because an empty directory may be a file system that is not mounted.

A host remembers which vault it found at a URL. If that vault is lost for good and a new one should replace it, add \
--replace-missing.")]
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
    /// Make it although this host knows another vault at this URL, which is now missing
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

/// Accept the vault that is now at a URL, in place of the one that this host knew there
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay vault accept --vault file:///mnt/backup/vault

A host remembers which vault it found at a URL, and refuses another one there: the file system may not be mounted, \
or another one may be. Check first: run backstay points NAME on a host that knows the vault, and list the directory.

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

Use this command after somebody with the store's keys has deleted recovery points. First change the store's keys. \
All objects of that time come back as they were; newer objects stay. Name a time shortly before the deletion: points \
that retention deleted since then come back, too, and go with the next prune. Afterwards run backstay verify NAME.

Versions that a life-cycle rule of the bucket has removed are gone. See docs/reference/stores.md, Object lock.")]
struct Undelete {
    /// The vault's URL [default: the configuration's]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// The time to go back to (2026-11-21T03:00:00Z), or how long ago (6h)
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: SystemTime,
    /// Show what would be done; change nothing
    #[arg(long)]
    check: bool,
}

/// Lock all objects of a vault for a whole period from now on
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay vault extend --vault s3://backups/prod

A lock begins when an object is put; store.object_lock sets how long it lasts. Recovery points may need older \
objects. Run this command from a timer, at least twice in each period, on a host that runs retention. It makes one request \
for each object.")]
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

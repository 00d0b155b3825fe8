//! `backstay protect`: check, mount, ship, keep shipping.

use std::path::PathBuf;

use backstay_engine::cycle::newest_point;
use backstay_engine::cycle::resync::Request;
use backstay_engine::home;
use backstay_engine::prerequisites::{Check, Told, Verdict, check};
use backstay_engine::protection::Protection;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::service::is_running;
use backstay_recovery::failover::rules::Verb;
use backstay_types::{ByteLen, DiskName};
use backstay_vault::{Vault, VaultError};
use clap::Args;

use backstay_recovery::host::cycle::run_once;

use super::cycle::line;
use super::mount::{How, options, start};
use super::vault::id;
use crate::context::Context;
use crate::error::{Context as _, Result, bail, refused};

/// Protect a disk: check what it needs, serve it, and ship it from then on
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay protect /srv/db.img --name db --policy gold
  backstay protect /dev/sdb --name data --vault file:///mnt/vault --attach
  backstay protect /srv/db.img --name db --vault file:///mnt/vault --check

First checks the disk's requirements; if one is not met, the command says so and changes nothing. A running sidecar \
makes the first copy as a job (backstay jobs); without a sidecar the command makes it in the foreground. The vault \
and the policy are remembered. A vault that does not exist is made, unless this host knows one at that URL, which is \
then missing.")]
pub struct Protect {
    /// The file or block device that holds the disk
    backing: PathBuf,
    /// The disk's name
    #[arg(long)]
    name: DiskName,
    /// Where its recovery points go [default: the configuration's vault]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// The disk's policy, from the configuration
    #[arg(long)]
    policy: Option<String>,
    /// Only check whether it can be protected
    #[arg(long)]
    check: bool,
    /// Continue from the vault's recovery points of this name, although nothing proves that the disk is newer
    #[arg(long)]
    the_disk_is_right: bool,
    /// Also attach a loop device, and print it
    #[arg(long)]
    attach: bool,
    #[command(flatten)]
    how: How,
}

impl Protect {
    pub fn run(self, context: &Context) -> Result<()> {
        let (roots, name) = (&context.roots, &self.name);
        let backing = self.backing.canonicalize().unwrap_or(std::path::absolute(&self.backing)?);
        let vault = self.vault.clone().unwrap_or_else(|| context.config.vault_of(name).into());
        if let Some(policy) = &self.policy
            && !context.config.policy.contains_key(policy)
        {
            let there: Vec<&str> = context.config.policy.keys().map(String::as_str).collect();
            bail!(
                "there is no policy {policy:?} in the configuration (there are: {}); add \
                 [policy.{policy}]",
                if there.is_empty() { "none".into() } else { there.join(", ") }
            );
        }
        let limit = self.how.change_log_limit().map(|limit| ByteLen(limit.as_u64()));
        let told = Told {
            allow_local_vault: context.config.allow_local_vault,
            disk_is_right: self.the_disk_is_right,
            change_log_limit: limit,
        };
        let checks = check(roots, name, &backing, (&context.config.vaults, &vault), told);
        if !self.check {
            context.may(name, Verb::Protect)?;
        }
        let failed = checks.iter().filter(|c| c.verdict == Verdict::Failed).count();
        if self.check && context.globals.json {
            context.print_json(&checks)?;
        } else if self.check || failed > 0 || !context.globals.quiet {
            checks.iter().filter(|c| self.check || c.verdict != Verdict::Ok).for_each(print);
        }
        if failed > 0 {
            let unmet = match failed {
                1 => "one prerequisite is not met".to_owned(),
                more => format!("{more} prerequisites are not met"),
            };
            let said = format!("disk {name} is not protected: {unmet}. Nothing was changed");
            // It is in use, or something that is no disk.
            if checks.iter().any(|c| c.what == "backing" && c.verdict == Verdict::Failed) {
                return Err(refused(said));
            }
            bail!("{said}");
        }
        if self.check {
            return Ok(());
        }
        let opened = vault_for(context, &vault)?;
        let state = context.roots.disk(name).state;
        // A disk of the name that has its points elsewhere is not moved by the way.
        home::check(&state, name, &opened, true)?;
        let options = options(context, &backing, name, &self.how)?;
        let served = start(options)?;
        let protection = Protection {
            backing,
            vault: vault.clone(),
            policy: self.policy.clone(),
            ending: false,
        };
        protection.save(&state).with_context(|| format!("disk {name}"))?;
        home::remember(&state, name, &opened, false)?;
        if self.the_disk_is_right {
            follow_newest(context, name, &opened)?;
        }
        home::note_default(&state, &context.config.vault);
        let device = match self.attach {
            true => Some(context.host().device_of(name, &served, false)?.path),
            false => None,
        };
        let by_sidecar = is_running(roots);
        if context.globals.json {
            context.print_json(&serde_json::json!({
                "name": name, "served": served, "device": device, "by_sidecar": by_sidecar,
            }))?;
        } else {
            println!("{}", device.unwrap_or_else(|| served.display().to_string()));
        }
        if by_sidecar {
            ask(&roots.state, &Asked::Look(name.clone()))?;
            if !context.globals.quiet {
                eprintln!("{name}: the sidecar makes the first copy; see backstay jobs {name}");
            }
            return Ok(());
        }
        if !context.globals.quiet {
            eprintln!("{name}: no sidecar is running: the first copy is made here; then start one");
        }
        let report = run_once(&context.host(), name, Some(&vault))?;
        // Standard output has the device or file alone.
        if !context.globals.quiet {
            eprintln!("{}", line(name, &report));
        }
        Ok(())
    }
}

/// Has the first cycle compare the disk with the newest point of its name, and follow it.
fn follow_newest(context: &Context, name: &DiskName, vault: &Vault) -> Result<()> {
    let status = context.driver(name)?.status()?;
    let Some(newest) = newest_point(vault, &status)? else { return Ok(()) };
    let request = Request {
        disk_is_right: Some(newest.point),
        now: true,
        asked_unix_ns: backstay_host::clock::now_unix_ns(),
        ..Request::default()
    };
    request.save(&context.roots.disk(name).state).with_context(|| format!("disk {name}"))
}

/// Makes the vault, if there is none and never was one; that is said.
fn vault_for(context: &Context, url: &str) -> Result<Vault> {
    match context.config.vaults.open(url) {
        Err(VaultError::NoVault { .. }) => {
            let made = context.config.vaults.create(url)?;
            if !context.globals.quiet {
                eprintln!("{url}: there was no vault; a new one was made{}", id(&made));
            }
            Ok(made)
        }
        vault => Ok(vault?),
    }
}

fn print(check: &Check) {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    };
    eprintln!("{verdict:8} {:18} {}", check.what, check.found);
}

//! `backstay unprotect`: end a disk's protection.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use backstay_engine::cycle::turn::Turn;
use backstay_engine::home;
use backstay_engine::phase::Event;
use backstay_engine::protection::Protection;
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_format::control::{DriverStatus, Request};
use backstay_host::{clock, own_dir};
use backstay_recovery::failover::rules::{NameKind, NameState, Verb, refusal};
use backstay_recovery::failover::{
    FailoverRecord, NameLock, State, record_that_leaves, step, stopped,
};
use backstay_recovery::mount;
use backstay_types::{Classified, DiskId, DiskName};
use backstay_vault::retain::Time;
use backstay_vault::{Vault, VaultError};
use clap::Args;

use crate::context::Context;
use crate::error::{Context as _, Error, Result, bail, refused};
use backstay_recovery::host::devices::loop_devices;
use backstay_recovery::host::ending::stop;
use backstay_recovery::host::{Ending, remove_folder};

/// End a disk's protection after the running cycle; keep or delete its recovery points
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay unprotect db --keep-points
  backstay unprotect db --delete-points --yes

The backing stays as it is. The disk's state on this host is removed. Its recovery points stay in the vault or are \
deleted. Without either option, the command asks.")]
pub struct Unprotect {
    /// The disk's name
    name: DiskName,
    /// Keep its recovery points
    #[arg(long, conflicts_with = "delete_points")]
    keep_points: bool,
    /// Delete its recovery points from the vault
    #[arg(long)]
    delete_points: bool,
    /// Delete points even if some are pinned or in use
    #[arg(long, requires = "delete_points")]
    even_if_held: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

impl Unprotect {
    pub fn run(self, context: &Context) -> Result<()> {
        let name = &self.name;
        let paths = context.roots.disk(name);
        let _lock = NameLock::take(&context.roots.state, name, "unprotect")?;
        let verb = if self.delete_points { Verb::Delete } else { Verb::Unprotect };
        // A state folder that holds no disk, as a mount that failed leaves one, is removed, too.
        if NameState::look(&context.roots, name)?.what != NameKind::Nothing || !paths.state.exists()
        {
            context.may(name, verb)?;
        }
        let failover = record_that_leaves(&context.roots.state, name)?;
        let kept_elsewhere =
            failover.as_ref().is_some_and(|record| record.state != State::Committed);
        if !paths.state.exists() && failover.is_none() {
            bail!("there is no disk {name} in {}", context.roots.state.display());
        }
        if failover.is_some() && (kept_elsewhere || !paths.state.exists()) {
            return self.leave(context, failover);
        }
        let delete = self.points_go(context)?;
        let url = self.vault.as_deref().unwrap_or_else(|| context.config.vault_of(name));
        if delete && url.starts_with("https://") {
            return Err(behind_gateway(name, url));
        }
        // Found before anything is changed.
        let status = context.driver(name).ok().and_then(|mut driver| driver.status().ok());
        let in_vault = if delete { find(context, url, name, status.as_ref())? } else { None };
        if let Some((vault, disk)) = &in_vault {
            refuse_elsewhere(context, name, vault, *disk)?;
        }
        if let Some((vault, disk)) = in_vault.as_ref().filter(|_| !self.even_if_held) {
            let held: Vec<String> = Time::peek(&context.roots.state)
                .live(*disk, vault.holds(*disk)?, true)
                .into_iter()
                .map(|hold| format!("{} ({}: {})", hold.name, hold.holder, hold.reason))
                .collect();
            if !held.is_empty() {
                let message = format!(
                    "disk {name}: its points are still held: {}. See backstay holds {name}; \
                     unpin them, or pass --even-if-held. Nothing was changed",
                    held.join(", ")
                );
                return Err(refused(message));
            }
        }
        if let Some(status) = &status {
            let devices = loop_devices(&status.served)?;
            if !devices.is_empty() {
                let message = format!(
                    "disk {name} is attached to {}; unmount and detach it first: backstay detach \
                     {name}. Nothing was changed",
                    devices.join(", ")
                );
                return Err(refused(message));
            }
        }
        // What cannot be read is replaced: it is to end whatever it says.
        let before = Protection::load(&paths.state).unwrap_or_else(|e| {
            tracing::warn!("{e}");
            None
        });
        let mut protection = before.unwrap_or_else(|| Protection {
            backing: status.as_ref().map_or_else(Default::default, |s| s.backing.clone()),
            vault: url.into(),
            policy: None,
            ending: true,
        });
        protection.ending = true;
        protection.save(&paths.state).with_context(|| format!("disk {name}"))?;
        ask(&context.roots.state, &Asked::Look(name.clone()))?;
        // No cycle begins any more; one that runs ends first, and what came of it is written down.
        let turn = take_turn(&paths.state, name)?;
        if status.is_some() {
            let mut driver = context.driver(name)?;
            // The lease is free when the cycle that runs has ended; then none can begin.
            while let Err(e) = driver.ask(&Request::Lease { client: "unprotect".into() }) {
                if !e.is_refusal() {
                    return Err(e).with_context(|| format!("disk {name}"));
                }
                clock::sleep(Duration::from_millis(200));
                driver = context.driver(name)?;
            }
            stop(name, driver, Ending::default())?;
        }
        let mut record = Record::load(&paths.state);
        record.happened(Event::Stopped);
        record.show(&paths.state);
        if let Some((vault, disk)) = in_vault {
            vault.remove_disk(disk)?;
        }
        remove_folder(&paths.state)?;
        drop(turn);
        let _ = own_dir::remove(&paths.runtime);
        if let Some(record) = failover {
            record.end(&context.roots.state)?;
        }
        if !context.globals.quiet {
            let points = if delete { "deleted" } else { "kept" };
            println!("{name}: no longer protected; its recovery points were {points}");
        }
        Ok(())
    }

    /// Removes what is left here of a disk that lives elsewhere: handed over with all it had, or gone. Killed
    /// anywhere, it goes on when it is run again.
    fn leave(&self, context: &Context, record: Option<FailoverRecord>) -> Result<()> {
        let (name, root) = (&self.name, &context.roots.state);
        let paths = context.roots.disk(name);
        if !self.keep_points {
            let message = format!(
                "disk {name} may be another host's now, and so are its points: pass --keep-points. They can be deleted \
                 where it is served. Nothing was changed"
            );
            return Err(refused(message));
        }
        if let Some(mut record) = record {
            let host = context.host();
            if let Some(status) = host.status(name) {
                host.refuse_if_used(name, &status)?;
                host.stop(name)?;
            }
            if record.state == State::HandedOver {
                record.enter(root, State::Removing)?;
            }
            step();
            if paths.state.join("mounted").exists()
                || paths.state.join("mounted.unfinished").exists()
            {
                mount::forget(&context.config.vaults, name, &paths)?;
            }
            step();
            remove_folder(&paths.runtime)?;
            remove_folder(&paths.state)?;
            record.end(root)?;
        }
        if !context.globals.quiet {
            println!("{name}: nothing is left of it on this host; its recovery points were kept");
        }
        Ok(())
    }

    /// Whether the points are to be deleted; asks if it was not said.
    fn points_go(&self, context: &Context) -> Result<bool> {
        let name = &self.name;
        if self.keep_points || (self.delete_points && self.yes) {
            return Ok(self.delete_points);
        }
        if context.globals.json || !std::io::stdin().is_terminal() {
            let message = format!(
                "disk {name}: pass --keep-points, or --delete-points --yes. Nothing was changed"
            );
            return Err(refused(message));
        }
        if self.delete_points {
            eprint!("Delete every recovery point of {name} from the vault? Type its name: ");
        } else {
            eprint!("Keep the recovery points of {name}? [keep/delete] ");
        }
        std::io::stderr().flush()?;
        let mut said = String::new();
        std::io::stdin().read_line(&mut said)?;
        match (self.delete_points, said.trim()) {
            (true, said) if said == name.as_str() => Ok(true),
            (false, "keep") => Ok(false),
            (false, "delete") => Ok(true),
            _ => Err(refused("not confirmed; nothing was changed")),
        }
    }
}

/// Waits for the cycle that runs, however long, and says so.
fn take_turn(state: &Path, name: &DiskName) -> Result<Option<Turn>> {
    /// A wait that is longer is told.
    const QUIET: Duration = Duration::from_secs(2);
    const LONG: Duration = Duration::from_secs(3600);
    if !state.exists() {
        return Ok(None);
    }
    let turn = match Turn::take(state, name, QUIET) {
        Err(e) if e.is_busy() => {
            tracing::warn!("disk {name}: waiting for the end of the cycle that runs");
            Turn::take(state, name, LONG)
        }
        turn => turn,
    };
    turn.map(Some).with_context(|| format!("disk {name}: it is still protected"))
}

/// Nobody deletes recovery points through a gateway: that is what it is for.
pub fn behind_gateway(name: &DiskName, url: &str) -> Error {
    refused(format!(
        "disk {name}: its vault {url} is behind a gateway, through which nobody can delete recovery points. Nothing was \
         changed. On its own host: backstay unprotect {name} --keep-points. Then, on a host that has the credentials of \
         the store behind the gateway: backstay vault forget {name} --vault STORE, the URL that the gateway was given \
         with --store"
    ))
}

/// Another host's points are not deleted, also where this one has not found out yet that they are.
fn refuse_elsewhere(context: &Context, name: &DiskName, vault: &Vault, disk: DiskId) -> Result<()> {
    let ours = stopped::superblock(&context.roots.disk(name))
        .map(|superblock| stopped::writer(superblock.disk));
    let newest = vault.newest_term(disk)?;
    if newest.is_none_or(|newest| Some(newest.writer) == ours) {
        return Ok(());
    }
    let elsewhere = NameState { what: NameKind::Elsewhere, at_work: false };
    Err(refusal(elsewhere, name, Verb::Delete)
        .context("the owner of these points is unknown")?
        .into())
}

/// The disk in its vault, found by the identities that this host knows it by; none if it was never shipped.
/// What has its
/// name alone is another's.
fn find(
    context: &Context,
    url: &str,
    name: &DiskName,
    status: Option<&DriverStatus>,
) -> Result<Option<(Vault, DiskId)>> {
    let vault = context.config.vaults.open(url)?;
    let paths = context.roots.disk(name);
    let stopped = stopped::superblock(&paths);
    let of_driver =
        status.map(|status| (status.disk, status.base, status.announced.into_iter().collect()));
    let known =
        of_driver.or_else(|| stopped.map(|found| (found.disk, found.base, found.announced)));
    let known = known.into_iter().flat_map(|(disk, base, announced)| {
        let bases = base.into_iter().chain(announced);
        std::iter::once(disk).chain(bases.map(|base| base.vault_disk))
    });
    let shipped = Record::load(&paths.state).last.and_then(|last| last.disk);
    for disk in known.chain(shipped) {
        match vault.disk(disk) {
            Ok(_) => {
                home::check(&paths.state, name, &vault, true)?;
                return Ok(Some((vault, disk)));
            }
            Err(VaultError::NotFound { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}

//! `backstay key check`: a lost key is told before it matters.

use std::time::Duration;

use backstay_engine::rollback_guard;
use backstay_host::clock;
use backstay_types::DiskName;
use backstay_vault::encrypt::Worry;
use backstay_vault::encrypt::proofs::this_host;
use backstay_vault::read::{verify_newest_segments, verify_points};
use backstay_vault::retain::Held;
use backstay_vault::{Vault, VaultError};
use clap::Args;
use serde::Serialize;

use super::OfVault;
use crate::context::Context;
use crate::error::{Result, bail};
use crate::verbs::target::time;

/// Try every key this host has, and read the newest point of every disk with it
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay key check --vault s3://backups/prod
  backstay key check --stale 30d --json
  BACKSTAY_KEY_FILE=/media/usb/vault.key backstay key check

Run it a few times a year with each of your keys, in the place where you keep that key. On hosts, a systemd timer \
can run it. It warns about slots that were not proved for long, and about a vault that only one key opens. It reads \
the newest and the oldest segment of each disk's newest point, frame by frame; with --all, everything. Exit code 1 \
if no key opens the vault or a point cannot be read.")]
pub struct Check {
    #[command(flatten)]
    vault: OfVault,
    /// Warn about slots that were not proved for this long
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = humantime::parse_duration)]
    stale: Duration,
    /// Read the newest points whole
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Outcome {
    vault: String,
    tried: Vec<backstay_vault::encrypt::Tried>,
    disks: Vec<OfDisk>,
    warnings: Vec<String>,
    ok: bool,
}

#[derive(Serialize)]
struct OfDisk {
    name: DiskName,
    point: Option<u64>,
    bytes_read: u64,
    problem: Option<String>,
}

impl Check {
    pub fn run(self, context: &Context) -> Result<()> {
        let vault = self.vault.open(context)?;
        let Some(keyring) = vault.keyring()? else {
            bail!(
                "{} is not encrypted: its store can read it. It cannot be encrypted later; backstay key \
                 init makes a new one",
                vault.url()
            );
        };
        let tried = vault.try_keys()?;
        if tried.iter().any(|one| one.slot.is_some()) {
            rollback_guard::keyring(&context.roots.state, &vault)?;
        }
        let mut warnings = vec![];
        for slot in tried.iter().filter_map(|one| one.slot) {
            if let Err(e) = vault.note_proof(slot, &this_host()) {
                warnings.push(format!("cannot record that slot {slot} was proved: {e}"));
            }
        }
        let now = Duration::from_nanos(clock::now_unix_ns());
        for slot in &keyring.slots {
            let proof = vault.last_proof(slot.slot)?;
            let since = proof.as_ref().map_or(slot.since_unix_ns, |proof| proof.proved_unix_ns);
            if now.saturating_sub(Duration::from_nanos(since)) >= self.stale {
                let label = if slot.label.is_empty() { "" } else { &format!(" ({})", slot.label) };
                let how = proof.map_or("was not proved since it was made", |_| "was last proved");
                warnings.push(format!(
                    "slot {}, a {}{label}, {how} {}: is its secret still there? Run this with it, or \
                     remove the slot",
                    slot.slot,
                    slot.kind,
                    time(since)
                ));
            }
        }
        if keyring.slots.len() == 1 {
            warnings.push(
                "only one key opens this vault: if it is lost, everything is. Add another: backstay key add"
                    .into(),
            );
        }
        // What a slot for itself does not show. Keys that do not open are listed anyway.
        let worries = vault.worries(self.stale)?;
        let more = worries
            .iter()
            .filter(|worry| matches!(worry, Worry::Alone | Worry::OldGeneration { .. }));
        warnings.extend(more.map(ToString::to_string));
        let opens = tried.iter().any(|one| one.slot.is_some());
        let disks = if opens { self.read_disks(context, &vault)? } else { vec![] };
        let ok = opens && disks.iter().all(|disk| disk.problem.is_none());
        let outcome = Outcome { vault: vault.url().into(), tried, disks, warnings, ok };
        if context.globals.json {
            context.print_json(&outcome)?;
        } else {
            say(&outcome, context.globals.quiet);
        }
        if !opens {
            bail!(
                "no key on this host opens {}. What is shipped there cannot be read here: find the key while \
                 the disks still run, or make a new vault",
                outcome.vault
            );
        }
        if !ok {
            bail!("not every disk's newest point can be read with this key");
        }
        Ok(())
    }

    fn read_disks(&self, context: &Context, vault: &Vault) -> Result<Vec<OfDisk>> {
        let mut disks = vec![];
        for record in vault.disks()? {
            let mut found = OfDisk { name: record.name, point: None, bytes_read: 0, problem: None };
            let mut read = || -> Result<(), VaultError> {
                let Some(&newest) = vault.points(record.disk)?.last() else { return Ok(()) };
                found.point = Some(newest.0);
                let held = Held::reading(vault, record.disk, newest..=newest, "key check")?;
                let verified = match self.all {
                    true => verify_points(vault, record.disk, held.points(), 2, &|_, _| {})?,
                    false => verify_newest_segments(vault, record.disk, newest)?,
                };
                found.bytes_read = verified.bytes;
                Ok(())
            };
            let problem = match read() {
                Ok(()) => rollback_guard::taken_away(&context.roots.state, vault, record.disk)?.map(|seen| {
                    format!(
                        "this host has seen recovery point {seen}, and the vault ends before it now"
                    )
                }),
                Err(e) => Some(e.to_string()),
            };
            disks.push(OfDisk { problem, ..found });
        }
        Ok(disks)
    }
}

fn say(outcome: &Outcome, quiet: bool) {
    for one in &outcome.tried {
        match (one.slot, &one.problem) {
            (Some(slot), _) if !quiet => println!("ok       {} opens slot {slot}", one.what),
            (None, Some(problem)) => eprintln!("FAILED   {}: {problem}", one.what),
            _ => {}
        }
    }
    for disk in &outcome.disks {
        let name = &disk.name;
        match (&disk.problem, disk.point) {
            (Some(problem), _) => eprintln!("FAILED   disk {name}: {problem}"),
            (None, _) if quiet => {}
            (None, None) => println!("ok       disk {name}: no recovery point yet"),
            (None, Some(point)) => println!(
                "ok       disk {name}: recovery point {point}, {} read",
                crate::verbs::target::size(disk.bytes_read)
            ),
        }
    }
    outcome.warnings.iter().for_each(|warning| eprintln!("warning  {warning}"));
}

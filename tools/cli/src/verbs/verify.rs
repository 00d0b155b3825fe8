//! `backstay verify`: read everything back.

use std::collections::BTreeSet;

use backstay_engine::record::Record;
use backstay_engine::scrub::Scrubbed;
use backstay_types::{CycleNo, DiskName};
use backstay_vault::read::Verified;
use backstay_vault::read::survey::{Reading, Survey, survey};
use backstay_vault::retain::Held;
use backstay_vault::{DiskRecord, Vault};
use clap::Args;
use serde::Serialize;

use super::progress::Progress;
use super::target::{InVault, PointName, size};
use crate::context::Context;
use crate::error::{Result, damage};

/// Read recovery points back and check every checksum and the chain
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay verify db                  all points; shared data is read once
  backstay verify db --point latest

It continues past damage and says which points are whole. Damaged points are marked in the vault: backstay points \
shows them, and failover never chooses them automatically. Exit code 4 if a point is damaged, or missing although \
retention did not delete it.")]
pub struct Verify {
    /// The disk's name
    name: DiskName,
    /// Only this point: a number, latest, or the newest not after a time (2026-02-03T04:05:06Z)
    #[arg(long)]
    point: Option<PointName>,
    #[command(flatten)]
    vault: InVault,
}

/// A point that is not whole.
#[derive(Serialize)]
struct DamagedPoint {
    cycle: CycleNo,
    /// What is damaged, missing, or contradicts another.
    reason: String,
}

/// What was found, for programs.
#[derive(Serialize)]
struct Found {
    /// How many points are whole, and what was read for that.
    #[serde(flatten)]
    verified: Verified,
    /// The points that are whole.
    whole: Vec<CycleNo>,
    /// Points of which something is damaged or missing.
    damaged: Vec<DamagedPoint>,
    /// Points that should be there and are not.
    missing: Vec<CycleNo>,
}

impl Verify {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        vault.check_readable()?;
        let missing = match self.point {
            Some(_) => vec![],
            None => self.missing(context, &vault, &disk)?,
        };
        let cycles = match self.point {
            Some(point) => vec![point.find(&vault, &disk)?],
            None => vault.points(disk.disk)?,
        };
        // All of them are held while they are read; what went before that is not looked at.
        let range = cycles.first().copied().zip(cycles.last().copied());
        let held =
            range.map(|(first, last)| Held::reading(&vault, disk.disk, first..=last, "verify"));
        let held = held.transpose()?;
        let cycles = held.as_ref().map_or(&[][..], Held::points);
        let bar = Progress::new(context);
        let how = Reading {
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            progress: &|done, all| bar.show("verifying", done, all),
            skip: &BTreeSet::new(),
            done: &|_, _| true,
        };
        let survey = survey(&vault, disk.disk, cycles, &how);
        bar.end();
        let survey = survey?;
        self.note(context, &vault, &disk, cycles, &survey);
        let Survey { verified, damaged, .. } = survey;
        let is_whole = |cycle: &CycleNo| !damaged.contains_key(cycle);
        let whole = cycles.iter().copied().filter(is_whole).collect();
        let damaged = damaged
            .into_iter()
            .map(|(cycle, e)| DamagedPoint { cycle, reason: e.to_string() })
            .collect();
        let found = Found { verified, whole, damaged, missing };
        if context.globals.json {
            context.print_json(&found)?;
        } else if !context.globals.quiet {
            self.print(&found);
        }
        match found.damaged.len() + found.missing.len() {
            // Found by its identity: who looks for its name does not find it.
            0 => Ok(vault.disk(disk.disk).map(drop)?),
            bad => Err(damage(format!(
                "disk {}: {bad} of {} recovery points in {} are damaged or missing; the others are whole",
                self.name,
                bad + found.whole.len(),
                vault.url()
            ))),
        }
    }

    /// Writes down what was found, for every host, and for the health of this host's disk. Anyone who may not write to the
    /// vault is told; what was found stays true.
    fn note(
        &self,
        context: &Context,
        vault: &Vault,
        disk: &DiskRecord,
        cycles: &[CycleNo],
        found: &Survey,
    ) {
        if let Err(e) = vault.note_survey(disk.disk, cycles, found) {
            tracing::warn!("disk {}: cannot tell other hosts about the damage: {e}", self.name);
        }
        let state = context.roots.disk(&self.name).state;
        let ours = Record::load(&state).last.is_some_and(|last| last.disk == Some(disk.disk));
        if let Some(there) = vault.points(disk.disk).ok().filter(|_| ours) {
            Scrubbed::note_verify(&state, cycles, found, &there);
        }
    }

    /// Points that the vault itself, or this host, knows of and that are not there.
    fn missing(&self, context: &Context, vault: &Vault, disk: &DiskRecord) -> Result<Vec<CycleNo>> {
        let mut missing = vault.missing_points(disk.disk)?;
        let record = Record::load(&context.roots.disk(&self.name).state);
        let ours = record.last.filter(|last| last.disk == Some(disk.disk));
        if let Some(last) = ours.filter(|_| record.vault.as_deref() == Some(vault.url())) {
            // Newer ones may have been made since by another host; only what ends too early is missed.
            let newest = vault.points(disk.disk)?.last().copied();
            if newest.is_none_or(|newest| newest < last.cycle) {
                missing.push(last.cycle);
            }
        }
        // None of the points that a person was told of may be missing without a word.
        if vault.points(disk.disk)?.is_empty() {
            missing.extend(vault.highest_known(disk.disk)?);
        }
        missing.sort_unstable();
        missing.dedup();
        Ok(missing)
    }

    fn print(&self, found: &Found) {
        println!(
            "{}: {} recovery points are whole ({} segments, {})",
            self.name,
            found.whole.len(),
            found.verified.segments,
            size(found.verified.bytes)
        );
        for point in &found.damaged {
            println!("  point {:>6}  DAMAGED: {}", point.cycle.0, point.reason);
        }
        for cycle in &found.missing {
            println!("  point {:>6}  MISSING", cycle.0);
        }
    }
}

//! `backstay verify`: read everything back.

use std::collections::BTreeSet;

use backstay_types::DiskName;
use backstay_vault::read::survey::{Reading, Survey, survey};
use backstay_vault::retain::Held;
use clap::Args;

use super::progress::Progress;
use super::target::{InVault, PointName, size};
use crate::context::Context;
use crate::exit::Damaged;

/// Read recovery points back and check every checksum and the chain
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay verify db                  all recovery points; what they share is read once
  backstay verify db --point latest

Exit code 4 if anything is damaged.")]
pub struct Verify {
    /// The disk's name
    name: DiskName,
    /// Only this point: a number, or latest
    #[arg(long)]
    point: Option<PointName>,
    #[command(flatten)]
    vault: InVault,
}

impl Verify {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        vault.check_readable()?;
        let cycles = match self.point {
            Some(point) => vec![point.find(&vault, &disk)?],
            None => vault.points(disk.disk)?,
        };
        // All of them are held while they are read; what went before that is not looked at.
        let range = cycles.first().copied().zip(cycles.last().copied());
        let held = range.map(|range| Held::reading(&vault, disk.disk, range, "verify"));
        let held = held.transpose()?;
        let cycles = held.as_ref().map_or(&[][..], Held::points);
        let bar = Progress::new(context);
        let how = Reading {
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            progress: &|done, all| bar.show("verifying", done, all),
            skip: &BTreeSet::new(),
            done: &|_, _| true,
        };
        let found = survey(&vault, disk.disk, cycles, &how);
        bar.end();
        let Survey { verified, damaged, .. } = found?;
        // None of the points that a person was told of may be missing without a word.
        let expected = vault.highest_known(disk.disk)?.filter(|_| cycles.is_empty());
        if context.globals.json {
            let damaged: Vec<_> = damaged
                .iter()
                .map(|(cycle, e)| serde_json::json!({"cycle": cycle, "reason": e.to_string()}))
                .collect();
            let mut all = serde_json::to_value(verified)?;
            all["damaged"] = damaged.into();
            context.print_json(&all)?;
        } else if !context.globals.quiet {
            println!(
                "{}: {} recovery points are whole ({} segments, {})",
                self.name,
                verified.points,
                verified.segments,
                size(verified.bytes)
            );
        }
        if let Some(known) = expected {
            let message = format!(
                "disk {}: the vault has none of its recovery points, and point {known} was made: they were deleted, or \
                 this is not the whole vault",
                self.name
            );
            return Err(Damaged(message).into());
        }
        if !damaged.is_empty() {
            let each = damaged.iter().map(|(cycle, e)| format!("recovery point {cycle}: {e}"));
            let message = format!(
                "disk {}: {} of {} recovery points are damaged\n  {}",
                self.name,
                damaged.len(),
                cycles.len(),
                each.collect::<Vec<_>>().join("\n  ")
            );
            return Err(Damaged(message).into());
        }
        Ok(())
    }
}

//! `backstay verify`: read everything back.

use backstay_types::DiskName;
use backstay_vault::read::verify_points;
use backstay_vault::retain::Held;
use clap::Args;

use super::progress::Progress;
use super::target::{InVault, PointName, size};
use crate::context::Context;

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
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let verified = verify_points(&vault, disk.disk, cycles, threads, &|done, all| {
            bar.show("verifying", done, all);
        });
        bar.end();
        let verified = verified?;
        if context.globals.json {
            return context.print_json(&verified);
        }
        if !context.globals.quiet {
            println!(
                "{}: {} recovery points are whole ({} segments, {})",
                self.name,
                verified.points,
                verified.segments,
                size(verified.bytes)
            );
        }
        Ok(())
    }
}

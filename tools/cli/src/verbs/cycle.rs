//! `backstay cycle`: one cycle, now.

use anyhow::bail;
use backstay_engine::cycle::CycleReport;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::service::is_running;
use backstay_recovery::failover::rules::{Standing, Verb, What};
use backstay_recovery::host::cycle::run_once;
use backstay_types::DiskName;
use clap::Args;

use super::target::size;
use crate::context::Context;

/// Ship the changes to the vault now and make a recovery point
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay cycle db
  backstay cycle db --vault file:///mnt/backup/vault

The disk must be served (backstay mount). The first cycle ships the whole disk.")]
pub struct Cycle {
    /// The disk's name
    name: DiskName,
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// Let the running sidecar do it, before all waiting work
    #[arg(long)]
    by_sidecar: bool,
}

impl Cycle {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        // Whether another host has taken the disk over, the vault says.
        let standing = Standing::look(&context.roots, &self.name)?;
        if !(standing.at_work && matches!(standing.what, What::Elsewhere | What::TakenOver)) {
            context.may(&self.name, Verb::Cycle)?;
        }
        if self.by_sidecar {
            drop(context.driver(&self.name)?);
            if !is_running(&context.roots) {
                bail!("no sidecar is running: start one, or run the cycle without --by-sidecar");
            }
            return Ok(ask(&context.roots.state, &Asked::Cycle(self.name))?);
        }
        say(context, &self.name, &run_once(&context.host(), &self.name, self.vault.as_deref())?)
    }
}

/// Says how a cycle went.
pub fn say(context: &Context, name: &DiskName, report: &CycleReport) -> anyhow::Result<()> {
    if context.globals.json {
        return context.print_json(report);
    }
    if !context.globals.quiet {
        println!("{}", line(name, report));
    }
    Ok(())
}

/// A cycle in one line.
pub fn line(name: &DiskName, report: &CycleReport) -> String {
    format!(
        "{name}: recovery point {} ({} moved, {} stored, {:.2} s, writes held {:.2} ms)",
        report.cycle,
        size(report.moved.0),
        size(report.stored.0),
        report.duration.as_secs_f64(),
        report.held_ns as f64 / 1e6,
    )
}

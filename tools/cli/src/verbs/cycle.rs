//! `backstay cycle`: one cycle, now.

use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use backstay_format::DiskName;
use backstay_sidecar::cycle::{CycleJob, Stage, run};
use backstay_sidecar::hooks::Hooks;
use backstay_sidecar::record::Record;
use backstay_sidecar::throttle::Throttle;
use clap::Args;

use super::progress::Progress;
use super::target::size;
use crate::context::Context;

/// Ship what changed to the vault now: one recovery point more
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay cycle db
  backstay cycle db --vault file:///mnt/backup/vault

The disk must be served (backstay mount). The first cycle ships the whole disk.")]
pub struct Cycle {
    /// The disk's name
    name: DiskName,
    /// The vault's URL; made if it is not there [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
}

impl Cycle {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let url = self.vault.as_deref().unwrap_or_else(|| context.config.vault_of(&self.name));
        // Is there such a disk at all, before a vault is made for it?
        drop(context.driver(&self.name)?);
        let paths = context.roots.disk(&self.name);
        let bar = Progress::new(context);
        let progress = |stage: Stage, done: u64, all: u64| {
            let message = match stage {
                Stage::Fuzzy => "whole disk",
                Stage::Delta => "changes",
                Stage::Verify => "verifying",
            };
            bar.show(message, done, all);
        };
        let mut record = Record::load(&paths.state);
        let result = record.open_vault(url).map_err(Into::into).and_then(|vault| {
            run(&CycleJob {
                socket: &paths.control_socket(),
                vault: &vault,
                ship: &context.config.ship,
                throttle: &Throttle::new(context.config.throttle.clone(), context.config.zone()),
                hooks: Hooks::of(&context.config, &context.roots, &self.name).as_ref(),
                progress: &progress,
                stop: &AtomicBool::new(false),
            })
        });
        bar.end();
        if !result.as_ref().is_err_and(|e| e.is_busy()) {
            record.note(&result, url, &paths.state);
        }
        let report = result.with_context(|| {
            format!("disk {}: no recovery point was made; the guest is not affected", self.name)
        })?;
        if let Some(warning) = &report.warning {
            eprintln!("backstay: disk {}: point {}: {warning}", self.name, report.cycle);
        }
        if context.globals.json {
            return context.print_json(&report);
        }
        if !context.globals.quiet {
            println!(
                "{}: recovery point {} ({} moved, {} stored, {:.2} s, writes held {:.2} ms)",
                self.name,
                report.cycle,
                size(report.moved.0),
                size(report.stored.0),
                report.duration.as_secs_f64(),
                report.held_ns as f64 / 1e6,
            );
        }
        Ok(())
    }
}

//! `backstay prune`: retention, merging and collection, now.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backstay_engine::record::{note_retained, note_upkeep};
use backstay_engine::rollback_guard;
use backstay_engine::throttle::Throttle;
use backstay_engine::upkeep::policy;
use backstay_host::clock::trusted;
use backstay_types::DiskName;
use backstay_vault::retain::{HOLD_NOT_LISTED, Keep, Report, Time, Verdict, maintain, preview};
use clap::Args;

use super::target::{InVault, size, time};
use crate::context::Context;
use crate::error::{Result, bail, refused};

/// Delete the recovery points that no rule keeps, merge segments, free the vault's space
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay prune db --dry-run
  backstay prune db --keep \"all 2h, hourly 2d, daily 30d\" --dry-run
  backstay prune db
  backstay prune db --no-merge         the vault is full: free space quickly
  backstay prune db --accept-clock     this host's clock jumped, and is right

Rules: last N; all, hourly, daily, weekly, monthly, yearly and how far back (hours and days in UTC). A point that \
any rule keeps stays; so do the newest point and all pinned and held points. A point that is known to be damaged \
never takes the place of a whole one, and the newest whole point stays, too. Without rules, here or in the \
configuration (keep = ...), no point is deleted. The sidecar does the same after cycles. The command may be \
interrupted at any time.")]
pub struct Prune {
    /// The disk's name
    name: DiskName,
    /// Which points stay [default: the disk's rules, from the configuration]
    #[arg(long, value_name = "RULES")]
    keep: Option<Keep>,
    /// Show what would be done; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Only delete; do not merge segments (merging takes longer and needs temporary space)
    #[arg(long)]
    no_merge: bool,
    /// Trust this host's clock, although it jumped or contradicts the recovery points
    #[arg(long)]
    accept_clock: bool,
    #[command(flatten)]
    vault: InVault,
}

impl Prune {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        if vault.is_behind_gateway() && !self.dry_run {
            bail!(
                "{}: this vault is behind a gateway, and retention runs there: set keep in the \
                 gateway's configuration. Nothing was deleted",
                self.name
            );
        }
        let throttle = Throttle::new(context.config.throttle.clone(), context.config.zone());
        if !self.dry_run {
            rollback_guard::keyring(&context.roots.state, &vault)?;
        }
        let vault = vault.paced(Arc::new(throttle));
        let mut policy = policy(&context.config, &self.name, true);
        policy.keep = self.keep.or(policy.keep);
        let merges = !self.no_merge;
        policy.merge = merges;
        let rules = policy.keep.as_ref().map(ToString::to_string);
        let state = &context.roots.state;
        // Where the disk is known, anyone who asks how it is learns what is found here.
        let of_disk = context.roots.disk(&self.name).state;
        let notes = !self.dry_run && self.vault.vault.is_none() && of_disk.exists();
        let (report, verdicts) = match self.dry_run {
            true => {
                let time = Time { accepted: self.accept_clock, ..Time::peek(state) };
                let (report, verdicts) = preview(&vault, disk.disk, &policy, &time)?;
                (report, Some(verdicts))
            }
            false => {
                if self.accept_clock {
                    trusted::accept(state)?;
                }
                let time = Time { accepted: self.accept_clock, ..Time::look(state) };
                let done = maintain(&vault, disk.disk, &policy, &time, &AtomicBool::new(false));
                if notes {
                    note_upkeep(&of_disk, done.as_ref().err());
                }
                (done?, None)
            }
        };
        if notes {
            note_retained(&of_disk, &report.retired);
        }
        let withheld = report.retired.withheld.as_ref().map(|why| match &*why.cause {
            HOLD_NOT_LISTED => {
                refused(format!("{}: {}. The other points are as the rules say", self.name, why.reason))
            }
            _ => refused(format!(
                "{}: {}. No recovery point was deleted, because rules about ages need a clock that is right. Set \
                 the clock (date -u shows it), or, if it is right, run backstay prune {} --accept-clock",
                self.name, why.reason, self.name
            )),
        });
        let refused = || withheld.map_or(Ok(()), Err);
        if context.globals.json {
            context.print_json(&serde_json::json!({
                "name": self.name, "keep": rules, "dry_run": self.dry_run,
                "report": report, "points": verdicts,
            }))?;
            return refused();
        }
        if context.globals.quiet {
            return refused();
        }
        if rules.is_none() {
            println!("{}: no rules (keep = ...): all recovery points stay", self.name);
        }
        verdicts.iter().flatten().for_each(show);
        say(&self.name, &report, self.dry_run);
        if merges && vault.is_write_only() {
            println!(
                "{}: segments are not merged here: this host has a writer's key and reads none. Run backstay \
                 prune {} where the vault's key is",
                self.name, self.name
            );
        }
        refused()
    }
}

fn show(verdict: &Verdict) {
    let what = if verdict.stays { "stays" } else { "goes" };
    let damaged = verdict.damaged.as_ref().map(|_| "DAMAGED");
    let notes: Vec<&str> =
        damaged.into_iter().chain(verdict.held_by.iter().map(String::as_str)).collect();
    let line = format!(
        "{:>6}  {:20}  {what:5}  {}",
        verdict.cycle.0,
        time(verdict.cut_unix_ns),
        notes.join(" ")
    );
    println!("{}", line.trim_end());
}

fn say(name: &DiskName, report: &Report, dry_run: bool) {
    let Report { retired, merged, collected } = report;
    let (would, ed) = if dry_run { ("would be ", "would stay") } else { ("", "stay") };
    let held = match retired.held_back {
        0 => String::new(),
        held => format!(", and {held} retired ones until nothing holds them any more"),
    };
    println!(
        "{name}: {} recovery points {would}deleted, {} {ed}{held}",
        retired.deleted, retired.kept
    );
    if merged.replaced > 0 {
        let into = match dry_run {
            true => String::new(),
            false => format!(" into {} ({})", merged.segments, size(merged.bytes)),
        };
        println!(
            "{name}: {} segments ({}) {would}merged{into}; the next points need {} fewer",
            merged.replaced,
            size(merged.replaced_bytes),
            merged.replaced.saturating_sub(merged.segments)
        );
    }
    println!(
        "{name}: {} segments ({}) {would}deleted, {} ({}) {ed}",
        collected.deleted,
        size(collected.deleted_bytes),
        collected.kept,
        size(collected.kept_bytes)
    );
}

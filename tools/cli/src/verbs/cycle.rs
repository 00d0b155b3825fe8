//! `backstay cycle`: one cycle, now.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstay_engine::cycle::resync::Request;
use backstay_engine::cycle::turn::Turn;
use backstay_engine::cycle::{CycleJob, CycleReport, Stage, run};
use backstay_engine::home::{self, Home, same_url};
use backstay_engine::hooks::Hooks;
use backstay_engine::jobs::JobBook;
use backstay_engine::phase::Event;
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::schedule::Work;
use backstay_engine::service::is_running;
use backstay_engine::throttle::Throttle;
use backstay_recovery::failover::rules::{Standing, Verb, What, refusal};
use backstay_types::DiskName;
use backstay_vault::Vault;
use clap::Args;

use super::progress::Progress;
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
        say(context, &self.name, &run_once(context, &self.name, self.vault.as_deref())?)
    }
}

/// How long to wait for the end of another cycle: with short intervals one runs often.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// Runs one cycle in the foreground.
pub fn run_once(
    context: &Context,
    name: &DiskName,
    vault: Option<&str>,
) -> anyhow::Result<CycleReport> {
    let url = vault.unwrap_or_else(|| context.config.vault_of(name));
    // Is there such a disk at all?
    drop(context.driver(name)?);
    let paths = context.roots.disk(name);
    let bar = Progress::new(context);
    let _turn = Turn::take(&paths.state, name, TURN_WAIT).with_context(|| {
        format!("disk {name}: no recovery point was made; the guest is not affected")
    })?;
    let mut record = Record::load(&paths.state);
    let work = match (Request::load(&paths.state), &record.last) {
        (Some(_), _) => Work::Resync,
        (None, None) => Work::Initial,
        (None, Some(_)) => Work::OnDemand,
    };
    let ended = |record: &Record| Event::Ended { has_points: record.last.is_some() };
    // One that was killed in a cycle left the phase as it was.
    if record.phase.is_running() {
        record.happened(ended(&record));
    }
    record.happened(Event::Queued(work));
    record.happened(Event::Began(work));
    record.show(&paths.state);
    let jobs = JobBook::below(&context.roots.state);
    let job = jobs.begin(name, work);
    let progress = |stage: Stage, done: u64, all: u64| {
        bar.show(stage.name(), done, all);
        job.progress(stage.name(), done, all);
    };
    let result = Vault::open(url).map_err(Into::into).and_then(|vault| {
        run(&CycleJob {
            socket: &paths.control_socket(),
            state: &paths.state,
            vault: &vault,
            change_log_limit: context.config.change_log_limit_of(name),
            ship: &context.config.ship,
            throttle: &Throttle::new(context.config.throttle.clone(), context.config.zone()),
            hooks: Hooks::of(&context.config, &context.roots, name).as_ref(),
            progress: &progress,
            stop: &AtomicBool::new(false),
        })
    });
    let result = result.map_err(|e| e.explained(url));
    bar.end();
    job.end(result.as_ref().map(|report| report.cycle).map_err(ToString::to_string));
    home::note_default(&paths.state, &context.config.vault);
    // What was tried at another vault than the disk's own is no trouble of the disk's.
    let mut record = Record::load(&paths.state);
    record.happened(match &result {
        Ok(_) => Event::Committed,
        Err(_) => ended(&record),
    });
    record.show(&paths.state);
    let home = Home::load(&paths.state).ok().flatten();
    let elsewhere = home.is_some_and(|home| !same_url(&home.url, url));
    if !result.as_ref().is_err_and(|e| e.is_busy() || elsewhere) {
        record.note(&result, url, &paths.state);
    }
    let fenced = result.as_ref().is_err_and(backstay_engine::CycleError::is_fenced);
    let what = match Standing::look(&context.roots, name)?.what {
        What::TakenOver => What::TakenOver,
        _ => What::Elsewhere,
    };
    let standing = Standing { what, at_work: true };
    let ways = refusal(standing, name, Verb::Cycle).filter(|_| fenced);
    let report = result.with_context(|| match ways {
        Some(ways) => format!("no recovery point was made; the guest is not affected: {ways}"),
        None => format!("disk {name}: no recovery point was made; the guest is not affected"),
    })?;
    if let Some(warning) = &report.warning {
        eprintln!("backstay: disk {name}: point {}: {warning}", report.cycle);
    }
    Ok(report)
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

//! `backstay cycle`: one cycle, now.

use std::time::Duration;

use backstay_engine::cycle::CycleReport;
use backstay_engine::jobs::{JobBook, JobState};
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::service::alive::{Sidecar, sidecar};
use backstay_host::clock;
use backstay_recovery::failover::rules::{NameKind, NameState, Verb};
use backstay_recovery::host::cycle::run_once;
use backstay_types::DiskName;
use clap::Args;

use super::progress::Progress;
use super::target::size;
use crate::context::Context;
use crate::error::{Result, bail};

/// Ship the changes to the vault now and make a recovery point
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay cycle db
  backstay cycle db --vault file:///mnt/backup/vault
  backstay cycle db --by-sidecar             ask the sidecar, wait for the point
  backstay cycle db --by-sidecar --no-wait   ask the sidecar, do not wait

The disk must be served (backstay mount). The first cycle ships the whole disk.")]
pub struct Cycle {
    /// The disk's name
    name: DiskName,
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// Let the running sidecar make the point, ahead of all queued work
    #[arg(long)]
    by_sidecar: bool,
    /// How long to wait for the sidecar's point
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = humantime::parse_duration, requires = "by_sidecar")]
    wait: Duration,
    /// Ask the sidecar, and do not wait for the point
    #[arg(long, requires = "by_sidecar", conflicts_with = "wait")]
    no_wait: bool,
}

impl Cycle {
    pub fn run(self, context: &Context) -> Result<()> {
        // Whether another host has taken the disk over, the vault says.
        let standing = NameState::look(&context.roots, &self.name)?;
        if !(standing.at_work && matches!(standing.what, NameKind::Elsewhere | NameKind::TakenOver))
        {
            context.may(&self.name, Verb::Cycle)?;
        }
        if self.by_sidecar {
            return self.by_sidecar(context);
        }
        say(context, &self.name, &run_once(&context.host(), &self.name, self.vault.as_deref())?)
    }

    /// Asks the sidecar, and waits for the point that it makes then.
    fn by_sidecar(&self, context: &Context) -> Result<()> {
        let name = &self.name;
        drop(context.driver(name)?);
        at_work(context, name)?;
        let state = context.roots.disk(name).state;
        let failed = |record: &Record| record.failure.as_ref().map(|failure| failure.at_unix_ns);
        let before = failed(&Record::load(&state));
        let (began, asked_unix_ns) = (clock::monotonic(), clock::now_unix_ns());
        ask(&context.roots.state, &Asked::Cycle(name.clone()))?;
        if self.no_wait {
            if !context.globals.quiet && !context.globals.json {
                println!("{name}: a recovery point was asked for");
            }
            return Ok(());
        }
        let (bar, jobs) = (Progress::new(context), JobBook::below(&context.roots.state));
        loop {
            let record = Record::load(&state);
            // One that had begun before does not have all that was written before this command.
            if let Some(report) = record.last.as_ref().filter(|r| r.cut_unix_ns >= asked_unix_ns) {
                bar.end();
                return say(context, name, report);
            }
            if let Some(failure) = record.failure.as_ref().filter(|_| failed(&record) != before) {
                bar.end();
                bail!("disk {name}: the sidecar made no recovery point: {}", failure.message);
            }
            let sidecar = at_work(context, name);
            let waited = clock::since(began);
            if sidecar.is_err() || waited > self.wait {
                bar.end();
                sidecar?;
                bail!(
                    "disk {name}: the sidecar has made no recovery point in {} s; it stays asked for. See \
                     backstay jobs {name}",
                    waited.as_secs()
                );
            }
            let running = || {
                jobs.list().into_iter().find(|job| {
                    job.disk == *name && job.state == JobState::Running && job.all_bytes > 0
                })
            };
            if waited > SHOWN_AFTER
                && let Some(job) = running()
            {
                bar.show("cycle", job.done_bytes, job.all_bytes);
            }
            clock::sleep(LOOK_EVERY);
        }
    }
}

/// How often to look how far the sidecar is: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// After this long, how far it is is shown.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Refuses if no sidecar would do what it is asked.
fn at_work(context: &Context, name: &DiskName) -> Result<()> {
    let way = format!("or run the cycle here: backstay cycle {name}");
    match sidecar(&context.roots) {
        Sidecar::Runs { .. } => Ok(()),
        Sidecar::NotRunning { .. } => {
            bail!("disk {name}: no sidecar is running. Start one (backstay sidecar), {way}")
        }
        Sidecar::Silent { pid, stopped, .. } => {
            let pid = pid.map_or_else(|| "?".into(), |pid| pid.to_string());
            match stopped {
                true => bail!(
                    "disk {name}: the sidecar, process {pid}, was stopped by a signal. Let it go on (kill -CONT \
                     {pid}), {way}"
                ),
                false => bail!(
                    "disk {name}: the sidecar, process {pid}, gives no sign of life. Restart it, {way}"
                ),
            }
        }
        Sidecar::Unknown { reason } => {
            bail!("disk {name}: whether a sidecar runs is not known: {reason}. Mend that, {way}")
        }
    }
}

/// Says how a cycle went.
pub fn say(context: &Context, name: &DiskName, report: &CycleReport) -> Result<()> {
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

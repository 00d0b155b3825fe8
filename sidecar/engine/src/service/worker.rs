//! One cycle of the service, on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backstay_front::paths::Roots;
use backstay_host::clock::now_unix_ns;
use backstay_types::{Classified, DiskName};
use crossbeam_channel::Sender;

use crate::config::Config;
use crate::cycle::turn::Turn;
use crate::cycle::unchanged::{Unchanged, unchanged};
use crate::cycle::{CycleJob, CycleReport, run};
use crate::error::CycleError;
use crate::home::{self, Home, HomeError};
use crate::hooks::Hooks;
use crate::jobs::{JobBook, JobHandle};
use crate::phase::Event;
use crate::record::Record;
use crate::schedule::{Outcome, Work};
use crate::silent;
use crate::throttle::Throttle;
use crate::upkeep;

/// A cycle that ended.
pub(super) struct Ended {
    pub name: DiskName,
    pub outcome: Outcome,
}

/// A cycle to be run.
pub(super) struct Cycle {
    pub config: Arc<Config>,
    pub throttle: Arc<Throttle>,
    pub roots: Roots,
    pub jobs: JobBook,
    pub name: DiskName,
    pub work: Work,
    pub stop: Arc<AtomicBool>,
    pub ended: Sender<Ended>,
    /// No other cycle of the disk runs until this one is noted.
    pub turn: Option<Turn>,
}

impl Cycle {
    /// Runs it and says how it ended. One that panics must not take its disk out of the schedule for
    /// ever; the driver folds back when the connection ends, so it is as safe as any other failure.
    pub fn run(mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.cycle()))
            .unwrap_or(Err(CycleError::Broken("a thread panicked")));
        let outcome = self.note(result);
        drop(self.turn.take());
        let _ = self.ended.send(Ended { name: self.name, outcome });
    }

    fn cycle(&self) -> Result<Done, CycleError> {
        // A cycle that cannot even begin has failed, and is listed with the others.
        let job = self.jobs.begin(&self.name, self.work);
        let result = self.vault_url().map_err(CycleError::from).and_then(|url| {
            let state = self.roots.disk(&self.name).state;
            silent::watched((&self.config.vaults, &url), &state, &job, || {
                job.shown_if_long(|| self.cycle_to(&url, &job))
            })
        });
        match &result {
            Ok(Done::Point(report)) => drop(job.end(Ok(report.cycle))),
            Ok(Done::Unchanged(_)) => drop(job.end_at(Ok(None))),
            Err(e) => job.failed(e),
        }
        result
    }

    fn cycle_to(&self, url: &str, job: &JobHandle) -> Result<Done, CycleError> {
        let paths = self.roots.disk(&self.name);
        let record = Record::load(&paths.state);
        let vault = self.config.vaults.open(url)?;
        vault.probe_once()?;
        if self.work == Work::Delta
            && !self.heart_beats(&record)
            && let Some(proven) = unchanged(&paths.control_socket(), &vault)?
        {
            home::check(&paths.state, &self.name, &vault, true)?;
            return Ok(Done::Unchanged(proven));
        }
        let hooks = Hooks::of(&self.config, &self.roots, &self.name);
        let cycle = CycleJob {
            socket: &paths.control_socket(),
            state: &paths.state,
            vault: &vault,
            change_log_limit: self.config.change_log_limit_of(&self.name),
            ship: &self.config.ship,
            throttle: &self.throttle,
            hooks: hooks.as_ref(),
            progress: &|stage, done, all| job.progress(stage.name(), done, all),
            stop: &self.stop,
        };
        run(&cycle).map(Done::Point).map_err(|e| e.explained(&self.config.vaults, url))
    }

    /// Whether the disk gets a point now though nobody wrote to it.
    fn heart_beats(&self, record: &Record) -> bool {
        let age = record.last.as_ref().map(|last| now_unix_ns().saturating_sub(last.cut_unix_ns));
        let heartbeat = self.config.heartbeat_of(&self.name);
        heartbeat.is_some_and(|every| age.is_none_or(|age| Duration::from_nanos(age) >= every))
    }

    /// Where it goes: its points may have found their place since the configuration was put together.
    fn vault_url(&self) -> Result<String, HomeError> {
        let home = Home::load(&self.roots.disk(&self.name).state);
        let home = home.map_err(|source| HomeError::Record { name: self.name.clone(), source })?;
        Ok(home.map_or_else(|| self.config.vault_of(&self.name).to_owned(), |home| home.url))
    }

    fn note(&self, result: Result<Done, CycleError>) -> Outcome {
        let result = &match result {
            Ok(Done::Unchanged(proven)) => return self.note_unchanged(proven),
            Ok(Done::Point(report)) => Ok(report),
            Err(e) => Err(e),
        };
        let (name, state) = (&self.name, self.roots.disk(&self.name).state);
        let mut record = Record::load(&state);
        let ended = Event::Ended { has_points: record.last.is_some() };
        match result {
            // Neither is the disk's trouble: it was unmounted, or we were told to stop, or a person
            // runs a cycle by hand.
            Err(e) if e.is_nobodys_fault() => {
                record.happened(ended);
                record.show(&state);
                return Outcome::Passed;
            }
            Ok(report) => {
                record.happened(Event::Committed);
                tracing::info!(
                    "disk {name}: recovery point {} ({} bytes moved, {} stored, {:?})",
                    report.cycle,
                    report.moved,
                    report.stored,
                    report.duration
                );
                if let Some(warning) = &report.warning {
                    tracing::warn!("disk {name}: recovery point {}: {warning}", report.cycle);
                }
            }
            Err(e) => {
                record.happened(ended);
                tracing::error!("disk {name}: {e}");
            }
        }
        let vault = self.vault_url().unwrap_or_else(|_| self.config.vault_of(name).to_owned());
        home::note_default(&state, &self.config.vault);
        record.note(result, &vault, &state);
        match result {
            Ok(_) => {
                upkeep::after_cycle(&self.config, name, &vault, &state);
                Outcome::Done
            }
            Err(e) => Outcome::Failed { may_pass: e.may_pass(), failures: record.failures },
        }
    }

    /// No point was needed: as good as one.
    fn note_unchanged(&self, proven: Unchanged) -> Outcome {
        tracing::debug!("disk {}: still as recovery point {} shows it", self.name, proven.cycle);
        let state = self.roots.disk(&self.name).state;
        let mut record = Record::load(&state);
        record.happened(Event::Committed);
        record.resume();
        record.unchanged = Some(proven);
        record.show(&state);
        // What failed after the last point is tried again, or it would be a cause for ever.
        if record.upkeep.is_some() {
            let vault =
                self.vault_url().unwrap_or_else(|_| self.config.vault_of(&self.name).to_owned());
            upkeep::after_cycle(&self.config, &self.name, &vault, &state);
        }
        Outcome::Done
    }
}

/// What a cycle came to.
enum Done {
    /// A point.
    Point(CycleReport),
    /// The disk is still as its newest point shows it.
    Unchanged(Unchanged),
}

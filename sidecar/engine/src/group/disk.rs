//! A disk of this host as a member of a crew: an ordinary cycle, whose cut waits for the crew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_format::control::{CutReply, Request, Response};
use backstay_front::control::{ClientError, ControlClient};
use backstay_front::paths::{DiskPaths, Roots};
use backstay_types::{DiskId, DiskName};
use backstay_vault::GroupMember;

use super::crew::{Answer, Command, Seat};
use crate::config::Config;
use crate::cycle::turn::Turn;
use crate::cycle::{AtOnce, Cutter, CycleJob, CycleReport, cutter, run_cut_by};
use crate::error::CycleError;
use crate::hooks::Hooks;
use crate::jobs::JobBook;
use crate::phase::Event;
use crate::record::Record;
use crate::schedule::Work;
use crate::silent;
use crate::throttle::Throttle;
use crate::upkeep;
use crate::windows::{self, Until, may_begin};

/// A disk of this host.
#[derive(Debug, Clone)]
pub struct LocalDisk {
    /// Its name.
    pub name: DiskName,
    /// Where its driver and its state are.
    pub paths: DiskPaths,
}

/// How the disks of this host are shipped.
#[derive(Debug, Clone)]
pub struct Shipping {
    /// Where to.
    pub vault: String,
    /// How, with which hooks, and when not.
    pub config: Current,
    /// Where disks are.
    pub roots: Roots,
    /// How fast, together with all other disks.
    pub throttle: Arc<Throttle>,
    /// Set from outside to end it.
    pub stop: Arc<AtomicBool>,
}

/// The configuration, which may change while groups run.
#[derive(Debug, Clone)]
pub struct Current(Arc<RwLock<Arc<Config>>>);

impl Current {
    /// As it is at first.
    #[must_use]
    pub fn new(config: Arc<Config>) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }

    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// It has changed.
    pub fn set(&self, config: Arc<Config>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

impl Shipping {
    /// Whether a disk's windows let a cycle begin now.
    ///
    /// # Errors
    /// Until when not.
    pub fn may_begin(&self, name: &DiskName) -> Result<(), Until> {
        let config = self.config.now();
        may_begin(config.blackout_of(name), &config.zone(), windows::now())
    }
}

/// The thread of a disk, which ends with its cycle.
pub type DiskThread = JoinHandle<Result<CycleReport, CycleError>>;

impl LocalDisk {
    /// Whether its points follow each other: it was shipped once, and nothing asks for the whole
    /// disk. If not, it first ships alone: that may take hours, for which no group waits.
    ///
    /// # Errors
    /// If its driver does not answer.
    pub fn in_step(&self) -> Result<bool, ClientError> {
        let status = ControlClient::connect(&self.paths.control_socket())?.status()?;
        Ok(status.base.is_some() && status.resync.is_none())
    }

    /// Ships it alone if it is not in step; whether it had to.
    ///
    /// # Errors
    /// As for a cycle.
    pub fn bring_in_step(&self, shipping: &Shipping) -> Result<bool, CycleError> {
        let behind = !self.in_step()?;
        if behind {
            let whole = ControlClient::connect(&self.paths.control_socket())?.status()?;
            let work = if whole.base.is_none() { Work::Initial } else { Work::Resync };
            self.cycle(shipping, work, &mut AtOnce)?;
        }
        Ok(behind)
    }

    /// Starts a cycle whose cut waits for a crew.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn join_crew(self, shipping: Shipping, seat: Seat) -> std::io::Result<DiskThread> {
        thread::Builder::new().name("cycle".into()).spawn(move || {
            let state = &self.paths.state;
            let mut cutter = WithCrew { seat: seat.clone(), state, disk: None, alone: false };
            // The crew waits for its answer: a panic must not be silence.
            let cycle = AssertUnwindSafe(|| self.cycle(&shipping, Work::Delta, &mut cutter));
            let result = catch_unwind(cycle)
                .unwrap_or_else(|_| Err(CycleError::Broken("a thread panicked")));
            self.tell(&shipping, &result);
            seat.answer(match (&result, cutter.disk) {
                (Ok(report), Some(disk)) => Answer::Done(vec![GroupMember {
                    host: None,
                    disk: report.disk.unwrap_or(disk),
                    name: self.name.clone(),
                    cycle: report.cycle,
                    point: report.point,
                    cut_unix_ns: report.cut_unix_ns,
                }]),
                (Ok(_), None) => Answer::Failed("it was not cut".into()),
                (Err(e), _) => Answer::Failed(e.to_string()),
            });
            result
        })
    }

    /// Says how a cycle went; after a point, its vault is looked after.
    fn tell(&self, shipping: &Shipping, result: &Result<CycleReport, CycleError>) {
        let name = &self.name;
        match result {
            Ok(report) => {
                tracing::info!(
                    "disk {name}: recovery point {} ({} bytes moved, {:?})",
                    report.cycle,
                    report.moved,
                    report.duration
                );
                if let Some(warning) = &report.warning {
                    tracing::warn!("disk {name}: recovery point {}: {warning}", report.cycle);
                }
                let state = &self.paths.state;
                upkeep::after_cycle(&shipping.config.now(), name, &shipping.vault, state);
            }
            Err(e) => tracing::error!("disk {name}: {e}"),
        }
    }

    /// Runs a cycle and remembers how it went.
    pub(super) fn cycle(
        &self,
        shipping: &Shipping,
        work: Work,
        cutter: &mut dyn Cutter,
    ) -> Result<CycleReport, CycleError> {
        let _turn = Turn::take(&self.paths.state, &self.name, Duration::ZERO)?;
        let config = shipping.config.now();
        let hooks = Hooks::of(&config, &shipping.roots, &self.name);
        let listed = JobBook::below(&shipping.roots.state).begin(&self.name, work);
        let mut ship = || {
            let vault = config.vaults.open(&shipping.vault)?;
            let job = CycleJob {
                socket: &self.paths.control_socket(),
                state: &self.paths.state,
                vault: &vault,
                change_log_limit: config.change_log_limit_of(&self.name),
                ship: &config.ship,
                throttle: &shipping.throttle,
                hooks: hooks.as_ref(),
                progress: &|stage, done, all| listed.progress(stage.name(), done, all),
                stop: &shipping.stop,
            };
            run_cut_by(&job, cutter)
        };
        let result =
            silent::watched((&config.vaults, &shipping.vault), &self.paths.state, &listed, || {
                listed.shown_if_long(&mut ship)
            });
        match &result {
            Ok(report) => drop(listed.end(Ok(report.cycle))),
            Err(e) => listed.failed(e),
        }
        // Its phase was written down meanwhile.
        let mut record = Record::load(&self.paths.state);
        if record.phase.is_running() && !result.as_ref().is_err_and(CycleError::is_busy) {
            record.happened(match &result {
                Ok(_) => Event::Committed,
                Err(_) => Event::Ended { has_points: record.last.is_some() },
            });
            record.show(&self.paths.state);
        }
        match &result {
            Err(e) if e.is_nobodys_fault() => {}
            _ => record.note(&result, &shipping.vault, &self.paths.state),
        }
        result
    }
}

/// Cuts when the crew does, and holds until it lets go; alone if there is no crew any more.
struct WithCrew<'a> {
    seat: Seat,
    state: &'a Path,
    disk: Option<DiskId>,
    /// The crew has given up, or is gone: this point will be the disk's own.
    alone: bool,
}

impl Cutter for WithCrew<'_> {
    fn gather(&mut self, driver: &mut ControlClient) -> Result<(), CycleError> {
        self.disk = Some(driver.status()?.disk);
        began(self.state);
        driver.ask(&Request::PrepareCut)?;
        self.seat.answer(Answer::Here);
        self.alone = self.seat.commands.recv() != Ok(Command::Quiesce);
        Ok(())
    }

    fn cut(&mut self, driver: &mut ControlClient) -> Result<CutReply, CycleError> {
        if self.alone {
            return AtOnce.cut(driver);
        }
        self.seat.answer(Answer::Ready);
        match self.seat.commands.recv() {
            Ok(Command::Cut(hold)) => self.cut_and_hold(driver, hold),
            _ => AtOnce.cut(driver),
        }
    }
}

/// Shows that a cycle of the disk runs. The turn is ours, so no other one does.
fn began(state: &Path) {
    let mut record = Record::load(state);
    // One that was killed in a cycle left the phase as it was.
    if record.phase.is_running() {
        record.happened(Event::Ended { has_points: record.last.is_some() });
    }
    record.happened(Event::Queued(Work::Delta));
    record.happened(Event::Began(Work::Delta));
    record.show(state);
}

impl WithCrew<'_> {
    fn cut_and_hold(
        &self,
        driver: &mut ControlClient,
        hold: Duration,
    ) -> Result<CutReply, CycleError> {
        let hold_ns = u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX);
        let cut = cutter::ask(driver, &Request::CutAndHold { hold_ns })?;
        self.seat.answer(Answer::Cut);
        // The driver lets go by itself when the time is over; this side goes on then, too.
        let told = self.seat.commands.recv_timeout(hold);
        match driver.ask(&Request::Thaw { epoch: cut.epoch })? {
            Response::Thawed { in_force, held_ns } => {
                let in_force = in_force && told == Ok(Command::Thaw);
                let held = Duration::from_nanos(held_ns);
                self.seat.answer(Answer::Thawed { in_force, held });
                Ok(cut)
            }
            _ => Err(ClientError::Confused.into()),
        }
    }
}

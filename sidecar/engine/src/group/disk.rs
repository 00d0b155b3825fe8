//! A disk of this host as a member of a crew: an ordinary cycle, whose cut waits for the crew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_driver::control::{ClientError, ControlClient};
use backstay_driver::paths::{DiskPaths, Roots};
use backstay_format::control::{CutReply, Request, Response};
use backstay_format::{DiskId, DiskName};
use backstay_vault::GroupMember;

use super::crew::{Answer, Command, Seat};
use crate::config::Config;
use crate::cycle::{AtOnce, Cutter, CycleJob, CycleReport, cutter, run_cut_by};
use crate::error::CycleError;
use crate::hooks::Hooks;
use crate::record::Record;
use crate::throttle::Throttle;

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
    /// How, and with which hooks.
    pub config: Arc<Config>,
    /// Where disks are.
    pub roots: Roots,
    /// How fast, together with all other disks.
    pub throttle: Arc<Throttle>,
    /// Set from outside to end it.
    pub stop: Arc<AtomicBool>,
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
            self.cycle(shipping, &mut AtOnce)?;
        }
        Ok(behind)
    }

    /// Starts a cycle whose cut waits for a crew.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(super) fn join_crew(self, shipping: Shipping, seat: Seat) -> std::io::Result<DiskThread> {
        thread::Builder::new().name("cycle".into()).spawn(move || {
            let mut cutter = WithCrew { seat: seat.clone(), disk: None };
            // The crew waits for its answer: a panic must not be silence.
            let cycle = AssertUnwindSafe(|| self.cycle(&shipping, &mut cutter));
            let result = catch_unwind(cycle)
                .unwrap_or_else(|_| Err(CycleError::Broken("a thread panicked")));
            match &result {
                Ok(report) => tracing::info!(
                    "disk {}: recovery point {} ({} bytes moved, {:?})",
                    self.name,
                    report.cycle,
                    report.moved,
                    report.duration
                ),
                Err(e) => tracing::error!("disk {}: {e}", self.name),
            }
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

    /// Runs a cycle and remembers how it went.
    pub(super) fn cycle(
        &self,
        shipping: &Shipping,
        cutter: &mut dyn Cutter,
    ) -> Result<CycleReport, CycleError> {
        let mut record = Record::load(&self.paths.state);
        let hooks = Hooks::of(&shipping.config, &shipping.roots, &self.name);
        let result =
            record.open_vault(&shipping.vault).map_err(CycleError::from).and_then(|vault| {
                let job = CycleJob {
                    socket: &self.paths.control_socket(),
                    state: &self.paths.state,
                    vault: &vault,
                    ship: &shipping.config.ship,
                    throttle: &shipping.throttle,
                    hooks: hooks.as_ref(),
                    progress: &|_, _, _| (),
                    stop: &shipping.stop,
                };
                run_cut_by(&job, cutter)
            });
        match &result {
            // Neither is the disk's trouble: it was unmounted, is busy, or we were told to stop.
            Err(CycleError::Stopped | CycleError::Driver(ClientError::NotRunning { .. })) => {}
            Err(e) if e.is_busy() => {}
            _ => record.note(&result, &shipping.vault, &self.paths.state),
        }
        result
    }
}

/// Cuts when the crew does, and holds until it lets go; alone if there is no crew any more.
struct WithCrew {
    seat: Seat,
    disk: Option<DiskId>,
}

impl Cutter for WithCrew {
    fn cut(&mut self, driver: &mut ControlClient) -> Result<CutReply, CycleError> {
        self.disk = Some(driver.status()?.disk);
        driver.ask(&Request::PrepareCut)?;
        self.seat.answer(Answer::Ready);
        match self.seat.commands.recv() {
            Ok(Command::Cut(hold)) => self.cut_and_hold(driver, hold),
            // The crew has given up, or is gone: this point is the disk's own.
            _ => AtOnce.cut(driver),
        }
    }
}

impl WithCrew {
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

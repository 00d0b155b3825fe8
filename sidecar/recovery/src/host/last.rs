//! The cycles of a handover: by the sidecar, before everything else that waits, or here.

use std::time::{Duration, Instant};

use backstay_engine::jobs::{JobBook, JobHandle, JobState};
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::service::is_running;
use backstay_format::control::DriverStatus;
use backstay_host::clock;
use backstay_types::DiskName;

use super::cycle::run_once;
use super::{HostError, LocalHost};
use crate::failover::step;

/// How often it is looked how far the sidecar is: nothing tells.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a sidecar is asked that has not begun: it may have been looking away while the disk was stopped.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How long a sidecar may take to begin: with all its slots taken, the cycle is made here.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// Ships what a disk has: there is a newer point then. Of a disk that nobody uses (`quiet`) all is in that
/// point; of another one, most, so that what is left takes little time.
///
/// # Errors
/// If no recovery point was made.
pub fn ship(
    host: &LocalHost<'_>,
    name: &DiskName,
    vault: &str,
    quiet: bool,
    job: &JobHandle,
) -> Result<(), HostError> {
    let stage = if quiet { "last changes" } else { "changes so far" };
    job.progress(stage, 0, 0);
    step();
    if is_running(host.roots) && by_sidecar(host, name, (quiet, stage), job)? {
        return Ok(());
    }
    loop {
        match run_once(host, name, Some(vault)) {
            Ok(report) => {
                tracing::info!("disk {name}: recovery point {}", report.cycle);
                return Ok(());
            }
            // Another cycle runs; it may have begun before the disk was quiet.
            Err(e) if e.is_busy_cycle() => clock::sleep(LOOK_EVERY),
            Err(e) => return Err(e),
        }
    }
}

/// Has the sidecar do it; false if it does not begin.
fn by_sidecar(
    host: &LocalHost<'_>,
    name: &DiskName,
    (quiet, stage): (bool, &'static str),
    job: &JobHandle,
) -> Result<bool, HostError> {
    let state = host.roots.disk(name).state;
    let before = Record::load(&state).failure.map(|failure| failure.at_unix_ns);
    let Some(at_first) = host.status(name) else { return Ok(false) };
    let is_shipped = |now: &DriverStatus| {
        now.base != at_first.base && now.lease.is_none() && (!quiet || now.dirty_sectors == 0)
    };
    let jobs = JobBook::below(&host.roots.state);
    let began = clock::monotonic();
    let mut asked: Option<Instant> = None;
    loop {
        let Some(now) = host.status(name) else {
            return Err(HostError::Failed(format!("disk {name}: its driver is gone")));
        };
        if is_shipped(&now) {
            host.told.progress_ends();
            return Ok(true);
        }
        let failure = Record::load(&state).failure;
        if let Some(failure) = failure.filter(|failure| before != Some(failure.at_unix_ns)) {
            host.told.progress_ends();
            let why =
                format!("disk {name}: the sidecar made no recovery point: {}", failure.message);
            return Err(HostError::Failed(why));
        }
        if now.lease.is_some() {
            let of_it = jobs.list().into_iter().find(|job| {
                job.disk == *name && job.state == JobState::Running && job.all_bytes > 0
            });
            if let Some(of_it) = of_it {
                host.told.progress(stage, of_it.done_bytes, of_it.all_bytes);
                job.progress(stage, of_it.done_bytes, of_it.all_bytes);
            }
        } else {
            if clock::since(began) > BEGINS_WITHIN || !is_running(host.roots) {
                host.told.progress_ends();
                tracing::info!("disk {name}: the sidecar is busy: made here");
                return Ok(false);
            }
            if asked.is_none_or(|at| clock::since(at) > ASK_EVERY) {
                ask(&host.roots.state, &Asked::Cycle(name.clone()))?;
                asked = Some(clock::monotonic());
            }
        }
        clock::sleep(LOOK_EVERY);
    }
}

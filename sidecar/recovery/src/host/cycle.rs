//! One cycle, in this process.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use backstay_engine::cycle::resync::Request;
use backstay_engine::cycle::turn::Turn;
use backstay_engine::cycle::{CycleJob, CycleReport, Stage, run};
use backstay_engine::home::{self, Home, same_url};
use backstay_engine::hooks::Hooks;
use backstay_engine::jobs::JobBook;
use backstay_engine::phase::Event;
use backstay_engine::record::Record;
use backstay_engine::schedule::Work;
use backstay_engine::throttle::Throttle;
use backstay_types::DiskName;

use super::error::Doing;
use super::{HostError, LocalHost};
use crate::failover::rules::{NameKind, NameState, Verb, refusal};

/// How long to wait for the end of another cycle: with short intervals one runs often.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// Runs one cycle in this process.
///
/// # Errors
/// If no recovery point was made; the guest is not affected.
pub fn run_once(
    host: &LocalHost<'_>,
    name: &DiskName,
    vault: Option<&str>,
) -> Result<CycleReport, HostError> {
    let url = vault.unwrap_or_else(|| host.config.vault_of(name));
    // Is there such a disk at all?
    drop(host.driver(name)?);
    let paths = host.roots.disk(name);
    let _turn = Turn::take(&paths.state, name, TURN_WAIT)
        .doing(|| format!("disk {name}: no recovery point was made; the guest is not affected"))?;
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
    let jobs = JobBook::below(&host.roots.state);
    let job = jobs.begin(name, work);
    let progress = |stage: Stage, done: u64, all: u64| {
        host.told.progress(stage.name(), done, all);
        job.progress(stage.name(), done, all);
    };
    let result = host.config.vaults.open(url).map_err(Into::into).and_then(|vault| {
        run(&CycleJob {
            socket: &paths.control_socket(),
            state: &paths.state,
            vault: &vault,
            change_log_limit: host.config.change_log_limit_of(name),
            ship: &host.config.ship,
            throttle: &Throttle::new(host.config.throttle.clone(), host.config.zone()),
            hooks: Hooks::of(host.config, host.roots, name).as_ref(),
            progress: &progress,
            stop: &AtomicBool::new(false),
        })
    });
    let result = result.map_err(|e| e.explained(&host.config.vaults, url));
    host.told.progress_ends();
    job.end(result.as_ref().map(|report| report.cycle).map_err(ToString::to_string));
    home::note_default(&paths.state, &host.config.vault);
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
    let standing = NameState::look(host.roots, name);
    let what = match standing.map_err(|e| HostError::Failed(e.to_string()))?.what {
        NameKind::TakenOver => NameKind::TakenOver,
        _ => NameKind::Elsewhere,
    };
    let standing = NameState { what, at_work: true };
    let ways = refusal(standing, name, Verb::Cycle).filter(|_| fenced);
    let report = result.doing(|| match ways {
        Some(ways) => format!("no recovery point was made; the guest is not affected: {ways}"),
        None => format!("disk {name}: no recovery point was made; the guest is not affected"),
    })?;
    if let Some(warning) = &report.warning {
        host.told.warn(&format!("disk {name}: point {}: {warning}", report.cycle));
    }
    Ok(report)
}

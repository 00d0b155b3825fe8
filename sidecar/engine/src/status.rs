//! What a person wants to know of a disk, put together from driver and record.

use backstay_format::control::{DriverStatus, FoundState};
use backstay_format::{ByteLen, DiskName, SECTOR_BYTES};
use serde::Serialize;

use crate::record::Record;

/// The state of a disk, R-30 as far as it goes yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// No driver serves it.
    NotMounted,
    /// Nothing was shipped yet.
    NotReplicated,
    /// A cycle is running.
    Replicating,
    /// Between cycles.
    Protected,
}

/// How well a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// All is well.
    Ok,
    /// It works, and something should be looked at.
    Warning,
    /// It is not protected until a person acts.
    Critical,
}

/// A level and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Health {
    /// How well.
    pub level: Level,
    /// Why, in words; none if all is well.
    pub reason: Option<String>,
}

/// The status of one disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: DiskName,
    /// Its state.
    pub state: State,
    /// Its health.
    pub health: Health,
    /// What its driver found when it started.
    pub found: Option<FoundState>,
    /// Its size.
    pub size: Option<ByteLen>,
    /// Age of the cut of the newest point that is committed and verified, in nanoseconds.
    pub rpo_ns: Option<u64>,
    /// What the next cycle ships.
    pub dirty: Option<ByteLen>,
    /// Bytes a second the guest wrote since its driver started.
    pub churn_per_second: Option<f64>,
    /// Bytes written for each byte shipped in the last cycle.
    pub folding_ratio: Option<f64>,
    /// Preserved blocks, and the most there may be.
    pub change_log: Option<(ByteLen, ByteLen)>,
    /// The blackout window that is on, in words; none begins by itself meanwhile.
    pub blackout: Option<String>,
    /// The last committed cycle and failures since.
    pub record: Record,
    /// All the driver says.
    pub driver: Option<DriverStatus>,
}

/// Puts a disk's status together.
#[must_use]
pub fn of_disk(
    name: DiskName,
    driver: Option<DriverStatus>,
    record: Record,
    now_unix_ns: u64,
) -> DiskStatus {
    let state = match &driver {
        None => State::NotMounted,
        Some(driver) if driver.lease.is_some() => State::Replicating,
        Some(driver) if driver.base.is_none() => State::NotReplicated,
        Some(_) => State::Protected,
    };
    let last = record.last.as_ref();
    let folding = |moved: u64, written: u64| (moved > 0).then(|| written as f64 / moved as f64);
    DiskStatus {
        state,
        health: health(driver.as_ref(), &record),
        found: driver.as_ref().map(|d| d.found),
        size: driver.as_ref().map(|d| d.size),
        rpo_ns: last.map(|last| now_unix_ns.saturating_sub(last.cut_unix_ns)),
        dirty: driver.as_ref().map(|d| ByteLen((d.dirty_sectors * SECTOR_BYTES).min(d.size.0))),
        churn_per_second: driver.as_ref().map(|d| {
            let seconds = now_unix_ns.saturating_sub(d.started_unix_ns) as f64 / 1e9;
            d.counters.written_bytes as f64 / seconds.max(1e-3)
        }),
        folding_ratio: last.and_then(|last| folding(last.moved.0, last.written.0)),
        change_log: driver.as_ref().map(|d| (d.change_log_used, d.change_log_limit)),
        blackout: None,
        name,
        record,
        driver,
    }
}

fn health(driver: Option<&DriverStatus>, record: &Record) -> Health {
    let because = |level, reason: String| Health { level, reason: Some(reason) };
    let Some(driver) = driver else {
        return because(Level::Warning, "no driver serves the disk: mount it".into());
    };
    if let Some(failure) = &record.failure {
        if failure.person_must_act {
            return because(Level::Critical, failure.message.clone());
        }
        let times = record.failures;
        return because(Level::Warning, format!("{} ({times} times)", failure.message));
    }
    let of_hooks = record.last.as_ref().and_then(|last| last.warning.as_ref());
    match driver.warning.as_ref().or(of_hooks) {
        Some(warning) => because(Level::Warning, warning.clone()),
        None if driver.base.is_none() => {
            because(Level::Warning, "no recovery point yet: run a cycle".into())
        }
        None => Health { level: Level::Ok, reason: None },
    }
}

//! What is told of each disk.

use backstay_engine::health::{Level, ids};
use backstay_engine::phase::Phase;
use backstay_engine::service::alive::Sidecar;
use backstay_engine::status::DiskStatus;

use crate::families::{Sample, one_hot, seconds};
use crate::{Disk, Snapshot};

/// What stands for what could not be found out.
const UNKNOWN: &str = "unknown";
/// A disk that nobody replicates.
const NONE: &str = "none";

/// A gauge of each disk; NaN of one that is not known.
pub(crate) fn gauge(of: &Snapshot, read: impl Fn(&DiskStatus) -> Option<f64>) -> Vec<Sample> {
    let value = |disk: &Disk| disk.status.as_deref().and_then(&read);
    of.disks().map(|disk| Sample::gauge(vec![disk.name.to_string()], value(disk))).collect()
}

/// A flag of each disk.
fn flag(of: &Snapshot, read: impl Fn(&DiskStatus) -> Option<bool>) -> Vec<Sample> {
    gauge(of, |status| read(status).map(|is| f64::from(u8::from(is))))
}

/// A counter of each disk whose driver answers.
pub(crate) fn counter(
    of: &Snapshot,
    read: impl Fn(&backstay_format::control::Counters) -> u64,
) -> Vec<Sample> {
    let known = of.disks().filter_map(|disk| {
        let driver = disk.status.as_deref()?.driver.as_ref()?;
        Some(Sample::count(vec![disk.name.to_string()], read(&driver.counters)))
    });
    known.collect()
}

/// The word that a value is as JSON.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or(UNKNOWN).to_owned()
}

pub(crate) fn sidecar(of: &Snapshot) -> Vec<Sample> {
    let holds = match of.sidecar {
        Sidecar::Runs { .. } => "runs",
        Sidecar::Silent { .. } => "silent",
        Sidecar::NotRunning { .. } => "not-running",
        Sidecar::Unknown { .. } => UNKNOWN,
    };
    one_hot(&[], ["runs", "silent", "not-running", UNKNOWN], holds)
}

pub(crate) fn info(of: &Snapshot) -> Vec<Sample> {
    let known = of.disks().filter_map(|disk| {
        let status = disk.status.as_deref()?;
        let policy = status.policy.clone().unwrap_or_default();
        let labels = vec![disk.name.to_string(), policy, status.vault.clone()];
        Some(Sample::gauge(labels, Some(1.0)))
    });
    known.collect()
}

pub(crate) fn groups(of: &Snapshot) -> Vec<Sample> {
    let all = of.disks().flat_map(|disk| {
        let groups = disk.status.iter().flat_map(|status| &status.groups);
        groups.map(|group| Sample::gauge(vec![disk.name.to_string(), group.to_string()], Some(1.0)))
    });
    all.collect()
}

pub(crate) fn health(of: &Snapshot) -> Vec<Sample> {
    let levels = [Level::Ok, Level::Warning, Level::Critical].map(|level| word(&level));
    let all = of.disks().flat_map(|disk| {
        let holds = disk.status.as_ref().map_or_else(|| UNKNOWN.into(), |s| word(&s.health.level));
        let words = levels.iter().map(String::as_str).chain([UNKNOWN]);
        one_hot(&[disk.name.as_str()], words, &holds)
    });
    all.collect()
}

/// Whether something is wrong with a disk, not only worth knowing.
pub(crate) fn has(status: &DiskStatus, id: ids::CauseId) -> bool {
    status.health.causes.iter().any(|cause| cause.id == id && cause.level > Level::Ok)
}

pub(crate) fn causes(of: &Snapshot) -> Vec<Sample> {
    let all = of.disks().flat_map(|disk| {
        ids::ALL.iter().map(|id| {
            let holds = disk.status.as_ref().map(|status| f64::from(u8::from(has(status, *id))));
            Sample::gauge(vec![disk.name.to_string(), id.to_string()], holds)
        })
    });
    all.collect()
}

pub(crate) fn state(of: &Snapshot) -> Vec<Sample> {
    let phases = Phase::ALL.map(|phase| word(&phase));
    let all = of.disks().flat_map(|disk| {
        let holds = match disk.status.as_deref() {
            None => UNKNOWN.into(),
            Some(status) if has(status, ids::DRIVER_SILENT) => UNKNOWN.into(),
            Some(status) => status.state.map_or_else(|| NONE.into(), |phase| word(&phase)),
        };
        let words = phases.iter().map(String::as_str).chain([NONE, UNKNOWN]);
        one_hot(&[disk.name.as_str()], words, &holds)
    });
    all.collect()
}

pub(crate) fn size(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.size.map(|size| size.0 as f64))
}

/// Not known where the age is not: a date in the future would look better than any other.
pub(crate) fn newest_point(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.rpo_ns.map(|age| seconds(of.at_unix_ns) - seconds(age)))
}

pub(crate) fn rpo(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.rpo_ns.map(seconds))
}

pub(crate) fn rpo_target(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| Some(status.interval.as_secs_f64()))
}

pub(crate) fn dirty(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.dirty.map(|dirty| dirty.0 as f64))
}

pub(crate) fn driver_up(of: &Snapshot) -> Vec<Sample> {
    flag(of, |status| Some(status.driver.is_some()))
}

pub(crate) fn driver_started(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.driver.as_ref().map(|driver| seconds(driver.started_unix_ns)))
}

pub(crate) fn drill_at(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.drill.as_ref().map(|drill| seconds(drill.tried_unix_ns)))
}

/// One that could not be made has not passed.
pub(crate) fn drill_passed(of: &Snapshot) -> Vec<Sample> {
    flag(of, |status| status.drill.as_ref().map(|drill| drill.trouble().is_none()))
}

pub(crate) fn drill_duration(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| {
        let verdict = status.drill.as_ref()?.verdict.as_ref()?;
        Some(seconds(verdict.ended_unix_ns.saturating_sub(verdict.began_unix_ns)))
    })
}

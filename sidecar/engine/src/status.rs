//! What a person wants to know of a disk, put together from driver and record.

use std::time::Duration;

use backstay_format::control::{DriverStatus, FoundState};
use backstay_types::{ByteLen, DiskName, SECTOR_BYTES};
use backstay_vault::GroupName;
use serde::Serialize;

use crate::config::Config;
use crate::drills::Drilled;
use crate::phase::Phase;
use crate::record::Record;
use crate::throttle::Rate;
use crate::windows::{self, may_begin};

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
    /// Since when, nanoseconds since 1970, if that is known.
    pub since_unix_ns: Option<u64>,
    /// When it is tried again; never, until a person acts, if it is critical.
    pub next_retry_unix_ns: Option<u64>,
    /// What to do about it.
    pub advice: Option<String>,
}

/// The status of one disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: DiskName,
    /// Where it is in its replication; not set while no driver serves it.
    pub state: Option<Phase>,
    /// Since when, nanoseconds since 1970.
    pub state_since_unix_ns: u64,
    /// The policy it follows.
    pub policy: Option<String>,
    /// The groups it is in.
    pub groups: Vec<GroupName>,
    /// From one cut to the next, as its settings say.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// The blackout window that is on, in words; none begins by itself meanwhile.
    pub blackout: Option<String>,
    /// What all disks together may send a second; `0`: as much as they can.
    pub limit: Rate,
    /// When its next cycle is due, nanoseconds since 1970; only a sidecar knows.
    pub next_unix_ns: Option<u64>,
    /// Its health.
    pub health: Health,
    /// The last drill of it on this host.
    pub drill: Option<Drilled>,
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
    /// The last committed cycle and failures since.
    pub record: Record,
    /// All the driver says.
    pub driver: Option<DriverStatus>,
}

/// How late a point may be before that is worth a warning: so many intervals, and never less than
/// [`LATE_MIN`].
const LATE_INTERVALS: u32 = 3;
const LATE_MIN: Duration = Duration::from_secs(60);

/// Puts a disk's status together.
#[must_use]
pub fn of_disk(
    name: DiskName,
    driver: Option<DriverStatus>,
    record: Record,
    config: &Config,
    now_unix_ns: u64,
) -> DiskStatus {
    let last = record.last.as_ref();
    let folding = |moved: u64, written: u64| (moved > 0).then(|| written as f64 / moved as f64);
    let interval = config.interval_of(&name);
    let rpo_ns = last.map(|last| now_unix_ns.saturating_sub(last.cut_unix_ns));
    DiskStatus {
        state: driver.as_ref().map(|driver| phase(driver, &record)),
        state_since_unix_ns: record.phase_since_unix_ns,
        policy: config.policy_of(&name).map(str::to_owned),
        groups: config
            .group
            .iter()
            .filter(|(_, group)| group.disks.contains(&name))
            .map(|(group, _)| group.clone())
            .collect(),
        interval,
        blackout: may_begin(config.blackout_of(&name), &config.zone(), windows::now())
            .err()
            .map(|until| until.to_string()),
        limit: config.throttle.limit_at(windows::now(), &config.zone()),
        // One that is long past says that no sidecar is at work.
        next_unix_ns: record
            .next_unix_ns
            .filter(|next| driver.is_some() && next + LATE_MIN.as_nanos() as u64 > now_unix_ns),
        health: health(&name, driver.as_ref(), &record, rpo_ns, interval),
        drill: record.drilled.clone(),
        found: driver.as_ref().map(|d| d.found),
        size: driver.as_ref().map(|d| d.size),
        rpo_ns,
        dirty: driver.as_ref().map(|d| ByteLen((d.dirty_sectors * SECTOR_BYTES).min(d.size.0))),
        churn_per_second: driver.as_ref().map(|d| {
            let seconds = now_unix_ns.saturating_sub(d.started_unix_ns) as f64 / 1e9;
            d.counters.written_bytes as f64 / seconds.max(1e-3)
        }),
        folding_ratio: last.and_then(|last| folding(last.moved.0, last.written.0)),
        change_log: driver.as_ref().map(|d| (d.change_log_used, d.change_log_limit)),
        name,
        record,
        driver,
    }
}

/// What is written down, unless something newer is known: a cycle that runs holds the driver's lease,
/// one that was killed does not, and one that a person ran has not told the sidecar.
fn phase(driver: &DriverStatus, record: &Record) -> Phase {
    let resync = driver.resync.is_some() || driver.lost_point_in_time.is_some();
    let based = driver.base.is_some();
    let written = record.phase;
    if driver.lease.is_some() {
        return match (written.is_running(), based, resync) {
            (true, ..) => written,
            (false, false, _) => Phase::InitialRunning,
            (false, true, true) => Phase::ResyncRunning,
            (false, true, false) => Phase::DeltaRunning,
        };
    }
    let overtaken = record
        .last
        .as_ref()
        .is_some_and(|last| last.committed_unix_ns > record.phase_since_unix_ns);
    match written {
        Phase::DeltaQueued | Phase::OnDemandQueued if based => written,
        Phase::InitialQueued if !based => written,
        Phase::ResyncRequired | Phase::ResyncQueued if !overtaken => written,
        _ if !based => Phase::Stopped,
        _ if resync => Phase::ResyncRequired,
        _ => Phase::Protected,
    }
}

fn health(
    name: &DiskName,
    driver: Option<&DriverStatus>,
    record: &Record,
    rpo_ns: Option<u64>,
    interval: Duration,
) -> Health {
    let because = |level, reason: String, advice: String| Health {
        level,
        reason: Some(reason),
        since_unix_ns: None,
        next_retry_unix_ns: None,
        advice: Some(advice),
    };
    let Some(driver) = driver else {
        let advice = format!("mount it: backstay mount BACKING --name {name}");
        return because(Level::Warning, "no driver serves the disk".into(), advice);
    };
    if let Some(failure) = &record.failure {
        let since_unix_ns = Some(failure.since_unix_ns);
        if failure.person_must_act {
            let advice = match failure.fenced {
                true => format!(
                    "its users go on undisturbed, but nothing they write is protected any more. If \
                     the other side is right, stop using this disk and bring it back: backstay \
                     failback {name} --to BACKING. If this side is right, protect it under \
                     another name (unprotect {name} --keep-points first)"
                ),
                false => format!("mend what it says, then: backstay resume {name}"),
            };
            let critical = because(Level::Critical, failure.message.clone(), advice);
            return Health { since_unix_ns, ..critical };
        }
        let message = format!("{} ({} times)", failure.message, record.failures);
        let warning = because(Level::Warning, message, "it is tried again by itself".into());
        return Health { since_unix_ns, next_retry_unix_ns: record.next_unix_ns, ..warning };
    }
    if let Some(warning) = &driver.warning {
        let advice =
            format!("it is compared in its resync window, or now by: backstay resync {name} --now");
        return because(Level::Warning, warning.clone(), advice);
    }
    if let Some(warning) = record.last.as_ref().and_then(|last| last.warning.clone()) {
        let advice = "see the disk's hooks in the configuration, and docs/HOOKS.md".into();
        return because(Level::Warning, warning, advice);
    }
    if let Some(failure) = &record.upkeep {
        let reason = format!(
            "its vault cannot be looked after (points thinned out, segments merged): {}",
            failure.message
        );
        let advice = format!("cycles go on; mend what it says, then: backstay prune {name}");
        let warning = because(Level::Warning, reason, advice);
        return Health { since_unix_ns: Some(failure.since_unix_ns), ..warning };
    }
    if let Some(worry) = &record.keys {
        let advice = "see backstay key list, and docs/ENCRYPTION.md".into();
        let warning = because(Level::Warning, worry.message.clone(), advice);
        return Health { since_unix_ns: Some(worry.since_unix_ns), ..warning };
    }
    if let Some(reason) = record.drilled.as_ref().and_then(Drilled::trouble) {
        let advice = format!("see backstay points {name}; mend it, then: backstay drill {name}");
        return because(Level::Warning, reason, advice);
    }
    let late = LATE_MIN.max(interval * LATE_INTERVALS);
    match rpo_ns {
        None if driver.base.is_none() => because(
            Level::Warning,
            "no recovery point yet".into(),
            format!("a sidecar makes one, or: backstay cycle {name}"),
        ),
        Some(rpo) if Duration::from_nanos(rpo) > late => because(
            Level::Warning,
            format!(
                "the newest recovery point is {} old, {} is its interval",
                humantime::format_duration(Duration::from_secs(rpo / 1_000_000_000)),
                humantime::format_duration(interval)
            ),
            "is a sidecar running, and is no blackout window on? See backstay jobs".into(),
        ),
        _ => Health {
            level: Level::Ok,
            reason: None,
            since_unix_ns: None,
            next_retry_unix_ns: None,
            advice: None,
        },
    }
}

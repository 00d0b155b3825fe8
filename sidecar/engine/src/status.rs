//! The status of a disk, combined from its driver and its record.

use std::time::Duration;

use backstay_format::control::{DriverStatus, FoundState};
use backstay_front::paths::Roots;
use backstay_types::{ByteLen, DiskName, SECTOR_BYTES};
use backstay_vault::GroupName;
use serde::Serialize;

use crate::config::Config;
use crate::drills::Drilled;
use crate::health::{self, Cause, Facts};
use crate::home::Home;
use crate::phase::Phase;
use crate::protection::is_only_looked_at;
use crate::record::Record;
use crate::service::alive::{self, Sidecar};
use crate::throttle::Rate;
use crate::windows::{self, may_begin};

pub use crate::health::{Health, Level};

/// The status of one disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskStatus {
    /// Its name.
    pub name: DiskName,
    /// Where it is in its replication; not set while no driver serves it, or if it is only looked at.
    pub state: Option<Phase>,
    /// It is a mounted recovery point that nobody has made a disk of: it is not replicated.
    pub only_looked_at: bool,
    /// Where its points are, or will be.
    pub vault: String,
    /// Whether the host's sidecar is at work.
    pub sidecar: Sidecar,
    /// Since when, nanoseconds since 1970.
    pub state_since_unix_ns: u64,
    /// The policy it follows.
    pub policy: Option<String>,
    /// The identity of the vault that its points are in, if that is known.
    pub vault_id: Option<uuid::Uuid>,
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
    /// Since when writes would be lost with this host, as an age in nanoseconds: the cut of the newest point that is
    /// committed and verified, or the last time the disk was seen to be still as that shows it. `None` if there
    /// is no point, it is dated after now, or it is known to be gone or damaged.
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

/// A plan for a cycle that is past by this much is nobody's plan, and a point this late is late.
pub(crate) const LATE_MIN: Duration = Duration::from_secs(60);

/// A date may lie ahead of the clock by this, in nanoseconds: a clock is set back by seconds now and then.
const AHEAD_MAX_NS: u64 = 5_000_000_000;

/// Whether a date lies ahead of the clock, which means that one of them is wrong.
pub(crate) fn is_from_the_future(unix_ns: u64, now_unix_ns: u64) -> bool {
    unix_ns.saturating_sub(now_unix_ns) > AHEAD_MAX_NS
}

/// The age of what has a date, unless that lies ahead: then it is not known.
fn age(unix_ns: u64, now_unix_ns: u64) -> Option<u64> {
    (!is_from_the_future(unix_ns, now_unix_ns)).then(|| now_unix_ns.saturating_sub(unix_ns))
}

/// Puts a disk's status together, from what its driver says and what is remembered of it.
#[must_use]
pub fn of_disk(
    roots: &Roots,
    config: &Config,
    name: DiskName,
    driver: Option<DriverStatus>,
    now_unix_ns: u64,
) -> DiskStatus {
    let paths = roots.disk(&name);
    let record = Record::load(&paths.state);
    let last = record.last.as_ref();
    let folding = |moved: u64, written: u64| (moved > 0).then(|| written as f64 / moved as f64);
    let interval = config.interval_of(&name);
    let rpo_ns = record.proven_unix_ns().and_then(|at| age(at, now_unix_ns));
    let (only_looked_at, sidecar) = (is_only_looked_at(&paths.state), alive::sidecar(roots));
    let home = Home::load(&paths.state).ok().flatten();
    let health = health::of(&Facts {
        name: &name,
        roots,
        paths: &paths,
        config,
        driver: driver.as_ref(),
        record: &record,
        rpo_ns,
        now_unix_ns,
        only_looked_at,
        sidecar: &sidecar,
    });
    // How old a point is that is not there, or cannot be restored, says nothing.
    let lost = [health::ids::POINTS_VANISHED, health::ids::VAULT_DAMAGED];
    let is_lost = |cause: &Cause| cause.level == Level::Critical && lost.contains(&cause.id);
    let rpo_ns = rpo_ns.filter(|_| !health.causes.iter().any(is_lost));
    DiskStatus {
        state: driver.as_ref().filter(|_| !only_looked_at).map(|driver| phase(driver, &record)),
        only_looked_at,
        vault: home.as_ref().map_or_else(|| config.vault_of(&name).into(), |home| home.url.clone()),
        sidecar,
        state_since_unix_ns: record.phase_since_unix_ns,
        policy: config.policy_of(&name).map(str::to_owned),
        vault_id: home.and_then(|home| home.vault),
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
        health,
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

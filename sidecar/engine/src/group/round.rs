//! One round of a group, on the host that coordinates it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstay_host::clock::{self, now_unix_ns};
use backstay_types::DiskName;
use backstay_vault::{GroupMember, GroupName, GroupPoint};
use serde::Serialize;

use super::GroupError;
use super::crew::{Crew, Trouble};
use super::disk::{DiskThread, LocalDisk, Shipping};
use super::hosts::Hosts;
use super::settings::Group;
use crate::cycle::CycleReport;
use crate::error::CycleError;

/// Longest that a round ships: a month. Anyone who dies meanwhile is noticed long before.
const SHIP_MAX: Duration = Duration::from_secs(30 * 86_400);

/// What a round works with.
pub struct GroupJob<'a> {
    /// The group.
    pub group: &'a Group,
    /// Its disks on this host.
    pub disks: Vec<LocalDisk>,
    /// How they are shipped.
    pub shipping: Shipping,
    /// Where its other hosts are connected, if it has any.
    pub hosts: Option<&'a Hosts>,
}

/// What a round has done.
#[derive(Debug, Clone, Serialize)]
pub struct GroupReport {
    /// The group.
    pub group: GroupName,
    /// The group point, if there is one.
    pub point: Option<GroupPoint>,
    /// Why there is none. The members' own points exist all the same, unless they failed.
    pub void: Option<String>,
    /// How long the longest hold was, in nanoseconds.
    pub held_ns: u64,
    /// How the disks of this host went.
    pub members: Vec<MemberReport>,
    /// From the first lease to the group point.
    #[serde(with = "humantime_serde")]
    pub duration: Duration,
}

/// How a disk of this host went.
#[derive(Debug, Clone, Serialize)]
pub struct MemberReport {
    /// The disk.
    pub name: DiskName,
    /// Its own recovery point.
    pub cycle: Option<CycleReport>,
    /// Why it has none.
    pub failure: Option<String>,
}

/// When the last round of a group began, on this host.
#[derive(Debug, Clone)]
pub struct LastRound {
    since: Instant,
    /// Milliseconds after `since`; 0: there was none.
    ms: Arc<AtomicU64>,
}

impl Default for LastRound {
    fn default() -> Self {
        Self { since: clock::monotonic(), ms: Arc::default() }
    }
}

impl LastRound {
    /// One begins now.
    pub fn begins(&self) {
        let ms = u64::try_from(clock::since(self.since).as_millis()).unwrap_or(u64::MAX);
        self.ms.store(ms.max(1), Ordering::Relaxed);
    }

    /// There will be none for now: anyone who waits for one goes on alone.
    pub fn gives_up(&self) {
        self.ms.store(0, Ordering::Relaxed);
    }

    /// How long ago it began; `None` if there was none.
    #[must_use]
    pub fn ago(&self) -> Option<Duration> {
        match self.ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(clock::since(self.since).saturating_sub(Duration::from_millis(ms))),
        }
    }
}

/// What was frozen at one instant.
struct Frozen {
    cut_unix_ns: u64,
    held: Duration,
}

/// Runs one round: at best a group point, at least a cycle of every disk of this host.
///
/// # Errors
/// If it could not begin, or its members have shipped and the group point could not be put.
pub fn run_group(job: GroupJob<'_>) -> Result<GroupReport, GroupError> {
    let began = clock::monotonic();
    let (name, config) = (&job.group.name, &job.group.config);
    let mut crew = Crew::new(job.shipping.stop.clone());
    let mut missing = None;
    if let Some(hosts) = job.hosts {
        missing = hosts.enlist(name, &mut crew).err();
    }
    let threads = start_all(job.disks, &job.shipping, &mut crew)?;
    let frozen = match missing {
        Some(missing) => Err(missing),
        None => freeze(&mut crew, config.ready_deadline, config.hold_deadline),
    };
    let shipped = match frozen {
        Ok(frozen) => {
            crew.finish();
            crew.done(SHIP_MAX).map(|members| (frozen, members))
        }
        Err(trouble) => {
            crew.abort();
            Err(trouble)
        }
    };
    let members = join_all(threads);
    let (mut point, mut void, mut held) = (None, None, Duration::ZERO);
    match shipped {
        Ok((frozen, shipped)) => {
            held = frozen.held;
            point = Some(commit(&job.shipping, name, shipped, frozen.cut_unix_ns)?);
        }
        Err(trouble) => void = Some(trouble.to_string()),
    }
    Ok(GroupReport {
        group: name.clone(),
        point,
        void,
        held_ns: held.as_nanos() as u64,
        members,
        duration: clock::since(began),
    })
}

/// Cuts all at one instant: when this succeeds, there was one at which all were held.
fn freeze(crew: &mut Crew, ready: Duration, hold: Duration) -> Result<Frozen, Trouble> {
    let began = clock::monotonic();
    crew.here(ready)?;
    crew.quiesce();
    crew.ready(ready.saturating_sub(clock::since(began)).max(hold))?;
    crew.cut(hold)?;
    let cut_unix_ns = now_unix_ns();
    let held = crew.thaw()?;
    Ok(Frozen { cut_unix_ns, held })
}

/// Starts the cycles of this host's disks, as members of a crew.
///
/// # Errors
/// If a thread cannot be started; those that run then go on alone.
pub(super) fn start_all(
    disks: Vec<LocalDisk>,
    shipping: &Shipping,
    crew: &mut Crew,
) -> Result<Vec<(DiskName, DiskThread)>, GroupError> {
    let mut threads = vec![];
    for disk in disks {
        let (name, seat) = (disk.name.clone(), crew.enlist(format!("disk {}", disk.name)));
        let thread = disk.join_crew(shipping.clone(), seat).map_err(|source| GroupError::Io {
            doing: format!("starting the cycle of disk {name}"),
            source,
        })?;
        threads.push((name, thread));
    }
    Ok(threads)
}

/// Waits for the cycles of this host's disks.
pub(super) fn join_all(threads: Vec<(DiskName, DiskThread)>) -> Vec<MemberReport> {
    let report = |(name, thread): (DiskName, DiskThread)| {
        let result = thread.join().unwrap_or(Err(CycleError::Broken("a thread panicked")));
        match result {
            Ok(cycle) => MemberReport { name, cycle: Some(cycle), failure: None },
            Err(e) => MemberReport { name, cycle: None, failure: Some(e.to_string()) },
        }
    };
    threads.into_iter().map(report).collect()
}

fn commit(
    shipping: &Shipping,
    group: &GroupName,
    members: Vec<GroupMember>,
    cut_unix_ns: u64,
) -> Result<GroupPoint, GroupError> {
    let vault = shipping.config.now().vaults.open(&shipping.vault)?;
    Ok(vault.commit_group(group, members, cut_unix_ns)?)
}

//! Groups over and over, beside the disks that are in none.
//!
//! A group *takes* its disks from the ordinary schedule as long as it makes rounds with them. When it
//! does not (a disk must be shipped as a whole first, or has no driver, or a blackout window; the
//! coordinator is out of reach; another host ships for hours) they go back to it, so that none is left alone.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_front::paths::Roots;
use backstay_host::clock;
use backstay_types::DiskName;
use backstay_vault::GroupName;

use super::GroupError;
use super::disk::{Current, LocalDisk, Shipping};
use super::hosts::Hosts;
use super::link::SILENCE_MAX;
use super::member::Member;
use super::round::{GroupJob, GroupReport, LastRound, run_group};
use super::settings::Group;
use super::tls::Tls;
use crate::config::Config;
use crate::throttle::Throttle;

/// How often it is looked whether a round is due.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Rounds that may be missed before the disks go on alone.
const ROUNDS_MISSED_MAX: u32 = 3;

/// What groups work with.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// The settings.
    pub config: &'a Current,
    /// Where disks are.
    pub roots: &'a Roots,
    /// How fast all disks together are shipped.
    pub throttle: &'a Arc<Throttle>,
    /// Set from outside to end them.
    pub stop: &'a Arc<AtomicBool>,
}

/// The groups of this host, each in a thread of its own.
pub struct Groups {
    groups: Vec<Running>,
    config: Current,
}

struct Running {
    name: GroupName,
    disks: Vec<DiskName>,
    interval: Duration,
    last_round: LastRound,
    thread: JoinHandle<()>,
}

impl Group {
    /// Its disks on this host.
    #[must_use]
    pub fn local_disks(&self, roots: &Roots) -> Vec<LocalDisk> {
        let disk = |name: &DiskName| LocalDisk { name: name.clone(), paths: roots.disk(name) };
        self.config.disks.iter().map(disk).collect()
    }

    /// How they are shipped.
    #[must_use]
    pub fn shipping(&self, with: &With<'_>) -> Shipping {
        Shipping {
            vault: self.vault.clone(),
            config: with.config.clone(),
            roots: with.roots.clone(),
            throttle: Arc::clone(with.throttle),
            stop: Arc::clone(with.stop),
        }
    }
}

impl Groups {
    /// Starts all groups of the configuration. One that cannot run is told in the log, and its disks
    /// are left to the ordinary schedule.
    pub fn start(with: With<'_>) -> Self {
        let mut config = Config::clone(&with.config.now());
        let members: Vec<DiskName> =
            config.group.values().flat_map(|group| group.disks.clone()).collect();
        config.add_protections(with.roots, &members);
        let config = &Arc::new(config);
        with.config.set(Arc::clone(config));
        let mut groups = vec![];
        let all: Vec<Group> = config
            .group
            .keys()
            .filter_map(|name| Group::find(config, name).map_err(|e| tracing::error!("{e}")).ok())
            .collect();
        let hosts = listen_all(config, &all);
        for group in all {
            let started = match &group.config.member {
                Some(_) => start_member(with, group),
                None => {
                    let listen = group.config.coordinator.as_ref().map(|c| c.listen);
                    match listen.map(|address| hosts.get(&address).cloned()) {
                        Some(None) => continue, // Told already.
                        hosts => start_rounds(with, group, hosts.flatten()),
                    }
                }
            };
            match started {
                Ok(running) => groups.push(running),
                Err(e) => tracing::error!("{e}"),
            }
        }
        Self { groups, config: with.config.clone() }
    }

    /// The configuration has changed: windows, hooks and the like hold from the next round on. Groups
    /// themselves stay as they were when the service began.
    pub fn follow(&self, config: &Arc<Config>) {
        let old = self.config.now();
        if old.group != config.group || old.tls != config.tls {
            tracing::warn!("groups and [tls] have changed: restart the sidecar to apply this");
        }
        self.config.set(Arc::clone(config));
    }

    /// Whether a disk is a group's to ship, at the moment.
    #[must_use]
    pub fn take(&self, disk: &DiskName) -> bool {
        let Some(group) = self.groups.iter().find(|group| group.disks.contains(disk)) else {
            return false;
        };
        let patience = group.interval * ROUNDS_MISSED_MAX + SILENCE_MAX;
        !group.thread.is_finished() && group.last_round.ago().is_some_and(|ago| ago < patience)
    }

    /// Waits until all have ended, after `stop` was set.
    pub fn join(self) {
        for group in self.groups {
            if group.thread.join().is_err() {
                tracing::error!("group {}: a thread panicked", group.name);
            }
        }
    }
}

/// Listens on each address once, for all groups that are coordinated there.
pub(crate) fn listen_all(config: &Config, groups: &[Group]) -> BTreeMap<SocketAddr, Arc<Hosts>> {
    let mut by_address: BTreeMap<SocketAddr, BTreeMap<GroupName, Vec<String>>> = BTreeMap::new();
    for group in groups {
        if let Some(coordinator) = &group.config.coordinator {
            let here = by_address.entry(coordinator.listen).or_default();
            here.insert(group.name.clone(), coordinator.hosts.clone());
        }
    }
    let Some(files) = &config.tls else { return BTreeMap::new() };
    let listen = |(address, groups)| match listen(address, files, groups) {
        Ok(hosts) => Some((address, Arc::new(hosts))),
        Err(e) => {
            tracing::error!("{e}: the groups that are coordinated there do not run");
            None
        }
    };
    by_address.into_iter().filter_map(listen).collect()
}

/// Listens for the hosts of groups.
///
/// # Errors
/// If certificates, keys or the address cannot be used.
pub fn listen(
    address: SocketAddr,
    files: &super::TlsConfig,
    groups: BTreeMap<GroupName, Vec<String>>,
) -> Result<Hosts, GroupError> {
    let tls = Tls::load(files)?;
    Hosts::listen(address, tls, groups)
        .map_err(|source| GroupError::Io { doing: format!("listening on {address}"), source })
}

fn start_member(with: With<'_>, group: Group) -> Result<Running, GroupError> {
    let member = member_of(with, &group)?;
    let last_round = member.rounds();
    let (name, disks, interval) = (group.name, group.config.disks, group.interval);
    let thread = spawn(&name, move || member.serve())?;
    Ok(Running { name, disks, interval, last_round, thread })
}

/// This host as a member of a group.
///
/// # Errors
/// If it is none, or certificates and keys cannot be used.
pub fn member_of(with: With<'_>, group: &Group) -> Result<Member, GroupError> {
    let wrong =
        |reason: &str| GroupError::Config { group: group.name.clone(), reason: reason.into() };
    let dial = group.config.member.clone().ok_or_else(|| {
        wrong("this host is not one of its members: the section [group.NAME.member] is missing")
    })?;
    let config = with.config.now();
    let files = config.tls.as_ref().ok_or_else(|| wrong("[tls] is missing"))?;
    let shipping = group.shipping(&with);
    Ok(Member::new(group.clone(), dial, files, group.local_disks(with.roots), shipping)?)
}

fn start_rounds(
    with: With<'_>,
    group: Group,
    hosts: Option<Arc<Hosts>>,
) -> Result<Running, GroupError> {
    let last_round = LastRound::default();
    let (name, disks, interval) = (group.name.clone(), group.config.disks.clone(), group.interval);
    let rounds = Rounds {
        disks: group.local_disks(with.roots),
        shipping: group.shipping(&with),
        group,
        hosts,
        last_round: last_round.clone(),
    };
    let thread = spawn(&name, move || rounds.run())?;
    Ok(Running { name, disks, interval, last_round, thread })
}

fn spawn(
    name: &GroupName,
    run: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, GroupError> {
    let spawned = thread::Builder::new().name("group".into()).spawn(run);
    spawned.map_err(|source| GroupError::Io { doing: format!("starting group {name}"), source })
}

/// The rounds of a group that is coordinated here.
struct Rounds {
    group: Group,
    disks: Vec<LocalDisk>,
    shipping: Shipping,
    hosts: Option<Arc<Hosts>>,
    last_round: LastRound,
}

impl Rounds {
    fn run(self) {
        let mut due = clock::monotonic();
        while !self.shipping.stop.load(Ordering::Relaxed) {
            if clock::monotonic() < due {
                clock::sleep(LOOK_EVERY);
                continue;
            }
            let may = |disk: &LocalDisk| {
                disk.in_step().unwrap_or(false) && self.shipping.may_begin(&disk.name).is_ok()
            };
            if !self.disks.iter().all(may) {
                self.last_round.gives_up();
                clock::sleep(LOOK_EVERY);
                continue;
            }
            self.last_round.begins();
            let began = clock::monotonic();
            let job = GroupJob {
                group: &self.group,
                disks: self.disks.clone(),
                shipping: self.shipping.clone(),
                hosts: self.hosts.as_deref(),
            };
            log(&self.group.name, &run_group(job));
            // As for a disk: not before half of its time has passed, unless back to back.
            let took = clock::since(began);
            due = if self.group.interval.is_zero() {
                clock::monotonic()
            } else {
                (began + self.group.interval).max(clock::monotonic() + took / 2)
            };
        }
    }
}

fn log(name: &GroupName, result: &Result<GroupReport, GroupError>) {
    match result {
        Ok(report) => match (&report.point, &report.void) {
            (Some(point), _) => tracing::info!(
                "group {name}: point {} of {} disks (writes held {:.2} ms, {:?})",
                point.number,
                point.members.len(),
                report.held_ns as f64 / 1e6,
                report.duration
            ),
            (None, void) => tracing::warn!(
                "group {name}: no group point: {}; its disks have points of their own",
                void.as_deref().unwrap_or_default()
            ),
        },
        Err(e) => tracing::error!("group {name}: no group point: {e}"),
    }
}

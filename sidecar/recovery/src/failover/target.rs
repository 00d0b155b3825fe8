//! The target's side: bringing a point up, changing and removing it, and the commit.
//!
//! Callers must hold the [`NameLock`](super::NameLock) of the name: without it no driver is started for them.

use std::path::PathBuf;

use backstay_engine::cycle::CycleReport;
use backstay_engine::jobs::{JobBook, JobKind};
use backstay_engine::protection::Protection;
use backstay_engine::record::Record;
use backstay_engine::requests::Asked;
use backstay_format::control::DriverStatus;
use backstay_front::paths::DiskPaths;
use backstay_host::own_dir::own_dir;
use backstay_types::{DiskId, DiskName};
use backstay_vault::TermRecord;

use super::executor::{Executor, ServedDisk, may, place};
use super::rules::Verb;
use super::vault::{self, PointInVault};
use super::{
    FailoverError, FailoverRecord, Kind, OfGroup, PointRef, Result, State, failed, now_unix_ns,
    source, stopped, way_on,
};
use crate::host::serve::{From, How};
use crate::host::{Doing, HostError, disks, remove_folder};
use crate::mount::{self, Hydration, MountedPoint, PointChoice};
use crate::replica;

/// A request to bring up a point.
pub struct Order {
    /// A test or a failover.
    pub kind: Kind,
    /// The disk's name in the vault.
    pub name: DiskName,
    /// Its name on this host.
    pub local: DiskName,
    /// Which point.
    pub which: Which,
    /// The vault, if it is not the configuration's.
    pub vault: Option<String>,
    /// Whether a device is wanted.
    pub attach: bool,
    /// The group point that it belongs to.
    pub group: Option<OfGroup>,
    /// Whether to take over the replica of this host instead.
    pub replica: bool,
}

impl Order {
    fn verb(&self) -> Verb {
        match self.kind {
            Kind::Test => Verb::TestAs,
            Kind::Planned => Verb::Planned,
            _ if self.replica => Verb::UnplannedReplica,
            _ => Verb::Unplanned,
        }
    }
}

/// Which point.
#[derive(Clone, Copy)]
pub enum Which {
    /// The point of the handover.
    HandedOver,
    /// A chosen point.
    Choice(Wanted<PointChoice>),
}

/// A chosen point of a disk or a group.
#[derive(Clone, Copy)]
pub struct Wanted<P> {
    /// Which.
    pub point: P,
    /// Whether a point of a history that a failover left behind is allowed.
    pub left_history: bool,
}

fn refused<T>(message: String) -> Result<T> {
    Err(FailoverError::NotSafe(format!("{message}. Nothing was changed")))
}

/// Brings a point up, or continues an earlier attempt.
pub fn bring_up(host: &dyn Executor, order: &Order) -> Result<ServedDisk> {
    let (root, local_name) = (&host.roots().state, &order.local);
    let is_it =
        |record: &FailoverRecord| record.kind == order.kind && record.disk_name == order.name;
    let record = match FailoverRecord::load(root, local_name)? {
        // An earlier command was killed while it changed to another point.
        Some(record)
            if is_it(&record) && record.state == State::Removing && record.next.is_some() =>
        {
            return go_on_changing(host, record, order.attach);
        }
        // The mounted point was handed over, and another host has taken it: it is useless now.
        Some(record) if record.state == State::HandedOver && is_left(host, &record)? => {
            leave(host, record)?;
            begin(host, order)?
        }
        record => {
            may(host, local_name, order.verb())?;
            match record {
                Some(record) if record.kind == Kind::Source => {
                    leave(host, record)?;
                    begin(host, order)?
                }
                Some(record) if is_it(&record) => record,
                Some(record) => {
                    return refused(format!(
                        "disk {local_name} of this host is disk {} of the vault, {}: {}",
                        record.disk_name,
                        record.state.explain(),
                        way_on(local_name, record.kind, record.state)
                    ));
                }
                None => begin(host, order)?,
            }
        }
    };
    start(host, record, order.attach)
}

/// If this host is the source of a disk, hands the disk over before it comes up here under a name. Returns the disks
/// that were handed over.
///
/// # Errors
/// If the handover fails.
pub fn hand_over_here(
    host: &dyn Executor,
    name: &DiskName,
    local: &DiskName,
) -> Result<Vec<FailoverRecord>> {
    if !disks(host.roots()).contains(name) {
        return Ok(vec![]);
    }
    let record = FailoverRecord::load(&host.roots().state, name)?;
    // The disk may also be left from an earlier failover, or this handover may have begun already.
    let is_source =
        record.is_none_or(|record| matches!(record.state, State::Committed | State::HandingOver));
    if !is_source {
        return Ok(vec![]);
    }
    if local == name {
        may(host, name, Verb::Planned)?;
    }
    source::handover(host, std::slice::from_ref(name), None, &source::Stopping::default())
}

/// Whether a mounted point that was handed over has been taken by another host. A backing is then kept for a
/// failback; a mounted point is not.
fn is_left(host: &dyn Executor, record: &FailoverRecord) -> Result<bool> {
    if !host.roots().disk(&record.name).state.join("mounted").exists() {
        return Ok(false);
    }
    let newest = host.config().vaults.open(&record.vault)?.newest_term(record.disk)?;
    Ok(newest.is_some_and(|newest| newest.term > record.after))
}

fn leave(host: &dyn Executor, mut record: FailoverRecord) -> Result<()> {
    record.enter(&host.roots().state, State::Removing)?;
    take_away(host, &record)?;
    record.end(&host.roots().state)
}

fn begin(host: &dyn Executor, order: &Order) -> Result<FailoverRecord> {
    let record = look(host, order)?;
    record.begin(&host.roots().state)?;
    Ok(record)
}

/// Checks everything, and returns the record to write.
pub fn look(host: &dyn Executor, order: &Order) -> Result<FailoverRecord> {
    let local_name = &order.local;
    let paths = host.roots().disk(local_name);
    if !order.replica && stopped::superblock(&paths).is_some() {
        return refused(format!(
            "this host has a disk {local_name} already: use --as NAME; or, if it is the old source, backstay \
             failback"
        ));
    }
    let url = order.vault.clone().unwrap_or_else(|| host.config().vault_of(&order.name).into());
    let vault = host.config().vaults.open(&url)?;
    vault.check_readable()?;
    let disk = vault.disk_named(&order.name)?.disk;
    if order.kind != Kind::Test {
        refuse_if_here(host, local_name, &order.name, disk)?;
    }
    let PointInVault { term, point, .. } = match order.which {
        Which::HandedOver => vault::handed_over(&vault, &order.name, disk)?,
        Which::Choice(Wanted { point: PointChoice::Latest, .. }) => {
            let point = vault::newest_on_line(&vault, disk)?;
            vault.refuse_damaged(disk, point.cycle)?;
            vault::look_at(&vault, &order.name, disk, point, false)?
        }
        Which::Choice(Wanted { point, left_history }) => {
            let point = mount::choose(&vault, disk, point)?;
            vault::look_at(&vault, &order.name, disk, point, left_history)?
        }
    };
    if order.kind == Kind::Unplanned
        && let Some(handover) = vault.handover(disk)?
        && handover.point == point.point
    {
        host.told()
            .note(&format!("{}: it was handed over at this point: nothing is lost", order.name));
    }
    Ok(FailoverRecord {
        name: local_name.clone(),
        kind: order.kind,
        state: State::Starting,
        vault: url,
        disk,
        disk_name: order.name.clone(),
        point: (!order.replica).then(|| PointRef::from(&point)),
        after: term.term,
        backing: None,
        next: None,
        group: order.group.clone(),
        since_unix_ns: now_unix_ns(),
    })
}

/// A disk that this host serves as the source can only be failed over after a handover.
fn refuse_if_here(
    host: &dyn Executor,
    local_name: &DiskName,
    name: &DiskName,
    disk: DiskId,
) -> Result<()> {
    for here in disks(host.roots()) {
        let Some(superblock) = stopped::superblock(&host.roots().disk(&here)) else { continue };
        let is_it =
            superblock.disk == disk || superblock.base.is_some_and(|base| base.vault_disk == disk);
        if !is_it || here == *local_name {
            continue;
        }
        let record = FailoverRecord::load(&host.roots().state, &here)?;
        let is_over = record
            .as_ref()
            .is_some_and(|record| record.kind == Kind::Test || record.state == State::HandedOver);
        if !is_over {
            return refused(format!(
                "disk {name} is disk {here} of this host, and what it holds may be newer: hand it over first \
                 (backstay failover handover {here}), or try a point with backstay failover test"
            ));
        }
    }
    Ok(())
}

/// Serves what a record says; `Starting` or `Up` already.
fn start(host: &dyn Executor, mut record: FailoverRecord, attach: bool) -> Result<ServedDisk> {
    let name = record.name.clone();
    let jobs = JobBook::below(&host.roots().state);
    let work = match record.kind {
        Kind::Test => JobKind::TestFailover,
        Kind::Planned => JobKind::PlannedFailover,
        _ => JobKind::UnplannedFailover,
    };
    let job = jobs.begin(&name, work);
    job.progress("bringing up", 0, 0);
    let served = start_serving(host, &mut record);
    let point = record.point.map(|point| point.cycle);
    job.end_at(served.as_ref().map(|()| point).map_err(ToString::to_string));
    served?;
    let point = record.point.map_or("-".into(), |point| point.cycle.to_string());
    let next = match record.kind {
        Kind::Test => format!("backstay failover cleanup {name} removes it"),
        _ => format!("nothing is committed: backstay failover commit, change or cancel {name}"),
    };
    let disk = &record.disk_name;
    host.told().note(&format!("{name}: recovery point {point} of disk {disk} is up; {next}"));
    place(host, &name, attach)
}

fn start_serving(host: &dyn Executor, record: &mut FailoverRecord) -> Result<()> {
    let (root, name) = (&host.roots().state, record.name.clone());
    if record.state == State::Starting {
        not_replicated(&host.roots().disk(&name), record)?;
    }
    host.step();
    if host.status(&name).is_none() {
        serve(host, record)?;
    }
    let status = host.status(&name).doing(|| format!("disk {name} is not served"))?;
    if record.state == State::Starting {
        if record.point.is_none() {
            let (point, backing) = of_replica(host, record, &status)?;
            (record.point, record.backing) = (Some(point), Some(backing));
        }
        record.enter(root, State::Up)?;
    }
    Ok(())
}

/// This happens before a driver serves the disk: no sidecar of this host may ship from it.
pub fn not_replicated(paths: &DiskPaths, record: &FailoverRecord) -> Result<()> {
    own_dir(&paths.state).map_err(HostError::from)?;
    let protection = Protection {
        backing: record.backing.clone().unwrap_or_default(),
        vault: record.vault.clone(),
        policy: None,
        ending: true,
    };
    Ok(protection.save(&paths.state).doing(|| format!("disk {}", record.name))?)
}

/// Continues as it was begun, regardless of the present request.
fn serve(host: &dyn Executor, record: &FailoverRecord) -> Result<()> {
    let name = &record.name;
    if record.backing.is_some() || record.point.is_none() {
        return Ok(host.serve_replica(name)?);
    }
    let cycle = record.point.doing(|| "which point was not written down".into())?.cycle;
    let from = From::Point { vault: &record.vault, disk: &record.disk_name, cycle };
    Ok(host.serve(name, from, &How::default())?)
}

/// The point that a replica was taken over at.
fn of_replica(
    host: &dyn Executor,
    record: &FailoverRecord,
    status: &DriverStatus,
) -> Result<(PointRef, PathBuf)> {
    let base = status.base.filter(|base| base.vault_disk == record.disk).doing(|| {
        format!("disk {} of this host is not disk {} of the vault", record.name, record.disk_name)
    })?;
    let vault = host.config().vaults.open(&record.vault)?;
    let point = vault.manifest(record.disk, base.cycle)?;
    if point.point != base.point {
        failed!("disk {}: recovery point {} is another one by now", record.name, base.cycle);
    }
    Ok((PointRef::from(&point), status.backing.clone()))
}

/// Changes to another point.
pub fn change(
    host: &dyn Executor,
    mut record: FailoverRecord,
    to: Wanted<PointChoice>,
    attach: bool,
) -> Result<ServedDisk> {
    let root = &host.roots().state;
    match record.state {
        State::Up => {}
        State::Removing if record.next.is_some() => {
            return go_on_changing(host, record, attach);
        }
        State::Starting if record.next.is_some() => return start(host, record, attach),
        state => {
            return refused(format!(
                "disk {} is {}: it cannot be changed to another point",
                record.name,
                state.explain()
            ));
        }
    }
    if record.backing.is_some() {
        return refused(format!(
            "disk {0} is a replica that was taken over: it has one point. backstay failover cancel {0} gives it up",
            record.name
        ));
    }
    {
        let vault = host.config().vaults.open(&record.vault)?;
        let point = match to.point {
            PointChoice::Latest => {
                let point = vault::newest_on_line(&vault, record.disk)?;
                vault.refuse_damaged(record.disk, point.cycle)?;
                point
            }
            choice => mount::choose(&vault, record.disk, choice)?,
        };
        let found = vault::look_at(&vault, &record.disk_name, record.disk, point, to.left_history)?;
        if found.term.term != record.after {
            let term = found.term;
            return Err(FailoverError::TakenOver {
                name: record.name,
                term: term.term,
                writer: term.writer,
            });
        }
        record.next = Some(PointRef::from(&found.point));
    }
    if let Some(status) = host.status(&record.name) {
        host.refuse_if_used(&record.name, &status)?;
    }
    record.enter(root, State::Removing)?;
    go_on_changing(host, record, attach)
}

fn go_on_changing(
    host: &dyn Executor,
    mut record: FailoverRecord,
    attach: bool,
) -> Result<ServedDisk> {
    take_away(host, &record)?;
    record.point = record.next;
    record.enter(&host.roots().state, State::Starting)?;
    start(host, record, attach)
}

/// Removes what was brought up.
///
/// # Errors
/// If the failover is committed, or the disk is in use.
pub fn remove(host: &dyn Executor, mut record: FailoverRecord) -> Result<()> {
    let root = &host.roots().state;
    if record.state == State::Committing {
        // The commit may have been killed right after it took the term.
        let taken = vault::is_taken(&host.config().vaults.open(&record.vault)?, &record)?;
        if taken {
            return refused(format!(
                "disk {name} is committed but for the rest: run backstay failover commit {name} again",
                name = record.name
            ));
        }
        record.enter(root, State::Up)?;
    }
    if !matches!(record.state, State::Starting | State::Up | State::Removing) {
        return refused(format!(
            "disk {} is {}, it cannot be cancelled: {}",
            record.name,
            record.state.explain(),
            way_on(&record.name, record.kind, record.state)
        ));
    }
    if let Some(status) = host.status(&record.name) {
        host.refuse_if_used(&record.name, &status)?;
    }
    record.next = None;
    record.enter(root, State::Removing)?;
    take_away(host, &record)?;
    record.end(root)
}

/// Removes mount, devices, state and hold. The writes to the point are lost.
fn take_away(host: &dyn Executor, record: &FailoverRecord) -> Result<()> {
    let (name, paths) = (&record.name, host.roots().disk(&record.name));
    host.stop(name)?;
    host.step();
    if paths.state.join("mounted").exists() || paths.state.join("mounted.unfinished").exists() {
        mount::forget(&host.config().vaults, name, &paths)?;
    }
    host.step();
    remove_folder(&paths.runtime)?;
    Ok(remove_folder(&paths.state)?)
}

/// How a failover is committed.
pub struct Committing<'a> {
    /// The policy that the disk follows.
    pub policy: Option<&'a str>,
    /// Whether the rest of the disk is fetched in the background.
    pub hydrate: bool,
}

/// Refuses a failover that cannot be committed.
pub fn may_commit(
    host: &dyn Executor,
    record: &FailoverRecord,
    how: &Committing<'_>,
) -> Result<()> {
    let name = &record.name;
    may(host, name, Verb::Commit)?;
    match how.policy.filter(|policy| !host.config().policy.contains_key(*policy)) {
        Some(policy) => refused(format!("there is no policy {policy:?} in the configuration")),
        None => Ok(()),
    }
}

/// Takes the term, and protects the disk on this host.
pub fn commit(
    host: &dyn Executor,
    record: FailoverRecord,
    how: &Committing<'_>,
) -> Result<Option<CycleReport>> {
    let (name, vault) = (record.name.clone(), record.vault.clone());
    take_over(host, record, how)?;
    first_cycle(host, &name, &vault)
}

/// Commits without the first cycle.
pub fn take_over(
    host: &dyn Executor,
    mut record: FailoverRecord,
    how: &Committing<'_>,
) -> Result<()> {
    may_commit(host, &record, how)?;
    let name = record.name.clone();
    let job = JobBook::below(&host.roots().state).begin(&name, JobKind::Commit);
    job.progress("taking the term", 0, 0);
    let taken = take_term(host, &mut record, how);
    let point = record.point.map(|point| point.cycle);
    job.end_at(taken.as_ref().map(|_| point).map_err(ToString::to_string));
    let term = taken?;
    host.told().note(&format!(
        "{name}: committed: term {} is this host's, and goes on from recovery point {}; the old source is \
         refused from now on",
        term.term,
        term.from.map_or("-".into(), |from| from.cycle.to_string())
    ));
    Ok(())
}

fn take_term(
    host: &dyn Executor,
    record: &mut FailoverRecord,
    how: &Committing<'_>,
) -> Result<TermRecord> {
    let (root, name) = (&host.roots().state, record.name.clone());
    let paths = host.roots().disk(&name);
    if host.status(&name).is_none() {
        serve(host, record)?;
    }
    let status = host.status(&name).doing(|| format!("disk {name} is not served"))?;
    let is_it = record.point.is_some_and(|point| point.is(status.base));
    if !is_it && record.state == State::Up {
        failed!(
            "disk {name} does not count from the point that was brought up; cancel it and begin again"
        );
    }
    record.enter(root, State::Committing)?;
    let vault = host.config().vaults.open(&record.vault)?;
    let term = match vault::take(&vault, record, &stopped::writer(status.disk)) {
        Err(e @ FailoverError::TakenOver { .. }) => {
            record.enter(root, State::Up)?;
            return Err(e);
        }
        term => term?,
    };
    if let Err(e) = replica::release_taken_over(&vault, &paths) {
        tracing::warn!("disk {name}: the hold of its replica ends by itself: {e}");
    }
    drop(vault);
    host.step();
    let protection = Protection {
        backing: record.backing.clone().unwrap_or_else(|| status.backing.clone()),
        vault: record.vault.clone(),
        policy: how.policy.map(str::to_owned),
        ending: false,
    };
    protection.save(&paths.state).doing(|| format!("disk {name}"))?;
    // Earlier failures only said that the disk did not belong to this host yet.
    let mut sidecar = Record::load(&paths.state);
    sidecar.resume();
    sidecar.save(&paths.state).doing(|| format!("disk {name}"))?;
    if how.hydrate && MountedPoint::load(&name, &paths)?.is_some() {
        Hydration { wanted: true, limit_bytes: None }.save(&paths)?;
    }
    record.enter(root, State::Committed)?;
    host.step();
    host.ask(&Asked::Look(name))?;
    Ok(term)
}

/// Runs the first cycle, in the sidecar or in this process. Returns its report.
///
/// # Errors
/// If the cycle fails. The disk belongs to this host in any case.
pub fn first_cycle(
    host: &dyn Executor,
    name: &DiskName,
    vault: &str,
) -> Result<Option<CycleReport>> {
    if host.has_sidecar() {
        host.ask(&Asked::Cycle(name.clone()))?;
        return Ok(None);
    }
    host.told()
        .note(&format!("{name}: no sidecar is running: a cycle is made here; then start one"));
    let report = host.cycle(name, vault).doing(|| {
        format!("disk {name} is committed and this host's; the next sidecar makes its first cycle")
    })?;
    Ok(Some(report))
}

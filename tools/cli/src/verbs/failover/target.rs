//! The target's side: bringing a point up, changing and removing it, and the commit.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use backstay_engine::jobs::JobBook;
use backstay_engine::protection::Protection;
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_engine::schedule::Work;
use backstay_engine::service::is_running;
use backstay_front::paths::DiskPaths;
use backstay_host::own_dir::own_dir;
use backstay_recovery::failover::rules::Verb;
use backstay_recovery::failover::vault::{self, Found};
use backstay_recovery::failover::{
    FailoverError, FailoverRecord, Kind, OfGroup, PointRef, State, now_unix_ns, step, stopped,
    way_on,
};
use backstay_recovery::lazy::{self, Hydration, MountedPoint, PointChoice};
use backstay_recovery::replica;
use backstay_types::DiskName;
use backstay_vault::{TermRecord, Vault};

use super::super::cycle::{line, run_once};
use super::local;
use crate::context::Context;
use crate::exit::Refused;

/// What is to be brought up.
pub struct Order {
    /// A test or a failover.
    pub kind: Kind,
    /// The disk's name in the vault.
    pub name: DiskName,
    /// Its name here.
    pub local: DiskName,
    /// Which point.
    pub which: Which,
    /// The vault, if not the configuration's.
    pub vault: Option<String>,
    /// Whether a device is wanted.
    pub attach: bool,
    /// The group's point it is of.
    pub group: Option<OfGroup>,
    /// The replica of this host is taken over.
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
    /// That of the handover.
    HandedOver,
    /// One that was chosen, of a history that was left only if that was said.
    Choice(PointChoice, bool),
}

fn refused<T>(message: String) -> anyhow::Result<T> {
    Err(Refused(format!("{message}. Nothing was changed")).into())
}

/// Brings a point up, or goes on with that.
pub fn bring_up(context: &Context, order: &Order) -> anyhow::Result<()> {
    let (root, local_name) = (&context.roots.state, &order.local);
    let is_it =
        |record: &FailoverRecord| record.kind == order.kind && record.disk_name == order.name;
    let record = match FailoverRecord::load(root, local_name)? {
        // Another point was asked for, and that was killed.
        Some(record)
            if is_it(&record) && record.state == State::Removing && record.next.is_some() =>
        {
            return go_on_changing(context, record, order.attach);
        }
        // A mounted point that was handed over, and taken: it is of no use any more.
        Some(record) if record.state == State::HandedOver && is_left(context, &record)? => {
            leave(context, record)?;
            begin(context, order)?
        }
        record => {
            context.may(local_name, order.verb())?;
            match record {
                Some(record) if record.kind == Kind::Source => {
                    leave(context, record)?;
                    begin(context, order)?
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
                None => begin(context, order)?,
            }
        }
    };
    // One that was begun goes on as it was begun.
    let from_replica = record.point.is_none();
    start(context, record, from_replica, order.attach)
}

/// Whether a mounted point that was handed over has been taken by another host. A backing is worth keeping
/// then, for a failback; a mounted point is not.
fn is_left(context: &Context, record: &FailoverRecord) -> anyhow::Result<bool> {
    if !context.roots.disk(&record.name).state.join("mounted").exists() {
        return Ok(false);
    }
    let newest = Vault::open(&record.vault)?.newest_term(record.disk)?;
    Ok(newest.is_some_and(|newest| newest.term > record.after))
}

fn leave(context: &Context, mut record: FailoverRecord) -> anyhow::Result<()> {
    record.enter(&context.roots.state, State::Removing)?;
    take_away(context, &record)?;
    Ok(record.end(&context.roots.state)?)
}

fn begin(context: &Context, order: &Order) -> anyhow::Result<FailoverRecord> {
    let record = look(context, order)?;
    record.begin(&context.roots.state)?;
    Ok(record)
}

/// Looks at everything; what is to be written down.
pub fn look(context: &Context, order: &Order) -> anyhow::Result<FailoverRecord> {
    let local_name = &order.local;
    let paths = context.roots.disk(local_name);
    if !order.replica && stopped::superblock(&paths).is_some() {
        return refused(format!(
            "this host has a disk {local_name} already: use --as NAME; or, if it is the old source, backstay \
             failback"
        ));
    }
    let url = order.vault.clone().unwrap_or_else(|| context.config.vault_of(&order.name).into());
    let vault = Vault::open(&url)?;
    vault.check_readable()?;
    let disk = vault.disk_named(&order.name)?.disk;
    if order.kind != Kind::Test {
        refuse_if_here(context, local_name, &order.name, disk)?;
    }
    let Found { term, point, .. } = match order.which {
        Which::HandedOver => vault::handed_over(&vault, &order.name, disk)?,
        Which::Choice(PointChoice::Latest, _) => {
            let point = vault::newest_on_line(&vault, disk)?;
            vault.refuse_damaged(disk, point.cycle)?;
            vault::look_at(&vault, &order.name, disk, point, false)?
        }
        Which::Choice(choice, left_history) => {
            let point = lazy::choose(&vault, disk, choice)?;
            vault::look_at(&vault, &order.name, disk, point, left_history)?
        }
    };
    if order.kind == Kind::Unplanned
        && let Some(handover) = vault.handover(disk)?
        && handover.point == point.point
        && !context.globals.quiet
    {
        eprintln!("{}: it was handed over at this point: nothing is lost", order.name);
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

/// A disk that this very host serves from its source is failed over by its handover alone.
fn refuse_if_here(
    context: &Context,
    local_name: &DiskName,
    name: &DiskName,
    disk: backstay_types::DiskId,
) -> anyhow::Result<()> {
    for here in context.disks() {
        let Some(superblock) = stopped::superblock(&context.roots.disk(&here)) else { continue };
        let is_it =
            superblock.disk == disk || superblock.base.is_some_and(|base| base.vault_disk == disk);
        if !is_it || here == *local_name {
            continue;
        }
        let record = FailoverRecord::load(&context.roots.state, &here)?;
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
fn start(
    context: &Context,
    mut record: FailoverRecord,
    from_replica: bool,
    attach: bool,
) -> anyhow::Result<()> {
    let name = record.name.clone();
    let jobs = JobBook::below(&context.roots.state);
    let work = match record.kind {
        Kind::Test => Work::TestFailover,
        Kind::Planned => Work::PlannedFailover,
        _ => Work::UnplannedFailover,
    };
    let job = jobs.begin(&name, work);
    job.progress("bringing up", 0, 0);
    let served = start_serving(context, &mut record, from_replica);
    let point = record.point.map(|point| point.cycle);
    job.end_at(served.as_ref().map(|()| point).map_err(|e| format!("{e:#}")));
    served?;
    if !context.globals.quiet {
        let point = record.point.map_or("-".into(), |point| point.cycle.to_string());
        let next = match record.kind {
            Kind::Test => format!("backstay failover cleanup {name} removes it"),
            _ => format!("nothing is committed: backstay failover commit, change or cancel {name}"),
        };
        eprintln!("{name}: recovery point {point} of disk {} is up; {next}", record.disk_name);
    }
    local::print_place(context, &name, attach)
}

fn start_serving(
    context: &Context,
    record: &mut FailoverRecord,
    from_replica: bool,
) -> anyhow::Result<()> {
    let (root, name) = (&context.roots.state, record.name.clone());
    if record.state == State::Starting {
        not_replicated(&context.roots.disk(&name), record)?;
    }
    step();
    if local::driver(context, &name).is_none() {
        serve(context, record, from_replica)?;
    }
    let status =
        local::driver(context, &name).with_context(|| format!("disk {name} is not served"))?;
    if record.state == State::Starting {
        if record.point.is_none() {
            let (point, backing) = of_replica(record, &status)?;
            (record.point, record.backing) = (Some(point), Some(backing));
        }
        record.enter(root, State::Up)?;
    }
    Ok(())
}

/// Before a driver serves it: no sidecar of this host may take it for a disk to ship.
pub fn not_replicated(paths: &DiskPaths, record: &FailoverRecord) -> anyhow::Result<()> {
    own_dir(&paths.state)?;
    let protection = Protection {
        backing: record.backing.clone().unwrap_or_default(),
        vault: record.vault.clone(),
        policy: None,
        ending: true,
    };
    protection.save(&paths.state).with_context(|| format!("disk {}", record.name))
}

fn serve(context: &Context, record: &FailoverRecord, from_replica: bool) -> anyhow::Result<()> {
    let name = record.name.as_str();
    if from_replica || record.backing.is_some() {
        local::again(context, &["--quiet", "replica", name, "--take-over"])?;
        return Ok(());
    }
    let point = record.point.context("which point was not written down")?.cycle.to_string();
    local::again(
        context,
        &[
            "--quiet",
            "mount",
            "--vault",
            &record.vault,
            "--disk",
            record.disk_name.as_str(),
            "--point",
            &point,
            "--name",
            name,
        ],
    )?;
    Ok(())
}

/// The point that a replica was taken over at.
fn of_replica(
    record: &FailoverRecord,
    status: &backstay_format::control::DriverStatus,
) -> anyhow::Result<(PointRef, PathBuf)> {
    let base = status.base.filter(|base| base.vault_disk == record.disk).with_context(|| {
        format!("disk {} of this host is not disk {} of the vault", record.name, record.disk_name)
    })?;
    let vault = Vault::open(&record.vault)?;
    let point = vault.manifest(record.disk, base.cycle)?;
    if point.point != base.point {
        bail!("disk {}: recovery point {} is another one by now", record.name, base.cycle);
    }
    Ok((PointRef::from(&point), status.backing.clone()))
}

/// Another point instead.
pub fn change(
    context: &Context,
    mut record: FailoverRecord,
    to: (PointChoice, bool),
    attach: bool,
) -> anyhow::Result<()> {
    let root = &context.roots.state;
    match record.state {
        State::Up => {}
        State::Removing if record.next.is_some() => {
            return go_on_changing(context, record, attach);
        }
        State::Starting if record.next.is_some() => return start(context, record, false, attach),
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
        let vault = Vault::open(&record.vault)?;
        let point = match to.0 {
            PointChoice::Latest => {
                let point = vault::newest_on_line(&vault, record.disk)?;
                vault.refuse_damaged(record.disk, point.cycle)?;
                point
            }
            choice => lazy::choose(&vault, record.disk, choice)?,
        };
        let found = vault::look_at(&vault, &record.disk_name, record.disk, point, to.1)?;
        if found.term.term != record.after {
            let term = found.term;
            return Err(FailoverError::TakenOver {
                name: record.name,
                term: term.term,
                writer: term.writer,
            }
            .into());
        }
        record.next = Some(PointRef::from(&found.point));
    }
    if let Some(status) = local::driver(context, &record.name) {
        local::refuse_if_used(&record.name, &status)?;
    }
    record.enter(root, State::Removing)?;
    go_on_changing(context, record, attach)
}

fn go_on_changing(
    context: &Context,
    mut record: FailoverRecord,
    attach: bool,
) -> anyhow::Result<()> {
    take_away(context, &record)?;
    record.point = record.next;
    record.enter(&context.roots.state, State::Starting)?;
    start(context, record, false, attach)
}

/// Removes what was brought up; false if that is not so.
pub fn remove(context: &Context, mut record: FailoverRecord) -> anyhow::Result<bool> {
    let root = &context.roots.state;
    if record.state == State::Committing {
        // It may have been killed right after it took the term.
        let taken = vault::is_taken(&Vault::open(&record.vault)?, &record)?;
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
    if let Some(status) = local::driver(context, &record.name) {
        local::refuse_if_used(&record.name, &status)?;
    }
    record.next = None;
    record.enter(root, State::Removing)?;
    take_away(context, &record)?;
    record.end(root)?;
    Ok(true)
}

/// Takes away mount, devices, state and hold; what was written to it is gone then.
fn take_away(context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
    let (name, paths) = (&record.name, context.roots.disk(&record.name));
    local::stop(context, name)?;
    step();
    if paths.state.join("mounted").exists() || paths.state.join("mounted.unfinished").exists() {
        lazy::forget(name, &paths)?;
    }
    step();
    local::remove_folder(&paths.runtime)?;
    local::remove_folder(&paths.state)
}

/// How a failover is committed.
pub struct Committing<'a> {
    /// The policy that the disk follows.
    pub policy: Option<&'a str>,
    /// Whether the rest of it is fetched in the background.
    pub hydrate: bool,
}

/// Refuses what cannot be committed.
pub fn may_commit(
    context: &Context,
    record: &FailoverRecord,
    how: &Committing<'_>,
) -> anyhow::Result<()> {
    let name = &record.name;
    context.may(name, Verb::Commit)?;
    match how.policy.filter(|policy| !context.config.policy.contains_key(*policy)) {
        Some(policy) => refused(format!("there is no policy {policy:?} in the configuration")),
        None => Ok(()),
    }
}

/// Takes the term, and protects what is served here.
pub fn commit(
    context: &Context,
    record: FailoverRecord,
    how: &Committing<'_>,
) -> anyhow::Result<()> {
    let (name, vault) = (record.name.clone(), record.vault.clone());
    take_over(context, record, how)?;
    first_cycle(context, &name, &vault)
}

/// The same without its first cycle.
pub fn take_over(
    context: &Context,
    mut record: FailoverRecord,
    how: &Committing<'_>,
) -> anyhow::Result<()> {
    may_commit(context, &record, how)?;
    let name = record.name.clone();
    let job = JobBook::below(&context.roots.state).begin(&name, Work::Commit);
    job.progress("taking the term", 0, 0);
    let taken = take_term(context, &mut record, how);
    let point = record.point.map(|point| point.cycle);
    job.end_at(taken.as_ref().map(|_| point).map_err(|e| format!("{e:#}")));
    let term = taken?;
    if !context.globals.quiet {
        eprintln!(
            "{name}: committed: term {} is this host's, and goes on from recovery point {}; the old source is \
             refused from now on",
            term.term,
            term.from.map_or("-".into(), |from| from.cycle.to_string())
        );
    }
    Ok(())
}

fn take_term(
    context: &Context,
    record: &mut FailoverRecord,
    how: &Committing<'_>,
) -> anyhow::Result<TermRecord> {
    let (root, name) = (&context.roots.state, record.name.clone());
    let paths = context.roots.disk(&name);
    if local::driver(context, &name).is_none() {
        serve(context, record, false)?;
    }
    let status =
        local::driver(context, &name).with_context(|| format!("disk {name} is not served"))?;
    let is_it = record.point.is_some_and(|point| point.is(status.base));
    if !is_it && record.state == State::Up {
        bail!(
            "disk {name} does not count from the point that was brought up; cancel it and begin anew"
        );
    }
    record.enter(root, State::Committing)?;
    let vault = Vault::open(&record.vault)?;
    let term = match vault::take(&vault, record, &stopped::writer(status.disk)) {
        Err(e @ FailoverError::TakenOver { .. }) => {
            record.enter(root, State::Up)?;
            return Err(e.into());
        }
        term => term?,
    };
    if let Err(e) = replica::release_taken_over(&vault, &paths) {
        tracing::warn!("disk {name}: the hold of its replica ends by itself: {e}");
    }
    drop(vault);
    step();
    let protection = Protection {
        backing: record.backing.clone().unwrap_or_else(|| status.backing.clone()),
        vault: record.vault.clone(),
        policy: how.policy.map(str::to_owned),
        ending: false,
    };
    protection.save(&paths.state).with_context(|| format!("disk {name}"))?;
    // What failed before was that the disk was not this host's yet.
    let mut sidecar = Record::load(&paths.state);
    sidecar.resume();
    sidecar.save(&paths.state).with_context(|| format!("disk {name}"))?;
    if how.hydrate && MountedPoint::load(&name, &paths)?.is_some() {
        Hydration { wanted: true, limit_bytes: None }.save(&paths)?;
    }
    record.enter(root, State::Committed)?;
    step();
    ask(root, &Asked::Look(name))?;
    Ok(term)
}

/// Has the first cycle made: by the sidecar, or here.
pub fn first_cycle(context: &Context, name: &DiskName, vault: &str) -> anyhow::Result<()> {
    if is_running(&context.roots) {
        return Ok(ask(&context.roots.state, &Asked::Cycle(name.clone()))?);
    }
    if !context.globals.quiet {
        eprintln!("{name}: no sidecar is running: a cycle is made here; then start one");
    }
    let report = run_once(context, name, Some(vault)).with_context(|| {
        format!("disk {name} is committed and this host's; the next sidecar makes its first cycle")
    })?;
    if !context.globals.quiet {
        eprintln!("{}", line(name, &report));
    }
    Ok(())
}

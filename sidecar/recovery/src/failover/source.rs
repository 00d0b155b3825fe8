//! The source's side: handing over, one disk or several at once.
//!
//! If a step fails before the first term is relinquished, everything is undone: each disk is served again as before.

use std::time::Duration;

use backstay_engine::jobs::{JobBook, JobHandle, JobKind};
use backstay_types::{DiskName, Term};
use backstay_vault::{GroupMember, GroupName};

use super::executor::{Executor, may};
use super::rules::{NameKind, NameState, Verb, refusal};
use super::vault::{Withdrawn, hand_over, withdraw};
use super::{
    FailoverError, FailoverRecord, Kind, NameLock, PointRef, Result, State, failed, now_unix_ns,
    stopped,
};
use crate::host::serve::{From, How};
use crate::host::{Doing, Serving, backing};

/// How the users of the disk are stopped.
#[derive(Debug, Clone, Default)]
pub struct Stopping {
    /// Command that stops the users of the disk.
    pub stop_command: Option<String>,
    /// Command that starts them again if the handover fails.
    pub start_command: Option<String>,
    /// How long each of these commands may take.
    pub command_timeout: Duration,
    /// Unmount the file systems that are mounted from the disk.
    pub unmount: bool,
}

impl Stopping {
    /// Whether no user is stopped; then a disk that is in use is refused.
    fn is_nothing(&self) -> bool {
        self.stop_command.is_none() && !self.unmount
    }
}

/// How far the handover of a disk is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Checked; the disk is served as before.
    Looked,
    /// Its record says that it is being handed over.
    Begun,
    /// It is unknown whether its term is relinquished.
    Laying,
    /// Its term is relinquished.
    Done,
}

/// A disk that is handed over.
struct Member {
    record: FailoverRecord,
    at: At,
    /// Whether it was handed over before this command.
    was_done: bool,
    /// The record of an earlier failover, which this handover replaces.
    follows: Option<FailoverRecord>,
    /// How the disk was served; none if it was not served, or if an earlier command was killed after stopping it.
    before: Option<Serving>,
    job: Option<JobHandle>,
}

/// Stops disks, ships their last changes, and relinquishes their terms.
///
/// # Errors
/// Why the disks are not handed over, and how they are served now.
pub fn handover(
    host: &dyn Executor,
    names: &[DiskName],
    group: Option<&GroupName>,
    how: &Stopping,
) -> Result<Vec<FailoverRecord>> {
    let lock = |name| NameLock::take(&host.roots().state, name, "failover handover");
    let _locks = names.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    let members: Result<Vec<_>> = names.iter().map(|name| Member::look(host, name, how)).collect();
    let mut handover = Handover { host, how, members: members?, stopped: false };
    let done = handover.go(group);
    match done {
        Ok(()) => {
            handover.members.iter_mut().for_each(|member| member.end_job(&Ok(())));
            Ok(handover.members.into_iter().map(|member| member.record).collect())
        }
        Err(e) => Err(handover.undo(e)),
    }
}

struct Handover<'a> {
    host: &'a dyn Executor,
    how: &'a Stopping,
    members: Vec<Member>,
    /// Whether the stop command was run.
    stopped: bool,
}

impl Handover<'_> {
    fn go(&mut self, group: Option<&GroupName>) -> Result<()> {
        let Self { host, how, .. } = *self;
        let used = |member: &&mut Member| member.at == At::Looked && member.before.is_some();
        if !how.is_nothing() {
            for member in self.members.iter_mut().filter(used) {
                let (name, vault) = (member.record.name.clone(), member.record.vault.clone());
                let Some(status) = host.status(&name) else { continue };
                // A disk that nobody uses is shipped only once.
                if status.dirty_sectors > 0 && host.refuse_if_used(&name, &status).is_err() {
                    host.ship(&name, &vault, false, member.job(host))?;
                }
            }
            if let Some(line) = &how.stop_command
                && self.members.iter_mut().any(|member| used(&member))
            {
                self.stopped = true;
                host.run(line, &self.names(), how.command_timeout)?;
            }
            if how.unmount {
                let before = self.members.iter().filter_map(|member| member.before.as_ref());
                before.into_iter().try_for_each(|before| host.unmount(before))?;
            }
        }
        for member in &self.members {
            if let (At::Looked, Some(status)) = (member.at, host.status(&member.record.name)) {
                host.refuse_if_used(&member.record.name, &status)?;
            }
        }
        let to_do = |member: &&mut Member| member.at != At::Done;
        for member in self.members.iter_mut().filter(to_do) {
            member.begin(host)?;
            quiet(host, &member.record)?;
        }
        // From now on nobody writes to the disks, so every cycle finds them quiet.
        for member in self.members.iter_mut().filter(to_do) {
            let (name, vault) = (member.record.name.clone(), member.record.vault.clone());
            let last = host.ship(&name, &vault, true, member.job(host));
            host.step();
            host.stop_after_cycle(&name)?;
            last?;
            stopped::exactly_at(&name, &host.roots().disk(&name))?;
        }
        for member in self.members.iter_mut().filter(to_do) {
            member.lay_down(host)?;
        }
        if let Some(group) = group {
            self.put_group_point(host, group);
        }
        Ok(())
    }

    fn names(&self) -> String {
        self.members.iter().map(|member| member.record.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// All disks were quiet before the first of the last cycles was cut, so their points together form a group point.
    /// People and unplanned failovers use it; a planned failover uses the handovers.
    fn put_group_point(&self, host: &dyn Executor, group: &GroupName) {
        let put = || {
            let first = self.members.first().doing(|| "the group has no disks".into())?;
            let vault = host.config().vaults.open(&first.record.vault)?;
            let mut members = vec![];
            for Member { record, .. } in &self.members {
                let at = record.point.doing(|| "a disk was handed over at no point".into())?;
                members.push(GroupMember {
                    host: None,
                    disk: record.disk,
                    name: record.disk_name.clone(),
                    cycle: at.cycle,
                    point: at.point,
                    cut_unix_ns: vault.manifest(record.disk, at.cycle)?.cut_unix_ns,
                });
            }
            let cut = members.iter().map(|member| member.cut_unix_ns).min().unwrap_or_default();
            Ok::<_, FailoverError>(vault.commit_group(group, members, cut)?)
        };
        if let Err(e) = put() {
            tracing::warn!(
                "group {group}: its disks are handed over, but have no group point: {e}"
            );
        }
    }

    /// Restores the earlier state as far as that is known to be safe. Returns the error, with the state of each disk.
    fn undo(&mut self, why: FailoverError) -> FailoverError {
        let mut open: Vec<String> = vec![];
        let failed = why.to_string();
        for member in &mut self.members {
            if let Err(e) = member.undo(self.host) {
                open.push(format!("disk {}: {e}", member.record.name));
            }
            member.end_job(&Err(failed.clone()));
        }
        if let (true, true, Some(line)) =
            (self.stopped, open.is_empty(), self.how.start_command.as_ref())
            && let Err(e) = self.host.run(line, &self.names(), self.how.command_timeout)
        {
            open.push(format!("what was stopped was not started again: {e}"));
        }
        match open.as_slice() {
            [] => why.while_doing(format!("{}: not handed over, all is as it was", self.names())),
            open => {
                why.while_doing(format!("{}: not handed over ({})", self.names(), open.join("; ")))
            }
        }
    }
}

impl Member {
    /// Checks a disk before anything is changed.
    fn look(host: &dyn Executor, name: &DiskName, how: &Stopping) -> Result<Self> {
        let root = &host.roots().state;
        may(host, name, Verb::Handover)?;
        let (record, at, follows) = match FailoverRecord::load(root, name)? {
            Some(record) if record.kind == Kind::Source => match record.state {
                State::HandedOver => (record, At::Done, None),
                State::HandingOver => match laid_down(host, &record)? {
                    Some(point) => {
                        let mut record = record;
                        (record.point, record.after) = (Some(point), point.term);
                        record.enter(root, State::HandedOver)?;
                        (record, At::Done, None)
                    }
                    None => (record, At::Begun, None),
                },
                _ => failed!("disk {name} is {}", record.state.explain()),
            },
            Some(record) if record.state == State::Committed => {
                (look(host, name)?, At::Looked, Some(record))
            }
            Some(record) => {
                failed!("disk {name} is {} on this host", record.state.explain());
            }
            None => (look(host, name)?, At::Looked, None),
        };
        let status = host.status(name).filter(|_| at == At::Looked);
        if let (Some(status), true) = (&status, how.is_nothing()) {
            host.refuse_if_used(name, status)?;
        }
        let before = status.map(|status| host.look(name, &status)).transpose()?;
        Ok(Self { record, at, was_done: at == At::Done, follows, before, job: None })
    }

    fn job(&mut self, host: &dyn Executor) -> &JobHandle {
        let name = &self.record.name;
        self.job.get_or_insert_with(|| {
            JobBook::below(&host.roots().state).begin(name, JobKind::Handover)
        })
    }

    fn end_job(&mut self, ended: &Result<(), String>) {
        if let Some(job) = self.job.take() {
            let point = self.record.point.map(|point| point.cycle);
            job.end_at(ended.clone().map(|()| point));
        }
    }

    /// Records that the handover begins.
    fn begin(&mut self, host: &dyn Executor) -> Result<()> {
        if self.at == At::Looked {
            self.job(host).progress("stopping", 0, 0);
            match self.follows.take() {
                Some(old) => old.become_another(&host.roots().state, &self.record)?,
                None => self.record.begin(&host.roots().state)?,
            }
            self.at = At::Begun;
        }
        Ok(())
    }

    /// Relinquishes the term; the disk has stopped.
    fn lay_down(&mut self, host: &dyn Executor) -> Result<()> {
        let name = self.record.name.clone();
        self.job(host).progress("handing over", 0, 0);
        let (disk, base) = stopped::exactly_at(&name, &host.roots().disk(&name))?;
        let vault = host.config().vaults.open(&self.record.vault)?;
        self.at = At::Laying;
        let writer = stopped::writer(disk);
        let point = hand_over(&vault, &name, base.vault_disk, &writer, base.cycle)?;
        self.record.disk = base.vault_disk;
        (self.record.point, self.record.after) = (Some(point), point.term);
        self.at = At::Done;
        self.record.enter(&host.roots().state, State::HandedOver)
    }

    /// Serves the disk again as before. An error says what its state is instead.
    fn undo(&mut self, host: &dyn Executor) -> Result<()> {
        let root = &host.roots().state;
        let name = self.record.name.clone();
        let advice = format!("run it again, or backstay failover cancel {name}");
        if self.was_done {
            failed!("it was handed over before: {advice}");
        }
        let before = self.before.as_ref();
        if self.at != At::Looked {
            if before.is_none() {
                failed!("it is stopped: {advice}")
            }
            host.stop_after_cycle(&name)?;
            if matches!(self.at, At::Laying | At::Done) {
                let disk = stopped::superblock(&host.roots().disk(&name));
                let disk = disk.doing(|| "its state is gone".into())?.disk;
                let back = host
                    .config()
                    .vaults
                    .open(&self.record.vault)
                    .map_err(FailoverError::from)
                    .and_then(|vault| withdraw(&vault, self.record.disk, &stopped::writer(disk)));
                match back {
                    Ok(Withdrawn::Done) => {}
                    Ok(Withdrawn::TooLate(term)) => failed!(
                        "it was handed over, and failed over already: term {} belongs to {}",
                        term.term,
                        term.writer
                    ),
                    Err(e) => failed!(
                        "nobody knows whether the vault has its handover ({e}), so it stays stopped: {advice}"
                    ),
                }
            }
            self.record.enter(root, State::TakingBack)?;
            self.record.clone().end(root)?;
            self.at = At::Looked;
        }
        match before {
            Some(before) => Ok(host.put_back(before).doing(|| "not served as before".into())?),
            None => Ok(()),
        }
    }
}

/// The point at which an earlier command relinquished the term, if it was killed before it could record that. No
/// other point may follow this one.
fn laid_down(host: &dyn Executor, record: &FailoverRecord) -> Result<Option<PointRef>> {
    let (name, paths) = (&record.name, host.roots().disk(&record.name));
    let Some(superblock) = stopped::superblock(&paths) else { return Ok(None) };
    let vault = host.config().vaults.open(&record.vault)?;
    let handover = vault.handover(record.disk)?;
    let Some(handover) = handover.filter(|h| h.writer == stopped::writer(superblock.disk)) else {
        return Ok(None);
    };
    host.stop_after_cycle(name)?;
    let (_, base) = stopped::exactly_at(name, &paths)?;
    if (base.cycle, base.point) != (handover.cycle, handover.point) {
        failed!(
            "disk {name} was handed over at recovery point {}, and counts from point {} now: cancel the handover \
             (backstay failover cancel {name}) and begin again",
            handover.cycle,
            base.cycle
        );
    }
    Ok(Some(PointRef { cycle: base.cycle, point: base.point, term: handover.term }))
}

/// The first record of a handover. Refuses a disk that cannot be handed over while the disk is still served.
fn look(host: &dyn Executor, name: &DiskName) -> Result<FailoverRecord> {
    let paths = host.roots().disk(name);
    let superblock = stopped::superblock(&paths)
        .doing(|| format!("there is no disk {name} in {}", host.roots().state.display()))?;
    let status = host.status(name);
    let base = status.as_ref().and_then(|status| status.base).or(superblock.base);
    let Some(base) = base else {
        let message = format!(
            "disk {name} has no recovery point yet: there is nothing to hand over. Run backstay cycle {name} \
             first. Nothing was changed"
        );
        return Err(FailoverError::NotSafe(message));
    };
    // A missing vault, or a disk that was failed over, is detected while the disk is still served.
    let url = host.config().vault_of(name).to_owned();
    let newest = host.config().vaults.open(&url)?.newest_term(base.vault_disk)?;
    let newest = newest.doing(|| format!("disk {name} has no term in {url}"))?;
    if newest.writer != stopped::writer(superblock.disk) {
        let standing = NameState { what: NameKind::Elsewhere, at_work: status.is_some() };
        let why =
            refusal(standing, name, Verb::Handover).map_or_else(String::new, |e| e.to_string());
        let message = format!("{why} (term {} belongs to {})", newest.term, newest.writer);
        return Err(FailoverError::NotSafe(message));
    }
    Ok(FailoverRecord {
        name: name.clone(),
        kind: Kind::Source,
        state: State::HandingOver,
        vault: url,
        disk: base.vault_disk,
        disk_name: name.clone(),
        point: None,
        after: Term(0),
        backing: backing(host.roots(), name)?,
        next: None,
        group: None,
        since_unix_ns: now_unix_ns(),
    })
}

/// Stops the disk and serves it at a place where its users cannot write: the path is not published, and only root can
/// enter it.
fn quiet(host: &dyn Executor, record: &FailoverRecord) -> Result<()> {
    let name = &record.name;
    let place = host.roots().disk(name).handover_point();
    if let Some(status) = host.status(name) {
        if status.served.starts_with(&place) {
            return Ok(());
        }
        host.refuse_if_used(name, &status)?;
        host.stop(name)?;
    }
    host.step();
    let how = How { mount_point: Some(&place), engine: None, handing_over: true };
    Ok(host.serve(name, From::Backing(record.backing.as_deref()), &how)?)
}

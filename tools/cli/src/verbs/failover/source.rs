//! The source's side: handing over, one disk or several at once.
//!
//! Until the first term is laid down, whatever fails is undone: each disk is served again as it was.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstay_engine::jobs::{JobBook, JobHandle};
use backstay_engine::protection::Protection;
use backstay_engine::schedule::Work;
use backstay_front::backing::record::BackingRecord;
use backstay_recovery::failover::rules::{Standing, Verb, What, refusal};
use backstay_recovery::failover::vault::{Withdrawn, hand_over, withdraw};
use backstay_recovery::failover::{
    FailoverRecord, Kind, NameLock, PointRef, State, now_unix_ns, step, stopped,
};
use backstay_recovery::run;
use backstay_types::{DiskName, Term};
use backstay_vault::{GroupMember, GroupName, Vault};
use clap::Args;

use super::super::target::time;
use super::last::ship;
use super::local;
use super::serving::Serving;
use crate::context::Context;
use crate::exit::Refused;

/// How what uses the disk is stopped.
#[derive(Args)]
pub struct Stopping {
    /// Command that stops what uses the disk
    #[arg(long, value_name = "COMMAND")]
    stop_command: Option<String>,
    /// Command that starts it again if the handover fails
    #[arg(long, value_name = "COMMAND", requires = "stop_command")]
    start_command: Option<String>,
    /// How long each of these commands may take
    #[arg(long, value_name = "DURATION", default_value = "5min")]
    command_timeout: humantime::Duration,
    /// Unmount the file systems that are mounted from the disk
    #[arg(long)]
    unmount: bool,
}

impl Stopping {
    /// Nothing is stopped: a disk that is in use is refused.
    pub fn nothing() -> Self {
        Self {
            stop_command: None,
            start_command: None,
            command_timeout: Duration::ZERO.into(),
            unmount: false,
        }
    }

    fn is_nothing(&self) -> bool {
        self.stop_command.is_none() && !self.unmount
    }

    /// Runs one of the commands.
    fn run(&self, line: &str, disks: &str) -> anyhow::Result<()> {
        let mut command = run::shell(line);
        command.env("BACKSTAY_DISKS", disks);
        let timeout = self.command_timeout.into();
        let (ended, said) = run::run(command, &mut run::scratch()?, timeout, &|| false)
            .with_context(|| format!("running {line:?}"))?;
        match ended.is_success() {
            true => Ok(()),
            false => bail!("{line:?}: {}: {said}", ended.words(timeout)),
        }
    }
}

/// How far a disk is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Looked at; served as ever.
    Looked,
    /// Its record says that it is being handed over.
    Begun,
    /// Nobody knows whether its term is laid down.
    Laying,
    /// Its term is laid down.
    Done,
}

/// A disk that is handed over.
struct Member {
    record: FailoverRecord,
    at: At,
    /// Whether it was handed over before this command.
    was_done: bool,
    /// A failover that this one follows.
    follows: Option<FailoverRecord>,
    /// How it was served; none if it was not, or is not since an earlier command was killed.
    before: Option<Serving>,
    job: Option<JobHandle>,
}

/// Stops disks, ships their last changes, and lays their terms down.
pub fn handover(
    context: &Context,
    names: &[DiskName],
    group: Option<&GroupName>,
    how: &Stopping,
) -> anyhow::Result<()> {
    let lock = |name| NameLock::take(&context.roots.state, name, "failover handover");
    let _locks = names.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    let members: anyhow::Result<Vec<_>> =
        names.iter().map(|name| Member::look(context, name, how)).collect();
    let mut handover = Handover { context, how, members: members?, stopped: false };
    let done = handover.go(group);
    match done {
        Ok(()) => {
            for member in &mut handover.members {
                member.end_job(&Ok(()));
                say(context, &member.record)?;
            }
            Ok(())
        }
        Err(e) => Err(handover.undo(e)),
    }
}

struct Handover<'a> {
    context: &'a Context,
    how: &'a Stopping,
    members: Vec<Member>,
    /// Whether the command that stops what uses the disks was run.
    stopped: bool,
}

impl Handover<'_> {
    fn go(&mut self, group: Option<&GroupName>) -> anyhow::Result<()> {
        let Self { context, how, .. } = *self;
        let used = |member: &&mut Member| member.at == At::Looked && member.before.is_some();
        if !how.is_nothing() {
            for member in self.members.iter_mut().filter(used) {
                let (name, vault) = (member.record.name.clone(), member.record.vault.clone());
                let Some(status) = local::driver(context, &name) else { continue };
                // What nobody uses is shipped once.
                if status.dirty_sectors > 0 && local::refuse_if_used(&name, &status).is_err() {
                    ship(context, (&name, &vault), false, member.job(context))?;
                }
            }
            if let Some(line) = &how.stop_command
                && self.members.iter_mut().any(|member| used(&member))
            {
                self.stopped = true;
                how.run(line, &self.names())?;
            }
            if how.unmount {
                let before = self.members.iter().filter_map(|member| member.before.as_ref());
                before.into_iter().try_for_each(Serving::unmount)?;
            }
        }
        for member in &self.members {
            if let (At::Looked, Some(status)) =
                (member.at, local::driver(context, &member.record.name))
            {
                local::refuse_if_used(&member.record.name, &status)?;
            }
        }
        let to_do = |member: &&mut Member| member.at != At::Done;
        for member in self.members.iter_mut().filter(to_do) {
            member.begin(context)?;
            quiet(context, &member.record)?;
        }
        // Whoever runs a cycle from now on finds disks that nobody writes.
        for member in self.members.iter_mut().filter(to_do) {
            let (name, vault) = (member.record.name.clone(), member.record.vault.clone());
            let last = ship(context, (&name, &vault), true, member.job(context));
            step();
            local::stop_after_cycle(context, &name)?;
            last?;
            stopped::exactly_at(&name, &context.roots.disk(&name))?;
        }
        for member in self.members.iter_mut().filter(to_do) {
            member.lay_down(context)?;
        }
        if let Some(group) = group {
            self.put_group_point(group);
        }
        Ok(())
    }

    fn names(&self) -> String {
        self.members.iter().map(|member| member.record.name.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// All were quiet before the first last cycle was cut: together their points are one of the group. It is
    /// for people and for unplanned failovers; a planned one looks at the handovers.
    fn put_group_point(&self, group: &GroupName) {
        let put = || {
            let first = self.members.first().context("the group has no disks")?;
            let vault = Vault::open(&first.record.vault)?;
            let mut members = vec![];
            for Member { record, .. } in &self.members {
                let at = record.point.context("a disk was handed over at no point")?;
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
            anyhow::Ok(vault.commit_group(group, members, cut)?)
        };
        if let Err(e) = put() {
            tracing::warn!(
                "group {group}: its disks are handed over, but have no group point: {e}"
            );
        }
    }

    /// Has everything as it was, as far as that is known to be safe; what went wrong, and how it is now.
    fn undo(&mut self, why: anyhow::Error) -> anyhow::Error {
        let mut open: Vec<String> = vec![];
        let failed = format!("{why:#}");
        for member in &mut self.members {
            if let Err(e) = member.undo(self.context) {
                open.push(format!("disk {}: {e:#}", member.record.name));
            }
            member.end_job(&Err(failed.clone()));
        }
        if let (true, true, Some(line)) =
            (self.stopped, open.is_empty(), self.how.start_command.as_ref())
            && let Err(e) = self.how.run(line, &self.names())
        {
            open.push(format!("what was stopped was not started again: {e:#}"));
        }
        match open.as_slice() {
            [] => why.context(format!("{}: not handed over, all is as it was", self.names())),
            open => why.context(format!("{}: not handed over ({})", self.names(), open.join("; "))),
        }
    }
}

impl Member {
    /// What is known before anything is changed.
    fn look(context: &Context, name: &DiskName, how: &Stopping) -> anyhow::Result<Self> {
        let root = &context.roots.state;
        context.may(name, Verb::Handover)?;
        let (record, at, follows) = match FailoverRecord::load(root, name)? {
            Some(record) if record.kind == Kind::Source => match record.state {
                State::HandedOver => (record, At::Done, None),
                State::HandingOver => match laid_down(context, &record)? {
                    Some(point) => {
                        let mut record = record;
                        (record.point, record.after) = (Some(point), point.term);
                        record.enter(root, State::HandedOver)?;
                        (record, At::Done, None)
                    }
                    None => (record, At::Begun, None),
                },
                _ => bail!("disk {name} is {}", record.state.explain()),
            },
            Some(record) if record.state == State::Committed => {
                (look(context, name)?, At::Looked, Some(record))
            }
            Some(record) => {
                bail!("disk {name} is {} on this host", record.state.explain());
            }
            None => (look(context, name)?, At::Looked, None),
        };
        let status = local::driver(context, name).filter(|_| at == At::Looked);
        if let (Some(status), true) = (&status, how.is_nothing()) {
            local::refuse_if_used(name, status)?;
        }
        let before = status.map(|status| Serving::look(context, name, &status)).transpose()?;
        Ok(Self { record, at, was_done: at == At::Done, follows, before, job: None })
    }

    fn job(&mut self, context: &Context) -> &JobHandle {
        let name = &self.record.name;
        self.job
            .get_or_insert_with(|| JobBook::below(&context.roots.state).begin(name, Work::Handover))
    }

    fn end_job(&mut self, ended: &Result<(), String>) {
        if let Some(job) = self.job.take() {
            let point = self.record.point.map(|point| point.cycle);
            job.end_at(ended.clone().map(|()| point));
        }
    }

    /// Writes down that it begins.
    fn begin(&mut self, context: &Context) -> anyhow::Result<()> {
        if self.at == At::Looked {
            self.job(context).progress("stopping", 0, 0);
            match self.follows.take() {
                Some(old) => old.become_another(&context.roots.state, &self.record)?,
                None => self.record.begin(&context.roots.state)?,
            }
            self.at = At::Begun;
        }
        Ok(())
    }

    /// Lays the term down; the disk has stopped.
    fn lay_down(&mut self, context: &Context) -> anyhow::Result<()> {
        let name = self.record.name.clone();
        self.job(context).progress("handing over", 0, 0);
        let (disk, base) = stopped::exactly_at(&name, &context.roots.disk(&name))?;
        let vault = Vault::open(&self.record.vault)?;
        self.at = At::Laying;
        let writer = stopped::writer(disk);
        let point = hand_over(&vault, &name, base.vault_disk, &writer, base.cycle)?;
        self.record.disk = base.vault_disk;
        (self.record.point, self.record.after) = (Some(point), point.term);
        self.at = At::Done;
        Ok(self.record.enter(&context.roots.state, State::HandedOver)?)
    }

    /// Serves the disk again as it was; an error says how it is instead.
    fn undo(&mut self, context: &Context) -> anyhow::Result<()> {
        let root = &context.roots.state;
        let name = self.record.name.clone();
        let advice = format!("run it again, or backstay failover cancel {name}");
        if self.was_done {
            bail!("it was handed over before: {advice}");
        }
        let before = self.before.as_ref();
        if self.at != At::Looked {
            let Some(_) = before else { bail!("it is stopped: {advice}") };
            local::stop_after_cycle(context, &name)?;
            if matches!(self.at, At::Laying | At::Done) {
                let disk = stopped::superblock(&context.roots.disk(&name));
                let disk = disk.context("its state is gone")?.disk;
                let back = Vault::open(&self.record.vault)
                    .map_err(Into::into)
                    .and_then(|vault| withdraw(&vault, self.record.disk, &stopped::writer(disk)));
                match back {
                    Ok(Withdrawn::Done) => {}
                    Ok(Withdrawn::TooLate(term)) => bail!(
                        "it was handed over, and failed over already: term {} belongs to {}",
                        term.term,
                        term.writer
                    ),
                    Err(e) => bail!(
                        "nobody knows whether the vault has its handover ({e}), so it stays stopped: {advice}"
                    ),
                }
            }
            self.record.enter(root, State::TakingBack)?;
            self.record.clone().end(root)?;
            self.at = At::Looked;
        }
        match before {
            Some(before) => before.put_back(context).context("not served as before"),
            None => Ok(()),
        }
    }
}

/// The point at which the term was laid down already, by a command that was killed before it could note that: no
/// other point may come after it.
fn laid_down(context: &Context, record: &FailoverRecord) -> anyhow::Result<Option<PointRef>> {
    let (name, paths) = (&record.name, context.roots.disk(&record.name));
    let Some(superblock) = stopped::superblock(&paths) else { return Ok(None) };
    let vault = Vault::open(&record.vault)?;
    let handover = vault.handover(record.disk)?;
    let Some(handover) = handover.filter(|h| h.writer == stopped::writer(superblock.disk)) else {
        return Ok(None);
    };
    local::stop_after_cycle(context, name)?;
    let (_, base) = stopped::exactly_at(name, &paths)?;
    if (base.cycle, base.point) != (handover.cycle, handover.point) {
        bail!(
            "disk {name} was handed over at recovery point {}, and counts from point {} now: cancel the handover \
             (backstay failover cancel {name}) and begin anew",
            handover.cycle,
            base.cycle
        );
    }
    Ok(Some(PointRef { cycle: base.cycle, point: base.point, term: handover.term }))
}

/// What a handover begins with; refuses what cannot be handed over, while it is still served.
fn look(context: &Context, name: &DiskName) -> anyhow::Result<FailoverRecord> {
    let paths = context.roots.disk(name);
    let superblock = stopped::superblock(&paths)
        .with_context(|| format!("there is no disk {name} in {}", context.roots.state.display()))?;
    let status = local::driver(context, name);
    let base = status.as_ref().and_then(|status| status.base).or(superblock.base);
    let Some(base) = base else {
        let message = format!(
            "disk {name} has no recovery point yet: there is nothing to hand over. Run backstay cycle {name} \
             first. Nothing was changed"
        );
        return Err(Refused(message).into());
    };
    // A vault that is gone, or a disk that was failed over, is found out while the disk is still served.
    let url = context.config.vault_of(name).to_owned();
    let newest = Vault::open(&url)?.newest_term(base.vault_disk)?;
    let newest = newest.with_context(|| format!("disk {name} has no term in {url}"))?;
    if newest.writer != stopped::writer(superblock.disk) {
        let standing = Standing { what: What::Elsewhere, at_work: status.is_some() };
        let why =
            refusal(standing, name, Verb::Handover).map_or_else(String::new, |e| e.to_string());
        let message = format!("{why} (term {} belongs to {})", newest.term, newest.writer);
        return Err(Refused(message).into());
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
        backing: backing(context, name)?,
        next: None,
        group: None,
        since_unix_ns: now_unix_ns(),
    })
}

/// The backing that a disk was served from; none of a mounted point.
pub fn backing(context: &Context, name: &DiskName) -> anyhow::Result<Option<PathBuf>> {
    let state = context.roots.disk(name).state;
    if state.join("mounted").exists() {
        return Ok(None);
    }
    if let Some(seen) = BackingRecord::load(&state)?.backing {
        return Ok(Some(seen.path));
    }
    Ok(Protection::load(&state)?.map(|protection| protection.backing))
}

/// Stops the disk as its users know it, and serves it where they cannot write: nobody knows the place, and
/// others than root cannot enter it.
fn quiet(context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
    let name = &record.name;
    let place = context.roots.disk(name).handover_point();
    if let Some(status) = local::driver(context, name) {
        if status.served.starts_with(&place) {
            return Ok(());
        }
        local::refuse_if_used(name, &status)?;
        local::stop(context, name)?;
    }
    step();
    let at = place.display().to_string();
    let mut args = vec!["--quiet", "mount", "--name", name.as_str(), "--mount-point", &at];
    let backing = record.backing.as_ref().map(|backing| backing.display().to_string());
    args.extend(backing.as_deref());
    args.push("--handing-over");
    local::again(context, &args)?;
    Ok(())
}

fn say(context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
    if context.globals.json {
        return context.print_json(record);
    }
    if !context.globals.quiet {
        let point = record.point.map_or("-".into(), |point: PointRef| point.cycle.to_string());
        eprintln!(
            "{}: handed over at recovery point {point} ({}). On the target: backstay failover planned {} \
             --vault {}",
            record.name,
            time(record.since_unix_ns),
            record.disk_name,
            record.vault
        );
    }
    Ok(())
}

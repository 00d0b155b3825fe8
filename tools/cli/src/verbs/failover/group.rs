//! A group is failed over as a whole: everything that can be refused is refused for all of its disks before the
//! first is touched; what fails after that undoes the others, as long as that can be undone.

use anyhow::{Context as _, bail};
use backstay_recovery::failover::{
    FailoverError, FailoverRecord, Kind, NameLock, OfGroup, State, stopped, vault as at_vault,
};
use backstay_recovery::lazy::PointChoice;
use backstay_types::DiskName;
use backstay_vault::{GroupMember, GroupName, GroupPointNo, Vault};

use super::target::{Committing, Order, Which};
use super::{Up, local, source, take_back, target};
use crate::context::Context;
use crate::exit::Refused;

/// The disks of a group on this host, as its source.
pub fn of_source(context: &Context, group: &GroupName) -> anyhow::Result<Vec<DiskName>> {
    let config = context.config.group.get(group).with_context(|| {
        format!(
            "there is no group {group} in the configuration: a source hands over what that names"
        )
    })?;
    anyhow::ensure!(!config.disks.is_empty(), "group {group} has no disks on this host");
    let others = config.member.is_some() || config.coordinator.is_some();
    if others && !context.globals.quiet {
        eprintln!(
            "group {group}: only the disks of this host; run this on its other hosts, too: a planned failover of \
             the group wants all of them"
        );
    }
    Ok(config.disks.clone())
}

/// Hands all disks of a group on this host over.
pub fn handover(
    context: &Context,
    group: &GroupName,
    how: &source::Stopping,
) -> anyhow::Result<()> {
    let names = of_source(context, group)?;
    let config = &context.config.group[group];
    // Whose points are not all here has no group point of this host's making.
    let is_whole = config.member.is_none() && config.coordinator.is_none();
    source::handover(context, &names, is_whole.then_some(group), how)
}

/// The disks of a group at one of its points.
fn members(
    vault: &Vault,
    group: &GroupName,
    number: Option<GroupPointNo>,
) -> anyhow::Result<(GroupPointNo, Vec<GroupMember>)> {
    let number = number.or(vault.group_points(group)?.last().copied());
    let number =
        number.with_context(|| format!("group {group} has no point in {}", vault.url()))?;
    Ok((number, vault.group_point(group, number)?.members))
}

/// Brings all disks of a group up: of a planned failover where they were handed over, else at one of its points.
pub fn bring_up(
    context: &Context,
    (kind, group): (Kind, &GroupName),
    (number, left_history): (Option<GroupPointNo>, bool),
    up: &Up,
) -> anyhow::Result<()> {
    let url = up.vault.clone().unwrap_or_else(|| context.config.vault.clone());
    let (number, members) = members(&Vault::open(&url)?, group, number)?;
    let mut orders = vec![];
    for member in members {
        orders.push(Order {
            kind,
            local: match kind {
                Kind::Test => format!("{}.test", member.name).parse()?,
                _ => member.name.clone(),
            },
            name: member.name,
            which: match kind {
                Kind::Planned => Which::HandedOver,
                _ => Which::Choice(PointChoice::Cycle(member.cycle), left_history),
            },
            vault: Some(url.clone()),
            attach: up.attach,
            group: Some(OfGroup { group: group.clone(), number }),
            replica: false,
        });
    }
    let root = &context.roots.state;
    let lock = |order: &Order| NameLock::take(root, &order.local, "failover --group");
    let _locks = orders.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    let mut new = vec![];
    for order in &orders {
        // One that is there was begun by this command before; whether it fits is seen when it goes on.
        if FailoverRecord::load(root, &order.local)?.is_none() {
            target::look(context, order).with_context(|| format!("group {group}"))?;
            new.push(&order.local);
        }
    }
    for order in &orders {
        let Err(e) = target::bring_up(context, order) else { continue };
        let mut left = vec![];
        for name in &new {
            if let Some(record) = FailoverRecord::load(root, name)?
                && let Err(e) = target::remove(context, record)
            {
                left.push(format!("{name} is still there: {e:#}"));
            }
        }
        let rest = match left.as_slice() {
            [] => "what was brought up of it is removed again".into(),
            left => left.join("; "),
        };
        return Err(e.context(format!("group {group} is not up; {rest}")));
    }
    Ok(())
}

/// What this host does about the disks of a group.
fn records(
    context: &Context,
    group: &GroupName,
    of: impl Fn(&FailoverRecord) -> bool,
) -> anyhow::Result<(Vec<NameLock>, Vec<FailoverRecord>)> {
    let root = &context.roots.state;
    let names = FailoverRecord::all(root)?.into_iter().filter(&of).map(|record| record.name);
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        bail!("there is no failover of group {group} on this host; see backstay failover status");
    }
    let lock = |name| NameLock::take(root, name, "failover --group");
    let locks = names.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    let again = names.iter().filter_map(|name| FailoverRecord::load(root, name).transpose());
    Ok((locks, again.collect::<Result<_, _>>()?))
}

fn is_target_of(record: &FailoverRecord, group: &GroupName) -> bool {
    let of = record.group.as_ref().is_some_and(|of| of.group == *group);
    of && matches!(record.kind, Kind::Planned | Kind::Unplanned)
}

/// Another point of the group instead.
pub fn change(
    context: &Context,
    group: &GroupName,
    (number, left_history): (Option<GroupPointNo>, bool),
    attach: bool,
) -> anyhow::Result<()> {
    let (_locks, records) = records(context, group, |record| is_target_of(record, group))?;
    let vault = Vault::open(&records[0].vault)?;
    let (number, members) = members(&vault, group, number)?;
    let mut all = vec![];
    for mut record in records {
        let member = members.iter().find(|member| member.disk == record.disk);
        let member = member.with_context(|| {
            format!("disk {} is not in point {number} of group {group}", record.name)
        })?;
        let point = vault.manifest(record.disk, member.cycle)?;
        at_vault::look_at(&vault, &record.disk_name, record.disk, point, left_history)?;
        if let Some(status) = local::driver(context, &record.name) {
            local::refuse_if_used(&record.name, &status)?;
        }
        record.group = Some(OfGroup { group: group.clone(), number });
        all.push((record, PointChoice::Cycle(member.cycle)));
    }
    for (record, to) in all {
        let name = record.name.clone();
        target::change(context, record, (to, left_history), attach).with_context(|| {
            format!("group {group} is at two points now (disk {name} failed): run this again")
        })?;
    }
    Ok(())
}

/// Commits all disks of a group. Each takes a term of its own; when one of them is lost to another host in the
/// middle, those before it are committed.
pub fn commit(context: &Context, group: &GroupName, how: &Committing<'_>) -> anyhow::Result<()> {
    let (_locks, records) = records(context, group, |record| is_target_of(record, group))?;
    let (done, to_do): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.state == State::Committed);
    if to_do.is_empty() {
        return Err(
            Refused(format!("group {group} is committed already. Nothing was changed")).into()
        );
    }
    for record in &to_do {
        target::may_commit(context, record, how)?;
        // Before the first is taken: a group of which a part is somebody else's is not worth having.
        let vault = Vault::open(&record.vault)?;
        let newest =
            vault.newest_term(record.disk)?.context("the disk has no term in the vault")?;
        if newest.term != record.after && !at_vault::is_taken(&vault, record)? {
            return Err(FailoverError::TakenOver {
                name: record.name.clone(),
                term: newest.term,
                writer: newest.writer,
            }
            .into());
        }
    }
    let mut names: Vec<DiskName> = done.into_iter().map(|record| record.name).collect();
    for record in &to_do {
        if let Err(e) = target::take_over(context, record.clone(), how) {
            let said: Vec<&str> = names.iter().map(DiskName::as_str).collect();
            return Err(e.context(format!(
                "group {group} is committed in part (this host's: {}); run this again, which goes on with {}",
                if said.is_empty() { "none".into() } else { said.join(", ") },
                record.name
            )));
        }
        names.push(record.name.clone());
    }
    to_do.iter().try_for_each(|record| target::first_cycle(context, &record.name, &record.vault))
}

/// Undoes it: on a target what was brought up is removed; on a source the handovers are withdrawn.
pub fn cancel(context: &Context, group: &GroupName) -> anyhow::Result<()> {
    let here = context.config.group.get(group).map_or(vec![], |config| config.disks.clone());
    let (_locks, records) = records(context, group, |record| {
        is_target_of(record, group) || (record.kind == Kind::Source && here.contains(&record.name))
    })?;
    for record in &records {
        match record.kind {
            Kind::Source => {
                let disk = stopped::superblock(&context.roots.disk(&record.name));
                let writer = disk.map(|superblock| stopped::writer(superblock.disk));
                let newest = Vault::open(&record.vault)?.newest_term(record.disk)?;
                if let Some(newest) =
                    newest.filter(|newest| Some(&newest.writer) != writer.as_ref())
                {
                    return Err(Refused(format!(
                        "group {group} cannot be taken back: disk {} was failed over, term {} belongs to {}. \
                         Nothing was changed",
                        record.name, newest.term, newest.writer
                    ))
                    .into());
                }
            }
            _ if record.state == State::Committed => {
                return Err(Refused(format!(
                    "group {group} cannot be cancelled: disk {} is committed. Nothing was changed",
                    record.name
                ))
                .into());
            }
            _ => {
                if let Some(status) = local::driver(context, &record.name) {
                    local::refuse_if_used(&record.name, &status)?;
                }
            }
        }
    }
    for record in records {
        let name = record.name.clone();
        match record.kind {
            Kind::Source => take_back::take_back(context, record),
            _ => target::remove(context, record).map(drop),
        }
        .with_context(|| format!("group {group}: disk {name}; run this again"))?;
        if !context.globals.quiet {
            eprintln!("{name}: cancelled");
        }
    }
    Ok(())
}

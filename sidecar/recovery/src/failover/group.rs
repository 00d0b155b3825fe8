//! A group is failed over as a whole: everything that can be refused is refused for all of its disks before the
//! first is touched; what fails after that undoes the others, as long as that can be undone.

use backstay_engine::cycle::CycleReport;
use backstay_types::DiskName;
use backstay_vault::{GroupMember, GroupName, GroupPointNo, Vault};

use super::executor::{Executor, ServedDisk};
use super::source::Stopping;
use super::target::{Committing, Order, Wanted, Which};
use super::{
    FailoverError, FailoverRecord, Kind, NameLock, OfGroup, Result, State, failed, source, stopped,
    take_back, target, vault as at_vault,
};
use crate::host::{Doing, HostError};
use crate::mount::PointChoice;

/// The disks of a group on this host, as its source.
pub fn of_source(host: &dyn Executor, group: &GroupName) -> Result<Vec<DiskName>> {
    let config = host.config().group.get(group).doing(|| {
        format!(
            "there is no group {group} in the configuration: a source hands over what that names"
        )
    })?;
    if config.disks.is_empty() {
        failed!("group {group} has no disks on this host");
    }
    let others = config.member.is_some() || config.coordinator.is_some();
    if others {
        host.told().note(&format!(
            "group {group}: only the disks of this host; run this on its other hosts, too: a planned failover of \
             the group wants all of them"
        ));
    }
    Ok(config.disks.clone())
}

/// Hands all disks of a group on this host over.
pub fn handover(
    host: &dyn Executor,
    group: &GroupName,
    how: &Stopping,
) -> Result<Vec<FailoverRecord>> {
    let names = of_source(host, group)?;
    let config = &host.config().group[group];
    // Whose points are not all here has no group point of this host's making.
    let is_whole = config.member.is_none() && config.coordinator.is_none();
    source::handover(host, &names, is_whole.then_some(group), how)
}

/// The disks of a group at one of its points.
fn members(
    vault: &Vault,
    group: &GroupName,
    number: Option<GroupPointNo>,
) -> Result<(GroupPointNo, Vec<GroupMember>)> {
    let number = number.or(vault.group_points(group)?.last().copied());
    let number = number.doing(|| format!("group {group} has no point in {}", vault.url()))?;
    Ok((number, vault.group_point(group, number)?.members))
}

/// A group that is to be brought up.
pub struct GroupOrder<'a> {
    /// For what.
    pub kind: Kind,
    /// Which group.
    pub group: &'a GroupName,
    /// At which of its points; none: the newest.
    pub which: Wanted<Option<GroupPointNo>>,
    /// The vault's URL; none: the configuration's.
    pub vault: Option<&'a str>,
    /// Attach loop devices, too.
    pub attach: bool,
}

/// Brings all disks of a group up: of a planned failover where they were handed over, else at one of its points.
pub fn bring_up(host: &dyn Executor, wanted: &GroupOrder<'_>) -> Result<Vec<ServedDisk>> {
    let &GroupOrder { kind, group, which: Wanted { point: number, left_history }, vault, attach } =
        wanted;
    let url = vault.unwrap_or(&host.config().vault).to_owned();
    let (number, members) = members(&host.config().vaults.open(&url)?, group, number)?;
    let mut orders = vec![];
    for member in members {
        orders.push(Order {
            kind,
            local: match kind {
                Kind::Test => format!("{}.test", member.name)
                    .parse()
                    .map_err(|e| HostError::Failed(format!("{}.test: {e}", member.name)))?,
                _ => member.name.clone(),
            },
            name: member.name,
            which: match kind {
                Kind::Planned => Which::HandedOver,
                _ => {
                    Which::Choice(Wanted { point: PointChoice::Cycle(member.cycle), left_history })
                }
            },
            vault: Some(url.clone()),
            attach,
            group: Some(OfGroup { group: group.clone(), number }),
            replica: false,
        });
    }
    let root = &host.roots().state;
    let lock = |order: &Order| NameLock::take(root, &order.local, "failover --group");
    let _locks = orders.iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    let mut new = vec![];
    for order in &orders {
        // One that is there was begun by this command before; whether it fits is seen when it goes on.
        if FailoverRecord::load(root, &order.local)?.is_none() {
            target::look(host, order).map_err(|e| e.while_doing(format!("group {group}")))?;
            new.push(&order.local);
        }
    }
    let mut places = vec![];
    for order in &orders {
        let e = match target::bring_up(host, order) {
            Ok(place) => {
                places.push(place);
                continue;
            }
            Err(e) => e,
        };
        let mut left = vec![];
        for name in &new {
            if let Some(record) = FailoverRecord::load(root, name)?
                && let Err(e) = target::remove(host, record)
            {
                left.push(format!("{name} is still there: {e}"));
            }
        }
        let rest = match left.as_slice() {
            [] => "what was brought up of it is removed again".into(),
            left => left.join("; "),
        };
        return Err(e.while_doing(format!("group {group} is not up; {rest}")));
    }
    Ok(places)
}

/// What this host does about the disks of a group.
fn records(
    host: &dyn Executor,
    group: &GroupName,
    of: impl Fn(&FailoverRecord) -> bool,
) -> Result<(Vec<NameLock>, Vec<FailoverRecord>)> {
    let root = &host.roots().state;
    let names = FailoverRecord::all(root)?.into_iter().filter(&of).map(|record| record.name);
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        failed!("there is no failover of group {group} on this host; see backstay failover status");
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
    host: &dyn Executor,
    group: &GroupName,
    Wanted { point: number, left_history }: Wanted<Option<GroupPointNo>>,
    attach: bool,
) -> Result<Vec<ServedDisk>> {
    let (_locks, records) = records(host, group, |record| is_target_of(record, group))?;
    let vault = host.config().vaults.open(&records[0].vault)?;
    let (number, members) = members(&vault, group, number)?;
    let mut all = vec![];
    for mut record in records {
        let member = members.iter().find(|member| member.disk == record.disk);
        let member = member
            .doing(|| format!("disk {} is not in point {number} of group {group}", record.name))?;
        let point = vault.manifest(record.disk, member.cycle)?;
        at_vault::look_at(&vault, &record.disk_name, record.disk, point, left_history)?;
        if let Some(status) = host.status(&record.name) {
            host.refuse_if_used(&record.name, &status)?;
        }
        record.group = Some(OfGroup { group: group.clone(), number });
        let to = Wanted { point: PointChoice::Cycle(member.cycle), left_history };
        all.push((record, to));
    }
    let changed = all.into_iter().map(|(record, to)| {
        let name = record.name.clone();
        target::change(host, record, to, attach).map_err(|e| {
            e.while_doing(format!(
                "group {group} is at two points now (disk {name} failed): run this again"
            ))
        })
    });
    changed.collect()
}

/// Commits all disks of a group. Each takes a term of its own; when one of them is lost to another host in the
/// middle, those before it are committed.
pub fn commit(
    host: &dyn Executor,
    group: &GroupName,
    how: &Committing<'_>,
) -> Result<Vec<(DiskName, Option<CycleReport>)>> {
    let (_locks, records) = records(host, group, |record| is_target_of(record, group))?;
    let (done, to_do): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.state == State::Committed);
    if to_do.is_empty() {
        let message = format!("group {group} is committed already. Nothing was changed");
        return Err(FailoverError::NotSafe(message));
    }
    for record in &to_do {
        target::may_commit(host, record, how)?;
        // Before the first is taken: a group of which a part is somebody else's is not worth having.
        let vault = host.config().vaults.open(&record.vault)?;
        let newest =
            vault.newest_term(record.disk)?.doing(|| "the disk has no term in the vault".into())?;
        if newest.term != record.after && !at_vault::is_taken(&vault, record)? {
            return Err(FailoverError::TakenOver {
                name: record.name.clone(),
                term: newest.term,
                writer: newest.writer,
            });
        }
    }
    let mut names: Vec<DiskName> = done.into_iter().map(|record| record.name).collect();
    for record in &to_do {
        if let Err(e) = target::take_over(host, record.clone(), how) {
            let said: Vec<&str> = names.iter().map(DiskName::as_str).collect();
            return Err(e.while_doing(format!(
                "group {group} is committed in part (this host's: {}); run this again, which goes on with {}",
                if said.is_empty() { "none".into() } else { said.join(", ") },
                record.name
            )));
        }
        names.push(record.name.clone());
    }
    let first = |record: FailoverRecord| {
        let report = target::first_cycle(host, &record.name, &record.vault)?;
        Ok((record.name, report))
    };
    to_do.into_iter().map(first).collect()
}

/// Undoes it: on a target what was brought up is removed; on a source the handovers are withdrawn.
pub fn cancel(host: &dyn Executor, group: &GroupName) -> Result<()> {
    let here = host.config().group.get(group).map_or(vec![], |config| config.disks.clone());
    let (_locks, records) = records(host, group, |record| {
        is_target_of(record, group) || (record.kind == Kind::Source && here.contains(&record.name))
    })?;
    for record in &records {
        match record.kind {
            Kind::Source => {
                let disk = stopped::superblock(&host.roots().disk(&record.name));
                let writer = disk.map(|superblock| stopped::writer(superblock.disk));
                let newest = host.config().vaults.open(&record.vault)?.newest_term(record.disk)?;
                if let Some(newest) =
                    newest.filter(|newest| Some(&newest.writer) != writer.as_ref())
                {
                    return Err(FailoverError::NotSafe(format!(
                        "group {group} cannot be taken back: disk {} was failed over, term {} belongs to {}. \
                         Nothing was changed",
                        record.name, newest.term, newest.writer
                    )));
                }
            }
            _ if record.state == State::Committed => {
                return Err(FailoverError::NotSafe(format!(
                    "group {group} cannot be cancelled: disk {} is committed. Nothing was changed",
                    record.name
                )));
            }
            _ => {
                if let Some(status) = host.status(&record.name) {
                    host.refuse_if_used(&record.name, &status)?;
                }
            }
        }
    }
    for record in records {
        let name = record.name.clone();
        match record.kind {
            Kind::Source => take_back::take_back(host, record),
            _ => target::remove(host, record),
        }
        .map_err(|e| e.while_doing(format!("group {group}: disk {name}; run this again")))?;
        host.told().note(&format!("{name}: cancelled"));
    }
    Ok(())
}

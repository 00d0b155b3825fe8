//! `backstay failover`: to another host, and what belongs to it. The states and what each kill leaves are in
//! docs/explanation/failover.md.

mod isolated;
mod status;

use std::time::Duration;

use backstay_engine::cycle::CycleReport;
use backstay_recovery::failover::group::{self, GroupOrder};
use backstay_recovery::failover::rules::{Verb, is_orphan};
use backstay_recovery::failover::source::{self, Stopping};
use backstay_recovery::failover::target::{self, Committing, Order, Wanted, Which};
use backstay_recovery::failover::{
    FailoverRecord, Kind, NameLock, ServedDisk, State, give_up, take_back,
};
use backstay_recovery::mount::PointChoice;
use backstay_types::DiskName;
use backstay_vault::{GroupName, GroupPointNo};
use clap::{Args, Subcommand};

use super::cycle::line;
use super::target::time;
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Fail a disk over to this host: try it, do it, undo it, commit it
#[derive(Args)]
#[command(after_help = "\
Try a recovery point; replication goes on:
  backstay failover test db --vault file:///mnt/vault --attach
  backstay failover cleanup db

Planned, nothing is lost: on the source, then on the target:
  backstay failover handover db --unmount \\
      --stop-command 'systemctl stop postgresql'
  backstay failover planned db --vault file:///mnt/vault --attach
  backstay failover commit db

Unplanned, the source is gone:
  backstay failover unplanned db --vault file:///mnt/vault --point latest
  backstay failover change db --point 17      take another point instead
  backstay failover commit db                 or: backstay failover cancel db

Failback: on the old source; then run the handover on the target, and failback finishes:
  backstay failback db --to /srv/db.img --vault file:///mnt/vault

For a whole group, pass --group NAME instead of the disk's name (except to failback).

If a command is killed, run it again: it continues.")]
pub struct Failover {
    #[command(subcommand)]
    what: Action,
}

#[derive(Subcommand)]
enum Action {
    Test(Test),
    Cleanup(Cleanup),
    Handover(Handover),
    Planned(Planned),
    Unplanned(Unplanned),
    Change(Change),
    Cancel(Cancel),
    Commit(Commit),
    Status(Status),
}

/// Bring up a point read-write on this host; replication goes on
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover test db --vault file:///mnt/vault
  backstay failover test db --vault file:///mnt/vault --point 17 \\
      --as db.friday --attach
  backstay failover test --group shop --vault file:///mnt/vault
  backstay failover test db --vault file:///mnt/vault \\
      --run 'fsck.ext4 -fn $BACKSTAY_DEVICE'

A command given with --run has its own network (only a loopback), mounts and process IDs, so that a copy of a \
production machine cannot reach production. The vault only gets a hold on the point. Writes stay on this host until \
backstay failover cleanup.")]
pub struct Test {
    /// The disk's name in the vault
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group, at one of its points
    #[arg(long, conflicts_with_all = ["name", "local", "at"])]
    group: Option<GroupName>,
    /// Which point of the group [default: the newest]
    #[arg(long, requires = "group", value_name = "NUMBER")]
    group_point: Option<u64>,
    #[command(flatten)]
    point: Point,
    /// The name on this host [default: NAME.test]
    #[arg(long = "as", value_name = "NAME")]
    local: Option<DiskName>,
    /// Run a command on the disk without the host's network, and exit with its code; the command gets BACKSTAY_DEVICE
    /// and BACKSTAY_SERVED
    #[arg(long, value_name = "COMMAND", conflicts_with = "group")]
    run: Option<String>,
    #[command(flatten)]
    up: Up,
}

/// Remove a test failover: mount, loop device, state, hold
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover cleanup db          all tests of disk db
  backstay failover cleanup db.friday
  backstay failover cleanup --group shop")]
pub struct Cleanup {
    /// The disk's name, in the vault or here
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group
    #[arg(long, conflicts_with = "name")]
    group: Option<GroupName>,
}

/// On the source: stop the disk, ship its last changes, hand it over
#[derive(Args)]
#[command(after_help = "\
Examples:
  umount /mnt && backstay failover handover db
  backstay failover handover db --unmount
  backstay failover handover db --unmount \\
      --stop-command 'systemctl stop postgresql' \\
      --start-command 'systemctl start postgresql'
  backstay failover handover --group shop

A disk that is in use is refused, and its users are named; --stop-command and --unmount end them. Most changes are \
shipped while the disk is still in use, so that the last cycle is short. If anything fails before the handover, the \
disk is served again as before. Afterwards this host does not serve the disk until backstay failover cancel (before \
the target commits) or backstay failback.")]
pub struct Handover {
    /// The disk's name
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group of the configuration: all of them, or none
    #[arg(long, conflicts_with = "name")]
    group: Option<GroupName>,
    #[command(flatten)]
    stopping: Stop,
}

/// Bring up a disk that was handed over, at its last point; nothing is lost
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover planned db --vault file:///mnt/vault --attach
  backstay failover planned --group shop --vault file:///mnt/vault

Look at the disk, then run backstay failover commit db.")]
pub struct Planned {
    /// The disk's name in the vault
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group: each must have been handed over
    #[arg(long, conflicts_with_all = ["name", "local"])]
    group: Option<GroupName>,
    /// The name on this host [default: the same]
    #[arg(long = "as", value_name = "NAME")]
    local: Option<DiskName>,
    #[command(flatten)]
    up: Up,
}

/// Bring up a disk at any point, without the source
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover unplanned db --vault file:///mnt/vault
  backstay failover unplanned db --vault file:///mnt/vault \\
      --point 2026-02-03T04:05:06Z
  backstay failover unplanned db --vault file:///mnt/vault --replica
  backstay failover unplanned --group shop --vault file:///mnt/vault

Look at the disk, then run backstay failover commit db: from then on the old source is refused.")]
pub struct Unplanned {
    /// The disk's name in the vault
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group, at one of its points
    #[arg(long, conflicts_with_all = ["name", "local", "at"])]
    group: Option<GroupName>,
    /// Which point of the group [default: the newest]
    #[arg(long, requires = "group", value_name = "NUMBER")]
    group_point: Option<u64>,
    #[command(flatten)]
    point: Point,
    /// Take over the replica of this host instead of mounting a point
    #[arg(long, conflicts_with_all = ["at", "local", "group"])]
    replica: bool,
    /// The name on this host [default: the same]
    #[arg(long = "as", value_name = "NAME")]
    local: Option<DiskName>,
    #[command(flatten)]
    up: Up,
}

/// Switch to another point before the commit; the writes to the first one are lost
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover change db --point 17
  backstay failover change --group shop --group-point 4")]
pub struct Change {
    /// The disk's name on this host
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group, to another of its points
    #[arg(long, conflicts_with_all = ["name", "at"])]
    group: Option<GroupName>,
    /// Which point of the group [default: the newest]
    #[arg(long, requires = "group", value_name = "NUMBER")]
    group_point: Option<u64>,
    #[command(flatten)]
    point: Point,
    /// Also attach a loop device, and print it
    #[arg(long)]
    attach: bool,
}

/// Undo a failover before its commit, on the target or on the source
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover cancel db
  backstay failover cancel --group shop

On a target, the disk that was brought up is removed. On a source, the handover is withdrawn if no target has \
committed. Then the disk can be mounted again.")]
pub struct Cancel {
    /// The disk's name on this host
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group
    #[arg(long, conflicts_with = "name")]
    group: Option<GroupName>,
}

/// Commit a failover: from now on this host writes the disk and protects it
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover commit db
  backstay failover commit --group shop

Takes the next term. From then on the old source is refused, even if it comes back. This host protects the disk \
under its name and ships its changes to the same vault. The rest of the disk is fetched in the background.")]
pub struct Commit {
    /// The disk's name on this host
    #[arg(required_unless_present = "group")]
    name: Option<DiskName>,
    /// All disks of a group
    #[arg(long, conflicts_with = "name")]
    group: Option<GroupName>,
    /// The disk's policy, from the configuration
    #[arg(long)]
    policy: Option<String>,
    /// Do not fetch the rest of the disk in the background
    #[arg(long)]
    no_hydrate: bool,
}

/// Show the failovers of this host
#[derive(Args)]
pub struct Status {
    /// The disk's name on this host [default: all]
    name: Option<DiskName>,
}

/// How what uses the disk is stopped.
#[derive(Args)]
struct Stop {
    /// Command that stops the users of the disk
    #[arg(long, value_name = "COMMAND")]
    stop_command: Option<String>,
    /// Command that starts them again if the handover fails
    #[arg(long, value_name = "COMMAND", requires = "stop_command")]
    start_command: Option<String>,
    /// How long each of these commands may take
    #[arg(long, value_name = "DURATION", default_value = "5min", value_parser = humantime::parse_duration)]
    command_timeout: Duration,
    /// Unmount the file systems that are mounted from the disk
    #[arg(long)]
    unmount: bool,
}

/// Which point.
#[derive(Args)]
pub struct Point {
    /// Which point: a number, latest, or a time
    #[arg(long = "point", id = "at", default_value = "latest", value_name = "POINT")]
    at: PointChoice,
    /// Allow a point of a history that a failover left behind
    #[arg(long)]
    left_history: bool,
}

impl Point {
    /// This point, of the histories that are allowed.
    fn wanted<P>(&self, point: P) -> Wanted<P> {
        Wanted { point, left_history: self.left_history }
    }
}

/// How a point is brought up.
#[derive(Args)]
pub struct Up {
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// Also attach a loop device, and print it
    #[arg(long)]
    attach: bool,
}

impl Up {
    /// The disks of a group.
    fn of<'a>(
        &'a self,
        kind: Kind,
        group: &'a GroupName,
        which: Wanted<Option<GroupPointNo>>,
    ) -> GroupOrder<'a> {
        GroupOrder { kind, group, which, vault: self.vault.as_deref(), attach: self.attach }
    }
}

impl Failover {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.what {
            Action::Test(verb) => verb.run(context),
            Action::Cleanup(verb) => verb.run(context),
            Action::Handover(verb) => verb.run(context),
            Action::Planned(verb) => verb.run(context),
            Action::Unplanned(verb) => verb.run(context),
            Action::Change(verb) => verb.run(context),
            Action::Cancel(verb) => verb.run(context),
            Action::Commit(verb) => verb.run(context),
            Action::Status(verb) => status::show(context, verb.name.as_ref()),
        }
    }
}

/// The lock of a name, and what is being done about it.
fn locked(
    context: &Context,
    name: Option<DiskName>,
    doing: &str,
    verb: Verb,
) -> Result<(NameLock, FailoverRecord)> {
    let name = name.context("which disk?")?;
    let lock = NameLock::take(&context.roots.state, &name, doing)?;
    // Another point that was begun goes on, whatever came of the first.
    let record = FailoverRecord::load(&context.roots.state, &name)?;
    if !(verb == Verb::Change && record.is_some_and(|record| record.next.is_some())) {
        context.may(&name, verb)?;
    }
    Ok((lock, status::record(context, &name)?))
}

/// Prints where a disk is served.
pub fn print_place(context: &Context, place: &ServedDisk) -> Result<()> {
    if context.globals.json {
        return context.print_json(place);
    }
    let served = || place.served.display().to_string();
    println!("{}", place.device.clone().unwrap_or_else(served));
    Ok(())
}

fn print_places(context: &Context, places: &[ServedDisk]) -> Result<()> {
    places.iter().try_for_each(|place| print_place(context, place))
}

/// Says how the first cycle here went.
pub fn say_cycle(context: &Context, name: &DiskName, report: Option<&CycleReport>) {
    if let (Some(report), false) = (report, context.globals.quiet) {
        eprintln!("{}", line(name, report));
    }
}

impl Test {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        if let Some(group) = &self.group {
            let which = Wanted { point: self.group_point.map(GroupPointNo), left_history: true };
            let places = group::bring_up(&host, &self.up.of(Kind::Test, group, which))?;
            return print_places(context, &places);
        }
        let name = self.name.context("which disk?")?;
        let local = match self.local {
            Some(local) => local,
            None => format!("{name}.test").parse().context("use --as")?,
        };
        let _lock = NameLock::take(&context.roots.state, &local, "failover test")?;
        let place = target::bring_up(
            &host,
            &Order {
                kind: Kind::Test,
                name,
                local: local.clone(),
                which: Which::Choice(self.point.wanted(self.point.at)),
                vault: self.up.vault,
                attach: self.up.attach || self.run.is_some(),
                group: None,
                replica: false,
            },
        )?;
        print_place(context, &place)?;
        self.run.map_or(Ok(()), |line| isolated::run(&place, &line))
    }
}

impl Cleanup {
    fn run(self, context: &Context) -> Result<()> {
        let root = &context.roots.state;
        let tests: Vec<_> = FailoverRecord::all(root)?
            .into_iter()
            .filter(|record| record.kind == Kind::Test)
            .filter(|record| match (&self.group, &self.name) {
                (Some(group), _) => record.group.as_ref().is_some_and(|of| of.group == *group),
                (None, name) => {
                    [Some(&record.name), Some(&record.disk_name)].contains(&name.as_ref())
                }
            })
            .collect();
        if tests.is_empty() {
            if let Some(name) = &self.name {
                context.may(name, Verb::Cleanup)?;
            }
            bail!(
                "there is no test failover of that name on this host; see backstay failover status"
            );
        }
        for test in tests {
            let _lock = NameLock::take(root, &test.name, "failover cleanup")?;
            if let Some(test) = FailoverRecord::load(root, &test.name)? {
                target::remove(&context.host(), test)?;
            }
        }
        Ok(())
    }
}

impl Handover {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        let Stop { stop_command, start_command, command_timeout, unmount } = self.stopping;
        let how = Stopping { stop_command, start_command, command_timeout, unmount };
        let records = match &self.group {
            Some(group) => group::handover(&host, group, &how)?,
            None => source::handover(&host, &[self.name.context("which disk?")?], None, &how)?,
        };
        say_handed_over(context, &records)
    }
}

fn say_handed_over(context: &Context, records: &[FailoverRecord]) -> Result<()> {
    for record in records {
        if context.globals.json {
            context.print_json(record)?;
        } else if !context.globals.quiet {
            let point = record.point.map_or("-".into(), |point| point.cycle.to_string());
            eprintln!(
                "{}: handed over at recovery point {point} ({}). On the target: backstay failover planned {} \
                 --vault {}",
                record.name,
                time(record.since_unix_ns),
                record.disk_name,
                record.vault
            );
        }
    }
    Ok(())
}

impl Planned {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        if let Some(group) = &self.group {
            let newest = Wanted { point: None, left_history: false };
            let places = group::bring_up(&host, &self.up.of(Kind::Planned, group, newest))?;
            return print_places(context, &places);
        }
        let name = self.name.context("which disk?")?;
        let local = self.local.clone().unwrap_or_else(|| name.clone());
        // Of a source on this same host, both halves are done here.
        let handed_over = target::hand_over_here(&host, &name, &local)?;
        say_handed_over(context, &handed_over)?;
        let _lock = NameLock::take(&context.roots.state, &local, "failover planned")?;
        let place = target::bring_up(
            &host,
            &Order {
                kind: Kind::Planned,
                name,
                local,
                which: Which::HandedOver,
                vault: self.up.vault,
                attach: self.up.attach,
                group: None,
                replica: false,
            },
        )?;
        print_place(context, &place)
    }
}

impl Unplanned {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        if let Some(group) = &self.group {
            let which = self.point.wanted(self.group_point.map(GroupPointNo));
            let places = group::bring_up(&host, &self.up.of(Kind::Unplanned, group, which))?;
            return print_places(context, &places);
        }
        let name = self.name.context("which disk?")?;
        let local = self.local.unwrap_or_else(|| name.clone());
        let _lock = NameLock::take(&context.roots.state, &local, "failover unplanned")?;
        let place = target::bring_up(
            &host,
            &Order {
                kind: Kind::Unplanned,
                name,
                local,
                which: Which::Choice(self.point.wanted(self.point.at)),
                vault: self.up.vault,
                attach: self.up.attach,
                group: None,
                replica: self.replica,
            },
        )?;
        print_place(context, &place)
    }
}

impl Change {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        if let Some(group) = &self.group {
            let which = self.point.wanted(self.group_point.map(GroupPointNo));
            let places = group::change(&host, group, which, self.attach)?;
            return print_places(context, &places);
        }
        let (_lock, record) = locked(context, self.name, "failover change", Verb::Change)?;
        let to = self.point.wanted(self.point.at);
        print_place(context, &target::change(&host, record, to, self.attach)?)
    }
}

impl Cancel {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        if let Some(group) = &self.group {
            return Ok(group::cancel(&host, group)?);
        }
        let (_lock, record) = locked(context, self.name, "failover cancel", Verb::Cancel)?;
        let name = record.name.clone();
        match record.kind {
            _ if is_orphan(&record, &context.roots.disk(&name)) => {
                give_up::give_up(&host, record)?;
            }
            Kind::Source => take_back::take_back(&host, record)?,
            Kind::Failback if record.state == State::Seeding => {
                record.end(&context.roots.state)?;
                println!(
                    "{name}: no longer brought back; its replica stays (backstay replica {name})"
                );
            }
            _ => {
                target::remove(&host, record)?;
                println!("{name}: cancelled; nothing is left of it here");
            }
        }
        Ok(())
    }
}

impl Commit {
    fn run(self, context: &Context) -> Result<()> {
        let host = context.host();
        let how = Committing { policy: self.policy.as_deref(), hydrate: !self.no_hydrate };
        if let Some(group) = &self.group {
            for (name, report) in group::commit(&host, group, &how)? {
                say_cycle(context, &name, report.as_ref());
            }
            return Ok(());
        }
        let (_lock, record) = locked(context, self.name, "failover commit", Verb::Commit)?;
        let name = record.name.clone();
        let report = target::commit(&host, record, &how)?;
        say_cycle(context, &name, report.as_ref());
        Ok(())
    }
}

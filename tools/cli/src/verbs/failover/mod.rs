//! `backstay failover`: to another host, and what belongs to it. The states and what each kill leaves are in
//! docs/recovery/failover.md.

pub mod local;
pub mod source;
mod status;
pub mod target;

use anyhow::{Context as _, bail};
use backstay_format::DiskName;
use backstay_recovery::failover::{FailoverRecord, Kind, State};
use backstay_vault::{GroupName, GroupPointNo};
use clap::{Args, Subcommand};

use crate::context::Context;
use crate::exit::Refused;
use backstay_recovery::lazy::PointChoice;

/// Fail a disk over to this host: try it, do it, undo it, commit it
#[derive(Args)]
#[command(after_help = "\
Try a recovery point, which touches nothing:
  backstay failover test db --vault file:///mnt/vault --attach
  backstay failover cleanup db

Planned, nothing lost: on the source, then on the target:
  backstay failover handover db
  backstay failover planned db --vault file:///mnt/vault --attach
  backstay failover commit db

Unplanned, the source is gone:
  backstay failover unplanned db --vault file:///mnt/vault --point latest
  backstay failover change db --point 17      not that one, this one
  backstay failover commit db                 or: backstay failover cancel db

Back again: on the old source, then on the target (handover), and it finishes by itself:
  backstay failback db --to /srv/db.img --vault file:///mnt/vault

Each command that was killed goes on when it is run again.")]
pub struct Failover {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
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

/// Bring a point up read-write on this host, replication untouched
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover test db --vault file:///mnt/vault
  backstay failover test db --vault file:///mnt/vault --point 17 --as db.friday --attach
  backstay failover test --group shop --vault file:///mnt/vault

The vault gets a hold on the point and nothing else; what is written stays on this host, until backstay
failover cleanup.")]
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
Example:
  umount /mnt && backstay failover handover db

A disk that is in use is refused. From then on this host does not serve it, until backstay failover cancel
(the target has not committed yet) or backstay failback.")]
pub struct Handover {
    /// The disk's name
    name: DiskName,
}

/// Bring a disk up that was handed over, at its last point: nothing is lost
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay failover planned db --vault file:///mnt/vault --attach

Then look at it, and backstay failover commit db.")]
pub struct Planned {
    /// The disk's name in the vault
    name: DiskName,
    /// The name on this host [default: the same]
    #[arg(long = "as", value_name = "NAME")]
    local: Option<DiskName>,
    #[command(flatten)]
    up: Up,
}

/// Bring a disk up at any point; the source need not be there
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay failover unplanned db --vault file:///mnt/vault
  backstay failover unplanned db --vault file:///mnt/vault --point 2026-02-03T04:05:06Z
  backstay failover unplanned db --vault file:///mnt/vault --replica     the hot standby of this host

Then look at it, and backstay failover commit db: from that moment the old source is refused.")]
pub struct Unplanned {
    /// The disk's name in the vault
    name: DiskName,
    #[command(flatten)]
    point: Point,
    /// Take over the replica of this host instead of mounting a point
    #[arg(long, conflicts_with_all = ["at", "local"])]
    replica: bool,
    /// The name on this host [default: the same]
    #[arg(long = "as", value_name = "NAME")]
    local: Option<DiskName>,
    #[command(flatten)]
    up: Up,
}

/// Before the commit: another point instead; what was written to the first one is lost
#[derive(Args)]
pub struct Change {
    /// The disk's name on this host
    name: DiskName,
    #[command(flatten)]
    point: Point,
    /// Attach a loop device, too, and print it
    #[arg(long)]
    attach: bool,
}

/// Before the commit: undo it, on the target or on the source
#[derive(Args)]
#[command(after_help = "\
On a target, what was brought up is removed. On a source, the handover is withdrawn, if no target has
committed, and the disk can be mounted again.")]
pub struct Cancel {
    /// The disk's name on this host
    name: DiskName,
}

/// The point of no return: this host writes the disk from now on, and protects it
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay failover commit db

Takes the next term: the old source is refused from then on, also when it comes back. The disk is protected
under its name, and its changes go to the same vault. The rest of it is fetched in the background.")]
pub struct Commit {
    /// The disk's name on this host
    name: DiskName,
    /// The policy it follows, from the configuration
    #[arg(long)]
    policy: Option<String>,
    /// Do not fetch the rest of it in the background
    #[arg(long)]
    no_hydrate: bool,
}

/// Show the failovers of this host
#[derive(Args)]
pub struct Status {
    /// The disk's name on this host [default: all]
    name: Option<DiskName>,
}

/// Which point.
#[derive(Args)]
pub struct Point {
    /// Which point: a number, latest, or a time
    #[arg(long = "point", id = "at", default_value = "latest", value_name = "POINT")]
    at: PointChoice,
    /// Also a point of a history that was left at a failover
    #[arg(long)]
    left_history: bool,
}

/// How a point is brought up.
#[derive(Args)]
pub struct Up {
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Attach a loop device, too, and print it
    #[arg(long)]
    attach: bool,
}

impl Failover {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.what {
            What::Test(verb) => verb.run(context),
            What::Cleanup(verb) => verb.run(context),
            What::Handover(verb) => source::handover(context, &verb.name),
            What::Planned(verb) => verb.run(context),
            What::Unplanned(verb) => verb.run(context),
            What::Change(verb) => verb.run(context),
            What::Cancel(verb) => verb.run(context),
            What::Commit(verb) => verb.run(context),
            What::Status(verb) => status::show(context, verb.name.as_ref()),
        }
    }
}

impl Test {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        if let Some(group) = &self.group {
            return target::test_group(
                context,
                group,
                self.group_point.map(GroupPointNo),
                &self.up,
            );
        }
        let name = self.name.context("which disk?")?;
        let local = match self.local {
            Some(local) => local,
            None => format!("{name}.test").parse().context("use --as")?,
        };
        target::bring_up(
            context,
            &target::Order {
                kind: Kind::Test,
                name,
                local,
                which: target::Which::Choice(self.point.at, self.point.left_history),
                vault: self.up.vault,
                attach: self.up.attach,
                group: None,
                replica: false,
            },
        )
    }
}

impl Cleanup {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let tests: Vec<_> = FailoverRecord::all(&context.roots.state)?
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
            bail!(
                "there is no test failover of that name on this host; see backstay failover status"
            );
        }
        tests.into_iter().try_for_each(|record| target::remove(context, record).map(drop))
    }
}

impl Planned {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        // Of a source on this same host, both halves are done here.
        let here = local::disk_of(context, &self.name);
        let local = self.local.clone().unwrap_or_else(|| self.name.clone());
        if let Some(source) = here.filter(|source| *source == self.name) {
            let record = FailoverRecord::load(&context.roots.state, &source)?;
            // It may also be what an earlier failover left, or this one, begun.
            let is_source = record
                .is_none_or(|record| matches!(record.state, State::Committed | State::HandingOver));
            if is_source && local == source {
                return Err(Refused(format!(
                    "disk {source} is on this host, and cannot be failed over to its own name: use --as \
                     NAME. Nothing was changed"
                ))
                .into());
            }
            if is_source {
                source::handover(context, &source)?;
            }
        }
        target::bring_up(
            context,
            &target::Order {
                kind: Kind::Planned,
                name: self.name,
                local,
                which: target::Which::HandedOver,
                vault: self.up.vault,
                attach: self.up.attach,
                group: None,
                replica: false,
            },
        )
    }
}

impl Unplanned {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let local = self.local.unwrap_or_else(|| self.name.clone());
        target::bring_up(
            context,
            &target::Order {
                kind: Kind::Unplanned,
                name: self.name,
                local,
                which: target::Which::Choice(self.point.at, self.point.left_history),
                vault: self.up.vault,
                attach: self.up.attach,
                group: None,
                replica: self.replica,
            },
        )
    }
}

impl Change {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let record = local::record(context, &self.name)?;
        target::change(context, record, (self.point.at, self.point.left_history), self.attach)
    }
}

impl Cancel {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let record = local::record(context, &self.name)?;
        match record.kind {
            Kind::Source => source::take_back(context, record),
            Kind::Failback if record.state == State::Seeding => {
                let name = record.name.clone();
                record.end(&context.roots.state)?;
                println!(
                    "{name}: no longer brought back; its replica stays (backstay replica {name})"
                );
                Ok(())
            }
            _ => {
                let name = record.name.clone();
                if target::remove(context, record)? {
                    println!("{name}: cancelled; nothing is left of it here");
                }
                Ok(())
            }
        }
    }
}

impl Commit {
    fn run(self, context: &Context) -> anyhow::Result<()> {
        let record = local::record(context, &self.name)?;
        target::commit(context, record, self.policy.as_deref(), !self.no_hydrate)
    }
}

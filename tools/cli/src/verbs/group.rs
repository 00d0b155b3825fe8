//! `backstay group`: disks that are cut at one instant.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_engine::group::service::{With, listen, member_of};
use backstay_engine::group::{Current, Group as Settings, GroupJob, GroupReport, run_group};
use backstay_engine::service::stop_on_signals;
use backstay_engine::throttle::Throttle;
use backstay_types::{CycleNo, DiskId};
use backstay_vault::{GroupName, GroupPoint};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::target::time;
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Consistency groups: disks of one host or several, cut at one instant
#[derive(Args)]
pub struct Group {
    #[command(subcommand)]
    what: Action,
}

#[derive(Subcommand)]
enum Action {
    Cycle(Cycle),
    Join(Join),
    Points(Points),
}

/// Make a group point now
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay group cycle shop
  backstay group cycle shop --count 10 --json

The group is the section [group.shop] of the configuration. If it has other hosts, this one must be its coordinator; \
the others must be connected (backstay sidecar, or backstay group join). If no group point can be made, each disk of \
this host still gets a recovery point of its own, and the exit code is 1.")]
pub struct Cycle {
    /// The group's name
    name: GroupName,
    /// How many points to make, one after the other; --json prints a line for each
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
}

/// Serve as a member of a group that another host coordinates, until stopped
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay group join shop --verbose

Use this command to try a group; backstay sidecar does the same for all groups of the configuration.")]
pub struct Join {
    /// The group's name
    name: GroupName,
}

/// List the points of a group
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay group points shop
  backstay group points shop --vault file:///mnt/backup/vault --json

To restore a group point, restore each of its members' points; --json has the commands.")]
pub struct Points {
    /// The group's name
    name: GroupName,
    /// The vault's URL [default: the group's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
}

impl Group {
    pub fn run(self, context: &Context) -> Result<()> {
        match self.what {
            Action::Cycle(verb) => verb.run(context),
            Action::Join(verb) => verb.run(context),
            Action::Points(verb) => verb.run(context),
        }
    }
}

impl Cycle {
    fn run(self, context: &Context) -> Result<()> {
        let group = Settings::find(&context.config, &self.name)?;
        if group.config.member.is_some() {
            bail!(
                "group {}: another host coordinates it; run this there, and here backstay sidecar \
                 or backstay group join {}",
                self.name,
                self.name
            );
        }
        let hosts = match (&group.config.coordinator, &context.config.tls) {
            (Some(coordinator), Some(tls)) => {
                let names = BTreeMap::from([(self.name.clone(), coordinator.hosts.clone())]);
                let hosts = listen(coordinator.listen, tls, names)?;
                // If one does not come, the round says which.
                let _ = hosts.wait_for(&self.name, group.config.ready_deadline);
                Some(hosts)
            }
            _ => None,
        };
        let stop = Arc::new(AtomicBool::new(false));
        let (config, throttle) = shared(context);
        let with =
            With { config: &config, roots: &context.roots, throttle: &throttle, stop: &stop };
        let shipping = group.shipping(&with);
        let disks = group.local_disks(&context.roots);
        for disk in &disks {
            disk.bring_in_step(&shipping).with_context(|| format!("disk {}", disk.name))?;
        }
        let mut void = 0;
        for _ in 0..self.count {
            let report = run_group(GroupJob {
                group: &group,
                disks: disks.clone(),
                shipping: shipping.clone(),
                hosts: hosts.as_ref(),
            })?;
            void += u32::from(report.point.is_none());
            self.show(context, &report)?;
        }
        if void > 0 {
            bail!("group {}: {void} of {} rounds made no group point", self.name, self.count);
        }
        Ok(())
    }

    fn show(&self, context: &Context, report: &GroupReport) -> Result<()> {
        if context.globals.json {
            if self.count == 1 {
                return context.print_json(report);
            }
            println!("{}", serde_json::to_string(report).map_err(std::io::Error::from)?);
            return Ok(());
        }
        if let Some(void) = &report.void {
            eprintln!("{}: no group point: {void}", report.group);
        }
        if context.globals.quiet {
            return Ok(());
        }
        if let Some(point) = &report.point {
            println!(
                "{}: group point {} of {} disks ({:.2} s, writes held {:.2} ms)",
                report.group,
                point.number,
                point.members.len(),
                report.duration.as_secs_f64(),
                report.held_ns as f64 / 1e6
            );
        }
        for member in &report.members {
            match (&member.cycle, &member.failure) {
                (Some(cycle), _) => println!("  {}: recovery point {}", member.name, cycle.cycle),
                (None, why) => {
                    println!("  {}: failed: {}", member.name, why.as_deref().unwrap_or_default());
                }
            }
        }
        Ok(())
    }
}

impl Join {
    fn run(self, context: &Context) -> Result<()> {
        let group = Settings::find(&context.config, &self.name)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (config, throttle) = shared(context);
        let with =
            With { config: &config, roots: &context.roots, throttle: &throttle, stop: &stop };
        let member = member_of(with, &group)?;
        let shipping = group.shipping(&with);
        for disk in group.local_disks(&context.roots) {
            disk.bring_in_step(&shipping).with_context(|| format!("disk {}", disk.name))?;
        }
        let stopped = stop_on_signals()?;
        std::thread::spawn(move || {
            let _ = stopped.recv();
            stop.store(true, Ordering::Relaxed);
        });
        member.serve();
        Ok(())
    }
}

/// A group point, for programs.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    point: GroupPoint,
    /// Whether all its members' points are still there.
    complete: bool,
    /// The commands that restore it; the targets are the reader's to choose.
    restore: Vec<String>,
}

impl Points {
    fn run(self, context: &Context) -> Result<()> {
        let url = match &self.vault {
            Some(url) => url.clone(),
            None => Settings::find(&context.config, &self.name)?.vault,
        };
        let vault = context.config.vaults.open(&url)?;
        let mut there: BTreeMap<DiskId, Vec<CycleNo>> = BTreeMap::new();
        let mut points = vec![];
        for number in vault.group_points(&self.name)? {
            let point = vault.group_point(&self.name, number)?;
            let mut complete = true;
            for member in &point.members {
                let cycles = match there.get(&member.disk) {
                    Some(cycles) => cycles,
                    None => {
                        let cycles = vault.points(member.disk)?;
                        there.entry(member.disk).or_insert(cycles)
                    }
                };
                complete &= cycles.binary_search(&member.cycle).is_ok();
            }
            let restore = point.members.iter().map(|member| {
                let (name, cycle) = (&member.name, member.cycle);
                format!("backstay restore {name} --vault {url} --point {cycle} --to {name}.img")
            });
            points.push(Listed { complete, restore: restore.collect(), point });
        }
        if context.globals.json {
            return context.print_json(&points);
        }
        println!("{:>6}  {:20}  MEMBERS", "POINT", "CUT");
        for Listed { point, complete, .. } in points {
            let members: Vec<String> =
                point.members.iter().map(|m| format!("{}@{}", m.name, m.cycle)).collect();
            println!(
                "{:>6}  {:20}  {}{}",
                point.number.0,
                time(point.cut_unix_ns),
                members.join(" "),
                if complete { "" } else { "  (incomplete: members were deleted)" }
            );
        }
        Ok(())
    }
}

/// What all disks of this command share.
fn shared(context: &Context) -> (Current, Arc<Throttle>) {
    let config = &context.config;
    let throttle = Throttle::new(config.throttle.clone(), config.zone());
    (Current::new(Arc::new(config.clone())), Arc::new(throttle))
}

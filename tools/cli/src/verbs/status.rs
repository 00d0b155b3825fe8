//! `backstay status`: how disks are.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::bail;
use backstay_engine::health::{Cause, Level, ids};
use backstay_engine::status::DiskStatus;
use backstay_host::clock;
use backstay_recovery::failover::FailoverRecord;
use backstay_recovery::lazy::HydrationStatus;
use backstay_recovery::replica::status::ReplicaStatus;
use backstay_types::{DiskName, Term};
use clap::Args;

use super::target::{size, time, word};
use crate::context::Context;
use crate::health::{Point, Shown, for_each_at_once, look, term_of};

/// Show state, recovery point objective, dirty bytes and health of disks
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay status
  backstay status db --watch
  backstay --json status db | jq .[0].health

RPO is the age of the cut of the newest recovery point that is committed and verified; a replica's, that of the
point it holds. Disks that are failed over, and replicas, are among them.")]
pub struct Status {
    /// The disk's name [default: all disks of this host]
    name: Option<DiskName>,
    /// Show it again every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

impl Status {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        loop {
            let all = self.collect(context)?;
            if context.globals.json {
                context.print_json(&all)?;
            } else {
                if self.watch && std::io::stdout().is_terminal() {
                    print!("\x1b[2J\x1b[H");
                }
                for status in &all {
                    print(&status.disk, status.replica.is_some());
                    status.failover.iter().for_each(print_failover);
                    status.replica.iter().for_each(print_replica);
                    status.mounted_point.iter().for_each(print_point);
                }
            }
            if !self.watch {
                return Ok(());
            }
            clock::sleep(Duration::from_secs(2));
        }
    }

    fn collect(&self, context: &Context) -> anyhow::Result<Vec<Shown>> {
        let names = match &self.name {
            Some(name) => vec![name.clone()],
            None => all(context),
        };
        for name in names.iter().filter(|_| self.name.is_some()) {
            if !context.roots.disk(name).state.exists() {
                bail!(
                    "there is no disk {name} on this host (looked in {})",
                    context.roots.state.display()
                );
            }
        }
        for_each_at_once(&names, |name| look(context, name)).into_iter().collect()
    }
}

/// Disks and replicas of this host.
fn all(context: &Context) -> Vec<DiskName> {
    let state = std::fs::read_dir(&context.roots.state).into_iter().flatten().flatten();
    let replicas = state
        .filter(|entry| entry.path().join("replica/replica.json").exists())
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut names: Vec<DiskName> = context.disks().into_iter().chain(replicas).collect();
    names.sort();
    names.dedup();
    names
}

fn print_failover(record: &FailoverRecord) {
    let point = record.point.map_or(String::new(), |point| format!(" at point {}", point.cycle));
    let term = match term_of(record) {
        Term(0) => String::new(),
        term => format!(", term {term}"),
    };
    let group = record
        .group
        .as_ref()
        .map_or(String::new(), |of| format!(", of point {} of group {}", of.number, of.group));
    println!(
        "  failover    {}, {}{point}{group}{term}, since {}",
        word(&record.kind),
        record.state.explain(),
        time(record.since_unix_ns)
    );
}

fn print_replica(replica: &ReplicaStatus) {
    let running = if replica.running { "following" } else { "not running" };
    println!(
        "  replica     {running}, {}, on {}, of {}",
        replica.explained,
        replica.target.display(),
        replica.vault
    );
    if let Some(rpo) = replica.rpo_ns {
        let age = Duration::from_secs(Duration::from_nanos(rpo).as_secs());
        println!("  RPO now     {}", humantime::format_duration(age));
    }
    let newest = replica.shown.as_ref().and_then(|shown| shown.newest);
    if let (Some(newest), Some(at)) = (newest, replica.at)
        && newest.cycle != at
    {
        println!("  behind      at point {at}; the newest is {}", newest.cycle);
    }
    let doing = replica.shown.as_ref().and_then(|shown| shown.doing.as_ref());
    if let (true, Some(work)) = (replica.running, doing) {
        println!("  doing       {} {} of {}", work.what, size(work.done), size(work.all));
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "WARNING",
        Level::Critical => "CRITICAL",
    }
}

fn print(status: &DiskStatus, is_replica: bool) {
    let health = level(status.health.level);
    let state = match status.state {
        Some(state) => word(&state),
        None if is_replica => "replica".into(),
        None if status.health.causes.iter().any(|cause| cause.id == ids::DRIVER_SILENT) => {
            "not-answering".into()
        }
        None => "not-mounted".into(),
    };
    let policy = status.policy.as_ref().map_or_else(String::new, |p| format!(", policy {p}"));
    let groups: Vec<&str> = status.groups.iter().map(|group| group.as_str()).collect();
    let groups = match groups.as_slice() {
        [] => String::new(),
        names => format!(", group {}", names.join(", ")),
    };
    println!("{}: {state}, {health}{policy}{groups}", status.name);
    if let Some(reason) = &status.health.reason {
        println!("  reason      {reason}");
    }
    if let Some(since) = status.health.since_unix_ns {
        println!("  since       {}", time(since));
    }
    match (status.health.level, status.health.next_retry_unix_ns) {
        (Level::Critical, _) => println!("  next try    not before a person acts"),
        (_, Some(at)) => println!("  next try    {}", time(at)),
        _ => {}
    }
    if let Some(advice) = &status.health.advice {
        println!("  to do       {advice}");
    }
    status.health.causes.iter().skip(1).for_each(print_more);
    if let Some(next) = status.next_unix_ns.filter(|_| status.health.level == Level::Ok) {
        println!("  next cycle  {}", time(next));
    }
    if let Some(blackout) = &status.blackout {
        println!("  blackout    {blackout}");
    }
    if status.limit.limit().is_some() {
        println!("  limit       {} for all disks together", status.limit);
    }
    let last = status.record.last.as_ref().filter(|_| !is_replica);
    if let (Some(last), Some(rpo)) = (last, status.rpo_ns) {
        let age = Duration::from_secs(Duration::from_nanos(rpo).as_secs());
        println!("  RPO now     {}", humantime::format_duration(age));
        println!(
            "  last cycle  point {} cut {}, {} moved, {} stored, {:.1} s",
            last.cycle,
            time(last.cut_unix_ns),
            size(last.moved.0),
            size(last.stored.0),
            last.duration.as_secs_f64()
        );
    }
    match status.vault_id {
        Some(id) => println!("  vault       {} ({id})", status.vault),
        None => println!("  vault       {} (nothing shipped yet)", status.vault),
    }
    if let Some(dirty) = status.dirty {
        println!("  dirty       {}", size(dirty.0));
    }
    if let Some(churn) = status.churn_per_second {
        let folding = status.folding_ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}"));
        println!("  churn       {}/s, folding {folding}", size(churn as u64));
    }
    if let Some((used, limit)) = status.change_log {
        println!("  change log  {} of {}", size(used.0), size(limit.0));
    }
    if let Some(drill) = &status.drill {
        if let Some(verdict) = &drill.verdict {
            println!(
                "  last drill  point {} {} {}, {}: {}",
                verdict.cycle,
                word(&verdict.check),
                if verdict.passed { "passed" } else { "FAILED" },
                time(verdict.ended_unix_ns),
                verdict.message.lines().next().unwrap_or_default()
            );
        }
        if let Some(error) = &drill.error {
            println!("  no drill    {}: {error}", time(drill.tried_unix_ns));
        }
    }
    if let Some(driver) = &status.driver {
        println!(
            "  served      {} ({}, {}, pid {})",
            driver.served.display(),
            size(driver.size.0),
            driver.engine,
            driver.pid
        );
    }
}

/// A cause that is not the headline.
fn print_more(cause: &Cause) {
    println!("  also        {}", cause.reason);
    if let Some(advice) = &cause.advice {
        println!("              {advice}");
    }
}

fn print_point(point: &Point) {
    let Point { of, now } = point;
    println!(
        "  mounted     point {} of disk {}, cut {}, from {}",
        of.cycle,
        of.disk_name,
        time(of.cut_unix_ns),
        of.vault
    );
    let Some(now) = now else { return };
    println!(
        "  local       {} of {}, and {} of {} in the cache",
        size(now.local_bytes.0),
        size(of.size_bytes.0),
        size(now.cache_bytes.0),
        size(now.cache_limit_bytes.0)
    );
    match &now.hydration {
        HydrationStatus::NotWanted => {}
        HydrationStatus::Running => {
            println!("  hydration   {} of {}", size(now.hydrated_bytes.0), size(of.size_bytes.0));
        }
        HydrationStatus::Waiting { reason } => println!("  hydration   waits: {reason}"),
        HydrationStatus::Done => println!("  hydration   done: the vault is not needed any more"),
    }
    if now.hydration != HydrationStatus::Done {
        match &now.vault_trouble {
            None if now.held => println!("  vault       reachable; holds the point"),
            None => println!("  vault       reachable; the point is not held"),
            Some(why) => println!("  vault       NOT REACHABLE: {why}"),
        }
    }
}

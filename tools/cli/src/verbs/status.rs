//! `backstay status`: how disks are.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::bail;
use backstay_engine::record::Record;
use backstay_engine::status::{DiskStatus, Health, Level, of_disk};
use backstay_host::clock;
use backstay_recovery::failover::{FailoverRecord, State, refuse_to_serve};
use backstay_recovery::lazy::{HydrationStatus, Mounted, MountedPoint};
use backstay_recovery::replica::status::{self as replica, ReplicaStatus};
use backstay_types::{DiskName, Term};
use clap::Args;
use serde::Serialize;

use super::target::{size, time, word};
use crate::certificates;
use crate::context::Context;

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

/// A disk, and the recovery point it is of, if it is a mounted one.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    disk: DiskStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    mounted_point: Option<Point>,
    /// What a failover has done with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    failover: Option<FailoverRecord>,
    /// The newest term that its failover knows: whose it is says the failover's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<Term>,
    /// How it is as a replica, unless that was taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<ReplicaStatus>,
}

/// A mounted point.
#[derive(Serialize)]
struct Point {
    #[serde(flatten)]
    of: MountedPoint,
    /// How it is now, if it is served.
    #[serde(flatten)]
    now: Option<Mounted>,
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
        let now = backstay_host::clock::now_unix_ns();
        let mut all = vec![];
        for name in names {
            let paths = context.roots.disk(&name);
            if self.name.is_some() && !paths.state.exists() {
                bail!(
                    "there is no disk {name} on this host (looked in {})",
                    context.roots.state.display()
                );
            }
            let driver = context.driver(&name).ok().and_then(|mut driver| driver.status().ok());
            let served = driver.is_some();
            let of = MountedPoint::load(&name, &paths)?;
            let mut disk = of_disk(name, driver, Record::load(&paths.state), &context.config, now);
            if of.is_some() && !served {
                disk.health.advice = Some(format!("mount it: backstay mount --name {}", disk.name));
            }
            let mounted_point =
                of.map(|of| Point { of, now: Mounted::load(&paths).filter(|_| served) });
            let failover = FailoverRecord::load(&context.roots.state, &disk.name)?;
            if let (Some(_), Err(e), false) =
                (&failover, refuse_to_serve(&context.roots.state, &disk.name), served)
            {
                (disk.health.reason, disk.health.advice) = (Some(e.to_string()), None);
            }
            // A backing that became a disk again is none any more.
            let is_disk = served || paths.state.join("super").exists();
            let replica = replica::of(&paths).ok().flatten().filter(|_| !is_disk);
            if let Some(replica) = &replica {
                disk.rpo_ns = replica.rpo_ns;
                // A failback brings its replica on by itself, and its record says what to do.
                if failover.is_none() {
                    disk.health = health_of(replica);
                }
            }
            certificates::warn(&context.config, &disk.name, &mut disk.health);
            let term = failover.as_ref().map(term_of);
            all.push(Shown { disk, mounted_point, failover, term, replica });
        }
        Ok(all)
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

fn term_of(record: &FailoverRecord) -> Term {
    match record.state {
        State::Committed => record.after.next(),
        _ => record.after,
    }
}

fn health_of(replica: &ReplicaStatus) -> Health {
    let name = &replica.name;
    let shown = replica.shown.as_ref();
    let failure = shown.filter(|_| replica.running).and_then(|shown| shown.failure.clone());
    let (level, reason, advice) = match failure {
        Some(why) if shown.is_some_and(|shown| shown.person_must_act) => (
            Level::Critical,
            Some(why),
            Some("mend what it says; it is tried again by itself".into()),
        ),
        Some(why) => (Level::Warning, Some(why), Some("it is tried again by itself".into())),
        None if !replica.running => (
            Level::Warning,
            Some(format!("no process follows the vault; the replica is {}", replica.explained)),
            Some(format!("go on: backstay replica {name} --follow")),
        ),
        None => (Level::Ok, None, None),
    };
    let next_retry_unix_ns = shown.and_then(|shown| shown.next_try_unix_ns);
    Health { level, reason, since_unix_ns: None, next_retry_unix_ns, advice }
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

fn print(status: &DiskStatus, is_replica: bool) {
    let health = match status.health.level {
        Level::Ok => "ok",
        Level::Warning => "WARNING",
        Level::Critical => "CRITICAL",
    };
    let state = match status.state {
        Some(state) => word(&state),
        None if is_replica => "replica".into(),
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

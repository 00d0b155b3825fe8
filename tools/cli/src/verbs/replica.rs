//! `backstay replica`: a raw file or device that is kept at the newest point.

use std::path::PathBuf;
use std::time::Duration;

use backstay_engine::jobs::{JobBook, JobKind};
use backstay_host::clock;
use backstay_recovery::failover::NameLock;
use backstay_recovery::failover::rules::Verb;
use backstay_recovery::host::replica::{ReplicaOrder, Seed, arrived_at, open_replica, stop_runner};
use backstay_recovery::replica::status::{ReplicaStatus, of};
use backstay_recovery::replica::{Follow, Limits, PointRef, Replica, ReplicaState, follow};
use backstay_types::{ByteLen, DiskName};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};

use super::progress::Progress;
use super::target::{InVault, size, time};
use crate::context::Context;
use crate::error::{Context as _, Result};

/// What a replica does that is at the newest point.
const FOLLOWING: &str = "following";

/// Looking more often only keeps the vault busy.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Keep a raw file or block device at the newest recovery point (hot standby)
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay replica db --vault file:///mnt/vault --to /srv/standby.img --follow
  backstay replica db --follow        continue after a stop or a kill
  backstay replica db --once          go to the newest point, then end
  backstay replica db --status
  backstay replica db --stop          stop the process that follows
  backstay replica db --take-over     stop it, and serve it as disk db
  backstay replica db --to /dev/sdb --seed compare --force
  backstay replica db --to /srv/db.img --seed changes

Every block is checked before it is written. The target always equals one point, or becomes one by replaying a \
local log. Runs in the foreground; \
SIGTERM stops it at a whole point. docs/explanation/replica.md says what happens in each failure.")]
pub struct ReplicaVerb {
    /// The disk's name
    name: DiskName,
    #[command(flatten)]
    vault: InVault,
    /// The target: a file (made if missing), or a block device as large as the disk
    #[arg(long, value_name = "FILE|DEVICE")]
    to: Option<PathBuf>,
    /// Follow the newest point until stopped (the default)
    #[arg(long, conflicts_with = "once")]
    follow: bool,
    /// Go to the newest point, then exit
    #[arg(long)]
    once: bool,
    /// How often to look for a newer point
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// How to begin: auto (fill an empty target, compare any other), compare, full, or changes (the backing of the
    /// stopped disk of this host)
    #[arg(long, value_enum, default_value_t = SeedFlag::Auto)]
    seed: SeedFlag,
    /// Overwrite the target and begin the replica again
    #[arg(long)]
    force: bool,
    /// Size limit of the redo log; to finish a larger difference, the vault is needed
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    log_limit: ByteSize,
    /// Show the replica's state; change nothing
    #[arg(long, conflicts_with_all = ["to", "take_over"])]
    status: bool,
    /// Stop the replica's process at a whole point; the file stays, and --follow continues
    #[arg(long, conflicts_with_all = ["to", "take_over", "status", "once", "follow"])]
    stop: bool,
    /// Stop at a whole point and serve it as a protected disk
    #[arg(long, conflicts_with = "to")]
    take_over: bool,
}

/// What to begin with.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SeedFlag {
    Auto,
    Compare,
    Full,
    Changes,
}

impl ReplicaVerb {
    pub fn run(self, context: &Context) -> Result<()> {
        let paths = context.roots.disk(&self.name);
        if self.status {
            let status = of(&paths)?;
            let status = status
                .with_context(|| format!("there is no replica {} on this host", self.name))?;
            return match context.globals.json {
                true => context.print_json(&status),
                false => {
                    print(&status);
                    Ok(())
                }
            };
        }
        if self.stop {
            context.may(&self.name, Verb::StopReplica)?;
            return Ok(stop_runner(&paths)?);
        }
        if self.take_over {
            context.may(&self.name, Verb::TakeOver)?;
            return self.take_over(context);
        }
        // A stopped disk that another host has now becomes its replica.
        if self.seed != SeedFlag::Changes {
            context.may(&self.name, Verb::Replica)?;
        }
        let mut replica = self.open(context)?;
        let bar = Progress::new(context);
        let jobs = JobBook::below(&context.roots.state);
        let job = match self.once {
            // A failback looks every few seconds: what takes no time is no job.
            true => jobs.begin_if_long(&self.name, JobKind::Replica),
            false => jobs.begin(&self.name, JobKind::Replica),
        };
        if !self.once {
            job.progress(FOLLOWING, 0, 0);
        }
        let arrived = |point: &PointRef, moved: &backstay_recovery::replica::Moved| {
            bar.end();
            job.came_to(point.cycle);
            if !self.once {
                job.progress(FOLLOWING, 0, 0);
            }
            tracing::info!(
                "replica {}: at point {} ({} written, {} fetched)",
                self.name,
                point.cycle,
                size(moved.written.0),
                size(moved.fetched.0)
            );
            if self.once && context.globals.json {
                let _ = context.print_json(&serde_json::json!({
                    "name": self.name, "cycle": point.cycle,
                    "written_bytes": moved.written, "fetched_bytes": moved.fetched,
                }));
            } else if self.once && !context.globals.quiet {
                println!("{}", arrived_at(&self.name, point, moved));
            }
        };
        let followed = follow(
            &mut replica,
            &Follow {
                vaults: &context.config.vaults,
                interval: self.interval.max(SHORTEST_INTERVAL),
                retry: context.config.retry_of(&self.name),
                once: self.once,
                stop: backstay_engine::service::stop_on_signals()?,
                progress: &|doing, done, all| {
                    bar.show(doing.word(), done, all);
                    job.progress(doing.word(), done, all);
                },
                arrived: &arrived,
            },
        );
        bar.end();
        job.end_at(followed.as_ref().map(|()| None).map_err(ToString::to_string));
        followed.with_context(|| format!("replica {}: {}", self.name, replica.standing().explain()))
    }

    fn limits(&self) -> Limits {
        Limits { log: ByteLen(self.log_limit.as_u64()), ..Limits::default() }
    }

    /// The replica, begun if it was not.
    fn open(&self, context: &Context) -> Result<Replica> {
        if self.to.is_some() {
            self.vault.note(context, &self.name);
        }
        let seed = match self.seed {
            SeedFlag::Auto => Seed::Auto,
            SeedFlag::Compare => Seed::Compare,
            SeedFlag::Full => Seed::Full,
            SeedFlag::Changes => Seed::Changes,
        };
        let order = ReplicaOrder {
            vaults: &context.config.vaults,
            to: self.to.as_deref(),
            vault: self.vault.url(context, &self.name),
            seed,
            force: self.force,
            limits: self.limits(),
            lock: true,
        };
        Ok(open_replica(&context.roots, &self.name, &order)?)
    }

    fn take_over(&self, context: &Context) -> Result<()> {
        let started = clock::monotonic();
        let _lock = NameLock::take(&context.roots.state, &self.name, "replica --take-over")?;
        let (taken, served) = context.host().take_over_replica(&self.name)?;
        let took = clock::since(started);
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": self.name, "cycle": taken.point.cycle, "cut_unix_ns": taken.point.cut_unix_ns,
                "served": served, "took_ns": took.as_nanos() as u64,
            }));
        }
        println!("{}", served.display());
        if !context.globals.quiet {
            eprintln!(
                "{}: taken over at point {} (cut {}) in {:.0} ms",
                self.name,
                taken.point.cycle,
                time(taken.point.cut_unix_ns),
                took.as_secs_f64() * 1e3
            );
        }
        Ok(())
    }
}

fn print(status: &ReplicaStatus) {
    let running = match status.running {
        true => "following",
        false if matches!(status.standing, ReplicaState::TakenOver { .. }) => "taken over",
        false => "not running",
    };
    println!("{}: replica, {running}", status.name);
    println!("  target      {}", status.target.display());
    println!("  vault       {}", status.vault);
    println!("  holds       {}", status.explained);
    if let Some(rpo) = status.rpo_ns {
        let age = Duration::from_secs(Duration::from_nanos(rpo).as_secs());
        println!("  RPO now     {}", humantime::format_duration(age));
    }
    let Some(shown) = &status.shown else { return };
    if let (Some(newest), Some(looked)) = (&shown.newest, shown.looked_unix_ns) {
        println!(
            "  newest      point {} cut {}, seen {}",
            newest.cycle,
            time(newest.cut_unix_ns),
            time(looked)
        );
    }
    println!(
        "  so far      {} points, {} skipped, {} written, {} fetched",
        shown.points,
        shown.skipped,
        size(shown.written_bytes),
        size(shown.fetched_bytes)
    );
    if let Some(failure) = &shown.failure {
        println!("  reason      {failure}");
        match shown.next_try_unix_ns {
            Some(at) => println!("  next try    {}", time(at)),
            None if shown.person_must_act => println!("  next try    a person must act"),
            None => {}
        }
    }
    if let (true, Some(work)) = (status.running, &shown.doing) {
        println!("  doing       {} {} of {}", work.what, size(work.done), size(work.all));
    }
}

//! `backstay replica`: a raw file or device that is kept at the newest point.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstay_engine::jobs::JobBook;
use backstay_engine::schedule::Work;
use backstay_front::life::DriverOptions;
use backstay_front::paths::DiskPaths;
use backstay_host::clock;
use backstay_recovery::failover::NameLock;
use backstay_recovery::failover::rules::Verb;
use backstay_recovery::replica::status::{ReplicaStatus, of, runner};
use backstay_recovery::replica::{
    Begin, Follow, Limits, PointRef, Replica, ReplicaError, ReplicaRecord, SeedChoice, Standing,
    folder, follow, newest,
};
use backstay_types::{ByteLen, DiskName};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::progress::Progress;
use super::target::{InVault, size, time};
use crate::context::Context;

/// How long a running replica may take to stop when it is taken over: it finishes what it applies.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

/// What a replica does that is at the newest point.
const FOLLOWING: &str = "following";

/// Looking more often only keeps the vault busy.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);

/// Keep a raw file or block device at the newest recovery point (hot standby)
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay replica db --vault file:///mnt/vault --to /srv/standby.img --follow
  backstay replica db --follow        go on after a stop or a kill
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
    /// Stay at the newest point until told to stop (the default)
    #[arg(long, conflicts_with = "once")]
    follow: bool,
    /// Go to the newest point, then exit
    #[arg(long)]
    once: bool,
    /// How often to look for a newer point
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// What to begin with: auto (fill what is empty, compare what is not), compare, full, or changes
    /// (the backing of the stopped disk of this host)
    #[arg(long, value_enum, default_value_t = SeedFlag::Auto)]
    seed: SeedFlag,
    /// Overwrite the target and begin the replica again
    #[arg(long)]
    force: bool,
    /// Most space for the redo log; a larger difference needs the vault to be finished
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    log_limit: ByteSize,
    /// Show its state, and change nothing
    #[arg(long, conflicts_with_all = ["to", "take_over"])]
    status: bool,
    /// Stop the process that keeps it, at a whole point; the file stays, and --follow goes on
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
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
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
            return stop_runner(&paths);
        }
        if self.take_over {
            context.may(&self.name, Verb::TakeOver)?;
            return self.take_over(context, &paths);
        }
        // A stopped disk that another host has now becomes its replica.
        if self.seed != SeedFlag::Changes {
            context.may(&self.name, Verb::Replica)?;
        }
        let mut replica = self.open(context, &paths)?;
        let bar = Progress::new(context);
        let jobs = JobBook::below(&context.roots.state);
        let job = match self.once {
            // A failback looks every few seconds: what takes no time is no job.
            true => jobs.begin_if_long(&self.name, Work::Replica),
            false => jobs.begin(&self.name, Work::Replica),
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
                println!(
                    "{}: at point {} ({} written, {} fetched)",
                    self.name,
                    point.cycle,
                    size(moved.written.0),
                    size(moved.fetched.0)
                );
            }
        };
        let followed = follow(
            &mut replica,
            &Follow {
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
    fn open(&self, context: &Context, paths: &DiskPaths) -> anyhow::Result<Replica> {
        let record = ReplicaRecord::load(&folder(paths));
        // A stopped disk becomes a replica, also where its host had one before.
        let from_disk = self.seed == SeedFlag::Changes && paths.state.join("super").exists();
        let begun = matches!(&record, Ok(Some(_))) && !from_disk;
        if let (Some(to), Ok(Some(record)), false) = (&self.to, &record, self.force)
            && begun
            && std::fs::canonicalize(to).or_else(|_| std::path::absolute(to))? != record.target.path
        {
            bail!(ReplicaError::Refused {
                name: self.name.clone(),
                reason: format!(
                    "it is kept on {}; use --force to begin anew",
                    record.target.path.display()
                ),
            });
        }
        let anew = self.force && self.to.is_some();
        if begun && !anew {
            return Ok(Replica::open(paths, &self.name, self.limits())?);
        }
        let _lock = NameLock::take(&context.roots.state, &self.name, "replica")?;
        let Some(to) = &self.to else {
            record?;
            bail!(ReplicaError::None { name: self.name.clone(), dir: folder(paths) });
        };
        let (vault, disk) = self.vault.find(context, &self.name)?;
        vault.check_readable()?;
        let point = newest(&vault, disk.disk)?;
        let point = point.ok_or_else(|| ReplicaError::NoPoint(self.name.clone()))?;
        let begin = Begin {
            paths,
            name: &self.name,
            disk: disk.disk,
            to,
            force: self.force,
            limits: self.limits(),
        };
        let seed = match self.seed {
            SeedFlag::Changes => return Ok(Replica::from_stopped_disk(&vault, &point, begin)?),
            SeedFlag::Auto => SeedChoice::Auto,
            SeedFlag::Compare => SeedChoice::Compare,
            SeedFlag::Full => SeedChoice::Full,
        };
        Ok(Replica::create(&vault, &point, seed, begin)?)
    }

    fn take_over(&self, context: &Context, paths: &DiskPaths) -> anyhow::Result<()> {
        let started = clock::monotonic();
        let _lock = NameLock::take(&context.roots.state, &self.name, "replica --take-over")?;
        let taken = match Replica::taken_over(paths)? {
            Some(taken) => taken,
            None => {
                stop_runner(paths)?;
                Replica::open(paths, &self.name, self.limits())?.take_over()?
            }
        };
        let served = super::mount::start(DriverOptions {
            read_only: false,
            name: self.name.clone(),
            backing: taken.target.clone(),
            paths: paths.clone(),
            mount_point: paths.mount_point(),
            engine: backstay_front::backing::Engine::default(),
            change_log_limit: None,
            tracking: true,
            grow: false,
            compare: false,
            base: Some(taken.base),
            base_size: Some(taken.point.size_bytes),
            event_loops: 2,
        })?;
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

/// Tells a running replica to stop, and waits until it has.
fn stop_runner(paths: &DiskPaths) -> anyhow::Result<()> {
    let Some(pid) = runner(paths) else { return Ok(()) };
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGTERM).with_context(|| format!("stopping the replica (process {pid})"))?;
    // A pidfd would tell at once, but the process may be gone before it is opened; the lock is what
    // counts, and it is looked for every 20 ms.
    let until = clock::monotonic() + STOPS_WITHIN;
    let (_keep, never) = mpsc::channel::<()>();
    while runner(paths) == Some(pid.as_raw()) {
        if clock::monotonic() > until {
            bail!("the replica (process {pid}) does not stop; look at what its target waits for");
        }
        let _ = never.recv_timeout(Duration::from_millis(5));
    }
    Ok(())
}

fn print(status: &ReplicaStatus) {
    let running = match status.running {
        true => "following",
        false if matches!(status.standing, Standing::TakenOver { .. }) => "taken over",
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

//! How one disk of this host is, put together from all who know of it: driver, records, failover,
//! replica, certificates. `status` and `doctor` both ask here, so they cannot contradict each other.

use std::time::Duration;

use backstay_engine::health::{Cause, Health, Level, ids};
use backstay_engine::jobs::{JobBook, JobKind, JobState};
use backstay_engine::status::{DiskStatus, of_disk};
use backstay_recovery::failover::lock::at_work;
use backstay_recovery::failover::{FailoverRecord, Kind, State, refuse_to_serve, way_on};
use backstay_recovery::mount::{HydrationStatus, Mounted, MountedPoint};
use backstay_recovery::replica::status::{self as replica, ReplicaStatus, Shown as Follower};
use backstay_types::{DiskName, Term};
use serde::Serialize;

use crate::certificates;
use crate::context::Context;
use crate::error::Result;
use crate::verbs::target::word;

/// A disk, and the recovery point it is of, if it is a mounted one.
#[derive(Serialize)]
pub struct Shown {
    /// What it is, in a word or two.
    pub headline: String,
    /// The disk.
    #[serde(flatten)]
    pub disk: DiskStatus,
    /// The point it is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounted_point: Option<Point>,
    /// What a failover has done with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<FailoverRecord>,
    /// The newest term that its failover knows: whose it is says the failover's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// How it is as a replica, unless that was taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica: Option<ReplicaStatus>,
}

/// A mounted point.
#[derive(Serialize)]
pub struct Point {
    /// Which.
    #[serde(flatten)]
    pub of: MountedPoint,
    /// How it is now, if it is served.
    #[serde(flatten)]
    pub now: Option<Mounted>,
}

/// Does something for each disk, for all at once: a driver that does not answer must not delay what is said
/// of the others. The results are in the order of the names.
pub fn for_each_at_once<T: Send>(
    names: &[DiskName],
    each: impl Fn(&DiskName) -> T + Sync,
) -> Vec<T> {
    /// Threads at a time.
    const AT_ONCE: usize = 32;
    let mut all = vec![];
    for some in names.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let each = &each;
            let threads: Vec<_> = some.iter().map(|name| scope.spawn(move || each(name))).collect();
            for thread in threads {
                match thread.join() {
                    Ok(result) => all.push(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    all
}

/// Looks at one disk.
///
/// # Errors
/// If a record of it cannot be read: then nobody knows what was being done with it.
pub fn look(context: &Context, name: &DiskName) -> Result<Shown> {
    let (roots, paths) = (&context.roots, context.roots.disk(name));
    let now = backstay_host::clock::now_unix_ns();
    let driver = context.driver(name).ok().and_then(|mut driver| driver.status().ok());
    let served = driver.is_some();
    let of = MountedPoint::load(name, &paths)?;
    let failover = FailoverRecord::load(&roots.state, name)?;
    let is_disk = served || paths.state.join("super").exists();
    // A backing that became a disk again is no replica any more.
    let replica = replica::of(&paths).ok().flatten().filter(|_| !is_disk);

    let mut disk = of_disk(roots, &context.config, name.clone(), driver, now);
    // Who is not served for a reason needs no driver, and what failed before is over.
    let away = failover.as_ref().filter(|_| !served);
    let away = away.and_then(|record| Some((record, refuse_to_serve(&roots.state, name).err()?)));
    if let Some((record, why)) = away {
        // What is under way needs nobody to begin it again.
        let reason = match at_work(&roots.state, name) {
            Some((doing, pid)) => {
                let how_far =
                    how_far(context, name).map_or_else(String::new, |far| format!(", {far}"));
                format!(
                    "{doing} runs{how_far} (process {pid}); the disk is {}",
                    record.state.explain()
                )
            }
            None => why.to_string(),
        };
        disk.health = Health::of(vec![match record.state {
            State::HandedOver => Cause::note(ids::HANDED_OVER, reason),
            _ => Cause::warning(ids::FAILOVER_UNFINISHED, reason),
        }]);
    } else if of.is_some()
        && !served
        && disk.health.causes.iter().all(|cause| cause.id != ids::DRIVER_DIED)
    {
        let reason = "no driver serves the mounted point";
        // One that is only looked at is missed by nobody.
        let cause = match disk.only_looked_at && failover.is_none() {
            true => Cause::note(ids::NOT_SERVED, reason),
            false => Cause::warning(ids::NOT_SERVED, reason),
        };
        let advice = format!("mount it: backstay mount --name {name}");
        disk.health.replace(ids::NOT_SERVED, cause.advise(advice));
    }
    // A disk that is served in the middle of a failover.
    let unfinished = |record: &&FailoverRecord| {
        served && !matches!(record.state, State::Committed | State::HandedOver)
    };
    if let Some(record) = failover.as_ref().filter(unfinished) {
        if matches!(record.kind, Kind::Test | Kind::Planned | Kind::Unplanned) {
            // Nothing of it is shipped before it is committed.
            (disk.state, disk.rpo_ns) = (None, None);
        }
        if record.kind != Kind::Test {
            let reason = match at_work(&roots.state, name) {
                Some((doing, pid)) => {
                    format!("{doing} runs (process {pid}); the disk is {}", record.state.explain())
                }
                None => format!(
                    "a failover of it is not finished: the disk is {}",
                    record.state.explain()
                ),
            };
            let cause = Cause::warning(ids::FAILOVER_UNFINISHED, reason);
            disk.health.add(Some(cause.advise(way_on(name, record.kind, record.state))));
        }
    }
    if let Some(replica) = &replica {
        disk.rpo_ns = replica.rpo_ns;
        // A failback brings its replica on by itself, and its record says what to do.
        if failover.is_none() {
            let config = &context.config;
            let every = (config.interval_of(name), config.heartbeat_of(name));
            let follower = replica.shown.as_ref().filter(|_| replica.running);
            let silent = follower.and_then(|follower| silent(follower, name, every, now));
            disk.health = Health::of(of_replica(replica).into_iter().chain(silent).collect());
        }
    }
    let mounted_point = of.map(|of| Point { of, now: Mounted::load(&paths).filter(|_| served) });
    disk.health.add(mounted_point.as_ref().and_then(unreachable_vault));
    disk.health.add(certificates::causes(&context.config, name));
    let term = failover.as_ref().map(term_of);
    let mut shown = Shown { headline: String::new(), disk, mounted_point, failover, term, replica };
    shown.headline = headline(&shown);
    Ok(shown)
}

/// How far the newest job of a disk is that says so.
fn how_far(context: &Context, name: &DiskName) -> Option<String> {
    let jobs = JobBook::below(&context.roots.state).list();
    let mut running =
        jobs.into_iter().filter(|job| job.disk == *name && job.state == JobState::Running);
    let job = running.find(|job| job.all_bytes > 0 || job.work == JobKind::Failback)?;
    match job.all_bytes {
        0 => Some(job.stage).filter(|stage| !stage.is_empty()),
        all => Some(format!("{}: {} %", job.stage, job.done_bytes.saturating_mul(100) / all)),
    }
}

/// What a disk is, in a word or two. It never sounds better than its health.
fn headline(shown: &Shown) -> String {
    let disk = &shown.disk;
    let failover = shown.failover.as_ref().filter(|_| disk.driver.is_none());
    match (disk.health.level, disk.state, failover) {
        (Level::Critical, ..) => "NOT PROTECTED".into(),
        (_, Some(state), _) => word(&state),
        (_, None, Some(record)) => word(&record.state),
        _ if shown.replica.is_some() => "replica".into(),
        _ if disk.health.causes.iter().any(|cause| cause.id == ids::DRIVER_SILENT) => {
            "not-answering".into()
        }
        _ if disk.only_looked_at && disk.driver.is_some() => "mounted point".into(),
        _ if disk.driver.is_some() => {
            shown.failover.as_ref().map_or_else(|| "mounted".into(), |record| word(&record.state))
        }
        _ => "not-mounted".into(),
    }
}

/// Whether blocks that are not here yet cannot be read.
fn unreachable_vault(point: &Point) -> Option<Cause> {
    let now = point.now.as_ref().filter(|now| now.hydration != HydrationStatus::Done)?;
    let why = now.vault_trouble.as_ref()?;
    let reason = format!(
        "the vault of the mounted point cannot be reached, and reads of blocks that are not here fail: {why}"
    );
    let advice = "fix the cause; reads are retried automatically";
    Some(Cause::critical(ids::POINT_UNREACHABLE, reason).advise(advice))
}

/// The newest term that a failover's record knows.
pub fn term_of(record: &FailoverRecord) -> Term {
    match record.state {
        State::Committed => record.after.next(),
        _ => record.after,
    }
}

fn of_replica(replica: &ReplicaStatus) -> Option<Cause> {
    let shown = replica.shown.as_ref();
    let retry = shown.and_then(|shown| shown.next_try_unix_ns);
    if !replica.running {
        let reason = format!("no process follows the vault; the replica is {}", replica.explained);
        let advice = format!("go on: backstay replica {} --follow", replica.name);
        return Some(Cause::warning(ids::REPLICA_NOT_RUNNING, reason).advise(advice));
    }
    if let Some(pid) = replica.stopped_pid {
        let reason =
            format!("the process that follows the vault was stopped by a signal: process {pid}");
        let advice = format!("let it go on: kill -CONT {pid}");
        return Some(Cause::warning(ids::REPLICA_SILENT, reason).advise(advice));
    }
    let failure = shown?.failure.as_ref()?;
    let cause = match shown.is_some_and(|shown| shown.person_must_act) {
        true => Cause::critical(ids::REPLICA_STOPPED, failure)
            .advise("fix the cause; it is retried automatically"),
        false => Cause::warning(ids::REPLICA_FAILED, failure).advise("it is retried automatically"),
    };
    Some(cause.retried(retry))
}

/// Intervals after which no new point in the vault is worth a word, and the least time.
const SILENT_INTERVALS: u32 = 3;
const SILENT_MIN: Duration = Duration::from_secs(20);

/// A replica sees no more of its source than its points. With a heartbeat, a source that makes none any more is in trouble;
/// without one, nobody here can tell it from a disk at rest, and that is said.
fn silent(
    follower: &Follower,
    name: &DiskName,
    (interval, heartbeat): (Duration, Option<Duration>),
    now_unix_ns: u64,
) -> Option<Cause> {
    let newest = follower.newest.as_ref()?;
    let age = Duration::from_nanos(now_unix_ns.saturating_sub(newest.cut_unix_ns));
    let most = SILENT_MIN.max(interval.max(heartbeat.unwrap_or_default()) * SILENT_INTERVALS);
    if age <= most {
        return None;
    }
    let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
    Some(match heartbeat {
        Some(_) => Cause::warning(
            ids::POINT_LATE,
            format!("its source makes no recovery points any more: the newest in the vault is {age} old"),
        )
        .advise(format!("look at the source: backstay status {name} there; if it is lost: backstay failover unplanned {name} --replica")),
        None => Cause::note(
            ids::POINT_LATE,
            format!(
                "the newest recovery point in the vault is {age} old: its source is at rest, or makes none any more"
            ),
        )
        .advise("set heartbeat in the configuration of both hosts: then it can be told"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECOND: u64 = 1_000_000_000;

    fn follower(cut_unix_ns: u64) -> Follower {
        let newest = json!({
            "cycle": 3, "point": "00000000-0000-0000-0000-000000000000", "term": 1, "size_bytes": 512, "cut_unix_ns": cut_unix_ns,
        });
        serde_json::from_value(json!({
            "pid": 1, "since_unix_ns": 0, "phase": "waiting", "newest": newest, "looked_unix_ns": 0, "points": 1,
            "skipped": 0, "written_bytes": 0, "fetched_bytes": 0, "failures": 0, "failure": null,
            "person_must_act": false, "next_try_unix_ns": null, "doing": null,
        }))
        .unwrap()
    }

    #[test]
    fn a_source_that_says_nothing_is_told_from_one_at_rest_by_its_heartbeat() {
        let follower = follower(1_000 * SECOND);
        let minute = Duration::from_secs(60);
        let cause = |heartbeat, after: u64| {
            silent(&follower, &"db".parse().unwrap(), (minute, heartbeat), (1_000 + after) * SECOND)
        };
        assert_eq!(cause(None, 170), None);
        let rest = cause(None, 190).unwrap();
        assert_eq!((rest.level, rest.id), (Level::Ok, ids::POINT_LATE));
        let hour = Some(Duration::from_secs(3_600));
        assert_eq!(cause(hour, 7_200), None, "its heartbeat may still come");
        let dead = cause(hour, 11_000).unwrap();
        assert_eq!(dead.level, Level::Warning);
        assert!(dead.reason.contains("3h 3m 20s old"), "{}", dead.reason);
    }
}

//! How one disk of this host is, put together from all who know of it: driver, records, failover,
//! replica, certificates. `status` and `doctor` both ask here, so they cannot contradict each other.

use backstay_engine::health::{Cause, Health, ids};
use backstay_engine::status::{DiskStatus, of_disk};
use backstay_recovery::failover::lock::at_work;
use backstay_recovery::failover::{FailoverRecord, State, refuse_to_serve};
use backstay_recovery::lazy::{Mounted, MountedPoint};
use backstay_recovery::replica::status::{self as replica, ReplicaStatus};
use backstay_types::{DiskName, Term};
use serde::Serialize;

use crate::certificates;
use crate::context::Context;

/// A disk, and the recovery point it is of, if it is a mounted one.
#[derive(Serialize)]
pub struct Shown {
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
pub fn look(context: &Context, name: &DiskName) -> anyhow::Result<Shown> {
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
    // Who is not served for a reason needs no driver.
    let away = failover.is_some().then(|| refuse_to_serve(&roots.state, name).err()).flatten();
    if let Some(why) = away.filter(|_| !served) {
        // What is under way needs nobody to begin it again.
        let reason = match (at_work(&roots.state, name), &failover) {
            (Some((doing, pid)), Some(record)) => format!(
                "it is {}: backstay {doing} is at work on it (process {pid})",
                record.state.explain()
            ),
            _ => why.to_string(),
        };
        disk.health.replace(ids::NOT_SERVED, Cause::warning(ids::HANDED_OVER, reason));
    } else if of.is_some() && !served {
        let advice = format!("mount it: backstay mount --name {name}");
        let cause = Cause::warning(ids::NOT_SERVED, "no driver serves the disk").advise(advice);
        disk.health.replace(ids::NOT_SERVED, cause);
    }
    if let Some(replica) = &replica {
        disk.rpo_ns = replica.rpo_ns;
        // A failback brings its replica on by itself, and its record says what to do.
        if failover.is_none() {
            disk.health = Health::of(of_replica(replica).into_iter().collect());
        }
    }
    disk.health.add(certificates::causes(&context.config, name));
    let mounted_point = of.map(|of| Point { of, now: Mounted::load(&paths).filter(|_| served) });
    let term = failover.as_ref().map(term_of);
    Ok(Shown { disk, mounted_point, failover, term, replica })
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
    let failure = shown?.failure.as_ref()?;
    let cause = match shown.is_some_and(|shown| shown.person_must_act) {
        true => Cause::critical(ids::REPLICA_STOPPED, failure)
            .advise("mend what it says; it is tried again by itself"),
        false => Cause::warning(ids::REPLICA_FAILED, failure).advise("it is tried again by itself"),
    };
    Some(cause.retried(retry))
}

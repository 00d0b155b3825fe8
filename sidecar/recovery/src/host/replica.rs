//! The replica of a name: ending the process that keeps it, and serving it as a disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use backstay_engine::jobs::{JobBook, JobKind};
use backstay_front::paths::{DiskPaths, Roots};
use backstay_host::clock;
use backstay_types::DiskName;
use backstay_vault::Vaults;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::Doing;
use super::serve::{From, How};
use super::{HostError, LocalHost};
use crate::failover::{FailoverError, NameLock};
use crate::replica::status::runner;
use crate::replica::{
    Begin, Follow, Limits, Moved, PointRef, Replica, ReplicaError, ReplicaRecord, SeedChoice,
    TakenOver, folder, follow, newest,
};

/// How long a running replica may take to stop when it is taken over: it finishes what it applies.
const STOPS_WITHIN: Duration = Duration::from_secs(60);

impl LocalHost<'_> {
    /// Stops the replica at a whole point and has it served as a disk; or goes on with that. Where it is served.
    ///
    /// # Errors
    /// If there is none, it cannot be stopped at a whole point, or is not served.
    pub fn take_over_replica(&self, name: &DiskName) -> Result<(TakenOver, PathBuf), HostError> {
        let paths = self.roots.disk(name);
        let taken = match Replica::taken_over(&paths)? {
            Some(taken) => taken,
            None => {
                stop_runner(&paths)?;
                Replica::open(&paths, name, Limits::default())?.take_over()?
            }
        };
        let served = self.serve(name, From::TakenOver(&taken.target), &How::default())?;
        Ok((taken, served))
    }
}

/// Tells a running replica to stop, and waits until it has.
///
/// # Errors
/// If it does not.
pub fn stop_runner(paths: &DiskPaths) -> Result<(), HostError> {
    let Some(number) = runner(paths) else { return Ok(()) };
    let pid = Pid::from_raw(number);
    kill(pid, Signal::SIGTERM)
        .map_err(std::io::Error::from)
        .doing(|| format!("stopping the replica (process {pid})"))?;
    // A pidfd would tell at once, but the process may be gone before it is opened; the lock is what
    // counts, and it is looked for every 5 ms.
    let until = clock::monotonic() + STOPS_WITHIN;
    let (_keep, never) = mpsc::channel::<()>();
    while runner(paths) == Some(number) {
        if clock::monotonic() > until {
            return Err(HostError::Failed(format!(
                "the replica (process {pid}) does not stop; look at what its target waits for"
            )));
        }
        let _ = never.recv_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// What a replica begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seed {
    /// Fill what is empty, compare what is not.
    Auto,
    /// Compare with the newest point, and fetch what differs.
    Compare,
    /// Fetch everything.
    Full,
    /// The backing of the stopped disk of this host, with what it knows.
    Changes,
}

/// Which replica is meant, and how it begins if it has not.
#[derive(Debug, Clone)]
pub struct ReplicaOrder<'a> {
    /// What vaults are opened with.
    pub vaults: &'a Vaults,
    /// The target; none to go on.
    pub to: Option<&'a Path>,
    /// The vault's URL.
    pub vault: &'a str,
    /// What it begins with.
    pub seed: Seed,
    /// Overwrite the target, and begin again.
    pub force: bool,
    /// How much it may take.
    pub limits: Limits,
    /// Whether the name's lock is taken to begin; anyone who has it does not.
    pub lock: bool,
}

impl<'a> ReplicaOrder<'a> {
    /// Going on with the one that there is, for anyone who has the name's lock.
    #[must_use]
    pub fn go_on(vaults: &'a Vaults, vault: &'a str) -> Self {
        let limits = Limits::default();
        Self { vaults, to: None, vault, seed: Seed::Auto, force: false, limits, lock: false }
    }
}

/// The replica of a name, begun if it was not.
///
/// # Errors
/// If it is kept on another target; or the vault or the target do not let it begin.
pub fn open_replica(
    roots: &Roots,
    name: &DiskName,
    order: &ReplicaOrder<'_>,
) -> Result<Replica, FailoverError> {
    open(roots, name, order).map_err(|e| match e {
        Why::Replica(e) => FailoverError::Host(e.into()),
        Why::Failover(e) => e,
    })
}

/// Why a replica was not opened.
enum Why {
    Replica(ReplicaError),
    Failover(FailoverError),
}

impl<E: Into<ReplicaError>> std::convert::From<E> for Why {
    fn from(e: E) -> Self {
        Self::Replica(e.into())
    }
}

fn open(roots: &Roots, name: &DiskName, order: &ReplicaOrder<'_>) -> Result<Replica, Why> {
    let paths = &roots.disk(name);
    let record = ReplicaRecord::load(&folder(paths));
    // A stopped disk becomes a replica, also where its host had one before.
    let from_disk = order.seed == Seed::Changes && paths.state.join("super").exists();
    let begun = matches!(&record, Ok(Some(_))) && !from_disk;
    let refused = |reason| ReplicaError::Refused { name: name.clone(), reason };
    if let (Some(to), Ok(Some(record)), false) = (order.to, &record, order.force)
        && begun
        && real(to).map_err(|e| refused(format!("{}: {e}", to.display())))? != record.target.path
    {
        let on = record.target.path.display();
        return Err(refused(format!("it is kept on {on}; use --force to begin again")).into());
    }
    if begun && !(order.force && order.to.is_some()) {
        return Ok(Replica::open(paths, name, order.limits.clone())?);
    }
    let lock = || NameLock::take(&roots.state, name, "replica");
    let _lock = order.lock.then(lock).transpose().map_err(Why::Failover)?;
    let Some(to) = order.to else {
        record?;
        return Err(ReplicaError::None { name: name.clone(), dir: folder(paths) }.into());
    };
    super::ours::refuse_ours(roots, name, to).map_err(|e| Why::Failover(FailoverError::Host(e)))?;
    let vault = order.vaults.open(order.vault)?;
    let disk = vault.disk_named(name)?.disk;
    vault.check_readable()?;
    let point = newest(&vault, disk)?.ok_or_else(|| ReplicaError::NoPoint(name.clone()))?;
    let begin = Begin { paths, name, disk, to, force: order.force, limits: order.limits.clone() };
    let seed = match order.seed {
        Seed::Changes => return Ok(Replica::from_stopped_disk(&vault, &point, begin)?),
        Seed::Auto => SeedChoice::Auto,
        Seed::Compare => SeedChoice::Compare,
        Seed::Full => SeedChoice::Full,
    };
    Ok(Replica::create(&vault, &point, seed, begin)?)
}

/// A path without links, also of what is not there yet.
pub(crate) fn real(path: &Path) -> io::Result<PathBuf> {
    path.canonicalize().or_else(|_| std::path::absolute(path))
}

impl LocalHost<'_> {
    /// Brings the replica of a name to the newest point.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn replica_once(
        &self,
        name: &DiskName,
        order: &ReplicaOrder<'_>,
    ) -> Result<(), FailoverError> {
        let mut replica = open_replica(self.roots, name, order)?;
        // A failback looks every few seconds: what takes no time is no job.
        let job = JobBook::below(&self.roots.state).begin_if_long(name, JobKind::Replica);
        let arrived = |point: &PointRef, moved: &Moved| {
            self.told.progress_ends();
            job.came_to(point.cycle);
            self.told.note(&arrived_at(name, point, moved));
        };
        // Held until it is over, since nobody stops it: a kill leaves what goes on.
        let (_running, stop) = crossbeam_channel::bounded(1);
        let followed = follow(
            &mut replica,
            &Follow {
                vaults: &self.config.vaults,
                interval: Duration::from_secs(1),
                retry: self.config.retry_of(name),
                once: true,
                stop,
                progress: &|doing, done, all| {
                    self.told.progress(doing.word(), done, all);
                    job.progress(doing.word(), done, all);
                },
                arrived: &arrived,
            },
        );
        self.told.progress_ends();
        job.end_at(followed.as_ref().map(|()| None).map_err(ToString::to_string));
        let doing = || format!("replica {name}: {}", replica.standing().explain());
        Ok(followed.doing(doing)?)
    }
}

/// Where a replica has come to, and what that moved.
#[must_use]
pub fn arrived_at(name: &DiskName, point: &PointRef, moved: &Moved) -> String {
    let size = |bytes: u64| bytesize::ByteSize::b(bytes).display().iec().to_string();
    let (written, fetched) = (size(moved.written.0), size(moved.fetched.0));
    format!("{name}: at point {} ({written} written, {fetched} fetched)", point.cycle)
}

//! What people see of a replica: `status.json` beside what lasts. Nothing depends on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use backstay_front::paths::DiskPaths;
use backstay_host::atomic::Durability;
use backstay_host::clock;
use backstay_host::doing;
use backstay_host::record;
use backstay_types::{Classified, CycleNo, DiskName};
use backstay_vault::Manifest;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::error::ReplicaError;
use super::record::{PointRef, ReplicaRecord, ReplicaState};
use super::{Activity, Moved, Replica, folder, now_unix_ns};

const FILE: &str = "status.json";
/// How often work in hand is shown.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// What a running replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// At the newest point, or waiting for the next try.
    Waiting,
    /// On its way to a point.
    Working,
    /// It ended.
    Stopped,
}

/// What a running replica shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Its process.
    pub pid: u32,
    /// Since when it runs, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What it does.
    pub phase: Phase,
    /// The newest point it saw in the vault.
    pub newest: Option<PointRef>,
    /// When that was, nanoseconds since 1970.
    pub looked_unix_ns: Option<u64>,
    /// Points it got to.
    pub points: u64,
    /// Points it left out on the way.
    pub skipped: u64,
    /// Bytes written to the target since it was started.
    pub written_bytes: u64,
    /// Bytes read from the vault since it was started.
    pub fetched_bytes: u64,
    /// Failures in a row.
    pub failures: u32,
    /// The last of them.
    pub failure: Option<String>,
    /// Whether it does not pass by itself.
    pub person_must_act: bool,
    /// When it is tried again, nanoseconds since 1970.
    pub next_try_unix_ns: Option<u64>,
    /// Work in hand.
    pub doing: Option<Work>,
}

/// Work in hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// What: fetching, applying, comparing.
    pub what: String,
    /// Done so far.
    pub done: u64,
    /// In all.
    pub all: u64,
}

impl Shown {
    pub(super) fn new(_: &ReplicaRecord) -> Self {
        Self {
            pid: std::process::id(),
            since_unix_ns: now_unix_ns(),
            phase: Phase::Waiting,
            newest: None,
            looked_unix_ns: None,
            points: 0,
            skipped: 0,
            written_bytes: 0,
            fetched_bytes: 0,
            failures: 0,
            failure: None,
            person_must_act: false,
            next_try_unix_ns: None,
            doing: None,
        }
    }

    pub(super) fn saw(&mut self, point: &Manifest) {
        self.newest = Some(point.into());
        self.looked_unix_ns = Some(now_unix_ns());
    }

    pub(super) fn fine(&mut self) {
        self.phase = Phase::Waiting;
        if self.failure.take().is_some() {
            tracing::info!("all is well again after {} failures", self.failures);
        }
        (self.failures, self.person_must_act, self.next_try_unix_ns) = (0, false, None);
    }

    pub(super) fn failed(&mut self, error: &ReplicaError, next: Option<u64>) {
        let said = error.to_string();
        // A vault that is gone for a day is worth a line an attempt, a damaged point one line.
        if next.is_some() || self.failure.as_ref() != Some(&said) {
            tracing::warn!("{said}");
        }
        self.phase = Phase::Waiting;
        self.failures += 1;
        self.failure = Some(said);
        self.person_must_act = !error.may_pass();
        self.next_try_unix_ns = next;
    }

    pub(super) fn arrived(&mut self, from: Option<&PointRef>, to: &Manifest, moved: &Moved) {
        self.points += 1;
        self.skipped += from.map_or(0, |from| to.cycle.0.saturating_sub(from.cycle.0 + 1));
        self.written_bytes += moved.written.0;
        self.fetched_bytes += moved.fetched.0;
    }

    /// Puts it beside what lasts. Trouble with it is only worth a line.
    pub(super) fn show(&self, replica: &Replica) {
        self.put(replica.dir());
    }

    fn put(&self, dir: &Path) {
        if let Err(e) = record::save(&dir.join(FILE), self, Durability::Relaxed) {
            tracing::warn!("cannot show the state of the replica: {e}");
        }
    }

    /// Tells somebody of work, and shows it now and then.
    pub(super) fn teller<'a>(
        &self,
        dir: &Path,
        also: &'a (dyn Fn(Activity, u64, u64) + Sync),
    ) -> Teller<'a> {
        Teller { dir: dir.into(), also, last: Mutex::new((clock::monotonic(), self.clone())) }
    }
}

pub(super) struct Teller<'a> {
    dir: PathBuf,
    also: &'a (dyn Fn(Activity, u64, u64) + Sync),
    last: Mutex<(Instant, Shown)>,
}

impl Teller<'_> {
    pub fn tell(&self, doing: Activity, done: u64, all: u64) {
        (self.also)(doing, done, all);
        // Who is showing already shows enough.
        let Ok(mut last) = self.last.try_lock() else { return };
        if clock::since(last.0) < SHOW_EVERY {
            return;
        }
        last.0 = clock::monotonic();
        last.1.doing = Some(Work { what: doing.word().into(), done, all });
        last.1.put(&self.dir);
    }
}

/// How a replica is.
#[derive(Debug, Clone, Serialize)]
pub struct ReplicaStatus {
    /// Its name.
    pub name: DiskName,
    /// The vault.
    pub vault: String,
    /// What it is kept on.
    pub target: PathBuf,
    /// What the target holds, in a word.
    #[serde(flatten)]
    pub standing: ReplicaState,
    /// The same in words.
    pub explained: String,
    /// The point it holds, or makes whole from what is on this host.
    pub at: Option<CycleNo>,
    /// Age of that point's cut, in nanoseconds.
    pub rpo_ns: Option<u64>,
    /// Whether it needs the vault to become a whole point.
    pub needs_vault: bool,
    /// Whether a process follows the vault now.
    pub running: bool,
    /// That process, if it was stopped by a signal.
    pub stopped_pid: Option<i32>,
    /// What that shows, or the last one did.
    pub shown: Option<Shown>,
}

/// How a replica is; `None` if there is none.
///
/// # Errors
/// If what lasts of it cannot be read.
pub fn of(paths: &DiskPaths) -> Result<Option<ReplicaStatus>, ReplicaError> {
    let dir = folder(paths);
    let Some(record) = ReplicaRecord::load(&dir)? else { return Ok(None) };
    let shown: Option<Shown> = record::load_shown(&dir.join(FILE));
    let whole = record.standing.whole();
    let taken_over = matches!(record.standing, ReplicaState::TakenOver { .. });
    Ok(Some(ReplicaStatus {
        running: !taken_over && is_locked(paths),
        stopped_pid: runner(paths).filter(|pid| is_stopped(*pid)),
        explained: record.standing.explain(),
        at: whole.map(|point| point.cycle),
        rpo_ns: whole.map(|point| now_unix_ns().saturating_sub(point.cut_unix_ns)),
        needs_vault: whole.is_none(),
        name: record.name,
        vault: record.vault,
        target: record.target.path,
        standing: record.standing,
        shown,
    }))
}

/// The process that has a replica now, if one has: who takes over tells it to stop.
#[must_use]
pub fn runner(paths: &DiskPaths) -> Option<i32> {
    let record = ReplicaRecord::load(&folder(paths)).ok().flatten()?;
    // Then anyone who has the lock is a driver.
    let is_disk = matches!(record.standing, ReplicaState::TakenOver { .. })
        || paths.state.join("super").exists();
    if is_disk || !is_locked(paths) {
        return None;
    }
    // Anyone who locks it writes its number into it. A number that is left from one before, which
    // another program may have by now, must not be told to stop.
    let pid: i32 = fs::read_to_string(paths.lock_file()).ok()?.trim().parse().ok()?;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let program = program.file_name()?.to_string_lossy().into_owned();
    program.starts_with("backstay").then_some(pid)
}

fn is_stopped(pid: i32) -> bool {
    u32::try_from(pid).is_ok_and(|pid| doing::doing(pid) == doing::Doing::Stopped)
}

fn is_locked(paths: &DiskPaths) -> bool {
    let Ok(file) = fs::File::open(paths.lock_file()) else { return false };
    Flock::lock(file, FlockArg::LockSharedNonblock).is_err()
}

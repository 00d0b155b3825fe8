//! Jobs: long operations of the sidecar and of commands, with their progress.
//!
//! Each job is a small JSON file in `<state>/.jobs/` that is replaced atomically. Initial copies, resyncs,
//! on-demand cycles, failovers, failbacks, running replicas and the hydration of mounted points are jobs
//! from their start. A delta becomes a job only when it takes longer than a second or fails; otherwise
//! cycles every second would fill the list. A job whose process died is shown as interrupted, and the next
//! sidecar records that.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backstay_host::atomic::{self, Durability};
use backstay_host::clock::{self, now_unix_ns};
use backstay_host::own_dir::own_dir;
use backstay_host::record;
use backstay_types::{CycleNo, DiskName};
use crossbeam_channel::{RecvTimeoutError, bounded};
use serde::{Deserialize, Serialize};

use crate::error::CycleError;
use crate::schedule::Work;

/// Ended jobs that are kept.
const KEPT: usize = 500;
/// After how long work is a job although it says nothing.
pub const LONG: Duration = Duration::from_secs(1);
/// What happened before does not count for how fast it goes.
const RECENT: Duration = Duration::from_secs(10);
/// How often is remembered how far it was.
const SEEN_EVERY: Duration = Duration::from_millis(500);
/// How often a running job's progress is written down.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// A point is tried.
    Drill,
    /// Points are read back.
    Scrub,
    /// A point is brought up for a test.
    TestFailover,
    /// A disk that was handed over is brought up.
    PlannedFailover,
    /// A disk is brought up at any point.
    UnplannedFailover,
    /// A failover becomes the disk.
    Commit,
    /// A source stops and hands over.
    Handover,
    /// An old source takes its disk back.
    Failback,
    /// A replica is filled, or follows the vault.
    Replica,
    /// All of a mounted point is fetched.
    Hydration,
    /// A cycle; its work's own name is written down.
    #[serde(untagged)]
    Cycle(Work),
}

impl From<Work> for JobKind {
    fn from(work: Work) -> Self {
        Self::Cycle(work)
    }
}

/// A job, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number on this host.
    pub id: u64,
    /// The disk.
    pub disk: DiskName,
    /// What it does.
    pub work: JobKind,
    /// How it is.
    pub state: JobState,
    /// What it is doing.
    pub stage: String,
    /// Bytes done in this stage.
    pub done_bytes: u64,
    /// Bytes of this stage in all.
    pub all_bytes: u64,
    /// When it began, nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When this stage began.
    pub stage_began_unix_ns: u64,
    /// How long this stage will still take, nanoseconds, at the pace of the last ten seconds; none while nothing moves.
    #[serde(default)]
    pub left_ns: Option<u64>,
    /// When it was last heard of, or ended.
    pub updated_unix_ns: u64,
    /// The recovery point it made.
    pub point: Option<CycleNo>,
    /// What went wrong.
    pub message: Option<String>,
    /// The process that does it.
    pub process: Process,
}

/// How a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It runs.
    Running,
    /// It did what it was for.
    Done,
    /// It failed; its message says why.
    Failed,
    /// Its process ended without saying how it went.
    Interrupted,
}

/// A process that cannot be mixed up with a later one of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in the kernel's ticks since the boot.
    pub started_ticks: u64,
}

impl Process {
    /// This process.
    #[must_use]
    pub fn me() -> Self {
        let pid = std::process::id();
        Self { pid, started_ticks: started(pid).unwrap_or(0) }
    }

    /// Whether it is still there.
    #[must_use]
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started_ticks)
    }
}

/// Field 22 of `/proc/PID/stat`; the name before it may hold anything, so count from its end. One that has ended
/// and that nobody has waited for is still there, and is none.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| !matches!(state, "Z" | "X"))
}

impl Job {
    /// How long it will still take, as far as its stage says.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.left_ns.filter(|_| self.state == JobState::Running).map(Duration::from_nanos)
    }
}

/// How fast a stage goes now. What is compared or was done before goes fast, and what waits for a throttle or a vault does
/// not: an average of the whole stage would promise the pace of the one for the other.
#[derive(Debug, Default)]
struct Recent {
    /// When how many bytes were done, oldest first.
    seen: VecDeque<(Instant, u64)>,
}

impl Recent {
    fn left(&mut self, now: Instant, done: u64, all: u64) -> Option<u64> {
        if self.seen.back().is_none_or(|(at, _)| now.duration_since(*at) >= SEEN_EVERY) {
            self.seen.push_back((now, done));
        }
        while self.seen.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= RECENT) {
            self.seen.pop_front();
        }
        let (at, before) = *self.seen.front()?;
        let (took, went) = (now.duration_since(at).as_nanos(), done.saturating_sub(before));
        let left = took * u128::from(all.saturating_sub(done)) / u128::from(went.max(1));
        (went > 0 && took > 0).then(|| u64::try_from(left).unwrap_or(u64::MAX))
    }
}

/// The jobs of a host.
#[derive(Debug, Clone)]
pub struct JobBook {
    dir: PathBuf,
}

impl JobBook {
    /// The jobs below a state root.
    #[must_use]
    pub fn below(state_root: &Path) -> Self {
        Self { dir: state_root.join(".jobs") }
    }

    /// All jobs, newest first. One whose process is gone is interrupted, whatever it says.
    #[must_use]
    pub fn list(&self) -> Vec<Job> {
        let mut jobs: Vec<Job> = self
            .numbers()
            .into_iter()
            .filter_map(|id| serde_json::from_slice(&fs::read(self.path(id)).ok()?).ok())
            .map(|mut job: Job| {
                if job.state == JobState::Running && !job.process.is_alive() {
                    job.state = JobState::Interrupted;
                }
                job
            })
            .collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(job.id));
        jobs
    }

    /// Writes down which jobs were interrupted, and forgets the oldest that ended.
    pub fn tidy(&self) {
        atomic::tidy(&self.dir);
        let mut ended = 0;
        for job in self.list() {
            if job.state == JobState::Interrupted {
                self.write(&job);
            }
            ended += usize::from(job.state != JobState::Running);
            if ended > KEPT {
                let _ = fs::remove_file(self.path(job.id));
            }
        }
    }

    /// A job that begins now.
    #[must_use]
    pub fn begin(&self, disk: &DiskName, work: impl Into<JobKind>) -> JobHandle {
        let work = work.into();
        let handle = self.begin_if_long(disk, work);
        if work != Work::Delta.into() {
            let mut state = handle.state();
            handle.write(&mut state);
            drop(state);
        }
        handle
    }

    /// Work that begins now, and is a job only if it takes longer than a second or fails.
    #[must_use]
    pub fn begin_if_long(&self, disk: &DiskName, work: JobKind) -> JobHandle {
        let now = now_unix_ns();
        let job = Job {
            id: 0,
            disk: disk.clone(),
            work,
            state: JobState::Running,
            stage: String::new(),
            done_bytes: 0,
            all_bytes: 0,
            began_unix_ns: now,
            stage_began_unix_ns: now,
            left_ns: None,
            updated_unix_ns: now,
            point: None,
            message: None,
            process: Process::me(),
        };
        JobHandle {
            book: self.clone(),
            began: clock::monotonic(),
            moves: AtomicU64::new(0),
            state: Mutex::new(Watched { job, recent: Recent::default(), written: None }),
        }
    }

    fn numbers(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return vec![] };
        let number = |entry: fs::DirEntry| {
            entry.file_name().to_str()?.strip_suffix(".json")?.parse::<u64>().ok()
        };
        entries.flatten().filter_map(number).collect()
    }

    fn path(&self, id: u64) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Takes the next free number.
    fn take_number(&self) -> io::Result<u64> {
        own_dir(&self.dir)?;
        let mut id = self.numbers().into_iter().max().unwrap_or(0) + 1;
        loop {
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(id)) {
                Ok(_) => return Ok(id),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => id += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Only for people to see: what cannot be written is not worth failing for.
    fn write(&self, job: &Job) {
        if let Err(e) = record::save(&self.path(job.id), job, Durability::Relaxed) {
            tracing::warn!("job {}: {e}", job.id);
        }
    }
}

/// A running job.
#[derive(Debug)]
pub struct JobHandle {
    book: JobBook,
    began: Instant,
    /// Times that it was told how far it is.
    moves: AtomicU64,
    state: Mutex<Watched>,
}

#[derive(Debug)]
struct Watched {
    job: Job,
    recent: Recent,
    written: Option<Instant>,
}

impl JobHandle {
    /// How often it was told how far it is: work that moves tells it again and again.
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Relaxed)
    }

    /// Does what the job is for; it is shown as soon as that has taken long, although it says nothing (it waits for a
    /// hook, a silent vault, its turn at the throttle).
    pub fn shown_if_long<T>(&self, work: impl FnOnce() -> T) -> T {
        thread::scope(|scope| {
            let (ended, wait) = bounded::<()>(0);
            let watch = thread::Builder::new().name("job".into());
            let _ = watch.spawn_scoped(scope, move || {
                if wait.recv_timeout(LONG) == Err(RecvTimeoutError::Timeout) {
                    self.show();
                }
            });
            let result = work();
            drop(ended);
            result
        })
    }

    /// Notes that a cycle ended without a point. What is nobody's fault is no job that failed, unless it was shown.
    pub fn failed(self, why: &CycleError) {
        if !why.is_nobodys_fault() || self.state().written.is_some() {
            self.end(Err(why.to_string()));
        }
    }

    /// Notes how far it is.
    pub fn progress(&self, stage: &str, done_bytes: u64, all_bytes: u64) {
        self.moves.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let Watched { job, recent, .. } = &mut *state;
        let now = now_unix_ns();
        let new_stage = job.stage != stage;
        if new_stage {
            (job.stage, job.stage_began_unix_ns) = (stage.into(), now);
            *recent = Recent::default();
        }
        (job.done_bytes, job.all_bytes, job.updated_unix_ns) = (done_bytes, all_bytes, now);
        job.left_ns = recent.left(clock::monotonic(), done_bytes, all_bytes);
        let since = clock::since(state.written.unwrap_or(self.began));
        if since >= WRITE_EVERY || (new_stage && state.written.is_some()) {
            self.write(&mut state);
        }
    }

    /// Writes down that it runs, for work that has turned out to be long.
    pub fn show(&self) {
        let mut state = self.state();
        if state.written.is_none() {
            state.job.updated_unix_ns = now_unix_ns();
            self.write(&mut state);
        }
    }

    /// Notes the recovery point that work which goes on has come to.
    pub fn came_to(&self, point: CycleNo) {
        let mut state = self.state();
        (state.job.point, state.job.updated_unix_ns) = (Some(point), now_unix_ns());
        if state.written.is_some() {
            self.write(&mut state);
        }
    }

    /// Notes how it ended; its number, if it has one.
    pub fn end(self, result: Result<CycleNo, String>) -> Option<u64> {
        self.end_at(result.map(Some))
    }

    /// The same for work that may end without a point of its own, or has [come to](Self::came_to) one.
    pub fn end_at(self, result: Result<Option<CycleNo>, String>) -> Option<u64> {
        let mut state = self.state();
        state.job.updated_unix_ns = now_unix_ns();
        let failed = result.is_err();
        match result {
            Ok(point) => {
                state.job.state = JobState::Done;
                state.job.point = point.or(state.job.point);
            }
            Err(message) => {
                (state.job.state, state.job.message) = (JobState::Failed, Some(message));
            }
        }
        if failed || state.written.is_some() {
            self.write(&mut state);
        }
        (state.job.id != 0).then_some(state.job.id)
    }

    fn write(&self, state: &mut Watched) {
        if state.job.id == 0 {
            match self.book.take_number() {
                Ok(id) => state.job.id = id,
                Err(e) => {
                    tracing::warn!("jobs in {}: {e}", self.book.dir.display());
                    return;
                }
            }
        }
        state.written = Some(clock::monotonic());
        self.book.write(&state.job);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Watched> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> DiskName {
        "db".parse().unwrap()
    }

    #[test]
    fn long_work_is_a_job_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let book = JobBook::below(dir.path());
        let job = book.begin(&name(), Work::Initial);
        job.progress("whole disk", 10, 100);
        let seen = book.list().remove(0);
        assert_eq!((seen.id, seen.state, seen.work), (1, JobState::Running, Work::Initial.into()));
        job.end(Ok(CycleNo(4)));
        let seen = book.list().remove(0);
        assert_eq!(
            (seen.state, seen.point, seen.done_bytes),
            (JobState::Done, Some(CycleNo(4)), 10)
        );
        assert_eq!(book.begin(&name(), Work::Resync).end(Err("no".into())), Some(2));
        assert_eq!(book.list()[0].message.as_deref(), Some("no"));
    }

    /// These words are in files of jobs that are there, and in JSON that others read.
    #[test]
    fn the_names_of_jobs_stay() {
        let names = "on-demand initial resync delta drill scrub test-failover planned-failover unplanned-failover \
                     commit handover failback replica hydration";
        let kinds: Vec<JobKind> =
            names.split(' ').map(|name| serde_json::from_value(name.into()).unwrap()).collect();
        for (name, kind) in names.split(' ').zip(&kinds) {
            assert_eq!(serde_json::to_value(kind).unwrap(), name);
        }
        assert_eq!(kinds[0], Work::OnDemand.into());
        assert_eq!(kinds.iter().collect::<std::collections::HashSet<_>>().len(), 14);
        assert!(serde_json::from_str::<JobKind>("\"walk\"").is_err());
    }

    #[test]
    fn short_deltas_are_none_unless_they_fail() {
        let dir = tempfile::tempdir().unwrap();
        let book = JobBook::below(dir.path());
        let job = book.begin(&name(), Work::Delta);
        job.progress("changes", 1, 2);
        assert_eq!(job.end(Ok(CycleNo(1))), None);
        assert!(book.list().is_empty());
        book.begin(&name(), Work::Delta).end(Err("full".into()));
        assert_eq!(book.list().len(), 1);
    }

    #[test]
    fn a_job_whose_process_is_gone_was_interrupted() {
        let dir = tempfile::tempdir().unwrap();
        let book = JobBook::below(dir.path());
        let job = book.begin(&name(), Work::Initial);
        // Another process had our number before.
        job.state().job.process.started_ticks += 1;
        let mut state = job.state();
        job.write(&mut state);
        assert_eq!(book.list()[0].state, JobState::Interrupted);
        book.tidy();
        let text = fs::read_to_string(book.path(1)).unwrap();
        assert!(text.contains("interrupted"), "{text}");
        assert!(Process::me().is_alive());
        // Ended, and nobody has waited for it yet.
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let started_ticks = started(child.id()).unwrap();
        let process = Process { pid: child.id(), started_ticks };
        assert!(process.is_alive());
        child.kill().unwrap();
        let until = clock::monotonic() + Duration::from_secs(10);
        while process.is_alive() {
            assert!(clock::monotonic() < until);
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_delta_that_says_nothing_is_a_job_once_it_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let book = JobBook::below(dir.path());
        let job = book.begin(&name(), Work::Delta);
        assert_eq!(book.list(), []);
        job.show();
        assert_eq!(book.list()[0].state, JobState::Running);
        job.end(Ok(CycleNo(2)));
        assert_eq!(book.list()[0].state, JobState::Done);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let book = JobBook::below(dir.path());
        for _ in 0..KEPT + 20 {
            book.begin(&name(), Work::Initial).end(Ok(CycleNo(1)));
        }
        book.tidy();
        let jobs = book.list();
        assert_eq!((jobs.len(), jobs[0].id), (KEPT, KEPT as u64 + 20));
    }

    #[test]
    fn what_is_left_follows_from_how_fast_it_goes_now() {
        let mut recent = Recent::default();
        let began = clock::monotonic();
        let mut at = |seconds: u64, done: u64| {
            let left = recent.left(began + Duration::from_secs(seconds), done, 1_000);
            left.map(|left| left / 1_000_000_000)
        };
        assert_eq!(at(0, 0), None, "nothing is known yet");
        assert_eq!(at(10, 250), Some(30));
        // What was equal went fast; the rest waits for a throttle: one in a second.
        assert_eq!(at(20, 900), Some(1));
        for second in 21..=35 {
            at(second, 900 + (second - 20));
        }
        assert_eq!(at(36, 916), Some(84));
        // Nothing moves: nobody knows.
        assert_eq!(at(90, 916), None);
        // Done is done.
        assert_eq!(at(91, 1_000), Some(0));
    }

    #[test]
    fn only_a_job_that_runs_has_time_left() {
        let dir = tempfile::tempdir().unwrap();
        let book = JobBook::below(dir.path());
        let mut job = book.begin(&name(), Work::Initial).state().job.clone();
        job.left_ns = Some(2_000_000_000);
        assert_eq!(job.left(), Some(Duration::from_secs(2)));
        job.state = JobState::Failed;
        assert_eq!(job.left(), None);
    }
}

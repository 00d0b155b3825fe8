//! A kill at every step of a failover's target, in a real vault and on a host without drivers: the same command goes
//! on, and what was begun can be cancelled.

#[path = "../../../vault/tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_engine::cycle::CycleReport;
use backstay_engine::jobs::JobHandle;
use backstay_engine::requests::Asked;
use backstay_format::control::{DriverStatus, FoundState};
use backstay_format::superblock::Base;
use backstay_front::paths::Roots;
use backstay_types::{ByteLen, Classified, DiskId, DiskName, EpochNo, Term};
use backstay_vault::{Manifest, Vault, Vaults};
use common::history::History;
use fastrand::Rng;

use super::executor::ServedDisk;
use super::target::{Committing, Order, Wanted, Which, bring_up, change, commit, remove};
use super::{Executor, FailoverRecord, Kind, Result, State, stopped};
use crate::host::replica::ReplicaOrder;
use crate::host::serve::{From, How};
use crate::host::{HostError, Listener, Serving, Silent};
use crate::mount::PointChoice;

thread_local! {
    /// After how many steps this thread's command is killed.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a kill unwinds with: nothing of the command runs after it.
struct Killed;

/// Called at every step.
pub(super) fn step() {
    match LEFT.get() {
        Some(0) => resume_unwind(Box::new(Killed)),
        left => LEFT.set(left.map(|left| left - 1)),
    }
}

/// Runs a command that is killed at a step; none if it was.
fn killed_at<T>(step: u32, command: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(step));
    let ended = catch_unwind(AssertUnwindSafe(command));
    LEFT.set(None);
    match ended {
        Ok(done) => Some(done),
        Err(why) if why.is::<Killed>() => None,
        Err(why) => resume_unwind(why),
    }
}

/// A host whose drivers are entries of a table: they outlive the command that started them.
struct Bench {
    _dir: tempfile::TempDir,
    roots: Roots,
    config: Config,
    vault: Vault,
    points: Vec<Manifest>,
    served: Mutex<BTreeMap<DiskName, DriverStatus>>,
    asked: Mutex<Vec<String>>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let url = format!("file://{}", at("vault").display());
        let vault = Vaults::default().create(&url).unwrap();
        let mut history = History::new(&vault, 1 << 20, 7);
        vault.claim_name(&name(), history.disk).unwrap();
        let mut rng = Rng::with_seed(7);
        let points = (0..2).map(|_| history.cycle(&vault, &mut rng).unwrap()).collect();
        let config = Config { vault: url, ..Config::default() };
        let roots = Roots::new(Some(at("state")), Some(at("run")));
        let (served, asked) = (Mutex::default(), Mutex::default());
        Self { _dir: dir, roots, config, vault, points, served, asked }
    }

    fn up(&self, kind: Kind) -> Result<ServedDisk> {
        let order = Order {
            kind,
            name: name(),
            local: name(),
            which: Which::Choice(Wanted { point: PointChoice::Latest, left_history: false }),
            vault: None,
            attach: false,
            group: None,
            replica: false,
        };
        bring_up(self, &order)
    }

    fn commit(&self) -> Result<Option<CycleReport>> {
        let how = Committing { policy: None, hydrate: true };
        commit(self, self.record().unwrap(), &how)
    }

    fn record(&self) -> Option<FailoverRecord> {
        FailoverRecord::load(&self.roots.state, &name()).unwrap()
    }

    fn is_bare(&self) -> bool {
        let paths = self.roots.disk(&name());
        let served = self.served.lock().unwrap().is_empty();
        served && self.record().is_none() && !paths.state.exists() && !paths.runtime.exists()
    }
}

fn name() -> DiskName {
    "lab".parse().unwrap()
}

impl Executor for Bench {
    fn roots(&self) -> &Roots {
        &self.roots
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn told(&self) -> &dyn Listener {
        &Silent
    }

    fn status(&self, name: &DiskName) -> Option<DriverStatus> {
        self.served.lock().unwrap().get(name).cloned()
    }

    fn refuse_if_used(&self, _: &DiskName, _: &DriverStatus) -> Result<(), HostError> {
        Ok(())
    }

    fn serve(&self, name: &DiskName, from: From<'_>, _: &How<'_>) -> Result<(), HostError> {
        let From::Point { cycle, .. } = from else {
            return Err(HostError::Failed("only points are served here".into()));
        };
        let point = self.points.iter().find(|point| point.cycle == cycle).unwrap();
        let base = Base { vault_disk: point.disk, cycle, point: point.point };
        let paths = self.roots.disk(name);
        std::fs::create_dir_all(&paths.runtime).unwrap();
        std::fs::write(paths.state.join("super"), "what a driver knows").unwrap();
        let was = self.served.lock().unwrap().insert(name.clone(), status(name, base, point.size));
        assert!(was.is_none(), "two drivers of one disk");
        Ok(())
    }

    fn serve_replica(&self, _: &DiskName) -> Result<(), HostError> {
        unreachable!("there is no replica")
    }

    fn stop(&self, name: &DiskName) -> Result<(), HostError> {
        self.served.lock().unwrap().remove(name);
        Ok(())
    }

    fn stop_after_cycle(&self, name: &DiskName) -> Result<(), HostError> {
        self.stop(name)
    }

    fn look(&self, _: &DiskName, _: &DriverStatus) -> Result<Serving, HostError> {
        unreachable!("this is no source")
    }

    fn unmount(&self, _: &Serving) -> Result<(), HostError> {
        unreachable!("this is no source")
    }

    fn put_back(&self, _: &Serving) -> Result<(), HostError> {
        unreachable!("this is no source")
    }

    fn device(&self, _: &DiskName, _: &Path, _: bool) -> Result<Option<String>, HostError> {
        Ok(None)
    }

    fn ship(&self, _: &DiskName, _: &str, _: bool, _: &JobHandle) -> Result<(), HostError> {
        unreachable!("this is no source")
    }

    fn has_sidecar(&self) -> bool {
        true
    }

    fn ask(&self, what: &Asked) -> Result<(), HostError> {
        self.asked.lock().unwrap().push(format!("{what:?}"));
        Ok(())
    }

    fn cycle(&self, _: &DiskName, _: &str) -> Result<CycleReport, HostError> {
        unreachable!("the sidecar makes it")
    }

    fn run(&self, _: &str, _: &str, _: Duration) -> Result<(), HostError> {
        unreachable!("nobody gave a command")
    }

    fn replica_once(&self, _: &DiskName, _: &ReplicaOrder<'_>) -> Result<()> {
        unreachable!("there is no replica")
    }

    fn wait(&self, _: Duration) {}
}

fn status(name: &DiskName, base: Base, size: ByteLen) -> DriverStatus {
    DriverStatus {
        name: name.clone(),
        disk: DiskId::from_bytes([9; 16]),
        pid: 1,
        backing: PathBuf::new(),
        served: "/served/disk".into(),
        size,
        found: FoundState::Clean,
        started_unix_ns: 1,
        engine: "none".into(),
        epoch: EpochNo(1),
        open_cut: None,
        lease: None,
        base: Some(base),
        announced: None,
        announced_before: vec![],
        coarse: false,
        untracked: None,
        io_trouble: None,
        io_waits: None,
        resync: None,
        resync_no: 0,
        lost_point_in_time: None,
        dirty_sectors: 0,
        change_log_limit: ByteLen(0),
        change_log_used: ByteLen(0),
        counters: Default::default(),
        warning: None,
        backing_fault: None,
        hands_out_backing: true,
        takes_deadlines: true,
        sector_bytes: None,
    }
}

#[test]
fn a_target_that_is_killed_at_any_step_goes_on() {
    for kind in [Kind::Test, Kind::Unplanned] {
        let mut step = 0;
        loop {
            let bench = Bench::new();
            let through = killed_at(step, || bench.up(kind).unwrap()).is_some();
            let place = bench.up(kind).unwrap();
            assert_eq!(place.cycle, Some(bench.points[1].cycle), "{kind:?}, step {step}");
            assert_eq!(bench.record().unwrap().state, State::Up);
            if through {
                break;
            }
            step += 1;
        }
        assert!(step >= 3, "only {step} steps");
    }
}

#[test]
fn what_was_begun_and_killed_is_cancelled_without_a_trace() {
    let mut step = 0;
    loop {
        let bench = Bench::new();
        let through = killed_at(step, || bench.up(Kind::Unplanned).unwrap()).is_some();
        let mut again = 0;
        while let Some(record) = bench.record() {
            // Also the cancelling is killed, one step later each time.
            if let Some(done) = killed_at(again, || remove(&bench, record)) {
                done.unwrap();
            }
            again += 1;
        }
        assert!(bench.is_bare(), "step {step}");
        assert_eq!(bench.vault.newest_term(bench.points[0].disk).unwrap().unwrap().term, Term(1));
        if through {
            break;
        }
        step += 1;
    }
}

#[test]
fn a_change_of_the_point_that_is_killed_goes_on() {
    let mut step = 0;
    loop {
        let bench = Bench::new();
        bench.up(Kind::Unplanned).unwrap();
        let to =
            || Wanted { point: PointChoice::Cycle(bench.points[0].cycle), left_history: false };
        let go = || change(&bench, bench.record().unwrap(), to(), false).unwrap();
        let through = killed_at(step, go).is_some();
        let place = match through {
            true => bench.up(Kind::Unplanned).unwrap(),
            false => go(),
        };
        assert_eq!(place.cycle, Some(bench.points[0].cycle), "step {step}");
        let record = bench.record().unwrap();
        assert_eq!(record.state, State::Up);
        if through {
            break;
        }
        step += 1;
    }
    assert!(step >= 5, "only {step} steps");
}

#[test]
fn a_commit_that_is_killed_takes_one_term_and_goes_on() {
    let mut step = 0;
    loop {
        let bench = Bench::new();
        bench.up(Kind::Unplanned).unwrap();
        let through = killed_at(step, || bench.commit().unwrap()).is_some();
        if bench.record().unwrap().state != State::Committed {
            bench.commit().unwrap();
        }
        assert_eq!(bench.record().unwrap().state, State::Committed, "step {step}");
        let term = bench.vault.newest_term(bench.points[0].disk).unwrap().unwrap();
        assert_eq!(term.term, Term(2));
        assert_eq!(term.writer, stopped::writer(DiskId::from_bytes([9; 16])));
        assert_eq!(term.from.unwrap().cycle, bench.points[1].cycle);
        // Not before a sidecar may ship it.
        let refused = remove(&bench, bench.record().unwrap()).unwrap_err();
        assert!(refused.is_refusal(), "{refused}");
        if through {
            break;
        }
        step += 1;
    }
    assert!(step >= 4, "only {step} steps");
}

/// Killed between the term and what this host notes of it, it cannot be cancelled any more.
#[test]
fn a_term_that_was_taken_is_not_cancelled() {
    let mut kept = 0;
    for step in 0..20 {
        let bench = Bench::new();
        bench.up(Kind::Unplanned).unwrap();
        if killed_at(step, || bench.commit().unwrap()).is_some() {
            break;
        }
        let record = bench.record().unwrap();
        let taken = bench.vault.newest_term(record.disk).unwrap().unwrap().term == Term(2);
        match remove(&bench, record) {
            Ok(()) => assert!(!taken && bench.is_bare(), "step {step}"),
            Err(e) => {
                assert!(taken && e.is_refusal(), "step {step}: {e}");
                kept += 1;
                bench.commit().or_else(|e| if e.is_refusal() { Ok(None) } else { Err(e) }).unwrap();
                assert_eq!(bench.record().unwrap().state, State::Committed);
            }
        }
    }
    assert!(kept > 0);
}

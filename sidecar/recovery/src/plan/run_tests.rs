//! Runs of plans with disks that only write down what was asked of them; scripts are real.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use backstay_types::{CycleNo, DiskName, PointId};

use super::run::{Answer, Executor, RunError, clean_up, go_on, may_begin, prepare};
use super::state::{Chosen, Run, RunFolder, RunState, StepState, Up};
use super::{Kind, Plan, Report};

/// Writes down what is asked; dies or fails when its steps are used up.
struct Paper {
    did: Mutex<Vec<String>>,
    /// Calls until it dies like a killed process.
    dies_after: AtomicI64,
    /// Disks that do not come up.
    broken: Mutex<Vec<String>>,
    person: Answer,
}

impl Paper {
    fn new() -> Self {
        Self {
            did: Mutex::default(),
            dies_after: AtomicI64::new(i64::MAX),
            broken: Mutex::default(),
            person: Answer::Done,
        }
    }

    fn note(&self, what: String) {
        if self.dies_after.fetch_sub(1, Ordering::SeqCst) <= 0 {
            panic!("killed");
        }
        self.did.lock().unwrap().push(what);
    }

    fn did(&self, what: &str) -> usize {
        self.did.lock().unwrap().iter().filter(|did| *did == what).count()
    }
}

impl Executor for Paper {
    fn choose(&self, kind: Kind, disk: &DiskName, point: &str) -> Result<Option<Chosen>, String> {
        if disk.as_str() == "missing" {
            return Err("there is none".into());
        }
        let cycle = CycleNo(if point == "latest" { 9 } else { 3 });
        let chosen = Chosen { cycle, point: PointId::from_bytes([1; 16]), cut_unix_ns: 1_000 };
        Ok((kind != Kind::Planned).then_some(chosen))
    }
    fn bring_up(
        &self,
        _: Kind,
        disk: &DiskName,
        point: Option<Chosen>,
        attach: bool,
    ) -> Result<(Chosen, Up), String> {
        self.note(format!("up {disk}"));
        if self.broken.lock().unwrap().iter().any(|broken| broken == disk.as_str()) {
            return Err("it is broken".into());
        }
        let handed =
            Chosen { cycle: CycleNo(12), point: PointId::from_bytes([2; 16]), cut_unix_ns: 5 };
        let up = Up {
            local: format!("{disk}.test").parse().unwrap(),
            served: Path::new("/served").join(disk.as_str()),
            device: attach.then(|| "/dev/loop9".into()),
            since_unix_ns: u64::MAX,
        };
        Ok((point.unwrap_or(handed), up))
    }
    fn take_down(&self, disk: &DiskName) -> Result<(), String> {
        self.note(format!("down {disk}"));
        match self.broken.lock().unwrap().iter().any(|broken| broken == disk.as_str()) {
            true => Err("it is busy".into()),
            false => Ok(()),
        }
    }
    fn let_go(&self, _: &DiskName) {}
    fn ask(&self, what: &str) -> Answer {
        self.note(format!("ask {what}"));
        self.person.clone()
    }
    fn say(&self, line: &str) {
        self.note(line.to_owned());
    }
    fn stopped(&self) -> bool {
        false
    }
}

struct Room {
    dir: tempfile::TempDir,
    text: String,
    plan: Plan,
}

impl Room {
    /// A plan of two groups whose scripts write to a file.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out").display().to_string();
        let text = format!(
            r#"
name = "shop"
[[group]]
name = "one"
parallel = 1
before = [
  {{ script = "echo before $BACKSTAY_RUN $BACKSTAY_POINT_DB >> {out}" }},
  {{ script = "echo never >> {out}", runs = ["planned"] }},
  {{ script = "false", on_failure = "continue" }},
]
after = [{{ manual = "look at it" }}]
cleanup = [{{ script = "echo cleanup >> {out}" }}]
[[group.machine]]
name = "db"
disks = ["db", "db-log"]
attach = true
start = "echo start $BACKSTAY_MACHINE $BACKSTAY_DISK $BACKSTAY_DEVICE_DB_LOG >> {out}; echo started"
stop = "echo stop >> {out}"
[[group]]
name = "two"
disks = ["web1", "web2", "web3"]
after = [{{ name = "last", script = "echo last $BACKSTAY_DISKS >> {out}" }}]
"#
        );
        let plan = Plan::parse(&text).unwrap();
        Self { dir, text, plan }
    }

    fn folder(&self) -> RunFolder {
        RunFolder::take(self.dir.path(), &self.plan.name).unwrap().unwrap()
    }

    fn out(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("out")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn last(&self) -> Run {
        RunFolder::last(self.dir.path(), &self.plan.name).unwrap().unwrap()
    }

    fn begin(&self, kind: Kind, executor: &Paper) -> (Run, Result<(), RunError>) {
        let mut run = prepare(&self.plan, &self.text, kind, "latest", executor).unwrap();
        let folder = self.folder();
        folder.save(&run).unwrap();
        let result = go_on(&self.plan, &mut run, &folder, executor, false);
        assert_eq!(self.last(), run, "what is known is what is written down");
        (run, result)
    }
}

const WHOLE: [&str; 3] =
    ["before test 9", "start db /served/db /dev/loop9", "last db db-log web1 web2 web3"];

#[test]
fn a_test_runs_in_order_and_is_taken_down() {
    let (room, executor) = (Room::new(), Paper::new());
    let (mut run, result) = room.begin(Kind::Test, &executor);
    result.unwrap();
    assert_eq!(run.state, RunState::Done);
    assert_eq!(room.out(), WHOLE);
    let states: Vec<StepState> = run.steps.iter().map(|step| step.state).collect();
    assert_eq!(states[..2], [StepState::Done, StepState::Passed]);
    assert_eq!(run.steps[2].message.as_deref(), Some("started"));
    let report = Report::of(&run);
    assert!(report.rto_seconds.is_some() && report.rpo_seconds.is_some_and(|rpo| rpo > 1e6));
    let text = report.text();
    assert!(text.contains("RTO") && text.contains("web3") && text.contains("passed"), "{text}");

    assert!(matches!(may_begin(Some(&run)), Err(RunError::Refused(_))));
    executor.broken.lock().unwrap().push("web2".into());
    let folder = room.folder();
    let left = clean_up(&room.plan, &mut run, &folder, &executor).unwrap_err();
    assert!(left.to_string().contains("web2"), "{left}");
    assert_eq!(executor.did("down db"), 1, "what fails stops nothing");
    assert!(matches!(may_begin(Some(&run)), Err(RunError::Refused(_))));
    executor.broken.lock().unwrap().clear();
    clean_up(&room.plan, &mut run, &folder, &executor).unwrap();
    assert_eq!(run.state, RunState::CleanedUp);
    assert_eq!(room.out().iter().filter(|line| *line == "stop").count(), 1);
    may_begin(Some(&run)).unwrap();
    assert!(go_on(&room.plan, &mut run, &folder, &executor, false).is_err());
}

#[test]
fn what_failed_is_done_again_or_left_out() {
    let (room, executor) = (Room::new(), Paper::new());
    executor.broken.lock().unwrap().push("web2".into());
    let (mut run, result) = room.begin(Kind::Unplanned, &executor);
    let failed = result.unwrap_err();
    assert!(failed.to_string().contains("web2: it is broken"), "{failed}");
    assert_eq!(run.state, RunState::Failed);
    assert_eq!(executor.did("up web3"), 1, "one that fails stops none beside it");
    assert!(Report::of(&run).rto_seconds.is_none());
    assert!(matches!(may_begin(Some(&run)), Err(RunError::Refused(_))));
    assert!(!room.out().iter().any(|line| line.starts_with("last")));
    let folder = room.folder();
    assert!(go_on(&room.plan, &mut run, &folder, &executor, false).is_err());
    assert_eq!((executor.did("up web1"), executor.did("up web2")), (1, 2));
    go_on(&room.plan, &mut run, &folder, &executor, true).unwrap();
    assert_eq!(run.state, RunState::Done);
    assert!(run.steps.iter().any(|step| step.state == StepState::Skipped));
    assert!(matches!(
        clean_up(&room.plan, &mut run, &folder, &executor),
        Err(RunError::Refused(_))
    ));
    may_begin(Some(&run)).unwrap();
}

#[test]
fn nobody_there_to_be_asked() {
    let room = Room::new();
    let executor = Paper { person: Answer::Nobody, ..Paper::new() };
    let (mut run, result) = room.begin(Kind::Planned, &executor);
    assert!(matches!(result, Err(RunError::Waiting { number: 5, .. })), "{result:?}");
    assert_eq!(run.state, RunState::Waiting);
    assert_eq!(run.disks[0].point.unwrap().cycle, CycleNo(12), "known when it was handed over");
    go_on(&room.plan, &mut run, &room.folder(), &executor, false).unwrap();
    assert_eq!((run.state, executor.did("ask look at it")), (RunState::Done, 1));
    assert_eq!(Report::of(&run).rpo_seconds, Some(0.0));
}

#[test]
fn a_point_that_is_missing_begins_nothing() {
    let (room, executor) = (Room::new(), Paper::new());
    let text = room.text.replace("web3", "missing");
    let plan = Plan::parse(&text).unwrap();
    let error = prepare(&plan, &text, Kind::Test, "latest", &executor).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    assert!(room.out().is_empty() && executor.did.lock().unwrap().is_empty());
}

/// Killed at every step, then gone on with from what is written down: every disk is up in the end and
/// every script ran, at most once more for each kill.
#[test]
fn killed_at_every_step() {
    for after in 0.. {
        let (room, executor) = (Room::new(), Paper::new());
        let run = prepare(&room.plan, &room.text, Kind::Test, "latest", &executor).unwrap();
        room.folder().save(&run).unwrap();
        executor.dies_after.store(after, Ordering::SeqCst);
        let go = || {
            let mut run = room.last();
            go_on(&room.plan, &mut run, &room.folder(), &executor, false)
        };
        let ended = catch_unwind(AssertUnwindSafe(go));
        executor.dies_after.store(i64::MAX, Ordering::SeqCst);
        match ended {
            Ok(whole) => {
                whole.unwrap();
                assert!(after > 8, "it was killed {after} times");
                return;
            }
            Err(_) => assert_ne!(room.last().state, RunState::Done),
        }
        go().unwrap();
        assert_eq!(room.last().state, RunState::Done);
        assert!(room.last().disks.iter().all(|disk| disk.up.is_some()));
        let out = room.out();
        for line in WHOLE {
            let times = out.iter().filter(|out| *out == line).count();
            assert!((1..=2).contains(&times), "killed after {after}: {line:?} ran {times} times");
        }
    }
}

//! Running a plan: step by step, machines of a group side by side, everything written down before it
//! is begun and after it ended.
//!
//! A run that was killed, that failed or that waits for a person goes on with the first step that
//! is not over; a step that was begun is begun again. So scripts must bear to be run twice; bringing
//! up a disk does.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use backstay_host::clock::now_unix_ns;
use backstay_types::{Class, Classified, DiskName, PointId};

use super::parse::{Action, Group, Kind, Machine, Plan, Step, variable};
use super::state::{Chosen, DiskRun, Run, RunFolder, RunState, StepKind, StepRun, StepState, Up};
use crate::run::{run as run_command, shell};

/// What a plan's run does to disks, and whom it asks.
pub trait Executor: Sync {
    /// Finds the point that a disk comes up at and keeps it from being deleted; `None` if that is only
    /// known when it comes up.
    ///
    /// # Errors
    /// In words, if there is none.
    fn choose(&self, kind: Kind, disk: &DiskName, point: &str) -> Result<Option<Chosen>, String>;
    /// Brings a disk up at a point, or goes on with that; the point it came up at.
    ///
    /// # Errors
    /// In words, why it is not up.
    fn bring_up(
        &self,
        kind: Kind,
        disk: &DiskName,
        point: Option<Chosen>,
        attach: bool,
    ) -> Result<(Chosen, Up), String>;
    /// Takes a disk of a test down; nothing of it stays. Done again it does nothing.
    ///
    /// # Errors
    /// In words, what stays.
    fn take_down(&self, disk: &DiskName) -> Result<(), String>;
    /// Lets go of a chosen point.
    fn let_go(&self, disk: &DiskName);
    /// Asks a person to do something; whether it is done, or that nobody can be asked now.
    fn ask(&self, what: &str) -> Answer;
    /// Says how far it is.
    fn say(&self, line: &str);
    /// Whether to stop.
    fn stopped(&self) -> bool;
}

/// What a person said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// It cannot be done.
    Failed,
    /// Nobody is there; the run waits.
    Nobody,
}

/// Why a run is not done.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What is known of the run cannot be written down or read.
    #[error("the run's state: {0}")]
    State(#[from] io::Error),
    /// A step failed.
    #[error(
        "step {number} ({step}) failed: {why}. What came up stays up; fix it and go on with \
         backstay plan resume, or leave the step out with --skip"
    )]
    Step {
        /// Its number, from 1.
        number: usize,
        /// Its name.
        step: String,
        /// Why.
        why: String,
    },
    /// A person has to do something.
    #[error(
        "step {number} waits for a person: {what}. When it is done, go on with backstay plan resume"
    )]
    Waiting {
        /// Its number, from 1.
        number: usize,
        /// What.
        what: String,
    },
    /// A point was not found.
    #[error("{0}. Nothing was begun")]
    Point(String),
    /// It would not be safe, or makes no sense.
    #[error("{0}")]
    Refused(String),
    /// Not all of a test could be taken down.
    #[error("not everything was taken down: {0}. Run backstay plan cleanup again")]
    Cleanup(String),
}

impl Classified for RunError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(_) => Class::Refused,
            Self::State(e) => e.class(),
            Self::Step { .. } | Self::Waiting { .. } | Self::Point(_) | Self::Cleanup(_) => {
                Class::Person
            }
        }
    }
}

/// Where in a plan a step is.
#[derive(Debug, Clone, Copy)]
enum Task<'a> {
    Step(&'a Step),
    Machine(&'a Machine),
}

/// The steps of a plan for a kind of run, in their order, with their groups.
fn places(plan: &Plan, kind: Kind) -> Vec<(&Group, Task<'_>)> {
    let mut places = vec![];
    for group in &plan.groups {
        let steps = |steps: &'_ [Step]| -> Vec<usize> {
            (0..steps.len()).filter(|&n| steps[n].runs.contains(&kind)).collect()
        };
        places.extend(steps(&group.before).iter().map(|&n| (group, Task::Step(&group.before[n]))));
        places.extend(group.machines.iter().map(|machine| (group, Task::Machine(machine))));
        places.extend(steps(&group.after).iter().map(|&n| (group, Task::Step(&group.after[n]))));
    }
    places
}

/// A run as it would be; nothing is begun, and no point is held.
///
/// # Errors
/// If a point is not found.
pub fn prepare(
    plan: &Plan,
    text: &str,
    kind: Kind,
    point: &str,
    executor: &dyn Executor,
) -> Result<Run, RunError> {
    let steps = places(plan, kind).into_iter().map(|(group, place)| {
        let (name, what) = match place {
            Task::Step(step) => match step.action {
                Action::Script(_) => (&step.name, StepKind::Script),
                Action::Manual(_) => (&step.name, StepKind::Manual),
            },
            Task::Machine(machine) => (&machine.name, StepKind::Machine),
        };
        StepRun {
            group: group.name.clone(),
            name: name.clone(),
            what,
            state: StepState::Open,
            tries: 0,
            began_unix_ns: None,
            ended_unix_ns: None,
            message: None,
        }
    });
    let mut run = Run {
        run: PointId::random(),
        plan: plan.name.clone(),
        text: text.into(),
        kind,
        point: point.into(),
        began_unix_ns: now_unix_ns(),
        ended_unix_ns: None,
        state: RunState::Running,
        steps: steps.collect(),
        disks: vec![],
    };
    for machine in plan.groups.iter().flat_map(|group| &group.machines) {
        for disk in &machine.disks {
            let chosen = executor.choose(kind, disk, point);
            let point = match chosen {
                Ok(point) => point,
                Err(why) => {
                    run.disks.iter().for_each(|done| executor.let_go(&done.disk));
                    return Err(RunError::Point(format!("disk {disk}: {why}")));
                }
            };
            let machine = machine.name.clone();
            run.disks.push(DiskRun { disk: disk.clone(), machine, point, up: None });
        }
    }
    Ok(run)
}

/// What was begun and must be over before the next run.
///
/// # Errors
/// If something of the last run is left.
pub fn may_begin(last: Option<&Run>) -> Result<(), RunError> {
    let Some(last) = last else { return Ok(()) };
    let left = match (last.state, last.kind) {
        (RunState::CleanedUp, _) => return Ok(()),
        (RunState::Done, Kind::Planned | Kind::Unplanned) => return Ok(()),
        (_, Kind::Test) => "take it down first: backstay plan cleanup",
        _ if last.disks.iter().all(|disk| disk.up.is_none()) => return Ok(()),
        _ => "go on with it: backstay plan resume",
    };
    Err(RunError::Refused(format!(
        "the last run of plan {} ({}) is not over; {left}",
        last.plan,
        last.kind.name()
    )))
}

/// A run at work.
struct RunContext<'a> {
    run: Mutex<&'a mut Run>,
    folder: &'a RunFolder,
    executor: &'a dyn Executor,
    log: &'a File,
}

/// Runs what of a run is not over. `skip` leaves out the step that failed.
///
/// # Errors
/// The first step that failed or waits; the run can go on later.
pub fn go_on(
    plan: &Plan,
    run: &mut Run,
    folder: &RunFolder,
    executor: &dyn Executor,
    skip: bool,
) -> Result<(), RunError> {
    match run.state {
        RunState::CleaningUp | RunState::CleanedUp => {
            return Err(RunError::Refused("this run was taken down: begin a new one".into()));
        }
        RunState::Done => return Err(RunError::Refused("this run is done".into())),
        RunState::Running | RunState::Failed | RunState::Waiting => {}
    }
    let places = places(plan, run.kind);
    if places.len() != run.steps.len() {
        return Err(RunError::Refused("this run is of another plan".into()));
    }
    if skip {
        let failed = run.steps.iter_mut().find(|step| step.state == StepState::Failed);
        let Some(failed) = failed else {
            return Err(RunError::Refused("no step failed that could be left out".into()));
        };
        failed.state = StepState::Skipped;
    }
    // Anyone who goes on says that what a person was asked for is done.
    for step in run.steps.iter_mut().filter(|step| step.state == StepState::Waiting) {
        executor.say(&format!("{}: taken as done", step.name));
        (step.state, step.ended_unix_ns) = (StepState::Done, Some(now_unix_ns()));
    }
    (run.state, run.ended_unix_ns) = (RunState::Running, None);
    folder.save(run)?;
    let log = folder.log(run.steps.iter().all(|step| step.tries == 0))?;
    let work = RunContext { run: Mutex::new(run), folder, executor, log: &log };
    let mut next = 0;
    let result = loop {
        let Some((group, place)) = places.get(next) else { break Ok(()) };
        let (from, group) = (next, *group);
        let done = match place {
            Task::Step(step) => {
                next += 1;
                work.step(from, group, step)
            }
            Task::Machine(_) => {
                let of_group = |(other, place): &&(&Group, Task<'_>)| {
                    std::ptr::eq(*other, group) && matches!(place, Task::Machine(_))
                };
                next += places[from..].iter().take_while(of_group).count();
                work.machines(from, group)
            }
        };
        if let Err(e) = done {
            break Err(e);
        }
    };
    let mut run = work.run();
    run.state = match &result {
        Ok(()) => RunState::Done,
        Err(RunError::Waiting { .. }) => RunState::Waiting,
        Err(_) => RunState::Failed,
    };
    run.ended_unix_ns = Some(now_unix_ns());
    folder.save(&run)?;
    if result.is_ok() {
        run.disks.iter().for_each(|disk| executor.let_go(&disk.disk));
    }
    result
}

impl<'a> RunContext<'a> {
    fn run(&self) -> MutexGuard<'_, &'a mut Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that a step begins; false if it is over.
    fn begin(&self, number: usize) -> Result<bool, RunError> {
        let mut run = self.run();
        let step = &mut run.steps[number];
        if step.state.is_over() {
            return Ok(false);
        }
        step.tries += 1;
        step.state = StepState::Running;
        (step.began_unix_ns, step.ended_unix_ns) = (Some(now_unix_ns()), None);
        step.message = None;
        self.executor.say(&format!("{}: {} begins", step.group, step.name));
        self.folder.save(&run)?;
        Ok(true)
    }

    /// Writes down how it ended.
    fn end(&self, number: usize, state: StepState, message: &str) -> Result<(), RunError> {
        let mut run = self.run();
        let step = &mut run.steps[number];
        (step.state, step.ended_unix_ns) = (state, Some(now_unix_ns()));
        step.message = Some(message.to_owned()).filter(|message| !message.is_empty());
        let name = step.name.clone();
        self.folder.save(&run)?;
        let why = message.to_owned();
        match state {
            StepState::Failed => Err(RunError::Step { number: number + 1, step: name, why }),
            StepState::Waiting => Err(RunError::Waiting { number: number + 1, what: why }),
            _ => Ok(()),
        }
    }

    fn step(&self, number: usize, group: &Group, step: &Step) -> Result<(), RunError> {
        if !self.begin(number)? {
            return Ok(());
        }
        let failed = if step.may_fail { StepState::Passed } else { StepState::Failed };
        match &step.action {
            Action::Manual(what) => match self.executor.ask(what) {
                Answer::Done => self.end(number, StepState::Done, ""),
                Answer::Failed => self.end(number, failed, "a person said that it failed"),
                Answer::Nobody => self.end(number, StepState::Waiting, what),
            },
            Action::Script(line) => match self.script(line, group, None, step.timeout) {
                Ok(said) => self.end(number, StepState::Done, &said),
                // Told to stop, it goes on with this step.
                Err(why) if self.executor.stopped() => self.end(number, StepState::Failed, &why),
                Err(why) => self.end(number, failed, &why),
            },
        }
    }

    /// All machines of a group, so many at a time. One that fails stops none that runs.
    fn machines(&self, from: usize, group: &Group) -> Result<(), RunError> {
        let next = AtomicUsize::new(0);
        let first = Mutex::new(None::<(usize, RunError)>);
        thread::scope(|scope| {
            for _ in 0..group.parallel.min(group.machines.len()) {
                scope.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let Some(machine) = group.machines.get(n) else { return };
                        if let Err(e) = self.machine(from + n, group, machine) {
                            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                            if first.as_ref().is_none_or(|(before, _)| n < *before) {
                                *first = Some((n, e));
                            }
                        }
                    }
                });
            }
        });
        let first = first.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Ok(()), |(_, e)| Err(e))
    }

    fn machine(&self, number: usize, group: &Group, machine: &Machine) -> Result<(), RunError> {
        if !self.begin(number)? {
            return Ok(());
        }
        for name in &machine.disks {
            if self.executor.stopped() {
                return self.end(number, StepState::Failed, "it was stopped");
            }
            let (kind, point) = {
                let run = self.run();
                let disk = run.disks.iter().find(|disk| disk.disk == *name);
                (run.kind, disk.and_then(|disk| disk.point))
            };
            match self.executor.bring_up(kind, name, point, machine.attach) {
                Ok((point, up)) => {
                    let mut run = self.run();
                    if let Some(disk) = run.disks.iter_mut().find(|disk| disk.disk == *name) {
                        (disk.point, disk.up) = (Some(point), Some(up));
                    }
                    self.folder.save(&run)?;
                }
                Err(why) => {
                    return self.end(number, StepState::Failed, &format!("disk {name}: {why}"));
                }
            }
        }
        let Some(start) = &machine.start else { return self.end(number, StepState::Done, "") };
        match self.script(start, group, Some(machine), machine.timeout) {
            Ok(said) => self.end(number, StepState::Done, &said),
            Err(why) => self.end(number, StepState::Failed, &why),
        }
    }

    /// Runs a script; what it said last, or why it failed.
    fn script(
        &self,
        line: &str,
        group: &Group,
        machine: Option<&Machine>,
        timeout: Duration,
    ) -> Result<String, String> {
        let environment = environment(&self.run(), self.folder, &group.name, machine);
        let mut command = shell(line);
        command.envs(environment);
        let output = self.log.try_clone();
        let mut output = output.map_err(|e| format!("its log: {e}"))?;
        let ran = run_command(command, &mut output, timeout, &|| self.executor.stopped());
        let (ended, said) = ran.map_err(|e| format!("it could not be started: {e}"))?;
        match ended.is_success() {
            true => Ok(last_line(&said)),
            false => Err(format!("{}; it said: {}", ended.words(timeout), last_line(&said))),
        }
    }
}

/// The last line of what was said.
fn last_line(said: &str) -> String {
    said.lines().last().unwrap_or_default().chars().take(500).collect()
}

/// What scripts are told.
fn environment(
    run: &Run,
    folder: &RunFolder,
    group: &str,
    machine: Option<&Machine>,
) -> Vec<(String, OsString)> {
    let mut told: Vec<(String, OsString)> = vec![
        ("BACKSTAY_PLAN".into(), run.plan.to_string().into()),
        ("BACKSTAY_RUN".into(), run.kind.name().into()),
        ("BACKSTAY_RUN_FILE".into(), folder.run_path().into()),
        ("BACKSTAY_GROUP".into(), group.into()),
    ];
    let of_machine =
        |disk: &&DiskRun| machine.is_none_or(|machine| machine.disks.contains(&disk.disk));
    let names: Vec<&str> =
        run.disks.iter().filter(of_machine).map(|disk| disk.disk.as_str()).collect();
    told.push(("BACKSTAY_DISKS".into(), names.join(" ").into()));
    if let Some(machine) = machine {
        told.push(("BACKSTAY_MACHINE".into(), machine.name.clone().into()));
    }
    let first = machine.and_then(|machine| machine.disks.first());
    for disk in &run.disks {
        let mut tell = |what: &str, value: OsString| {
            if first == Some(&disk.disk) {
                told.push((format!("BACKSTAY_{what}"), value.clone()));
            }
            told.push((format!("BACKSTAY_{what}_{}", variable(&disk.disk)), value));
        };
        if let Some(point) = disk.point {
            tell("POINT", point.cycle.to_string().into());
        }
        if let Some(up) = &disk.up {
            tell("DISK", up.served.clone().into());
            if let Some(device) = &up.device {
                tell("DEVICE", device.into());
            }
        }
    }
    told
}

/// Takes a test down: the last group first, what fails stops nothing. Done again it goes on.
///
/// # Errors
/// If it is no test, or something could not be taken down.
pub fn clean_up(
    plan: &Plan,
    run: &mut Run,
    folder: &RunFolder,
    executor: &dyn Executor,
) -> Result<(), RunError> {
    if run.kind != Kind::Test {
        return Err(RunError::Refused(format!(
            "only a test is taken down; this is a {} run. Its disks are cancelled or committed one by \
             one: backstay failover",
            run.kind.name()
        )));
    }
    run.state = RunState::CleaningUp;
    folder.save(run)?;
    let log = folder.log(false)?;
    let mut left = vec![];
    let work = RunContext { run: Mutex::new(run), folder, executor, log: &log };
    for group in plan.groups.iter().rev() {
        for step in group.cleanup.iter().filter(|step| step.runs.contains(&Kind::Test)) {
            let ended = match &step.action {
                Action::Script(line) => work.script(line, group, None, step.timeout).map(drop),
                Action::Manual(what) => match executor.ask(what) {
                    Answer::Done => Ok(()),
                    _ => Err(format!("a person has to: {what}")),
                },
            };
            if let (Err(why), false) = (ended, step.may_fail) {
                left.push(format!("{}: {why}", step.name));
            }
        }
        for machine in group.machines.iter().rev() {
            let up = |disk: &DiskRun| machine.disks.contains(&disk.disk) && disk.up.is_some();
            if let Some(stop) = &machine.stop
                && work.run().disks.iter().any(up)
                && let Err(why) = work.script(stop, group, Some(machine), machine.timeout)
            {
                left.push(format!("{}: {why}", machine.name));
            }
            for name in machine.disks.iter().rev() {
                executor.say(&format!("{}: {name} is taken down", group.name));
                match executor.take_down(name) {
                    Ok(()) => {
                        let mut run = work.run();
                        if let Some(disk) = run.disks.iter_mut().find(|disk| disk.disk == *name) {
                            disk.up = None;
                        }
                        folder.save(&run)?;
                    }
                    Err(why) => left.push(format!("disk {name}: {why}")),
                }
                executor.let_go(name);
            }
        }
    }
    if !left.is_empty() {
        return Err(RunError::Cleanup(left.join("; ")));
    }
    let mut run = work.run();
    run.state = RunState::CleanedUp;
    Ok(folder.save(&run)?)
}

/// Reads a plan's file.
///
/// # Errors
/// If it cannot be read, or is longer than a plan may be.
pub fn read(path: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let most = super::parse::PLAN_BYTES_MAX as u64 + 1;
    File::open(path)?.take(most).read_to_string(&mut text)?;
    Ok(text)
}

//! What a run did: what ran, how long, which points, what was achieved.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use backstay_types::{CycleNo, DiskName, PointId};
use serde::Serialize;

use super::parse::Kind;
use super::state::{Run, RunState, StepKind, StepState};

/// A report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The plan.
    pub plan: DiskName,
    /// The run.
    pub run: PointId,
    /// For what.
    pub kind: Kind,
    /// How it is.
    pub state: RunState,
    /// When it began, nanoseconds since 1970.
    pub began_unix_ns: u64,
    /// When it ended or stopped.
    pub ended_unix_ns: Option<u64>,
    /// From the beginning until every machine was up, in seconds: the recovery time achieved. Only if
    /// all are.
    pub rto_seconds: Option<f64>,
    /// How much of this a person was waited for.
    pub waited_for_people_seconds: f64,
    /// The most that any disk lost, in seconds: from its point's cut to the beginning of the run; none
    /// where the source handed over.
    pub rpo_seconds: Option<f64>,
    /// The steps.
    pub steps: Vec<StepReport>,
    /// The disks.
    pub disks: Vec<DiskReport>,
}

/// A step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// Its place in the run, from 1.
    pub number: usize,
    /// The plan's group it is of.
    pub group: String,
    /// What the plan calls it.
    pub name: String,
    /// What it is.
    pub what: StepKind,
    /// How it is.
    pub state: StepState,
    /// How often it was begun.
    pub tries: u32,
    /// When it was last begun, nanoseconds since 1970.
    pub began_unix_ns: Option<u64>,
    /// How long it took.
    pub seconds: Option<f64>,
    /// What it said, or why it failed.
    pub message: Option<String>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskReport {
    /// Its name in the vault.
    pub disk: DiskName,
    /// The machine it belongs to.
    pub machine: String,
    /// The point that came up: its cycle,
    pub cycle: Option<CycleNo>,
    /// its identity,
    pub point: Option<PointId>,
    /// and its cut, nanoseconds since 1970.
    pub cut_unix_ns: Option<u64>,
    /// From the point's cut to the beginning of the run.
    pub rpo_seconds: Option<f64>,
    /// From the beginning of the run until it was up.
    pub up_after_seconds: Option<f64>,
    /// Its loop device, if it has one.
    pub device: Option<String>,
    /// The file it is served as.
    pub served: Option<std::path::PathBuf>,
}

fn seconds(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}

impl Report {
    /// Of a run.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let took = |began: Option<u64>, ended: Option<u64>| Some(seconds(began?, ended?));
        let steps: Vec<StepReport> = run
            .steps
            .iter()
            .enumerate()
            .map(|(n, step)| StepReport {
                number: n + 1,
                group: step.group.clone(),
                name: step.name.clone(),
                what: step.what,
                state: step.state,
                tries: step.tries,
                began_unix_ns: step.began_unix_ns,
                seconds: took(step.began_unix_ns, step.ended_unix_ns),
                message: step.message.clone(),
            })
            .collect();
        let disks: Vec<DiskReport> = run
            .disks
            .iter()
            .map(|disk| DiskReport {
                disk: disk.disk.clone(),
                machine: disk.machine.clone(),
                cycle: disk.point.map(|point| point.cycle),
                point: disk.point.map(|point| point.point),
                cut_unix_ns: disk.point.map(|point| point.cut_unix_ns),
                rpo_seconds: disk.point.map(|point| match run.kind {
                    // Nothing was written after the cut.
                    Kind::Planned => 0.0,
                    Kind::Test | Kind::Unplanned => seconds(point.cut_unix_ns, run.began_unix_ns),
                }),
                up_after_seconds: disk
                    .up
                    .as_ref()
                    .map(|up| seconds(run.began_unix_ns, up.since_unix_ns)),
                device: disk.up.as_ref().and_then(|up| up.device.clone()),
                served: disk.up.as_ref().map(|up| up.served.clone()),
            })
            .collect();
        let machines = || run.steps.iter().filter(|step| step.what == StepKind::Machine);
        let all_up = machines().all(|step| step.state == StepState::Done);
        let last = machines().filter_map(|step| step.ended_unix_ns).max();
        let people = steps.iter().filter(|step| step.what == StepKind::Manual);
        Self {
            plan: run.plan.clone(),
            run: run.run,
            kind: run.kind,
            state: run.state,
            began_unix_ns: run.began_unix_ns,
            ended_unix_ns: run.ended_unix_ns,
            rto_seconds: last.filter(|_| all_up).map(|last| seconds(run.began_unix_ns, last)),
            waited_for_people_seconds: people.filter_map(|step| step.seconds).sum(),
            rpo_seconds: disks.iter().filter_map(|disk| disk.rpo_seconds).reduce(f64::max),
            steps,
            disks,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let word = |value: &dyn erased::Word| value.word();
        let _ = writeln!(
            out,
            "plan {}: {} run, {}, begun {}",
            self.plan,
            self.kind.name(),
            word(&self.state),
            time(self.began_unix_ns)
        );
        if let Some(rto) = self.rto_seconds {
            let _ = write!(out, "  RTO  {} until all machines were up", short(rto));
            let people = self.waited_for_people_seconds;
            let _ = match people > 0.0 {
                true => writeln!(out, " ({} of it for people)", short(people)),
                false => writeln!(out),
            };
        }
        if let Some(rpo) = self.rpo_seconds {
            let what = match self.kind {
                Kind::Planned => "nothing lost: the sources handed over".to_owned(),
                _ => format!("{} from the oldest point's cut to the beginning", short(rpo)),
            };
            let _ = writeln!(out, "  RPO  {what}");
        }
        let _ = writeln!(
            out,
            "\n{:>4}  {:12}  {:8}  {:9}  {:>9}  STEP",
            "", "GROUP", "WHAT", "STATE", "TOOK"
        );
        for step in &self.steps {
            let took = step.seconds.map_or_else(|| "-".into(), short);
            let message =
                step.message.as_ref().map_or_else(String::new, |said| format!(": {said}"));
            let _ = writeln!(
                out,
                "{:>4}  {:12}  {:8}  {:9}  {took:>9}  {}{message}",
                step.number,
                step.group,
                word(&step.what),
                word(&step.state),
                step.name
            );
        }
        if !self.disks.is_empty() {
            let head = ("DISK", "POINT", "CUT", "UP AFTER", "WHERE");
            let _ = writeln!(
                out,
                "\n{:16}  {:>6}  {:20}  {:>9}  {}",
                head.0, head.1, head.2, head.3, head.4
            );
        }
        for disk in &self.disks {
            let dash = || "-".to_owned();
            let place =
                disk.device.clone().or(disk.served.as_ref().map(|p| p.display().to_string()));
            let _ = writeln!(
                out,
                "{:16}  {:>6}  {:20}  {:>9}  {}",
                disk.disk.as_str(),
                disk.cycle.map_or_else(dash, |cycle| cycle.to_string()),
                disk.cut_unix_ns.map_or_else(dash, time),
                disk.up_after_seconds.map_or_else(dash, short),
                place.unwrap_or_else(dash)
            );
        }
        out
    }
}

/// Words of states, as JSON has them.
mod erased {
    pub trait Word {
        fn word(&self) -> String;
    }
    impl<T: serde::Serialize> Word for T {
        fn word(&self) -> String {
            let value = serde_json::to_value(self).ok();
            value.and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
        }
    }
}

fn time(unix_ns: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(unix_ns)).to_string()
}

fn short(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s => humantime::format_duration(Duration::from_secs(s as u64)).to_string(),
    }
}

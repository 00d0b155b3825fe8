//! A recovery plan as people write it: TOML, strict, every mistake shown with its place.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use backstay_types::{Class, Classified, DiskName};
use backstay_vault::GroupName;
use serde::{Deserialize, Serialize};
use toml::Spanned;

/// Longest plan, in bytes.
pub const PLAN_BYTES_MAX: usize = 1 << 20;
/// Most groups in a plan.
pub const GROUPS_MAX: usize = 100;
/// Most machines in a plan.
pub const MACHINES_MAX: usize = 1000;
/// Most steps in one list.
pub const STEPS_MAX: usize = 100;
/// Longest line for the shell or for a person, in bytes.
pub const LINE_BYTES_MAX: usize = 8192;
/// Longest time-out.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 86_400);
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// What is wrong with a plan, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct PlanError {
    /// Its line, from 1.
    pub line: usize,
    /// Its column, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub what: String,
}

impl Classified for PlanError {
    fn class(&self) -> Class {
        Class::Person
    }
}

/// For what a plan is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Everything comes up beside what runs; nothing is touched, all of it is taken down again.
    Test,
    /// The sources have handed over: nothing is lost.
    Planned,
    /// The sources are gone.
    Unplanned,
}

impl Kind {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Planned => "planned",
            Self::Unplanned => "unplanned",
        }
    }
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub name: DiskName,
    /// The vault of all its disks; the configuration's if none is said.
    pub vault: Option<String>,
    /// The consistency group whose points `--point group` takes.
    pub consistency_group: Option<GroupName>,
    /// In their order.
    pub groups: Vec<Group>,
}

/// What comes up together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Machines at a time.
    pub parallel: usize,
    /// One after the other, before its machines.
    pub before: Vec<Step>,
    /// Its machines.
    pub machines: Vec<Machine>,
    /// One after the other, after its machines.
    pub after: Vec<Step>,
    /// One after the other, when a test is taken down, before its machines are.
    pub cleanup: Vec<Step>,
}

/// Disks that belong together, and what makes a machine of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its disks, as the vault names them.
    pub disks: Vec<DiskName>,
    /// Whether its disks get loop devices.
    pub attach: bool,
    /// A line for the shell that starts it.
    pub start: Option<String>,
    /// A line for the shell that stops it, before its disks go.
    pub stop: Option<String>,
    /// How long each of these may take.
    pub timeout: Duration,
}

/// A script, or something a person does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What it is.
    pub action: Action,
    /// How long a script may take.
    pub timeout: Duration,
    /// For what runs it is.
    pub runs: BTreeSet<Kind>,
    /// Whether the plan goes on if it fails.
    pub may_fail: bool,
}

/// What a step is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A line for the shell.
    Script(String),
    /// What a person is asked to do.
    Manual(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPlan {
    name: DiskName,
    vault: Option<String>,
    consistency_group: Option<GroupName>,
    timeout: Option<Spanned<String>>,
    #[serde(default)]
    group: Vec<Spanned<RawGroup>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: Spanned<String>,
    parallel: Option<Spanned<usize>>,
    #[serde(default)]
    disks: Vec<Spanned<DiskName>>,
    #[serde(default)]
    before: Vec<Spanned<RawStep>>,
    #[serde(default)]
    machine: Vec<Spanned<RawMachine>>,
    #[serde(default)]
    after: Vec<Spanned<RawStep>>,
    #[serde(default)]
    cleanup: Vec<Spanned<RawStep>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMachine {
    name: Spanned<String>,
    disks: Spanned<Vec<Spanned<DiskName>>>,
    #[serde(default)]
    attach: bool,
    start: Option<Spanned<String>>,
    stop: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    name: Option<Spanned<String>>,
    script: Option<Spanned<String>>,
    manual: Option<Spanned<String>>,
    timeout: Option<Spanned<String>>,
    runs: Option<Spanned<BTreeSet<Kind>>>,
    #[serde(default)]
    on_failure: OnFailure,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OnFailure {
    #[default]
    Stop,
    Continue,
}

impl Plan {
    /// Reads a plan.
    ///
    /// # Errors
    /// The first mistake, and where it is.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        if text.len() > PLAN_BYTES_MAX {
            return Err(place(text, 0..0, format!("it is longer than {PLAN_BYTES_MAX} bytes")));
        }
        let raw: RawPlan = toml::from_str(text).map_err(|e| {
            place(text, e.span().unwrap_or(0..0), e.message().trim().replace('\n', ", "))
        })?;
        Reader {
            text,
            names: BTreeSet::new(),
            disks: BTreeMap::new(),
            machines: 0,
            timeout: TIMEOUT_DEFAULT,
        }
        .plan(raw)
    }

    /// All its disks, in the order in which they come up.
    pub fn disks(&self) -> impl Iterator<Item = &DiskName> {
        self.groups.iter().flat_map(|group| &group.machines).flat_map(|machine| &machine.disks)
    }
}

/// A disk's name as a part of the names of variables that scripts get.
#[must_use]
pub fn variable(disk: &DiskName) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    disk.as_str().chars().map(letter).collect()
}

/// Line and column of a place, and what is wrong there.
fn place(text: &str, at: Range<usize>, what: String) -> PlanError {
    let mut start = at.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    let before = &text[..start];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    PlanError { line, column, what }
}

struct Reader<'a> {
    text: &'a str,
    /// Names of groups (with a `/` after them) and of machines.
    names: BTreeSet<String>,
    /// By what their variables are named after.
    disks: BTreeMap<String, DiskName>,
    machines: usize,
    timeout: Duration,
}

impl Reader<'_> {
    fn wrong<T>(&self, at: Range<usize>, what: impl Into<String>) -> Result<T, PlanError> {
        Err(place(self.text, at, what.into()))
    }

    fn plan(mut self, raw: RawPlan) -> Result<Plan, PlanError> {
        self.timeout = self.timeout(raw.timeout)?;
        if raw.group.is_empty() || raw.group.len() > GROUPS_MAX {
            return self.wrong(0..0, format!("a plan has 1 to {GROUPS_MAX} groups ([[group]])"));
        }
        let groups = raw.group.into_iter().map(|group| self.group(group));
        Ok(Plan {
            groups: groups.collect::<Result<_, _>>()?,
            name: raw.name,
            vault: raw.vault,
            consistency_group: raw.consistency_group,
        })
    }

    fn group(&mut self, raw: Spanned<RawGroup>) -> Result<Group, PlanError> {
        let span = raw.span();
        let raw = raw.into_inner();
        let name = self.name(raw.name, "/")?;
        let before = self.steps(raw.before)?;
        let mut machines = vec![];
        for disk in raw.disks {
            let named = Spanned::new(disk.span(), disk.get_ref().to_string());
            machines.push(Machine {
                name: self.name(named, "")?,
                disks: vec![self.disk(disk)?],
                attach: true,
                start: None,
                stop: None,
                timeout: self.timeout,
            });
        }
        for machine in raw.machine {
            machines.push(self.machine(machine.into_inner())?);
        }
        self.machines += machines.len();
        if self.machines > MACHINES_MAX {
            return self.wrong(span, format!("a plan has at most {MACHINES_MAX} machines"));
        }
        let parallel = match raw.parallel {
            None => machines.len().max(1),
            Some(n) if *n.get_ref() == 0 => return self.wrong(n.span(), "at least 1 at a time"),
            Some(n) => n.into_inner(),
        };
        let (after, cleanup) = (self.steps(raw.after)?, self.steps(raw.cleanup)?);
        if machines.is_empty() && before.is_empty() && after.is_empty() {
            return self.wrong(span, "the group has neither disks, machines nor steps");
        }
        Ok(Group { name, parallel, before, machines, after, cleanup })
    }

    fn machine(&mut self, raw: RawMachine) -> Result<Machine, PlanError> {
        let name = self.name(raw.name, "")?;
        let at = raw.disks.span();
        let disks = raw.disks.into_inner().into_iter().map(|disk| self.disk(disk));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        if disks.is_empty() || disks.len() > 64 {
            return self.wrong(at, "a machine has 1 to 64 disks");
        }
        Ok(Machine {
            name,
            disks,
            attach: raw.attach,
            start: raw.start.map(|line| self.line(line)).transpose()?,
            stop: raw.stop.map(|line| self.line(line)).transpose()?,
            timeout: self.timeout(raw.timeout)?,
        })
    }

    fn steps(&self, raw: Vec<Spanned<RawStep>>) -> Result<Vec<Step>, PlanError> {
        if let Some(step) = raw.get(STEPS_MAX) {
            return self.wrong(step.span(), format!("at most {STEPS_MAX} steps in one list"));
        }
        raw.into_iter().map(|step| self.step(step)).collect()
    }

    fn step(&self, raw: Spanned<RawStep>) -> Result<Step, PlanError> {
        let span = raw.span();
        let raw = raw.into_inner();
        let action = match (raw.script, raw.manual) {
            (Some(line), None) => Action::Script(self.line(line)?),
            (None, Some(line)) => Action::Manual(self.line(line)?),
            (None, None) => return self.wrong(span, "a step is a script or manual: say one"),
            (Some(_), Some(manual)) => {
                return self.wrong(manual.span(), "a step is a script or manual: not both");
            }
        };
        if let (Action::Manual(_), Some(timeout)) = (&action, &raw.timeout) {
            return self.wrong(timeout.span(), "a person has no time-out");
        }
        let said = match &action {
            Action::Script(line) | Action::Manual(line) => line.lines().next().unwrap_or_default(),
        };
        let name = match raw.name {
            Some(name) => self.label(name)?,
            None => said.chars().take(40).collect(),
        };
        let all = || BTreeSet::from([Kind::Test, Kind::Planned, Kind::Unplanned]);
        let runs = match raw.runs {
            Some(runs) if runs.get_ref().is_empty() => {
                return self.wrong(runs.span(), "it would never run");
            }
            runs => runs.map_or_else(all, Spanned::into_inner),
        };
        let may_fail = raw.on_failure == OnFailure::Continue;
        Ok(Step { name, action, timeout: self.timeout(raw.timeout)?, runs, may_fail })
    }

    fn label(&self, name: Spanned<String>) -> Result<String, PlanError> {
        let good = |c: char| !c.is_control();
        let text = name.get_ref();
        if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
            return self.wrong(name.span(), "a name has 1 to 64 bytes and no control characters");
        }
        Ok(name.into_inner())
    }

    fn name(&mut self, name: Spanned<String>, of: &str) -> Result<String, PlanError> {
        let at = name.span();
        let name = self.label(name)?;
        if !self.names.insert(format!("{name}{of}")) {
            return self.wrong(at, format!("{name:?} is there twice"));
        }
        Ok(name)
    }

    fn disk(&mut self, disk: Spanned<DiskName>) -> Result<DiskName, PlanError> {
        let (at, disk) = (disk.span(), disk.into_inner());
        if let Some(other) = self.disks.insert(variable(&disk), disk.clone()) {
            let what = match other == disk {
                true => format!("disk {disk} is there twice"),
                false => format!("scripts could not tell disks {other} and {disk} apart"),
            };
            return self.wrong(at, what);
        }
        Ok(disk)
    }

    fn line(&self, line: Spanned<String>) -> Result<String, PlanError> {
        let text = line.get_ref();
        if text.trim().is_empty() || text.len() > LINE_BYTES_MAX || text.contains('\0') {
            let what = format!("it must have 1 to {LINE_BYTES_MAX} bytes, none of them zero");
            return self.wrong(line.span(), what);
        }
        Ok(line.into_inner())
    }

    fn timeout(&self, said: Option<Spanned<String>>) -> Result<Duration, PlanError> {
        let Some(said) = said else { return Ok(self.timeout) };
        match humantime::parse_duration(said.get_ref()) {
            Ok(time) if time >= Duration::from_secs(1) && time <= TIMEOUT_MAX => Ok(time),
            Ok(_) => self.wrong(said.span(), "a time-out is from 1s to 7days"),
            Err(e) => self.wrong(said.span(), format!("{:?} is no duration: {e}", said.get_ref())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PLAN: &str = r#"
name = "shop"
vault = "file:///mnt/vault"
timeout = "2m"

[[group]]
name = "database"
[[group.before]]
script = "dns off"
runs = ["planned", "unplanned"]
timeout = "5s"
[[group.before]]
name = "network"
manual = "Have VLAN 12 switched"
[[group.machine]]
name = "db"
disks = ["db-root", "db-data"]
start = "virsh start db"
stop = "virsh destroy db"
[[group.after]]
script = "pg_isready"
on_failure = "continue"

[[group]]
name = "web"
disks = ["web1", "web2", "web3"]
parallel = 2
"#;

    #[test]
    fn a_plan_is_read() {
        let plan = Plan::parse(PLAN).unwrap();
        assert_eq!(plan.groups.len(), 2);
        let [network, ..] = &plan.groups[0].before[1..] else { panic!() };
        assert_eq!(network.name, "network");
        assert_eq!(plan.groups[0].before[0].runs, BTreeSet::from([Kind::Planned, Kind::Unplanned]));
        assert_eq!(plan.groups[0].before[0].timeout, Duration::from_secs(5));
        assert_eq!(plan.groups[0].machines[0].timeout, Duration::from_secs(120));
        assert!(plan.groups[0].after[0].may_fail);
        assert_eq!((plan.groups[1].parallel, plan.groups[1].machines.len()), (2, 3));
        let disks: Vec<&str> = plan.disks().map(DiskName::as_str).collect();
        assert_eq!(disks, ["db-root", "db-data", "web1", "web2", "web3"]);
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (from, to, line, column, what) in [
            ("timeout = \"5s\"", "timeout = \"5 parsecs\"", 11, 11, "duration"),
            ("timeout = \"5s\"", "timeout = \"0s\"", 11, 11, "1s to 7days"),
            ("parallel = 2", "paralel = 2", 27, 1, "paralel"),
            ("parallel = 2", "parallel = 0", 27, 12, "at least 1"),
            ("\"web2\"", "\"web1\"", 26, 18, "web1"),
            ("\"web2\"", "\"db-root\"", 26, 18, "twice"),
            ("\"web2\"", "\"../web\"", 26, 9, "disk name"),
            ("\"web2\"", "\"db.root\"", 26, 18, "apart"),
            ("name = \"web\"", "name = \"database\"", 25, 8, "twice"),
            ("script = \"dns off\"", "", 8, 1, "script or manual"),
            ("script = \"dns off\"", "script = \"x\"\nmanual = \"y\"", 10, 10, "not both"),
            ("script = \"dns off\"", "script = \" \"", 9, 10, "bytes"),
            ("[\"planned\", \"unplanned\"]", "[]", 10, 8, "never"),
            ("\"unplanned\"]", "\"sometimes\"]", 10, 20, "sometimes"),
            ("disks = [\"db-root\", \"db-data\"]", "disks = []", 17, 9, "64 disks"),
            ("name = \"shop\"", "", 1, 1, "name"),
            ("name = \"shop\"", "name = [", 3, 7, "array"),
        ] {
            let bad = PLAN.replacen(from, to, 1);
            assert_ne!(bad, PLAN);
            let error = Plan::parse(&bad).unwrap_err();
            assert_eq!((error.line, error.column), (line, column), "{from} → {to}: {error}");
            assert!(error.what.contains(what), "{from} → {to}: {error}");
        }
        assert!(Plan::parse("name = \"x\"").unwrap_err().what.contains("groups"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_plan_or_an_error(text in "\\PC*") {
            let _ = Plan::parse(&text);
        }

        /// A plan with a piece cut out or put in is a plan, or an error inside of it.
        #[test]
        fn a_damaged_plan_is_one_or_an_error(at in 0..PLAN.len(), len in 0usize..40, more in "\\PC{0,5}") {
            let end = (at + len).min(PLAN.len());
            let bad = format!("{}{more}{}", &PLAN[..at], &PLAN[end..]);
            if let Err(e) = Plan::parse(&bad) {
                prop_assert!(e.line <= bad.matches('\n').count() + 1 && e.column >= 1);
            }
        }
    }
}

//! The guardian: the process that quiesces for one cut, in one straight line.
//!
//! ```text
//!   plan ─▶ lock ─▶ pre ─▶ freeze ─▶ "quiet" ─▶ wait for the cut, the end of the pipe, or the time
//!                    │        │                    │
//!                    └────────┴─ failed ──────┬────┴─▶ thaw ─▶ post ─▶ end
//! ```
//!
//! From the freeze to the thaw it does nothing that could wait for a frozen file system: it prints
//! nothing, logs nothing, and writes to tmpfs alone.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use backstay_host::clock;
use serde::{Deserialize, Serialize};

use super::freeze::Frozen;
use super::lines::{Heard, Lines};
use super::mend::mend_with;
use super::plan::{HookLock, Plan};

/// How long the plan may take to come.
const PLAN_TIME_MAX: Duration = Duration::from_secs(10);

/// What the sidecar says after the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// How the cut went. In any case it is time to thaw.
    Cut(CutOutcome),
}

/// How a cut went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutOutcome {
    /// It was made.
    Done,
    /// It failed.
    Failed,
}

/// What the guardian says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Report {
    /// All pre commands ended well and all file systems are frozen.
    Quiet {},
    /// They are not, and nothing is frozen.
    Failed {
        /// Why.
        why: String,
    },
    /// Nothing is frozen any more.
    Thawed {
        /// Whether everything was frozen until the sidecar told of the cut.
        in_time: bool,
        /// Why not.
        why: Option<String>,
    },
    /// The post commands have run.
    Ended {
        /// What went wrong with them.
        why: Option<String>,
    },
}

/// The guardian's life: reads a plan, does it, undoes it. What goes wrong is reported to the
/// sidecar; it goes on without one.
///
/// # Errors
/// If no plan comes.
pub fn run(input: OwnedFd, mut output: impl Write) -> io::Result<()> {
    let mut sidecar = Lines::new(input);
    let mut plan: Plan = match sidecar.next(clock::monotonic() + PLAN_TIME_MAX)? {
        Heard::Line(plan) => plan,
        Heard::Ended | Heard::Late => return Err(io::Error::other("no plan came")),
    };
    // Nobody may be there any more to hear it.
    let mut say = |report: Report| {
        let line = serde_json::to_string(&report).unwrap_or_default();
        let _ = writeln!(output, "{line}").and_then(|()| output.flush());
    };
    let lock = match HookLock::take(&plan.runtime) {
        Ok(Some(lock)) => lock,
        refused => {
            let why = match refused {
                Err(e) => format!("{}: {e}", plan.runtime.display()),
                Ok(_) => "the hooks of the last cut are still at work".into(),
            };
            say(Report::Failed { why });
            say(Report::Ended { why: None });
            return Ok(());
        }
    };
    let mended = mend_with(&lock);
    match make_quiet(&mut plan, &lock, &mut sidecar) {
        Ok((frozen, deadline)) => {
            say(Report::Quiet {});
            let late = match sidecar.next(deadline) {
                Ok(Heard::Line(Order::Cut(_))) => None,
                Ok(Heard::Ended) => Some("the sidecar is gone".to_owned()),
                Ok(Heard::Late) => Some(format!(
                    "the cut was not made within freeze_timeout ({:?})",
                    plan.freeze_timeout()
                )),
                Err(e) => Some(e.to_string()),
            };
            let thawed: Result<(), String> =
                frozen.into_iter().rev().map(Frozen::thaw).fold(Ok(()), Result::and);
            let why = late.or(thawed.err());
            say(Report::Thawed { in_time: why.is_none(), why });
        }
        Err(why) => say(Report::Failed { why }),
    }
    let post = plan.run_post().err().map(|e| e.to_string());
    let forgotten = lock.forget().err().map(|e| e.to_string());
    say(Report::Ended { why: mended.or(post).or(forgotten) });
    Ok(())
}

/// Runs the pre commands and freezes; until when the cut must be made. On failure nothing is frozen.
fn make_quiet(
    plan: &mut Plan,
    lock: &HookLock,
    sidecar: &mut Lines,
) -> Result<(Vec<Frozen>, Instant), String> {
    lock.note(plan).map_err(|e| format!("{}: {e}", plan.runtime.display()))?;
    plan.run_pre().map_err(|e| e.to_string())?;
    // A sidecar that left meanwhile needs no freeze.
    if !matches!(sidecar.next::<Order>(clock::monotonic()), Ok(Heard::Late)) {
        return Err("the sidecar is gone".into());
    }
    let deadline = clock::monotonic() + plan.freeze_timeout();
    let mut frozen = vec![];
    for mount in plan.freeze.clone() {
        plan.frozen.push(mount.clone());
        lock.note(plan).map_err(|e| format!("{}: {e}", plan.runtime.display()))?;
        match Frozen::new(&mount, &plan.avoid) {
            Ok(one) => frozen.push(one),
            Err(e) => {
                // What somebody else has frozen is not ours to thaw.
                plan.frozen.pop();
                let _ = lock.note(plan);
                return Err(e.to_string());
            }
        }
        if clock::monotonic() >= deadline {
            return Err(format!(
                "writing the dirty data of {} took longer than freeze_timeout ({:?})",
                mount.display(),
                plan.freeze_timeout()
            ));
        }
    }
    Ok((frozen, deadline))
}

/// Takes no notice of signals that are sent to a whole unit or terminal: the guardian ends when the
/// sidecar does. Its commands get them as usual, for what is caught is not inherited.
///
/// # Errors
/// If a signal cannot be caught.
pub fn outlive_signals() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::Path;
    use std::thread;

    /// A guardian as a thread, over real pipes.
    struct Guarded {
        to: Option<File>,
        reports: Lines,
        thread: thread::JoinHandle<io::Result<()>>,
    }

    fn guard(plan: &Plan) -> Guarded {
        let (input, to) = nix::unistd::pipe().unwrap();
        let (from, output) = nix::unistd::pipe().unwrap();
        let thread = thread::spawn(move || run(input, File::from(output)));
        let mut to = File::from(to);
        writeln!(to, "{}", serde_json::to_string(plan).unwrap()).unwrap();
        Guarded { to: Some(to), reports: Lines::new(from), thread }
    }

    impl Guarded {
        fn hear(&mut self) -> Report {
            match self.reports.next(clock::monotonic() + Duration::from_secs(60)).unwrap() {
                Heard::Line(report) => report,
                other => panic!("{other:?}"),
            }
        }

        fn ends(mut self) {
            assert_eq!(self.hear(), Report::Ended { why: None });
            drop(self.to.take());
            self.thread.join().unwrap().unwrap();
        }
    }

    /// Pre and post write their names down.
    fn telling(runtime: &Path) -> Plan {
        let mut plan = plan(runtime);
        let told = runtime.join("told");
        plan.pre = vec![format!("echo pre >> {}", told.display())];
        plan.post = vec![format!("echo post >> {}", told.display())];
        plan
    }

    fn told(runtime: &Path) -> String {
        let mut text = String::new();
        let _ = File::open(runtime.join("told")).map(|mut file| file.read_to_string(&mut text));
        text.replace('\n', " ")
    }

    #[test]
    fn pre_then_the_cut_then_post() {
        let dir = tempfile::tempdir().unwrap();
        let mut guarded = guard(&telling(dir.path()));
        assert_eq!(guarded.hear(), Report::Quiet {});
        assert_eq!(told(dir.path()), "pre ");
        assert!(dir.path().join("frozen.json").exists());
        writeln!(guarded.to.as_mut().unwrap(), "{{\"cut\":\"done\"}}").unwrap();
        assert_eq!(guarded.hear(), Report::Thawed { in_time: true, why: None });
        guarded.ends();
        assert_eq!(told(dir.path()), "pre post ");
        assert!(!dir.path().join("frozen.json").exists());
    }

    #[test]
    fn post_runs_when_the_sidecar_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let mut guarded = guard(&telling(dir.path()));
        assert_eq!(guarded.hear(), Report::Quiet {});
        drop(guarded.to.take());
        assert!(matches!(guarded.hear(), Report::Thawed { in_time: false, .. }));
        guarded.ends();
        assert_eq!(told(dir.path()), "pre post ");
    }

    #[test]
    fn a_sidecar_that_does_not_cut_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = telling(dir.path());
        plan.freeze_timeout_ms = 50;
        let mut guarded = guard(&plan);
        assert_eq!(guarded.hear(), Report::Quiet {});
        let Report::Thawed { in_time: false, why: Some(why) } = guarded.hear() else { panic!() };
        assert!(why.contains("freeze_timeout"), "{why}");
        guarded.ends();
        assert_eq!(told(dir.path()), "pre post ");
    }

    #[test]
    fn a_failed_pre_or_freeze_ends_with_post() {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = telling(dir.path());
        plan.freeze = vec![dir.path().into()];
        let mut guarded = guard(&plan);
        let Report::Failed { why } = guarded.hear() else { panic!() };
        assert!(why.contains("not a mount point"), "{why}");
        guarded.ends();
        plan.pre.push("exit 9".into());
        let mut guarded = guard(&plan);
        let Report::Failed { why } = guarded.hear() else { panic!() };
        assert!(why.contains("exit status: 9"), "{why}");
        guarded.ends();
        assert_eq!(told(dir.path()), "pre post pre post ");
    }

    #[test]
    fn one_guardian_a_disk() {
        let dir = tempfile::tempdir().unwrap();
        let lock = HookLock::take(dir.path()).unwrap().unwrap();
        let mut guarded = guard(&telling(dir.path()));
        let Report::Failed { why } = guarded.hear() else { panic!() };
        assert!(why.contains("still at work"), "{why}");
        guarded.ends();
        assert_eq!(told(dir.path()), "", "neither pre nor post of the other one's cut");
        drop(lock);
        // A guardian that finds another's work undone does that first.
        let left = HookLock::take(dir.path()).unwrap().unwrap();
        left.note(&telling(dir.path())).unwrap();
        drop(left);
        let mut guarded = guard(&telling(dir.path()));
        assert_eq!(guarded.hear(), Report::Quiet {});
        drop(guarded.to.take());
        guarded.hear();
        let Report::Ended { why: Some(why) } = guarded.hear() else { panic!() };
        assert!(why.contains("was killed"), "{why}");
        guarded.thread.join().unwrap().unwrap();
        assert_eq!(told(dir.path()), "post pre post ");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "lock, folder and what was told");
    }
}

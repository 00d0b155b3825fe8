//! The sidecar's side: starts a guardian, cuts while it is quiet, and hears how it ended.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstay_front::paths::Roots;
use backstay_host::clock;
use backstay_types::DiskName;
use backstay_vault::Consistency;

use super::guardian::{CutOutcome, Order, Report};
use super::lines::{Heard, Lines};
use super::mend::{mend, thaw_all};
use super::plan::Plan;
use crate::config::Config;
use crate::error::CycleError;

/// What a command may take beyond its time-out, until it is dead.
const DEATH: Duration = Duration::from_secs(3);
/// For starting a process and passing messages on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);
/// How often who waits looks whether it should stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What makes the points of one disk application-consistent.
#[derive(Debug, Clone)]
pub struct Hooks {
    plan: Plan,
    require: bool,
    program: PathBuf,
}

impl Hooks {
    /// A disk's hooks; none if it has none, or if nobody uses it because it is being handed over: what was to
    /// wait for the cut has been stopped.
    #[must_use]
    pub fn of(config: &Config, roots: &Roots, disk: &DiskName) -> Option<Self> {
        let settings = config.hooks_of(disk);
        let handed_over = roots.disk(disk).handover_point().join("disk").exists();
        if settings.is_none() || handed_over {
            return None;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let plan = Plan {
            disk: disk.clone(),
            timeout_ms: millis(settings.timeout),
            freeze_timeout_ms: millis(settings.freeze_timeout),
            pre: settings.pre,
            freeze: settings.freeze,
            avoid: vec![roots.state.clone(), roots.runtime.clone()],
            post: settings.post,
            runtime: roots.disk(disk).runtime,
            frozen: vec![],
        };
        // The program itself, also when its file was replaced since.
        Some(Self { plan, require: settings.require, program: "/proc/self/exe".into() })
    }

    /// Has everything ready for a cut. `avoid`: what must not lie on a file system that is
    /// frozen, beyond the state: the backing, the vault.
    ///
    /// # Errors
    /// If it cannot be made ready and the settings want no point then; or it was told to stop.
    pub fn quiesce(
        &self,
        avoid: impl IntoIterator<Item = PathBuf>,
        stop: &AtomicBool,
    ) -> Result<Quiesced, CycleError> {
        let mut plan = self.plan.clone();
        plan.avoid.extend(avoid);
        let mut quiesced = Quiesced {
            consistency: Consistency::Crash,
            require: self.require,
            guardian: None,
            warning: None,
            plan,
        };
        match Guardian::start(&self.program, &quiesced.plan) {
            Ok(guardian) => quiesced.wait_until_quiet(guardian, stop)?,
            Err(e) => quiesced.warn(format!("the guardian could not be started: {e}")),
        }
        quiesced.check()?;
        Ok(quiesced)
    }
}

/// An application that waits for the cut, and goes on after it.
#[derive(Debug)]
pub struct Quiesced {
    plan: Plan,
    consistency: Consistency,
    require: bool,
    guardian: Option<Guardian>,
    warning: Option<String>,
}

impl Quiesced {
    fn warn(&mut self, why: String) {
        self.warning.get_or_insert(why);
    }

    /// If the settings want no point that is not application-consistent.
    fn check(&self) -> Result<(), CycleError> {
        match &self.warning {
            Some(why) if self.require => Err(CycleError::Hooks(why.clone())),
            _ => Ok(()),
        }
    }

    fn wait_until_quiet(
        &mut self,
        mut guardian: Guardian,
        stop: &AtomicBool,
    ) -> Result<(), CycleError> {
        let commands = self.plan.pre.len() as u32 * (self.plan.timeout() + DEATH);
        // Those that another guardian left, and what a freeze may take.
        let post = self.plan.post.len() as u32 * (self.plan.timeout() + DEATH);
        let time = commands + post + 2 * self.plan.freeze_timeout() + MARGIN;
        let deadline = clock::monotonic() + time;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(CycleError::Stopped);
            }
            match guardian.reports.next(deadline.min(clock::monotonic() + LOOK_EVERY)) {
                Ok(Heard::Line(Report::Quiet {})) => {
                    guardian.quiet = true;
                    self.guardian = Some(guardian);
                    return Ok(());
                }
                Ok(Heard::Line(Report::Failed { why })) => {
                    self.guardian = Some(guardian);
                    self.warn(why);
                    return Ok(());
                }
                Ok(Heard::Late) if clock::monotonic() < deadline => {}
                // It is not killed: what hangs is a freeze, and it thaws when that returns.
                Ok(Heard::Late) => {
                    self.warn(format!("pre commands and freeze were not done after {time:?}"));
                    return Ok(());
                }
                Ok(Heard::Line(_) | Heard::Ended) | Err(_) => {
                    self.warn(guardian.bury());
                    return Ok(());
                }
            }
        }
    }

    /// To be called as soon as the cut was made, or has failed: the application goes on. What the
    /// point promises.
    ///
    /// # Errors
    /// If that is less than the settings want.
    pub fn cut_is_over(&mut self, made: bool) -> Result<Consistency, CycleError> {
        let Some(guardian) = &mut self.guardian else { return Ok(self.consistency) };
        if self.warning.is_none() {
            let outcome = if made { CutOutcome::Done } else { CutOutcome::Failed };
            guardian.tell(&Order::Cut(outcome));
            let deadline = clock::monotonic() + self.plan.freeze_timeout() + MARGIN;
            let heard = guardian.reports.next(deadline);
            guardian.quiet = false;
            match heard {
                Ok(Heard::Line(Report::Thawed { in_time: true, .. })) => {
                    self.consistency = Consistency::Application;
                }
                Ok(Heard::Line(Report::Thawed { why, .. })) => {
                    self.warn(why.unwrap_or_else(|| "it was thawed before the cut".into()));
                }
                Ok(Heard::Late) => {
                    // Stopped, or lost in the kernel: then the thaw is done from here.
                    let did = thaw_all(&self.plan.freeze).join("; ");
                    self.warn(format!("the guardian did not answer; {did}"));
                }
                _ => {
                    if let Some(guardian) = self.guardian.take() {
                        self.warn(guardian.bury());
                    }
                }
            }
        }
        self.check()?;
        Ok(self.consistency)
    }

    /// Waits until the post commands have run. What went wrong, before the cut or after it.
    #[must_use]
    pub fn finish(mut self) -> Option<String> {
        if let Some(mut guardian) = self.guardian.take() {
            let post = self.plan.post.len() as u32 * (self.plan.timeout() + DEATH);
            let deadline = clock::monotonic() + post + MARGIN;
            match guardian.next_but_thawed(deadline) {
                Ok(Heard::Line(Report::Ended { why: None })) => {}
                Ok(Heard::Line(Report::Ended { why: Some(why) })) => self.warn(why),
                Ok(Heard::Late) => self.warn("post commands have not ended yet".into()),
                _ => self.warn(guardian.bury()),
            }
        }
        self.warning.take()
    }
}

/// A guardian that lives. When this is dropped it ends by itself: thaw, post, and somebody waits for
/// its process.
#[derive(Debug)]
struct Guardian {
    runtime: PathBuf,
    /// `None` only while being dropped.
    child: Option<Child>,
    to: Option<ChildStdin>,
    reports: Lines,
    /// Whether something is frozen, as far as is known.
    quiet: bool,
}

impl Guardian {
    fn start(program: &Path, plan: &Plan) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0("backstay").arg("guardian").current_dir("/");
        // A terminal's signals go to a process group.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let from = from.ok_or_else(|| io::Error::other("no pipe"))?;
        let runtime = plan.runtime.clone();
        let reports = Lines::new(OwnedFd::from(from));
        let mut guardian = Self { runtime, child: Some(child), to, reports, quiet: false };
        guardian.tell(plan);
        Ok(guardian)
    }

    /// Whether it hears is seen by what it answers.
    fn tell(&mut self, what: &impl serde::Serialize) {
        if let (Some(to), Ok(line)) = (&mut self.to, serde_json::to_string(what)) {
            let _ = writeln!(to, "{line}").and_then(|()| to.flush());
        }
    }

    /// The next report. One of a thaw that was not waited for is passed over.
    fn next_but_thawed(&mut self, deadline: Instant) -> io::Result<Heard<Report>> {
        match self.reports.next(deadline)? {
            Heard::Line(Report::Thawed { .. }) => self.reports.next(deadline),
            heard => Ok(heard),
        }
    }

    /// Undoes what a guardian has left that died (or talks nonsense: then it still lives, and undoes it
    /// itself); why, in words.
    fn bury(mut self) -> String {
        drop(self.to.take());
        let Some(mut child) = self.child.take() else { return String::new() };
        let ended = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
        let mended = mend(&self.runtime).unwrap_or_else(|| "nothing was left to undo".into());
        format!("the guardian ended early ({ended}): {mended}")
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.to.take());
        // Who stops may take the whole unit with it, guardians too: not before the thaw.
        if self.quiet {
            let _ = self.reports.next::<Report>(clock::monotonic() + MARGIN);
        }
        let (Some(mut child), runtime) = (self.child.take(), self.runtime.clone()) else { return };
        // Post commands may take their time; nobody has to wait for them.
        let reaper = thread::Builder::new().name("guardian".into()).spawn(move || {
            let well = child.wait().is_ok_and(|status| status.success());
            if let (false, Some(did)) = (well, mend(&runtime)) {
                tracing::warn!("{did}");
            }
        });
        if let Err(e) = reaper {
            tracing::debug!("nobody waits for a guardian: {e}");
        }
    }
}

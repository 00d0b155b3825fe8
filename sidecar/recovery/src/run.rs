//! Commands of people and of the system, with a time-out, in a process group of their own.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use backstay_engine::hooks::withhold;
use backstay_host::clock;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How much of what a command printed is kept: the end of it.
const SAID_BYTES_MAX: u64 = 3 << 10;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is looked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    With(ExitStatus),
    /// It took too long and was killed, with all it had started.
    TimedOut,
    /// We were told to stop; it was killed, with all it had started.
    Stopped,
}

impl Ended {
    /// Whether it did what it was for.
    #[must_use]
    pub fn is_success(self) -> bool {
        matches!(self, Self::With(status) if status.success())
    }

    #[cfg(test)]
    fn code(self) -> Option<i32> {
        match self {
            Self::With(status) => status.code(),
            _ => None,
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self, timeout: Duration) -> String {
        match self {
            Self::With(status) => status.to_string(),
            Self::TimedOut => {
                format!("did not end within {} and was killed", humantime::format_duration(timeout))
            }
            Self::Stopped => "was stopped".into(),
        }
    }
}

/// A line for the shell.
#[must_use]
pub fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).current_dir("/");
    command
}

/// Runs a command and waits for its end, at most as long as it may take (and some seconds for its
/// death). What it prints goes to a file; the end of that is returned. What opens stores and vaults it is not told.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn run(
    mut command: Command,
    output: &mut File,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<(Ended, String)> {
    let from = output.seek(SeekFrom::End(0))?;
    withhold(&mut command).process_group(0).stdin(Stdio::null());
    command.stdout(output.try_clone()?).stderr(output.try_clone()?);
    let mut child = command.spawn()?;
    let group = Pid::from_raw(child.id() as i32);
    let deadline = clock::monotonic().checked_add(timeout);
    let (tell, told) = channel();
    // Not reaped before we are done with the group: its number cannot become another's.
    let waiter = thread::Builder::new().name("wait".into()).spawn(move || {
        let ended = waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
        let _ = tell.send(ended.is_ok());
    })?;
    let ended = loop {
        let left =
            deadline.map_or(LOOK_EVERY, |at| at.saturating_duration_since(clock::monotonic()));
        match told.recv_timeout(left.min(LOOK_EVERY)) {
            Ok(_) | Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) if stop() => break Some(Ended::Stopped),
            Err(RecvTimeoutError::Timeout) if left.is_zero() => break Some(Ended::TimedOut),
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    if ended.is_some() {
        let _ = killpg(group, Signal::SIGTERM);
        let _ = told.recv_timeout(GRACE);
        // Its children may have taken no notice.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let _ = waiter.join();
    let status = child.wait()?;
    Ok((ended.unwrap_or(Ended::With(status)), said(output, from)?))
}

/// The end of what was printed since a place in a file.
fn said(output: &mut File, from: u64) -> io::Result<String> {
    let end = output.seek(SeekFrom::End(0))?;
    output.seek(SeekFrom::Start(from.max(end.saturating_sub(SAID_BYTES_MAX))))?;
    let mut bytes = vec![];
    output.take(SAID_BYTES_MAX).read_to_end(&mut bytes)?;
    output.seek(SeekFrom::End(0))?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A file without a name, for what a command prints.
///
/// # Errors
/// If there is no room for one.
pub fn scratch() -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(std::env::temp_dir())
}

/// Runs one of the system's tools that must succeed; what it printed.
///
/// # Errors
/// If it cannot be started, fails, takes too long or was stopped, with what it said.
pub fn tool(
    program: &str,
    args: &[&str],
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    let failed = |why: String| io::Error::other(format!("{program} {}: {why}", args.join(" ")));
    match run(command, &mut scratch()?, timeout, stop) {
        Ok((ended, said)) if ended.is_success() => Ok(said),
        Ok((ended, said)) => Err(failed(format!("{}: {said}", ended.words(timeout)))),
        Err(e) => Err(failed(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str, timeout: Duration, stop: bool) -> (Ended, String) {
        run(shell(line), &mut scratch().unwrap(), timeout, &|| stop).unwrap()
    }

    #[test]
    fn commands_end_fail_and_are_killed() {
        let long = Duration::from_secs(60);
        let (ended, said) = sh("echo out; echo err >&2; exit 3", long, false);
        assert_eq!((ended.code(), said.as_str()), (Some(3), "out\nerr"));
        let began = clock::monotonic();
        // Also what it has started, and though it takes no notice of SIGTERM.
        let (ended, said) = sh(
            "echo here; trap '' TERM; sleep 100 & wait; wait",
            Duration::from_millis(200),
            false,
        );
        assert_eq!((ended, said.as_str()), (Ended::TimedOut, "here"));
        assert_eq!(sh("sleep 100", long, true).0, Ended::Stopped);
        assert!(clock::since(began) < Duration::from_secs(30));
        let (_, said) = sh("seq 100000", long, false);
        assert!(said.ends_with("100000") && said.len() as u64 <= SAID_BYTES_MAX);
        assert!(tool("false", &[], long, &|| false).is_err());
        assert!(tool("there-is-no-such-tool", &[], long, &|| false).is_err());
    }
}

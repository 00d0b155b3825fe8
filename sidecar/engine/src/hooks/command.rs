//! One command line of a hook, with its time-out.
//!
//! It runs in a process group of its own. When its time is over the group gets SIGTERM, a second
//! later SIGKILL. Waiting is for events: the process's end and what it prints, whichever comes.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use backstay_host::clock;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};

use super::withheld::withhold;

/// How much of what a command prints is kept: the end of it.
const SAID_BYTES_MAX: usize = 4 << 10;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// From SIGKILL to giving up on a process that the kernel does not let go.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Variables that a command gets on top of the sidecar's own.
pub type Environment = Vec<(&'static str, OsString)>;

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started or waited for.
    #[error("hook {line:?}: {source}")]
    Start {
        /// The command line.
        line: String,
        /// What the system answered.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("hook {line:?} failed: {status}{said}")]
    Failed {
        /// The command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed last.
        said: String,
    },
    /// It took too long and was killed.
    #[error("hook {line:?} did not end within {timeout:?} and was killed{said}")]
    TimedOut {
        /// The command line.
        line: String,
        /// The time it had.
        timeout: Duration,
        /// What it printed last.
        said: String,
    },
}

/// Runs a command line and waits for its end, at most as long as it may take (and some seconds for its
/// death).
///
/// # Errors
/// If it cannot be started, fails, or takes too long.
pub fn run(line: &str, environment: &Environment, timeout: Duration) -> Result<(), CommandError> {
    let failed = |source| CommandError::Start { line: line.into(), source };
    let (mut child, output) = start(line, environment).map_err(failed)?;
    let mut watch = Watch::new(&child, output).map_err(failed)?;
    let group = Pid::from_raw(child.id() as i32);
    let deadline = clock::monotonic() + timeout;
    if watch.ended_by(deadline).map_err(failed)? {
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        return Err(CommandError::Failed { line: line.into(), status, said: watch.said() });
    }
    for (signal, wait) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, LAST_WAIT)] {
        // The leader is not waited for yet, so the group's number cannot be another's.
        let _ = killpg(group, signal);
        if watch.ended_by(clock::monotonic() + wait).map_err(failed)? && signal == Signal::SIGTERM {
            // Its children may have taken no notice.
            let _ = killpg(group, Signal::SIGKILL);
            break;
        }
    }
    let _ = child.try_wait();
    Err(CommandError::TimedOut { line: line.into(), timeout, said: watch.said() })
}

fn start(line: &str, environment: &Environment) -> io::Result<(Child, File)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).current_dir("/").process_group(0);
    withhold(&mut command);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write);
    Ok((command.spawn()?, File::from(read)))
}

/// A process that may end, and what it prints.
struct Watch {
    /// Readable when the process has ended.
    process: OwnedFd,
    /// Readable when it printed; none after its end of the pipe was closed.
    output: Option<File>,
    said: Vec<u8>,
}

impl Watch {
    fn new(child: &Child, output: File) -> io::Result<Self> {
        // SAFETY: takes two numbers, returns a descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
        Errno::result(fd)?;
        // SAFETY: the descriptor is new and ours alone.
        let process = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { process, output: Some(output), said: vec![] })
    }

    /// Waits for the process's end; false if it did not come in time.
    fn ended_by(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(clock::monotonic());
            // Rounded up, or the last millisecond would be spun away.
            let millis = left.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX);
            let mut events = vec![PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            events.extend(
                self.output.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)),
            );
            match poll(&mut events, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            let happened = |event: &PollFd<'_>| event.any().unwrap_or(false);
            let ended = events.first().is_some_and(happened);
            if ended || events.get(1).is_some_and(happened) {
                self.listen();
            }
            if ended {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
    }

    /// Takes what was printed. Children that live on may hold the pipe open: its end is not waited for.
    fn listen(&mut self) {
        let mut buffer = [0; SAID_BYTES_MAX];
        while let Some(output) = &mut self.output {
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(len) => {
                    self.said.extend_from_slice(&buffer[..len]);
                    let beyond = self.said.len().saturating_sub(SAID_BYTES_MAX);
                    self.said.drain(..beyond);
                    if len < buffer.len() {
                        return;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.output = None,
            }
        }
    }

    /// What was printed, to be put behind a message.
    fn said(&self) -> String {
        let said = String::from_utf8_lossy(&self.said);
        match said.trim() {
            "" => String::new(),
            said => format!("; it said: {said}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const LONG: Duration = Duration::from_secs(60);

    fn run(line: &str, timeout: Duration) -> Result<(), CommandError> {
        super::run(line, &vec![("GREETING", "hello there".into())], timeout)
    }

    #[test]
    fn a_command_gets_its_variables_and_a_failure_tells_what_it_said() {
        run("test \"$GREETING\" = 'hello there'", LONG).unwrap();
        let error = run("echo broken; echo badly >&2; exit 7", LONG).unwrap_err().to_string();
        assert!(error.contains("exit status: 7") && error.contains("broken\nbadly"), "{error}");
        let error = run("kill -9 $$", LONG).unwrap_err().to_string();
        assert!(error.contains("signal: 9"), "{error}");
        assert!(run("/no/such/command", LONG).is_err());
    }

    /// More than a pipe holds does not stop it, and only the end is kept.
    #[test]
    fn a_command_may_print_as_much_as_it_likes() {
        let error = run("yes | head -c 3000000; echo the end; exit 1", LONG).unwrap_err();
        let error = error.to_string();
        assert!(error.len() < 2 * SAID_BYTES_MAX && error.ends_with("the end"), "{}", error.len());
    }

    /// A process it leaves in a session of its own holds the pipe open; nobody waits for that.
    #[test]
    fn a_process_that_lives_on_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let fifo = fifo.to_str().unwrap();
        // Opening the pipe with a name waits for its other end.
        run(&format!("mkfifo {fifo}; setsid sh -c 'echo now > {fifo}' &"), LONG).unwrap();
        assert_eq!(std::fs::read_to_string(fifo).unwrap(), "now\n");
    }

    #[test]
    fn what_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pids = dir.path().join("pids");
        // Neither shell nor child takes notice of SIGTERM.
        let line = format!(
            "trap '' TERM; sh -c 'trap \"\" TERM; echo $$ >> {0}; while :; do sleep 60; done' & \
             echo $$ >> {0}; echo waiting; while :; do sleep 60; done",
            pids.display()
        );
        let began = clock::monotonic();
        let error = run(&line, Duration::from_millis(300)).unwrap_err();
        assert!(matches!(&error, CommandError::TimedOut { .. }), "{error}");
        assert!(error.to_string().contains("waiting"), "{error}");
        assert!(clock::since(began) < Duration::from_secs(20));
        // What was killed is dead when the kernel has come to it; then it may be a zombie of ours, or of init.
        let lives = |pid: &str| {
            let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
            let state = stat.ok().and_then(|stat| stat.split(' ').nth(2).map(str::to_owned));
            state.is_some_and(|state| state != "Z" && state != "X")
        };
        let dead_by = clock::monotonic() + Duration::from_secs(20);
        for pid in std::fs::read_to_string(&pids).unwrap().lines() {
            while lives(pid) {
                assert!(clock::monotonic() < dead_by, "{pid} lives on");
                std::thread::yield_now();
            }
        }
    }
}

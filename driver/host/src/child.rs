//! Runs commands with a time limit, each in its own process group.
//!
//! After the time limit the group gets SIGTERM, and shortly afterwards SIGKILL. The parent waits for
//! events: output, or the end of the command. The caller decides which environment variables the command
//! gets.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};

use crate::clock;

/// How much of what a command printed is given back: the end of it.
pub const SAID_BYTES_MAX: usize = 3 << 10;
/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// From SIGKILL to giving up on a process that the kernel does not let go.
const LAST_WAIT: Duration = Duration::from_secs(2);
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

    /// In words; `timeout` is the time it had.
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

/// Where a command prints to.
pub enum Output<'a> {
    /// To us. What it leaves behind cannot print any more once it has ended.
    Us,
    /// To the end of a file, which what it leaves behind may go on writing to.
    To(&'a mut File),
}

/// Where an administrator's programs are. They are not on everyone's path: not on cron's, nor on that of
/// what mount(8) calls.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A program of the system, also if its folder is not on the path.
#[must_use]
pub fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let elsewhere = || SBIN.iter().map(|dir| Path::new(dir).join(name)).find(|p| p.is_file());
    match elsewhere() {
        Some(found) if !on_path => Command::new(found),
        _ => Command::new(name),
    }
}

/// A line for the shell.
#[must_use]
pub fn shell(line: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(line).current_dir("/");
    command
}

/// Runs a command without input and waits for its end, at most as long as it may take (and some seconds
/// for its death). How it ended, and the end of what it printed.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn run(
    mut command: Command,
    mut output: Output<'_>,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<(Ended, String)> {
    command.process_group(0).stdin(Stdio::null());
    let (mut child, printed, from) = match &mut output {
        Output::Us => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            fcntl(&read, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            command.stdout(write.try_clone()?).stderr(write);
            (command.spawn()?, Some(File::from(read)), 0)
        }
        Output::To(file) => {
            let from = file.seek(SeekFrom::End(0))?;
            command.stdout(file.try_clone()?).stderr(file.try_clone()?);
            (command.spawn()?, None, from)
        }
    };
    // It holds our end of a pipe open.
    drop(command);
    let mut watch = Watch::new(&child, printed)?;
    let deadline = clock::monotonic().checked_add(timeout);
    let ended = match watch.wait(deadline, stop)? {
        None => Ended::With(child.wait()?),
        Some(too_long) => {
            watch.kill(&mut child)?;
            too_long
        }
    };
    let said = match output {
        Output::Us => watch.said,
        Output::To(file) => end_of(file, from)?,
    };
    Ok((ended, String::from_utf8_lossy(&said).trim().to_owned()))
}

/// The end of what was printed since a place in a file.
fn end_of(file: &mut File, from: u64) -> io::Result<Vec<u8>> {
    let end = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(SAID_BYTES_MAX as u64))))?;
    let mut bytes = vec![];
    file.take(SAID_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    file.seek(SeekFrom::End(0))?;
    Ok(bytes)
}

/// A process that may end, and what it prints.
struct Watch {
    group: Pid,
    /// Readable when the process has ended.
    process: OwnedFd,
    /// Readable when it printed; none after its end of the pipe was closed.
    printed: Option<File>,
    said: Vec<u8>,
}

impl Watch {
    fn new(child: &Child, printed: Option<File>) -> io::Result<Self> {
        // SAFETY: takes two numbers, returns a descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id() as libc::pid_t, 0) };
        Errno::result(fd)?;
        // SAFETY: the descriptor is new and ours alone.
        let process = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { group: Pid::from_raw(child.id() as i32), process, printed, said: vec![] })
    }

    /// Waits for the process's end; why not for longer, if that did not come.
    fn wait(
        &mut self,
        deadline: Option<Instant>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> io::Result<Option<Ended>> {
        loop {
            let look = clock::monotonic() + LOOK_EVERY;
            if self.ended_by(deadline.map_or(look, |deadline| deadline.min(look)))? {
                return Ok(None);
            }
            if stop() {
                return Ok(Some(Ended::Stopped));
            }
            if deadline.is_some_and(|deadline| deadline <= clock::monotonic()) {
                return Ok(Some(Ended::TimedOut));
            }
        }
    }

    /// Ends the process and all that it started. Its leader is reaped last, so the group's number cannot
    /// have become another's.
    fn kill(&mut self, child: &mut Child) -> io::Result<()> {
        let _ = killpg(self.group, Signal::SIGTERM);
        self.ended_by(clock::monotonic() + GRACE)?;
        // Its children may have taken no notice.
        let _ = killpg(self.group, Signal::SIGKILL);
        self.ended_by(clock::monotonic() + LAST_WAIT)?;
        child.try_wait().map(drop)
    }

    /// Waits for the process's end; false if it did not come in time.
    fn ended_by(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(clock::monotonic());
            // Rounded up, or the last millisecond would be spun away.
            let millis = left.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX);
            let mut events = vec![PollFd::new(self.process.as_fd(), PollFlags::POLLIN)];
            events.extend(
                self.printed.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)),
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
        while let Some(printed) = &mut self.printed {
            match printed.read(&mut buffer) {
                Ok(0) => self.printed = None,
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
                Err(_) => self.printed = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn sh(line: &str, timeout: Duration, stop: bool) -> (Ended, String) {
        let mut file = tempfile::tempfile().unwrap();
        let to_file = run(shell(line), Output::To(&mut file), timeout, &|| stop).unwrap();
        let to_us = run(shell(line), Output::Us, timeout, &|| stop).unwrap();
        assert_eq!(to_file, to_us);
        to_us
    }

    #[test]
    fn commands_end_fail_and_are_killed() {
        let (ended, said) = sh("echo out; echo err >&2; exit 3", LONG, false);
        let Ended::With(status) = ended else { panic!("{ended:?}") };
        assert_eq!((status.code(), said.as_str()), (Some(3), "out\nerr"));
        let began = clock::monotonic();
        // Also what it has started, and though it takes no notice of SIGTERM.
        let stubborn = "echo here; trap '' TERM; sleep 100 & wait; wait";
        let (ended, said) = sh(stubborn, Duration::from_millis(200), false);
        assert_eq!((ended, said.as_str()), (Ended::TimedOut, "here"));
        assert_eq!(sh("sleep 100", LONG, true).0, Ended::Stopped);
        assert!(clock::since(began) < Duration::from_secs(30));
        let (_, said) = sh("seq 100000", LONG, false);
        assert!(said.ends_with("100000") && said.len() <= SAID_BYTES_MAX);
        assert!(run(Command::new("/no/such"), Output::Us, LONG, &|| false).is_err());
    }
}

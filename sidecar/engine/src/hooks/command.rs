//! One command line of a hook, with its time-out.

use backstay_types::{Class, Classified};
use std::ffi::OsString;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use backstay_host::child::{self, Ended, Output};

use super::withheld::withhold;

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

impl Classified for CommandError {
    fn class(&self) -> Class {
        match self {
            Self::Start { source, .. } => source.class(),
            Self::Failed { .. } | Self::TimedOut { .. } => Class::Person,
        }
    }
}

/// Runs a command line and waits for its end, at most as long as it may take (and some seconds for its
/// death).
///
/// # Errors
/// If it cannot be started, fails, or takes too long.
pub fn run(line: &str, environment: &Environment, timeout: Duration) -> Result<(), CommandError> {
    let mut command = child::shell(line);
    withhold(&mut command).envs(environment.iter().map(|(name, value)| (name, value)));
    let line = line.to_owned();
    match child::run(command, Output::Us, timeout, &|| false) {
        Err(source) => Err(CommandError::Start { line, source }),
        Ok((Ended::With(status), _)) if status.success() => Ok(()),
        Ok((Ended::With(status), said)) => {
            Err(CommandError::Failed { line, status, said: behind(&said) })
        }
        Ok((Ended::TimedOut | Ended::Stopped, said)) => {
            Err(CommandError::TimedOut { line, timeout, said: behind(&said) })
        }
    }
}

/// What was printed, to be put behind a message.
fn behind(said: &str) -> String {
    match said {
        "" => String::new(),
        said => format!("; it said: {said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_host::child::SAID_BYTES_MAX;
    use backstay_host::clock;
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

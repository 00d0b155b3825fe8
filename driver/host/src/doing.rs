//! What another process is doing, from the kernel: the process itself may not answer.

use std::fmt;
use std::fs;
use std::path::Path;

/// Calls of a thread's stack that are told.
const CALLS_MAX: usize = 4;

/// What a process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    /// It was stopped by a signal or a debugger.
    Stopped,
    /// A thread waits in the kernel and cannot be interrupted.
    Waits {
        /// The thread.
        thread: String,
        /// In what, as far as the kernel tells.
        inside: String,
    },
    /// None of that.
    Runs,
    /// It is gone.
    Gone,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "the process is stopped (SIGSTOP, or a debugger)"),
            Self::Waits { thread, inside } => {
                write!(f, "its thread {thread} waits in the kernel ({inside})")
            }
            Self::Runs => write!(f, "the process runs"),
            Self::Gone => write!(f, "the process is gone"),
        }
    }
}

/// What a process is doing now.
#[must_use]
pub fn doing(pid: u32) -> Doing {
    let dir = format!("/proc/{pid}");
    let state_of = |dir: &Path| state(&fs::read_to_string(dir.join("stat")).ok()?);
    match state_of(Path::new(&dir)) {
        None | Some('Z' | 'X') => return Doing::Gone,
        Some('T' | 't') => return Doing::Stopped,
        _ => {}
    }
    for task in fs::read_dir(Path::new(&dir).join("task")).into_iter().flatten().flatten() {
        if state_of(&task.path()) != Some('D') {
            continue;
        }
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack: Vec<String> = read("stack")
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .map(|call| call.split('+').next().unwrap_or(call).to_owned())
            .take(CALLS_MAX)
            .collect();
        let wchan = read("wchan");
        let inside = match (stack.is_empty(), wchan.trim()) {
            (false, _) => stack.join(" < "),
            (true, "" | "0") => "state D".into(),
            (true, wchan) => wchan.to_owned(),
        };
        return Doing::Waits { thread: read("comm").trim().to_owned(), inside };
    }
    Doing::Runs
}

/// The state letter in a `stat` of /proc.
fn state(stat: &str) -> Option<char> {
    // The name in brackets may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_whatever_the_name() {
        assert_eq!(state("12 (a) b) T 1 2"), Some('T'));
        assert_eq!(state("nothing"), None);
        assert_eq!(doing(std::process::id()), Doing::Runs);
        assert_eq!(doing(u32::MAX), Doing::Gone);
    }
}

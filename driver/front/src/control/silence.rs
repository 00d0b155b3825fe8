//! A driver that is there and does not answer: since when, and what it is doing.
//!
//! Who waited in vain leaves the empty file `unanswered` beside the socket; who gets an answer removes
//! it. So anybody can say since when. What the process is doing is asked of the kernel at once.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::paths::DiskPaths;

const FILE: &str = "unanswered";

/// What is known of a driver that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// Its process.
    pub pid: u32,
    /// Since when it is known not to answer, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What its process is doing.
    pub doing: Doing,
}

/// What a process is doing, as the kernel says.
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
    /// It is gone, or nobody knows.
    Unknown,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        write!(f, "its driver, pid {pid}, does not answer: ")?;
        match &self.doing {
            Doing::Stopped => write!(f, "the process is stopped (SIGSTOP, or a debugger)"),
            Doing::Waits { thread, inside } => {
                write!(f, "its thread {thread} waits in the kernel ({inside})")
            }
            Doing::Runs => write!(f, "the process runs"),
            Doing::Unknown => write!(f, "what it is doing is not known"),
        }
    }
}

impl Silence {
    /// What there is to do about it.
    #[must_use]
    pub fn advice(&self) -> String {
        let pid = self.pid;
        match &self.doing {
            Doing::Stopped => format!("let it go on: kill -CONT {pid}"),
            Doing::Waits { .. } => format!(
                "its backing or its state directory hangs: mend that disk (see dmesg, and \
                 /proc/{pid}/task/*/stack); the driver then goes on by itself"
            ),
            Doing::Runs | Doing::Unknown => {
                format!("see /proc/{pid}/task/*/stack and the driver's log")
            }
        }
    }

    /// Whether waiting longer is in vain.
    pub(super) fn is_stuck(pid: u32) -> bool {
        matches!(doing(pid), Doing::Stopped | Doing::Waits { .. } | Doing::Unknown)
    }

    /// Notes that a driver did not answer; what is known of it.
    pub(super) fn note(socket: &Path, pid: u32) -> Self {
        let note = socket.with_file_name(FILE);
        if !note.exists() {
            let _ = File::create_new(&note);
        }
        Self { pid, since_unix_ns: since(&note), doing: doing(pid) }
    }

    /// Notes that it did answer.
    pub(super) fn ended(socket: &Path) {
        let _ = fs::remove_file(socket.with_file_name(FILE));
    }

    /// The silence of a disk's driver, if one is at work, did not answer when it was last asked, and has
    /// not been heard since. Asks the kernel only, and waits for nothing.
    #[must_use]
    pub fn of(paths: &DiskPaths) -> Option<Self> {
        let note = paths.runtime.join(FILE);
        if !note.exists() {
            return None;
        }
        let pid = lock_holder(&paths.lock_file())?;
        Some(Self { pid, since_unix_ns: since(&note), doing: doing(pid) })
    }
}

fn since(note: &Path) -> u64 {
    let made = fs::metadata(note).and_then(|meta| meta.modified());
    let made = made.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    made.map_or_else(backstay_host::clock::now_unix_ns, |at| at.as_nanos() as u64)
}

/// The process that has a lock on a file.
fn lock_holder(path: &Path) -> Option<u32> {
    let inode = format!(":{}", fs::metadata(path).ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 4711 00:2f:1234 0 EOF
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, pid, file) = (fields.next()?, fields.nth(2)?, fields.next()?);
        (kind == "FLOCK" && file.ends_with(&inode)).then(|| pid.parse().ok())?
    })
}

/// The state letter in a `stat` of /proc.
fn state(stat: &str) -> Option<char> {
    // The name in brackets may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn doing(pid: u32) -> Doing {
    let dir = format!("/proc/{pid}");
    let state_of = |dir: &Path| state(&fs::read_to_string(dir.join("stat")).ok()?);
    match state_of(Path::new(&dir)) {
        None | Some('Z' | 'X') => return Doing::Unknown,
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
            .take(4)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_whatever_the_name() {
        assert_eq!(state("12 (a) b) T 1 2"), Some('T'));
        assert_eq!(state("nothing"), None);
        assert_eq!(doing(std::process::id()), Doing::Runs);
        assert_eq!(doing(u32::MAX), Doing::Unknown);
    }

    #[test]
    fn who_has_a_lock_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let file = File::create(&path).unwrap();
        assert_eq!(lock_holder(&path), None);
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive);
        assert_eq!(lock_holder(&path), Some(std::process::id()));
        drop(lock);
    }
}

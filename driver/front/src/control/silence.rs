//! A driver that is there and does not answer: since when, and what it is doing.
//!
//! Who waited in vain leaves the empty file `unanswered` beside the socket; who gets an answer removes
//! it. So anybody can say since when. What the process is doing is asked of the kernel at once.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use backstay_host::doing::{Doing, doing};

use crate::paths::DiskPaths;

const FILE: &str = "unanswered";

/// What is known of a driver that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    /// The disk.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// Since when it is known not to answer, nanoseconds since 1970.
    pub since_unix_ns: u64,
    /// What its process is doing.
    pub doing: Doing,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "its driver, pid {}, does not answer: {}", self.pid, self.doing)
    }
}

impl Silence {
    /// What there is to do about it, and the way out that takes seconds whatever the driver does.
    #[must_use]
    pub fn advice(&self) -> String {
        let Self { name, pid, .. } = self;
        let first = match &self.doing {
            Doing::Stopped => format!("let it go on: kill -CONT {pid}"),
            Doing::Waits { .. } => format!(
                "its backing or its state directory hangs: mend that disk (see dmesg, and \
                 /proc/{pid}/task/*/stack); the driver then goes on by itself"
            ),
            Doing::Runs | Doing::Gone => {
                format!("see /proc/{pid}/task/*/stack and the driver's log")
            }
        };
        format!(
            "{first}. Until then every sync of this host may wait for it. \"backstay umount {name} --force\" has the \
             kernel end the disk within seconds; its users get I/O errors"
        )
    }

    /// Whether waiting longer is in vain.
    pub(super) fn is_stuck(pid: u32) -> bool {
        matches!(doing(pid), Doing::Stopped | Doing::Waits { .. } | Doing::Gone)
    }

    /// Notes that a driver did not answer; what is known of it.
    pub(super) fn note(socket: &Path, pid: u32) -> Self {
        let note = socket.with_file_name(FILE);
        if !note.exists() {
            let _ = File::create_new(&note);
        }
        // RUNTIME/NAME/control.sock
        let name = socket.parent().and_then(Path::file_name).unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        Self { name, pid, since_unix_ns: since(&note), doing: doing(pid) }
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
        let name = paths.runtime.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Some(Self { name, pid, since_unix_ns: since(&note), doing: doing(pid) })
    }
}

pub(super) fn since(note: &Path) -> u64 {
    let made = fs::metadata(note).and_then(|meta| meta.modified());
    let made = made.ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    made.map_or_else(backstay_host::clock::now_unix_ns, |at| at.as_nanos() as u64)
}

/// The process that has a lock on a file.
pub(super) fn lock_holder(path: &Path) -> Option<u32> {
    let inode = format!(":{}", fs::metadata(path).ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 4711 00:2f:1234 0 EOF
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (kind, pid, file) = (fields.next()?, fields.nth(2)?, fields.next()?);
        (kind == "FLOCK" && file.ends_with(&inode)).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! Whether a sidecar runs for the disks of a host, and whether it makes progress.
//!
//! A running sidecar gives two signs: it holds a lock, and once a second it records a *beat* from its main
//! loop, on a clock that never jumps. A process that holds the lock without a beat is stopped or hangs,
//! which is as bad as no sidecar. The beat is in the runtime directory, so that it also works when the
//! state directory is full.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use backstay_front::paths::Roots;
use backstay_host::atomic::Durability;
use backstay_host::doing::{Doing, doing};
use backstay_host::own_dir::own_dir;
use backstay_host::{clock, record};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::ServiceError;

/// Held by the sidecar as long as it lives.
const LOCK: &str = ".sidecar.lock";
/// The last beat.
const BEAT: &str = ".sidecar.beat";
/// How often a beat is written down.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Without a beat for so long, a sidecar hangs. What it does between two beats takes far less.
pub const SILENT_AFTER: Duration = Duration::from_secs(15);

/// Whether a sidecar is at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Sidecar {
    /// It is.
    Runs {
        /// Its process.
        pid: u32,
    },
    /// There is a process, but it does nothing.
    Silent {
        /// The process, if it ever said.
        pid: Option<u32>,
        /// Its last sign of life, nanoseconds since 1970.
        since_unix_ns: Option<u64>,
        /// It was stopped by a signal (SIGSTOP, a debugger).
        stopped: bool,
    },
    /// There is none.
    NotRunning {
        /// The last sign of life of one in this boot, nanoseconds since 1970.
        since_unix_ns: Option<u64>,
    },
    /// It could not be found out.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Beat {
    pid: u32,
    /// The boot in which the next field counts.
    boot: String,
    since_boot_ns: u64,
    unix_ns: u64,
}

/// Writes beats.
pub(super) struct Pulse {
    path: PathBuf,
    boot: String,
    last_ns: Option<u64>,
}

impl Pulse {
    pub fn new(roots: &Roots) -> Self {
        Self { path: roots.runtime.join(BEAT), boot: clock::boot_id(), last_ns: None }
    }

    /// Says that the sidecar works. What cannot be written is no reason to stop working.
    pub fn beat(&mut self) {
        let now = clock::since_boot_ns();
        let due = |last: u64| now.saturating_sub(last) >= BEAT_EVERY.as_nanos() as u64;
        if !self.last_ns.is_none_or(due) {
            return;
        }
        let boot = self.boot.clone();
        let (pid, unix_ns) = (std::process::id(), clock::now_unix_ns());
        let beat = Beat { pid, boot, since_boot_ns: now, unix_ns };
        if let Some(dir) = self.path.parent() {
            let _ = own_dir(dir);
        }
        match record::save(&self.path, &beat, Durability::Relaxed) {
            Ok(()) => self.last_ns = Some(now),
            Err(e) if self.last_ns.is_some() => {
                self.last_ns = None;
                tracing::warn!("saying that the sidecar works: {e}");
            }
            Err(_) => {}
        }
    }
}

/// One sidecar a host, that is, a state directory: the lock lasts as long as the process. Somebody who
/// looks takes it for an instant, so it is tried for a second.
pub(super) fn only_one(roots: &Roots) -> Result<Flock<fs::File>, ServiceError> {
    own_dir(&roots.state).map_err(std::io::Error::from)?;
    let path = roots.state.join(LOCK);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
    let locked = backstay_host::lock::exclusive(file, Duration::from_secs(1))?;
    locked.ok_or_else(|| ServiceError::Running(roots.state.clone()))
}

/// Whether a process holds the sidecar's lock, working or not.
#[must_use]
pub fn is_running(roots: &Roots) -> bool {
    matches!(holder(roots), Ok(true))
}

fn holder(roots: &Roots) -> std::io::Result<bool> {
    // Who only looks leaves nothing behind.
    let file = match OpenOptions::new().read(true).open(roots.state.join(LOCK)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, e)) => Err(e.into()),
    }
}

/// Whether a sidecar is at work for these disks.
#[must_use]
pub fn sidecar(roots: &Roots) -> Sidecar {
    let held = match holder(roots) {
        Ok(held) => held,
        Err(e) => {
            let reason = format!("{}: {e}", roots.state.join(LOCK).display());
            return Sidecar::Unknown { reason };
        }
    };
    let boot = clock::boot_id();
    let beat = record::load::<Beat>(&roots.runtime.join(BEAT)).ok().flatten();
    let beat = beat.filter(|beat| beat.boot == boot && !boot.is_empty());
    match (held, beat) {
        (false, beat) => Sidecar::NotRunning { since_unix_ns: beat.map(|beat| beat.unix_ns) },
        (true, None) => Sidecar::Silent { pid: None, since_unix_ns: None, stopped: false },
        (true, Some(beat)) => {
            let age = clock::since_boot_ns().saturating_sub(beat.since_boot_ns);
            let stopped = doing(beat.pid) == Doing::Stopped;
            if stopped || age > SILENT_AFTER.as_nanos() as u64 {
                let (pid, since_unix_ns) = (Some(beat.pid), Some(beat.unix_ns));
                return Sidecar::Silent { pid, since_unix_ns, stopped };
            }
            Sidecar::Runs { pid: beat.pid }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_and_a_beat_and_nothing_less() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::new(Some(dir.path().join("s")), Some(dir.path().join("r")));
        assert_eq!(sidecar(&roots), Sidecar::NotRunning { since_unix_ns: None });
        assert!(!roots.state.exists(), "looking leaves nothing behind");
        let lock = only_one(&roots).unwrap();
        assert!(matches!(sidecar(&roots), Sidecar::Silent { pid: None, .. }));
        assert!(matches!(only_one(&roots), Err(ServiceError::Running(_))));
        let mut pulse = Pulse::new(&roots);
        pulse.beat();
        assert_eq!(sidecar(&roots), Sidecar::Runs { pid: std::process::id() });
        // A beat of long ago, by the clock of this boot; and one of another boot.
        let path = roots.runtime.join(BEAT);
        let mut beat: Beat = record::load(&path).unwrap().unwrap();
        let save = |beat: &Beat| record::save(&path, beat, Durability::Relaxed).unwrap();
        let silent_ns = SILENT_AFTER.as_nanos() as u64 + 1;
        let then = beat.clone();
        beat.since_boot_ns = beat.since_boot_ns.saturating_sub(silent_ns);
        save(&beat);
        let found = sidecar(&roots);
        let since_unix_ns = Some(then.unix_ns);
        let pid = Some(std::process::id());
        assert_eq!(found, Sidecar::Silent { pid, since_unix_ns, stopped: false });
        save(&Beat { boot: "another".into(), ..then });
        assert!(matches!(sidecar(&roots), Sidecar::Silent { pid: None, .. }));
        drop(lock);
        assert_eq!(sidecar(&roots), Sidecar::NotRunning { since_unix_ns: None });
    }
}

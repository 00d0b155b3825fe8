//! What all disks of this host suffer from: no sidecar, a state directory without room.

use std::path::Path;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Cause, Facts, ids};
use crate::prerequisites::{existing, size};
use crate::service::alive::Sidecar;

/// Below this a state directory will soon be full.
const STATE_LOW: u64 = 64 << 20;
/// Below this nothing that lasts can be relied upon to fit.
const STATE_FULL: u64 = 1 << 20;

/// Below this a runtime directory has no room for bitmaps.
const RUNTIME_FULL: u64 = 64 << 10;

/// What to do about a sidecar that makes no points.
pub(crate) const SIDECAR_ADVICE: &str =
    "start it: systemctl restart backstay-sidecar, or backstay sidecar";

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let runtime = facts.driver.and_then(|_| of_runtime(&facts.roots.runtime));
    let sidecar = match facts.sidecar {
        // Its sign of life is written there.
        Sidecar::Silent { stopped: false, .. } if runtime.is_some() => {
            let reason =
                "its sign of life cannot be written, because the runtime directory is full";
            &Sidecar::Unknown { reason: reason.into() }
        }
        sidecar => sidecar,
    };
    let sidecar = facts.wants_points().then(|| of_sidecar(sidecar)).flatten();
    let all = [runtime, sidecar, gone(facts), of_state(&facts.roots.state)];
    all.into_iter().flatten().collect()
}

/// A driver that works beside a state directory that somebody took away.
fn gone(facts: &Facts<'_>) -> Option<Cause> {
    let state = &facts.paths.state;
    if facts.driver.is_none() || state.join("super").exists() {
        return None;
    }
    let reason = format!("the state directory of the disk is gone: {}", state.display());
    Some(Cause::critical(ids::STATE_GONE, reason).advise(
        "its users are not affected; bring the directory back before the driver ends, or the whole disk is compared \
         when it is mounted again",
    ))
}

/// A runtime directory in which no bitmap of another epoch has room: no cycle can cut.
fn of_runtime(dir: &Path) -> Option<Cause> {
    let fs = statvfs(dir).ok()?;
    let free = fs.blocks_available() * fs.fragment_size();
    (free < RUNTIME_FULL).then(|| {
        let at = dir.display();
        let reason = format!("the runtime directory {at} is full: {} is free", size(free));
        Cause::critical(ids::RUNTIME_FULL, reason)
            .advise(format!("make room in the file system of {at} (it is in memory)"))
    })
}

/// A sidecar that makes no points.
pub(crate) fn of_sidecar(sidecar: &Sidecar) -> Option<Cause> {
    let since = |cause: Cause, unix_ns: &Option<u64>| match unix_ns {
        Some(unix_ns) => cause.since(*unix_ns),
        None => cause,
    };
    let cause = match sidecar {
        Sidecar::Runs { .. } => return None,
        Sidecar::NotRunning { since_unix_ns } => {
            let reason = "no sidecar runs, so no recovery points are made";
            since(Cause::warning(ids::SIDECAR_NOT_RUNNING, reason), since_unix_ns)
        }
        Sidecar::Silent { pid, since_unix_ns, stopped } => {
            let process = pid.map_or("a process".into(), |pid| format!("process {pid}"));
            let how = if *stopped { "was stopped by a signal" } else { "hangs" };
            let reason = format!("the sidecar ({process}) {how}: no recovery points are made");
            since(Cause::warning(ids::SIDECAR_SILENT, reason), since_unix_ns)
        }
        Sidecar::Unknown { reason } => {
            let reason = format!("cannot find out whether a sidecar runs: {reason}");
            return Some(Cause::warning(ids::SIDECAR_UNKNOWN, reason));
        }
    };
    Some(cause.advise(SIDECAR_ADVICE))
}

/// A state directory in which nothing can be remembered.
pub(crate) fn of_state(dir: &Path) -> Option<Cause> {
    // One that is not there is made by the first disk.
    let fs = match statvfs(existing(dir)) {
        Ok(fs) => fs,
        Err(e) => {
            let reason = format!("the state directory {} cannot be looked at: {e}", dir.display());
            return Some(Cause::critical(ids::STATE_READ_ONLY, reason));
        }
    };
    let at = dir.display();
    if fs.flags().contains(FsFlags::ST_RDONLY) {
        let reason = format!("the state directory {at} is on a file system that is read-only");
        return Some(
            Cause::critical(ids::STATE_READ_ONLY, reason).advise(
                "see dmesg for why; mend it, then mount it read-write: mount -o remount,rw",
            ),
        );
    }
    let free = fs.blocks_available() * fs.fragment_size();
    let no_inodes = fs.files() > 0 && fs.files_available() == 0;
    let advice = format!("make room in the file system of {at}");
    if free < STATE_FULL || no_inodes {
        let what = if no_inodes { "no inodes are".into() } else { format!("{} is", size(free)) };
        let reason = format!("the state directory {at} is full: {what} free");
        return Some(Cause::critical(ids::STATE_FULL, reason).advise(advice));
    }
    (free < STATE_LOW).then(|| {
        let reason = format!("the state directory {at} is nearly full: {} is free", size(free));
        Cause::warning(ids::STATE_FULL, reason).advise(advice)
    })
}

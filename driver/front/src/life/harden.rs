//! A driver serves file systems on its own machine: it must go on when memory is short.
//!
//! The kernel may write pages of such a file system to free memory, and waits for this process to
//! take them. So the process must never wait for memory that only it can free: it is an I/O
//! flusher (its own allocations do not start I/O), what it has touched stays in memory, and the
//! OOM killer leaves it alone. Memory that is reserved but never touched (the sparse bitmaps) is
//! not taken by the lock.

use std::fs;

use nix::errno::Errno;

use super::memory::leave_limited_group;

/// From linux/prctl.h; not in the libc crate.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Prevents deadlocks between this process and the users of its disk when memory is short. A step that is
/// not permitted is only logged: the driver then works as long as there is enough memory.
///
/// # Errors
/// The reason, if the process is in a memory cgroup with a limit, where it could wait for itself.
pub(super) fn harden() -> Result<(), String> {
    // What starting up has used and does not need any more (the table of mounts, above all) must not
    // be locked in. The default gives every thread its own arena of up to 64 MiB to scatter over.
    // SAFETY: take numbers only, and give back what nobody uses.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::malloc_trim(0);
    }
    // From linux/mman.h; the flag says: lock pages when they are touched, not before.
    let lock = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: takes flags only; changes no memory.
    warn("locking memory", Errno::result(unsafe { libc::mlockall(lock) }).map(drop));
    // SAFETY: takes numbers only.
    let flusher = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    let flusher = Errno::result(flusher).map(drop);
    if flusher.is_err() {
        leave_limited_group()?;
    }
    warn("becoming an I/O flusher", flusher);
    if let Err(e) = fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!("asking the OOM killer to spare the driver: {e}");
    }
    Ok(())
}

fn warn(what: &str, result: nix::Result<()>) {
    if let Err(e) = result {
        tracing::warn!("{what}: {e}; the driver may hang when memory is short (run it as root)");
    }
}

//! Exclusive locks that a process holds as long as it lives.

use std::fs::File;
use std::time::Duration;

use backstay_host::clock;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How long to wait for the holder before: a driver that was just killed takes a moment to be gone
/// (its memory is locked and its mount has to be taken apart), and its successor must not fail for
/// that.
const HOLDER_GONE_WAIT: Duration = Duration::from_secs(3);
/// flock(2) has no time-out of its own; how often to look.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Locks a file for this process alone.
///
/// # Errors
/// `EWOULDBLOCK` if another process holds it and goes on to.
pub(crate) fn exclusive(mut file: File) -> Result<Flock<File>, Errno> {
    let until = clock::monotonic() + HOLDER_GONE_WAIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((back, Errno::EWOULDBLOCK)) if clock::monotonic() < until => file = back,
            Err((_, e)) => return Err(e),
        }
        clock::sleep(LOOK_EVERY);
    }
}

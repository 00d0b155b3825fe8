//! Locks that a killed process is about to let go.

use std::fs::File;
use std::io;
use std::time::Duration;

use backstay_host::clock;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// How often a lock that somebody has is tried again, and the time between.
const TRIES: u32 = 20;
const BETWEEN: Duration = Duration::from_millis(50);

/// Takes a lock; `None` if somebody else has it. A process that was killed as it started another one has it
/// until that one has become a program of its own: so it is tried for a second.
///
/// # Errors
/// If it cannot be locked at all.
pub(crate) fn lock_soon(mut file: File) -> io::Result<Option<Flock<File>>> {
    for _ in 0..TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, Errno::EWOULDBLOCK)) => file = back,
            Err((_, e)) => return Err(e.into()),
        }
        clock::sleep(BETWEEN);
    }
    Ok(None)
}

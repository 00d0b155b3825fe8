//! Exclusive file locks. The kernel releases them when the process ends.

use std::fs::File;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::clock;

/// A wait that is long enough for a killed holder to be gone: its memory may be locked, its mount has to
/// be taken apart, or a child that it had just started still has its files open.
pub const HOLDER_GONE_WAIT: Duration = Duration::from_secs(3);
/// A wait for those who only look whether a lock is taken, and for children that have not become a
/// program of their own yet.
pub const LOOKED_AT_WAIT: Duration = Duration::from_secs(1);
/// flock(2) has no time-out of its own; how often to try.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Locks a file for this process alone, waiting at most `wait`; `None` if somebody else keeps it.
///
/// # Errors
/// If the file cannot be locked at all.
pub fn exclusive(mut file: File, wait: Duration) -> io::Result<Option<Flock<File>>> {
    let until = clock::monotonic() + wait;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(Some(locked)),
            Err((back, Errno::EWOULDBLOCK)) if clock::monotonic() < until => file = back,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, e)) => return Err(e.into()),
        }
        clock::sleep(TRY_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_waits_and_gives_up_or_gets_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::open(file.path()).unwrap();
        let first = exclusive(open(), Duration::ZERO).unwrap().unwrap();
        assert!(exclusive(open(), Duration::from_millis(30)).unwrap().is_none());
        let waiting = std::thread::spawn({
            let second = open();
            move || exclusive(second, Duration::from_secs(60)).unwrap().is_some()
        });
        drop(first);
        assert!(waiting.join().unwrap());
    }
}

//! A connection that holds the writes of its disk.
//!
//! The hold is a lock guard on the stack of the connection's thread. While it has the guard, the thread waits
//! for the next message only until the hold's deadline. Then it drops the guard and continues without it.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_track::HeldCut;
use backstay_track::env::Env;
use backstay_types::EpochNo;

/// A hold: the writes of a disk wait since its cut.
pub(super) struct Hold<'a, E: Env> {
    cut: HeldCut<'a, E>,
    epoch: EpochNo,
    ends: Instant,
}

/// How long writes were held after the cut of an epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thawed {
    pub epoch: EpochNo,
    pub held: Duration,
}

impl<'a, E: Env> Hold<'a, E> {
    /// A hold that ends after `most` at the latest.
    pub fn new(cut: HeldCut<'a, E>, epoch: EpochNo, most: Duration) -> Self {
        Self { cut, epoch, ends: clock::monotonic() + most }
    }

    /// The epoch that was closed.
    pub fn epoch(&self) -> EpochNo {
        self.epoch
    }

    /// Ends the hold.
    pub fn thaw(self) -> Thawed {
        Thawed { epoch: self.epoch, held: self.cut.thaw() }
    }

    /// The time until the deadline.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(clock::monotonic())
    }
}

/// Reads from a connection, and ends its hold at the deadline: before a message, or in the middle of a
/// slow one. Reading continues after that.
pub(super) struct Holding<'s, 'a, E: Env> {
    pub stream: &'s UnixStream,
    pub hold: &'s mut Option<Hold<'a, E>>,
    pub thawed: &'s mut Option<Thawed>,
}

impl<E: Env> Holding<'_, '_, E> {
    fn expire(&mut self) -> io::Result<()> {
        *self.thawed = self.hold.take().map(Hold::thaw);
        tracing::warn!("a held cut was not thawed in time: writes go on");
        self.stream.set_read_timeout(None)
    }
}

impl<E: Env> Read for Holding<'_, '_, E> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(hold) = &*self.hold {
            let left = hold.left();
            if left.is_zero() {
                self.expire()?;
                break;
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buf) {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                read => return read,
            }
        }
        self.stream.read(buf)
    }
}

//! A connection that holds its disk's writes.
//!
//! The hold is a lock on the stack of the connection's own thread, which waits for the next message
//! no longer than the hold may last. However the thread goes on, it goes on without the hold.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use backstay_format::EpochNo;
use backstay_format::control::Request;
use backstay_track::HeldCut;
use backstay_track::env::Env;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::frame::{FrameError, receive};

/// Writes of a disk, held since its cut.
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
        Self { cut, epoch, ends: Instant::now() + most }
    }

    /// The epoch that was closed.
    pub fn epoch(&self) -> EpochNo {
        self.epoch
    }

    /// Ends the hold.
    pub fn thaw(self) -> Thawed {
        Thawed { epoch: self.epoch, held: self.cut.thaw() }
    }

    /// What is left of it.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Waits for the beginning of a message: `false` if the time is over first.
    pub fn wait_for_message(&self, stream: &UnixStream) -> io::Result<bool> {
        loop {
            let left = self.left();
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up: waiting for 0 ms at a time would be a spin.
            let ms = u16::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            let mut wait = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wait, PollTimeout::from(ms)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Reads a message that has begun; one that does not come to its end in time is an error.
    pub fn receive(&self, stream: &UnixStream) -> Result<Option<Request>, FrameError> {
        let message = receive(&mut Within { stream, ends: self.ends });
        stream.set_read_timeout(None)?;
        message
    }
}

/// A stream that is read until an instant, however slowly its bytes drip.
struct Within<'a> {
    stream: &'a UnixStream,
    ends: Instant,
}

impl Read for Within<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buf)
    }
}

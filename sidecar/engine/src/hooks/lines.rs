//! Lines of JSON over a pipe, waited for with a deadline.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use backstay_host::clock;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;

use super::plan::PLAN_BYTES_MAX;

/// What came of waiting.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard<T> {
    /// A line.
    Line(T),
    /// The other end is closed: there will be none.
    Ended,
    /// None came in time.
    Late,
}

/// The reading end of a pipe.
#[derive(Debug)]
pub struct Lines {
    from: File,
    buffer: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// Lines from a pipe.
    #[must_use]
    pub fn new(from: OwnedFd) -> Self {
        Self { from: from.into(), buffer: vec![], ended: false }
    }

    /// The next line, at the latest at a deadline.
    ///
    /// # Errors
    /// If the pipe cannot be read, or a line is too long or not what is expected.
    pub fn next<T: DeserializeOwned>(&mut self, deadline: Instant) -> io::Result<Heard<T>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Heard::Line(serde_json::from_slice(&line)?));
            }
            if self.buffer.len() > PLAN_BYTES_MAX {
                return Err(io::Error::other("a line is too long"));
            }
            if self.ended {
                return Ok(Heard::Ended);
            }
            let left = deadline.saturating_duration_since(clock::monotonic());
            // Rounded up, or the last millisecond would be spun away.
            let millis = left.as_micros().div_ceil(1000).try_into().unwrap_or(i32::MAX);
            let mut events = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
            match poll(&mut events, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if left.is_zero() => return Ok(Heard::Late),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(e.into()),
            }
            let mut buffer = [0; 4096];
            match self.from.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(len) => self.buffer.extend_from_slice(&buffer[..len]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    #[test]
    fn lines_come_whole_or_late_or_not_at_all() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (mut lines, mut write) = (Lines::new(read), File::from(write));
        let now = clock::monotonic;
        write.write_all(b"1\n2").unwrap();
        assert_eq!(lines.next::<u32>(now()).unwrap(), Heard::Line(1));
        assert_eq!(lines.next::<u32>(now()).unwrap(), Heard::Late);
        write.write_all(b"3\n\"x\"\n").unwrap();
        assert_eq!(lines.next::<u32>(now()).unwrap(), Heard::Line(23));
        assert!(lines.next::<u32>(now()).is_err());
        drop(write);
        let far = now() + Duration::from_secs(600);
        assert_eq!(lines.next::<u32>(far).unwrap(), Heard::Ended);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (mut lines, mut write) = (Lines::new(read), File::from(write));
        let writer = std::thread::spawn(move || while write.write_all(&[b'1'; 4096]).is_ok() {});
        let far = clock::monotonic() + Duration::from_secs(600);
        assert!(lines.next::<u32>(far).is_err());
        drop(lines);
        writer.join().unwrap();
    }
}

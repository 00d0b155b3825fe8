//! The client: asks one thing at a time and waits for the answer, for a time that fits the question.
//!
//! A process that is stopped, or whose backing hangs, must hold up nobody who only asks how it is. Who
//! has waited in vain closes the connection; the driver does not begin anything for a client that has
//! gone (see [`super::server`]), so what was given up is not carried out later.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_format::control::{ControlError, DriverStatus, ErrorCode, Request, Response};
use backstay_host::clock;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::frame::{FrameError, receive, send};
use super::silence::Silence;

/// How long an answer may take that needs work: a cut waits for writes in flight and for the state
/// directory.
const WORK_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an answer may take that needs none. Whoever asks for a lease may wait for the one before.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// After this the process is looked at; one that is stuck is waited for no longer.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// Why a driver did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error("no driver answers on {path} ({source}); is the disk mounted?")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the driver on {path} stopped answering: {source}")]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: FrameError,
    },
    /// A driver is there and does not answer.
    #[error("{silence}. {}", silence.advice())]
    Silent {
        /// What is known of it.
        silence: Silence,
    },
    /// The driver refused or failed.
    #[error("the driver says: {}", .0.message)]
    Refused(ControlError),
    /// An answer that does not fit the question: another version on the other side.
    #[error("the driver gave an answer that does not fit the question; is it of this version?")]
    Confused,
}

impl ClientError {
    /// Whether another client holds the lease.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused(e) if e.code == ErrorCode::Busy)
    }
}

fn patience(request: &Request) -> Duration {
    match request {
        Request::Status | Request::Lease { .. } | Request::Stop | Request::SetLimits { .. } => {
            ANSWER_TIME_MAX
        }
        _ => WORK_TIME_MAX,
    }
}

fn is_time(error: &FrameError) -> bool {
    let late = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
    matches!(error, FrameError::Io(e) if late.contains(&e.kind()))
}

/// A connection to a driver. A lease taken through it ends with it.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    path: PathBuf,
}

impl ControlClient {
    /// Connects to the driver that listens on a socket.
    ///
    /// # Errors
    /// If no driver listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let not_running = |source| ClientError::NotRunning { path: path.into(), source };
        let stream = UnixStream::connect(path).map_err(not_running)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX)).map_err(not_running)?;
        stream.set_write_timeout(Some(LOOK_AFTER)).map_err(not_running)?;
        Ok(Self { stream, path: path.into() })
    }

    /// Asks, and gives the answer; a refusal is an error.
    ///
    /// # Errors
    /// If the connection breaks or the driver refuses.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        if let Err(e) = send(&mut self.stream, request) {
            return Err(if is_time(&e) { self.silent() } else { broken(e) });
        }
        if !self.answers_within(patience(request)) {
            return Err(self.silent());
        }
        match receive(&mut self.stream) {
            Err(e) if is_time(&e) => Err(self.silent()),
            Err(e) => Err(broken(e)),
            Ok(Some(Response::Error(error))) => Err(ClientError::Refused(error)),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(broken(FrameError::Io(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    /// Whether an answer, or the end of the connection, comes in this time. One that needs no work is
    /// not waited for once the process is known to be stuck.
    fn answers_within(&self, patience: Duration) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        let end = clock::monotonic() + patience;
        loop {
            let left = end.saturating_duration_since(clock::monotonic());
            let wait = PollTimeout::try_from(left.min(LOOK_AFTER)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, wait) {
                Ok(0) if left <= LOOK_AFTER => return false,
                Ok(0) if patience <= ANSWER_TIME_MAX && Silence::is_stuck(self.pid()) => {
                    return false;
                }
                Ok(0) | Err(Errno::EINTR) => {}
                // What is wrong with it is told by reading.
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// The driver's process: that which listens on the socket.
    fn pid(&self) -> u32 {
        getsockopt(&self.stream, PeerCredentials).map_or(0, |peer| peer.pid() as u32)
    }

    fn silent(&self) -> ClientError {
        ClientError::Silent { silence: Silence::note(&self.path, self.pid()) }
    }

    /// Asks for the status.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub fn status(&mut self) -> Result<DriverStatus, ClientError> {
        match self.ask(&Request::Status)? {
            Response::Status(status) => {
                Silence::ended(&self.path);
                Ok(*status)
            }
            _ => Err(ClientError::Confused),
        }
    }

    /// Waits until the driver has closed the connection: it is gone.
    pub fn wait_until_gone(self) {
        self.read_to_end(None);
    }

    /// Waits until the driver is gone, but no longer than this; whether it is.
    #[must_use]
    pub fn is_gone_within(self, time: Duration) -> bool {
        self.read_to_end(Some(time))
    }

    fn read_to_end(mut self, time: Option<Duration>) -> bool {
        let _ = self.stream.set_read_timeout(time);
        match std::io::Read::read(&mut self.stream, &mut [0]) {
            Ok(_) => true,
            Err(e) => !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }
}

//! The client: asks one thing at a time and waits for the answer.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_format::control::{ControlError, DriverStatus, ErrorCode, Request, Response};

use super::frame::{FrameError, receive, send};

/// How long an answer may take. A cut waits for writes in flight and for the state directory.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

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
        stream.set_write_timeout(Some(ANSWER_TIME_MAX)).map_err(not_running)?;
        Ok(Self { stream, path: path.into() })
    }

    /// Asks, and gives the answer; a refusal is an error.
    ///
    /// # Errors
    /// If the connection breaks or the driver refuses.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        send(&mut self.stream, request).map_err(broken)?;
        match receive(&mut self.stream).map_err(broken)? {
            Some(Response::Error(error)) => Err(ClientError::Refused(error)),
            Some(answer) => Ok(answer),
            None => Err(broken(FrameError::Io(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    /// Asks for the status.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub fn status(&mut self) -> Result<DriverStatus, ClientError> {
        match self.ask(&Request::Status)? {
            Response::Status(status) => Ok(*status),
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

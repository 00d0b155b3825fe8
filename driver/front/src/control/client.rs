//! The client: asks one thing at a time and waits for the answer, for a time that fits the question.
//!
//! A process that is stopped, or whose backing hangs, must hold up nobody who only asks how it is. Who
//! has waited in vain closes the connection; the driver does not begin anything for a client that has
//! gone or whose time is over (see [`super::server`]), so what was given up is not carried out later.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_format::asked::Asked;
use backstay_format::control::{ControlError, DriverStatus, ErrorCode, Request, Response};
use backstay_host::clock;
use backstay_types::{Class, Classified, DiskName};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::frame::{FrameError, WithDescriptor, receive, send};
use super::silence::Silence;

/// How long an answer may take that needs work: a cut waits for writes in flight and for the state
/// directory.
const WORK_TIME_MAX: Duration = Duration::from_secs(60);
/// How long an answer may take that needs none. Anyone who asks for a lease may wait for the one before.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// After this the process is looked at; one that is stuck is waited for no longer.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// How long a process that has closed its connections may take to be gone.
const PROCESS_ENDS_WITHIN: Duration = Duration::from_secs(30);

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
    /// The disk's bytes cannot be read from where the driver says they are.
    #[error("disk {name}: {path} is not what its driver reads and writes: {reason}")]
    OtherBacking {
        /// The disk.
        name: DiskName,
        /// What has the backing's name.
        path: PathBuf,
        /// How that was found out.
        reason: String,
    },
    /// An answer that does not fit the question: another version on the other side.
    #[error("the driver's answer does not match the request; does it run the same version?")]
    Confused,
}

impl Classified for ClientError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(e) if e.code == ErrorCode::Busy => Class::Refused,
            Self::NotRunning { .. }
            | Self::Broken { .. }
            | Self::Silent { .. }
            | Self::Refused(_) => Class::Retry,
            Self::OtherBacking { .. } | Self::Confused => Class::Person,
        }
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
    /// Whether the driver has said that it takes deadlines.
    deadlines: bool,
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
        Ok(Self { stream, path: path.into(), deadlines: false })
    }

    /// Asks, and gives the answer; a refusal is an error.
    ///
    /// # Errors
    /// If the connection breaks or the driver refuses.
    pub fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        let waits = patience(request);
        let deadline = clock::since_boot_ns().saturating_add(waits.as_nanos() as u64);
        let deadline_boot_ns = self.deadlines.then_some(deadline);
        let asked = Asked { request: request.clone(), deadline_boot_ns };
        if let Err(e) = send(&mut self.stream, &asked) {
            return Err(if is_time(&e) { self.silent() } else { broken(e) });
        }
        if !self.answers_within(waits) {
            return Err(self.silent());
        }
        match receive(&mut self.stream) {
            Err(e) if is_time(&e) => Err(self.silent()),
            Err(e) => Err(broken(e)),
            Ok(Some(Response::Error(error))) => Err(ClientError::Refused(error)),
            Ok(Some(answer)) => {
                if let Response::Status(status) | Response::Leased { status } = &answer {
                    self.deadlines = status.takes_deadlines;
                }
                Ok(answer)
            }
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

    /// Opens what a disk's driver reads and writes, to read it: the very file or device, not what has its
    /// name by now. `status` is the driver's.
    ///
    /// # Errors
    /// If it cannot be opened, or nothing proves that it is the driver's.
    pub fn open_backing(&mut self, status: &DriverStatus) -> Result<File, ClientError> {
        if !status.hands_out_backing {
            return open_of_earlier_version(status);
        }
        let broken = |source| ClientError::Broken { path: self.path.clone(), source };
        send(&mut self.stream, &Request::OpenBacking).map_err(broken)?;
        let mut stream = WithDescriptor { stream: &self.stream, came: None };
        let answer = receive::<Response>(&mut stream).map_err(broken)?;
        match (answer, stream.came) {
            (Some(Response::Backing { handed: true, .. }), Some(file)) => Ok(file),
            (Some(Response::Backing { handed: false, served_on }), _) => {
                let opened = File::open(&status.served).and_then(|f| Ok((f.metadata()?, f)));
                match opened {
                    Ok((meta, file)) if meta.dev() == served_on => Ok(file),
                    Ok(_) => Err(other(status, &status.served, "another mount is there")),
                    Err(e) => Err(other(status, &status.served, &e.to_string())),
                }
            }
            (Some(Response::Error(error)), _) => Err(ClientError::Refused(error)),
            (Some(_), _) => Err(ClientError::Confused),
            (None, _) => Err(broken(FrameError::Io(io::ErrorKind::UnexpectedEof.into()))),
        }
    }

    /// Waits until the driver's process is gone, and with it its hold on the backing.
    pub fn wait_until_gone(self) {
        self.read_to_end(None);
    }

    /// Waits until the driver is gone, but no longer than this; whether it is.
    #[must_use]
    pub fn is_gone_within(self, time: Duration) -> bool {
        self.read_to_end(Some(time))
    }

    fn read_to_end(mut self, time: Option<Duration>) -> bool {
        // While the connection is there the process has this number.
        let process = process_of(&self.stream);
        let _ = self.stream.set_read_timeout(time);
        let ended = match std::io::Read::read(&mut self.stream, &mut [0]) {
            Ok(_) => true,
            Err(e) => !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        };
        match process {
            // The kernel closes what a process had open in no order: the backing may come last.
            Some(process) if ended => {
                let most = time.unwrap_or(PROCESS_ENDS_WITHIN).min(PROCESS_ENDS_WITHIN);
                let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
                poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout)
                    .is_ok_and(|ready| ready > 0)
            }
            _ => ended,
        }
    }
}

/// The process at the other end; readable when it has ended.
fn process_of(stream: &UnixStream) -> Option<OwnedFd> {
    let peer = getsockopt(stream, PeerCredentials).ok()?;
    // SAFETY: takes two numbers, returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, peer.pid(), 0) };
    // SAFETY: the descriptor is new and ours alone.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn other(status: &DriverStatus, path: &Path, reason: &str) -> ClientError {
    ClientError::OtherBacking {
        name: status.name.clone(),
        path: path.into(),
        reason: reason.into(),
    }
}

/// A driver of an earlier version hands out nothing; which files it has open the kernel knows.
fn open_of_earlier_version(status: &DriverStatus) -> Result<File, ClientError> {
    let path = &status.backing;
    let refused = |reason: &str| Err(other(status, path, reason));
    let which = |meta: &fs::Metadata| (meta.dev(), meta.ino(), meta.rdev());
    let (file, meta) = match File::open(path).and_then(|f| Ok((f.metadata()?, f))) {
        Ok((meta, file)) => (file, meta),
        Err(e) => return refused(&e.to_string()),
    };
    // The disk's bytes are together nowhere but in the file that is served.
    if *path == status.served {
        return Ok(file);
    }
    let open = match fs::read_dir(format!("/proc/{}/fd", status.pid)) {
        Ok(open) => open,
        Err(e) => return refused(&format!("the files of process {}: {e}", status.pid)),
    };
    let is_open = open
        .flatten()
        .any(|entry| fs::metadata(entry.path()).is_ok_and(|its| which(&its) == which(&meta)));
    if is_open { Ok(file) } else { refused(&format!("process {} has it not open", status.pid)) }
}

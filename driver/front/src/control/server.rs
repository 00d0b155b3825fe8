//! The control server: one thread per connection, a limited number of connections, one lease.
//!
//! - A peer must be root or the driver's own user.
//! - A malformed message ends its connection and changes nothing.
//! - A request is not executed if its client has given up: that client has already reported a failure.
//! - When the connection with the lease ends, its open cycle is folded back and held writes continue
//!   (see [`super::hold`]).

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use backstay_format::asked::Asked;
use backstay_format::control::{
    BackingFault, BackingFaultKind, ControlError, DriverStatus, ErrorCode, HOLD_NS_MAX, Request,
    Response,
};
use backstay_format::superblock::Resync;
use backstay_host::clock;
use backstay_track::env::Env;
use backstay_track::{Backing, Grown, Identity, ProtectedDisk, TrackError};
use backstay_types::EpochNo;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::frame::{FrameError, receive, send, send_with};
use super::hold::{Hold, Holding, Thawed};

/// Limit of concurrent connections.
const CONNECTIONS_MAX: usize = 16;
/// How long a lease request waits for the current holder to leave.
const LEASE_WAIT: Duration = Duration::from_secs(2);

/// How to stop serving a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopping {
    /// Only if nobody has it open.
    IfUnused,
    /// In any case. Its users get errors.
    UnderItsUsers,
}

/// Stops serving the disk. Fails with the number of open handles, and then changes nothing.
type Stop = dyn Fn(Stopping) -> Result<(), u64> + Send + Sync;

/// The state shared by all connections.
pub struct Server<E: Env, B: Backing> {
    disk: Arc<ProtectedDisk<E, B>>,
    identity: Identity,
    /// The fault of the backing that the last check found.
    backing_fault: Mutex<Option<BackingFault>>,
    lease: Mutex<Option<String>>,
    lease_free: Condvar,
    connections: AtomicUsize,
    stop: Box<Stop>,
    grown: Box<dyn Fn() + Send + Sync>,
}

impl<E: Env, B: Backing> Server<E, B> {
    /// Listens on a socket, and replaces one that a dead driver left. A client's stop request calls
    /// `stop`. `grown` is called after the disk has grown and before the client gets its answer.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn start(
        socket: &Path,
        disk: Arc<ProtectedDisk<E, B>>,
        identity: Identity,
        stop: impl Fn(Stopping) -> Result<(), u64> + Send + Sync + 'static,
        grown: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<()> {
        match fs::remove_file(socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
        let server = Arc::new(Self {
            disk,
            identity,
            backing_fault: Mutex::new(None),
            lease: Mutex::new(None),
            lease_free: Condvar::new(),
            connections: AtomicUsize::new(0),
            stop: Box::new(stop),
            grown: Box::new(grown),
        });
        thread::Builder::new()
            .name("control".into())
            .spawn(move || server.accept_all(&listener))?;
        Ok(())
    }

    fn accept_all(self: Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming().flatten() {
            let allowed = getsockopt(&stream, PeerCredentials)
                .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw());
            if !allowed {
                tracing::warn!(
                    "control socket: refused a peer that is neither root nor the driver's user"
                );
                continue;
            }
            if self.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
                self.connections.fetch_sub(1, Ordering::SeqCst);
                let _ = send(&mut &stream, &refuse(ErrorCode::Busy, "too many connections"));
                continue;
            }
            let server = Arc::clone(&self);
            let serve = move || {
                Connection { server: &server, leased: false, thawed: None, handing: None }
                    .serve(&stream);
                server.connections.fetch_sub(1, Ordering::SeqCst);
            };
            if thread::Builder::new().name("control-peer".into()).spawn(serve).is_err() {
                self.connections.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Checks the backing for faults. A shortened backing has lost bytes that no bitmap knows of, even if
    /// it has its old size again: it requires a resync.
    fn check_backing(&self) -> Option<BackingFault> {
        let found = self.disk.backing().fault();
        let mut known = self.backing_fault.lock().unwrap_or_else(PoisonError::into_inner);
        let was = known.as_ref().map(|fault| fault.kind);
        if let Some((kind, message)) = &found
            && was != Some(*kind)
        {
            tracing::error!("disk {}: {message}", self.identity.name);
            if *kind == BackingFaultKind::Shortened
                && let Err(e) = self.disk.require_resync(Resync::BackingChanged)
            {
                tracing::error!("disk {}: {e}", self.identity.name);
            }
        }
        let since = known.take().map(|fault| fault.since_unix_ns);
        *known = found.map(|(kind, message)| BackingFault {
            kind,
            since_unix_ns: since.unwrap_or_else(clock::now_unix_ns),
            message,
        });
        known.clone()
    }

    /// Refuses a cut while the backing has a fault that would spoil the point.
    fn refuse_fault(&self) -> Result<(), Response> {
        match self.check_backing().filter(|fault| fault.kind.spoils_points()) {
            None => Ok(()),
            Some(fault) => {
                let message = format!("{}; {}", fault.message, fault.advice(&self.identity.name));
                Err(refuse(ErrorCode::Failed, &message))
            }
        }
    }

    fn status(&self) -> DriverStatus {
        // First, because a fault may require a resync, which the status must show.
        let backing_fault = self.check_backing();
        DriverStatus {
            lease: self.lease().clone(),
            backing_fault,
            hands_out_backing: true,
            takes_deadlines: true,
            ..self.disk.status(&self.identity)
        }
    }

    fn lease(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's connection.
struct Connection<'a, E: Env, B: Backing> {
    server: &'a Server<E, B>,
    leased: bool,
    /// The last hold, if it ended without a thaw request.
    thawed: Option<Thawed>,
    /// The file descriptor to send with the next answer.
    handing: Option<File>,
}

impl<'a, E: Env, B: Backing> Connection<'a, E, B> {
    fn serve(&mut self, mut stream: &UnixStream) {
        let mut hold: Option<Hold<'a, E>> = None;
        loop {
            let received = receive::<Asked>(&mut Holding {
                stream,
                hold: &mut hold,
                thawed: &mut self.thawed,
            });
            // A client that has hung up treats its request as failed, so do not execute the request.
            if matches!(received, Ok(Some(_))) && has_gone(stream) {
                tracing::warn!(
                    "a client hung up before its request was executed; nothing was changed"
                );
                return;
            }
            // Any message ends a hold, so the next read needs no time limit.
            if hold.is_some() && stream.set_read_timeout(None).is_err() {
                return;
            }
            let answer = match received {
                Ok(Some(asked)) if asked.is_over(clock::since_boot_ns()) => {
                    tracing::warn!("a request arrived after its deadline; nothing was changed");
                    drop(hold.take());
                    refuse(
                        ErrorCode::Expired,
                        "the request's deadline passed before it was executed; nothing was changed",
                    )
                }
                Ok(Some(asked)) => self.answer(asked.request, &mut hold),
                Ok(None) => return,
                Err(FrameError::Io(_)) => return,
                Err(FrameError::Format(e)) => {
                    drop(hold.take());
                    // The start of the next message cannot be found after this: hang up.
                    let _ = send(&mut stream, &refuse(ErrorCode::Malformed, &e.to_string()));
                    return;
                }
            };
            // A client that does not read its answer must not extend a hold.
            let timeout = hold.as_ref().map(|held| held.left().max(Duration::from_millis(1)));
            if stream.set_write_timeout(timeout).is_err() {
                return;
            }
            let sent = match self.handing.take() {
                Some(file) => send_with(stream, &answer, &file),
                None => send(&mut stream, &answer),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// Executes a request. Every request ends the current hold.
    fn answer(&mut self, request: Request, hold: &mut Option<Hold<'a, E>>) -> Response {
        let held = hold.take();
        if let Request::Thaw { epoch } = request {
            return self.thaw(epoch, held);
        }
        self.thawed = held.map(Hold::thaw).or(self.thawed);
        if let Request::CutAndHold { hold_ns } = request {
            return self.cut_and_hold(hold_ns, hold);
        }
        self.answer_unheld(request)
    }

    fn cut_and_hold(&mut self, hold_ns: u64, hold: &mut Option<Hold<'a, E>>) -> Response {
        if !self.leased {
            return refuse(ErrorCode::Order, "take the lease first");
        }
        if !(1..=HOLD_NS_MAX).contains(&hold_ns) {
            let message =
                format!("writes can be held for 1 to {HOLD_NS_MAX} ns, not for {hold_ns} ns");
            return refuse(ErrorCode::Order, &message);
        }
        let server = self.server;
        if let Err(refused) = server.refuse_fault() {
            return refused;
        }
        match server.disk.cut_and_hold() {
            Ok((info, cut)) => {
                self.thawed = None;
                *hold = Some(Hold::new(cut, info.epoch, Duration::from_nanos(hold_ns)));
                Response::Cut(Box::new(info))
            }
            Err(e) => failed(&e),
        }
    }

    fn thaw(&mut self, epoch: EpochNo, held: Option<Hold<'a, E>>) -> Response {
        let in_force = held.as_ref().is_some_and(|held| held.epoch() == epoch);
        let thawed = held.map(Hold::thaw).or(self.thawed.take());
        match thawed.filter(|thawed| thawed.epoch == epoch) {
            Some(Thawed { held, .. }) => {
                Response::Thawed { in_force, held_ns: held.as_nanos() as u64 }
            }
            None => refuse(ErrorCode::Order, &format!("no hold belongs to epoch {epoch}")),
        }
    }

    fn answer_unheld(&mut self, request: Request) -> Response {
        let disk = &self.server.disk;
        let done = |result: Result<(), TrackError>| match result {
            Ok(()) => Response::Done,
            Err(e) => failed(&e),
        };
        match request {
            Request::Status => return Response::Status(Box::new(self.server.status())),
            Request::Stop => return self.stop(Stopping::IfUnused),
            Request::Abort => return self.stop(Stopping::UnderItsUsers),
            Request::Lease { client } => return self.take_lease(client),
            Request::OpenBacking => return self.open_backing(),
            _ if !self.leased => return refuse(ErrorCode::Order, "take the lease first"),
            _ => {}
        }
        match request {
            Request::Cut { mode } => match self.server.refuse_fault().map(|()| disk.cut(mode)) {
                Err(refused) => refused,
                Ok(cut) => match cut {
                    Ok(info) => Response::Cut(Box::new(info)),
                    Err(e) => failed(&e),
                },
            },
            Request::PrepareCut => done(disk.prepare_cut()),
            Request::Seal { epoch } => match disk.seal(epoch) {
                Ok(sealed) => Response::Sealed { log_end: sealed.log_end, lost: sealed.lost },
                Err(e) => failed(&e),
            },
            Request::Release { epoch, base } => done(disk.release(epoch, base)),
            Request::FoldBack { epoch } => done(disk.fold_back(epoch)),
            Request::Announce { point } => done(disk.announce(point)),
            Request::RequireResync { reason } => done(disk.require_resync(reason)),
            Request::Grow { size } => match disk.grow(size) {
                Ok(Grown { from, to }) => {
                    tracing::info!("the disk grew from {from} to {to} bytes");
                    (self.server.grown)();
                    Response::Grown { from, to }
                }
                Err(e) => failed(&e),
            },
            Request::SetLimits { change_log } => {
                disk.set_change_log_limit(change_log);
                Response::Done
            }
            Request::Status
            | Request::Stop
            | Request::Abort
            | Request::Lease { .. }
            | Request::OpenBacking
            | Request::CutAndHold { .. }
            | Request::Thaw { .. } => refuse(ErrorCode::Malformed, "asked twice"),
        }
    }

    fn stop(&self, how: Stopping) -> Response {
        match (self.server.stop)(how) {
            Ok(()) => Response::Done,
            Err(times) => refuse(
                ErrorCode::Busy,
                &format!(
                    "disk {} is open {times} time(s); it stays in service, nothing was changed",
                    self.server.identity.name
                ),
            ),
        }
    }

    fn open_backing(&mut self) -> Response {
        match self.server.disk.backing().open_to_read() {
            Ok(file) => {
                let handed = file.is_some();
                self.handing = file;
                Response::Backing { handed, served_on: self.server.identity.served_on }
            }
            Err(e) => {
                refuse(ErrorCode::Failed, &format!("cannot open the backing for reading: {e}"))
            }
        }
    }

    fn take_lease(&mut self, client: String) -> Response {
        {
            // The last holder may have just ended: its thread releases the lease in a moment.
            let (mut lease, _) = self
                .server
                .lease_free
                .wait_timeout_while(self.server.lease(), LEASE_WAIT, |lease| {
                    lease.is_some() && !self.leased
                })
                .unwrap_or_else(PoisonError::into_inner);
            if let (Some(holder), false) = (&*lease, self.leased) {
                let message = format!(
                    "disk {} is already being replicated by {holder}; two sidecars on one disk would \
                     spoil each other's cycles, so this one was refused",
                    self.server.identity.name
                );
                return refuse(ErrorCode::Busy, &message);
            }
            *lease = Some(client);
        }
        self.leased = true;
        Response::Leased { status: Box::new(self.server.status()) }
    }
}

impl<E: Env, B: Backing> Drop for Connection<'_, E, B> {
    fn drop(&mut self) {
        if !self.leased {
            return;
        }
        // Fold back before the next client can get the lease.
        if let Err(e) = self.server.disk.fold_back_open() {
            tracing::error!("cannot fold back the cycle of a sidecar that is gone: {e}");
        }
        *self.server.lease() = None;
        self.server.lease_free.notify_one();
    }
}

/// Whether the peer has closed the connection.
fn has_gone(stream: &UnixStream) -> bool {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLHUP)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

fn refuse(code: ErrorCode, message: &str) -> Response {
    Response::Error(ControlError { code, message: message.into() })
}

fn failed(error: &TrackError) -> Response {
    let code = match error {
        TrackError::Order(_) | TrackError::WrongEpoch { .. } => ErrorCode::Order,
        _ => ErrorCode::Failed,
    };
    refuse(code, &format!("{error}; the guest is not affected"))
}

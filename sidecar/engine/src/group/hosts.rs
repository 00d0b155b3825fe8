//! The coordinator's side: other hosts dial in, show who they are, and wait for rounds.
//!
//! Each host that is connected has a thread here. Between rounds it asks once a second whether the
//! host is there; in a round it passes on what the crew is told, and what the host answers.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::crew::{Answer, Command, Crew, Seat, Trouble};
use super::link::{HANDSHAKE_MAX, HEARTBEAT, Link, LinkError, SILENCE_MAX};
use super::tls::{Tls, host_of};
use super::wire::{Ask, Tell};
use backstay_host::clock;
use backstay_types::PointId;
use backstay_vault::GroupName;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most connections that have not shown yet who they are.
const STRANGERS_MAX: usize = 64;
/// How often the listener looks whether to stop, in milliseconds.
const LOOK_EVERY_MS: u16 = 200;

/// Where the hosts of groups are connected.
pub struct Hosts {
    shared: Arc<Shared>,
    address: SocketAddr,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    tls: Arc<Tls>,
    groups: BTreeMap<GroupName, Vec<String>>,
    /// Those that are connected.
    links: Mutex<BTreeMap<(GroupName, String), Entry>>,
    changed: Condvar,
    strangers: AtomicUsize,
    serial: AtomicU64,
    stop: AtomicBool,
}

/// A host that is connected.
struct Entry {
    /// Rounds for its thread; the thread ends with it.
    rounds: Sender<Round>,
    /// Whether it is still in a round.
    busy: Arc<AtomicBool>,
    serial: u64,
}

/// A round, for a host's thread.
struct Round {
    number: u64,
    seat: Seat,
}

impl Hosts {
    /// Listens for the hosts of these groups.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub fn listen(
        address: SocketAddr,
        tls: Arc<Tls>,
        groups: BTreeMap<GroupName, Vec<String>>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            tls,
            groups,
            links: Mutex::default(),
            changed: Condvar::new(),
            strangers: AtomicUsize::new(0),
            serial: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let accept = Arc::clone(&shared);
        let listener = thread::Builder::new()
            .name("group-listen".into())
            .spawn(move || accept.accept_all(&listener))?;
        Ok(Self { shared, address, listener: Some(listener) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until all hosts of a group are connected: `false` if not within `limit`.
    #[must_use]
    pub fn wait_for(&self, group: &GroupName, limit: Duration) -> bool {
        let ends = clock::monotonic() + limit;
        let mut links = self.shared.links();
        while self.shared.missing(&links, group).is_some() {
            let left = ends.saturating_duration_since(clock::monotonic());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(links, left);
            links = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Takes all hosts of a group into a crew.
    ///
    /// # Errors
    /// Which one is not connected, or busy with an earlier round; then none takes part.
    pub fn enlist(&self, group: &GroupName, crew: &mut Crew) -> Result<(), Trouble> {
        let number =
            u64::from_le_bytes(PointId::random().to_bytes()[..8].try_into().unwrap_or_default());
        let links = self.shared.links();
        let failed = |who: &str, reason: &str| {
            Err(Trouble::Failed { who: format!("host {who}"), reason: reason.into() })
        };
        if let Some(host) = self.shared.missing(&links, group) {
            return failed(host, "it is not connected");
        }
        let hosts = self.shared.groups.get(group).map_or(&[][..], Vec::as_slice);
        let entries: Vec<(&String, &Entry)> = hosts
            .iter()
            .filter_map(|host| Some((host, links.get(&(group.clone(), host.clone()))?)))
            .collect();
        if let Some((host, _)) = entries.iter().find(|(_, e)| e.busy.load(Ordering::SeqCst)) {
            return failed(host, "it is still busy with the round before");
        }
        for (host, entry) in entries {
            let seat = crew.enlist(format!("host {host}"));
            entry.busy.store(true, Ordering::SeqCst);
            if let Err(unsent) = entry.rounds.send(Round { number, seat }) {
                unsent.0.seat.answer(Answer::Failed("its connection has just ended".into()));
            }
        }
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.links().clear();
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, BTreeMap<(GroupName, String), Entry>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host of the group that is not connected.
    fn missing<'a>(
        &'a self,
        links: &BTreeMap<(GroupName, String), Entry>,
        group: &GroupName,
    ) -> Option<&'a str> {
        let hosts = self.groups.get(group)?;
        let gone = |host: &&String| !links.contains_key(&(group.clone(), (*host).clone()));
        hosts.iter().find(gone).map(String::as_str)
    }

    fn accept_all(self: Arc<Self>, listener: &TcpListener) {
        while !self.stop.load(Ordering::SeqCst) {
            let mut wait = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut wait, PollTimeout::from(LOOK_EVERY_MS));
            let (tcp, from) = match listener.accept() {
                Ok(come) => come,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(e) => {
                    // Out of descriptors, for one: the caller is still there after a pause.
                    tracing::warn!("a host could not be let in: {e}");
                    clock::sleep(HEARTBEAT);
                    continue;
                }
            };
            if self.strangers.fetch_add(1, Ordering::SeqCst) >= STRANGERS_MAX {
                self.strangers.fetch_sub(1, Ordering::SeqCst);
                tracing::warn!("{from}: turned away, too many connect at once");
                continue;
            }
            let shared = Arc::clone(&self);
            let serve = move || shared.serve(tcp, from);
            if thread::Builder::new().name("group-host".into()).spawn(serve).is_err() {
                self.strangers.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn serve(&self, tcp: TcpStream, from: SocketAddr) {
        let known = self.introduce(tcp);
        self.strangers.fetch_sub(1, Ordering::SeqCst);
        let (mut link, group, host) = match known {
            Ok(known) => known,
            Err(e) => return tracing::warn!("{from}: turned away: {e}"),
        };
        let (rounds, orders) = unbounded();
        let busy = Arc::new(AtomicBool::new(false));
        let serial = self.serial.fetch_add(1, Ordering::SeqCst);
        let key = (group.clone(), host.clone());
        {
            let mut links = self.links();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // A host that dials again has lost its connection: the new one holds.
            links.insert(key.clone(), Entry { rounds, busy: Arc::clone(&busy), serial });
        }
        self.changed.notify_all();
        tracing::info!("group {group}: host {host} is connected from {from}");
        match attend(&self.tls, &mut link, &host, &orders, &busy) {
            Ok(()) => tracing::info!("group {group}: host {host} was disconnected"),
            Err(e) => tracing::warn!("group {group}: host {host}: {e}"),
        }
        let mut links = self.links();
        if links.get(&key).is_some_and(|entry| entry.serial == serial) {
            links.remove(&key);
        }
        drop(links);
        // What was sent to this thread in its last moment.
        for round in orders.try_iter() {
            round.seat.answer(Answer::Failed("its connection has just ended".into()));
        }
    }

    /// Finds out who dials, and for which group.
    fn introduce(&self, tcp: TcpStream) -> Result<(Link, GroupName, String), LinkError> {
        tcp.set_nonblocking(false)?;
        let refuse = |reason: String| io::Error::new(io::ErrorKind::PermissionDenied, reason);
        let mut link = Link::accept(self.tls.server(), tcp)?;
        let group = match link.receive(HANDSHAKE_MAX)? {
            Tell::Hello { group } => group,
            other => return Err(confused(&other, "say hello")),
        };
        let Some(hosts) = self.groups.get(&group) else {
            return Err(refuse(format!("no group {group} is coordinated here")).into());
        };
        let host = link.certificates().first().and_then(|first| host_of(first, hosts));
        let Some(host) = host.map(str::to_owned) else {
            let hosts = hosts.join(", ");
            return Err(refuse(format!(
                "its certificate is for none of the hosts of group {group} ({hosts})"
            ))
            .into());
        };
        link.send(&Ask::Welcome, HANDSHAKE_MAX)?;
        Ok((link, group, host))
    }
}

/// Serves a host until it is gone, replaced or revoked.
fn attend(
    tls: &Tls,
    link: &mut Link,
    host: &str,
    rounds: &Receiver<Round>,
    busy: &AtomicBool,
) -> Result<(), LinkError> {
    loop {
        match rounds.recv_timeout(HEARTBEAT) {
            Ok(round) => {
                // Before each round: the other side is not asked to hold a disk for who is revoked.
                if let Err(e) = tls.check_member(link.certificates()) {
                    round.seat.answer(Answer::Failed(e.to_string()));
                    return Err(e.into());
                }
                // The crew waits for its answers: a panic must not be silence.
                let result = catch_unwind(AssertUnwindSafe(|| pass_on(link, host, &round)))
                    .unwrap_or_else(|_| Err(io::Error::other("its thread panicked").into()));
                if let Err(e) = &result {
                    round.seat.answer(Answer::Failed(e.to_string()));
                }
                busy.store(false, Ordering::SeqCst);
                result?;
            }
            Err(RecvTimeoutError::Timeout) => {
                tls.check_member(link.certificates())?;
                ping(link)?;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn ping(link: &mut Link) -> Result<(), LinkError> {
    link.send(&Ask::Ping, SILENCE_MAX)?;
    match link.receive(SILENCE_MAX)? {
        Tell::Pong => Ok(()),
        other => Err(confused(&other, "answer a ping")),
    }
}

/// Takes a host through a round, step by step, as the crew is told.
fn pass_on(link: &mut Link, host: &str, round: &Round) -> Result<(), LinkError> {
    let Round { number, seat } = round;
    let number = *number;
    link.send(&Ask::Prepare { round: number }, SILENCE_MAX)?;
    match answer(link, number, SILENCE_MAX)? {
        Tell::Here { .. } => seat.answer(Answer::Here),
        other => return failed(seat, other, "come to its cut"),
    }
    let Some(Command::Quiesce) = next_command(link, seat)? else {
        return abort(link, number);
    };
    link.send(&Ask::Quiesce { round: number }, SILENCE_MAX)?;
    match answer(link, number, SILENCE_MAX)? {
        Tell::Ready { .. } => seat.answer(Answer::Ready),
        other => return failed(seat, other, "get ready"),
    }
    let Some(Command::Cut(hold)) = next_command(link, seat)? else {
        return abort(link, number);
    };
    let hold_ns = u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX);
    link.send(&Ask::Cut { round: number, hold_ns }, hold)?;
    match answer(link, number, hold)? {
        Tell::Cut { .. } => seat.answer(Answer::Cut),
        other => return failed(seat, other, "cut"),
    }
    match seat.commands.recv_timeout(hold) {
        Ok(Command::Thaw) => {}
        _ => return abort(link, number),
    }
    link.send(&Ask::Thaw { round: number }, SILENCE_MAX)?;
    match answer(link, number, SILENCE_MAX)? {
        Tell::Thawed { in_force, held_ns, .. } => {
            seat.answer(Answer::Thawed { in_force, held: Duration::from_nanos(held_ns) });
        }
        other => return failed(seat, other, "thaw"),
    }
    match seat.commands.recv_timeout(SILENCE_MAX) {
        Ok(Command::Finish) => {}
        _ => return abort(link, number),
    }
    link.send(&Ask::Finish { round: number }, SILENCE_MAX)?;
    match answer(link, number, SILENCE_MAX)? {
        Tell::Done { points, .. } => {
            let points = points.into_iter().map(|point| point.of_host(host)).collect();
            seat.answer(Answer::Done(points));
            Ok(())
        }
        other => failed(seat, other, "ship"),
    }
}

/// Waits for the crew, whose others may take their time; `None` if it is gone.
fn next_command(link: &mut Link, seat: &Seat) -> Result<Option<Command>, LinkError> {
    loop {
        match seat.commands.recv_timeout(HEARTBEAT) {
            Ok(command) => return Ok(Some(command)),
            Err(RecvTimeoutError::Timeout) => ping(link)?,
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
    }
}

/// Waits for an answer of this round; a host that says that it is working may take its time.
fn answer(link: &mut Link, round: u64, silence: Duration) -> Result<Tell, LinkError> {
    loop {
        let tell: Tell = link.receive(silence)?;
        match (&tell, tell.round()) {
            (Tell::Working { .. }, _) => {}
            (_, Some(of)) if of != round => {}
            _ => return Ok(tell),
        }
    }
}

fn failed(seat: &Seat, tell: Tell, step: &'static str) -> Result<(), LinkError> {
    match tell {
        Tell::Failed { reason, .. } => {
            // It goes to a terminal: no control characters, and no novels.
            let plain = reason.chars().filter(|c| !c.is_control()).take(500).collect();
            seat.answer(Answer::Failed(plain));
            Ok(())
        }
        other => Err(confused(&other, step)),
    }
}

fn abort(link: &mut Link, round: u64) -> Result<(), LinkError> {
    link.send(&Ask::Abort { round }, SILENCE_MAX)?;
    loop {
        if matches!(answer(link, round, SILENCE_MAX)?, Tell::Aborted { .. }) {
            return Ok(());
        }
    }
}

fn confused(said: &Tell, step: &'static str) -> LinkError {
    let said = serde_json::to_value(said).ok().and_then(|v| Some(v["tell"].as_str()?.to_owned()));
    LinkError::Confused { said: format!("{:?}", said.unwrap_or_default()), step }
}

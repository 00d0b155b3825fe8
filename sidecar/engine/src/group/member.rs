//! A host whose group another one coordinates: it dials out, and does as it is told, as long as it is
//! told in time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backstay_host::clock;
use backstay_types::DiskName;
use rustls::pki_types::ServerName;

use super::crew::{Crew, Trouble};
use super::disk::{DiskThread, LocalDisk, Shipping};
use super::link::{HANDSHAKE_MAX, HEARTBEAT, Link, LinkError, SILENCE_MAX};
use super::round::{LastRound, join_all, start_all};
use super::settings::{Group, MemberConfig, TlsConfig};
use super::tls::{self, Tls, TlsError};
use super::wire::{Ask, Tell};

/// Longest pause before dialling again.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A member host and its disks.
pub struct Member {
    group: Group,
    dial: MemberConfig,
    name: ServerName<'static>,
    tls: Arc<Tls>,
    disks: Vec<LocalDisk>,
    shipping: Shipping,
    /// Whether the last session came as far as the welcome.
    connected: bool,
    /// Cycles of the last round that may still run.
    threads: Vec<(DiskName, DiskThread)>,
    last_round: LastRound,
}

/// What one session knows of the round it is in.
struct InRound {
    number: u64,
    crew: Crew,
    /// Set while disks are held: how long they may be.
    held: Option<Duration>,
}

impl Member {
    /// A member with its disks.
    ///
    /// # Errors
    /// If certificates or keys cannot be used, or the coordinator's name is none.
    pub fn new(
        group: Group,
        dial: MemberConfig,
        tls: &TlsConfig,
        disks: Vec<LocalDisk>,
        shipping: Shipping,
    ) -> Result<Self, TlsError> {
        Ok(Self {
            name: tls::host_name(dial.address().0)?,
            tls: Tls::load(tls)?,
            group,
            dial,
            disks,
            shipping,
            connected: false,
            threads: vec![],
            last_round: LastRound::default(),
        })
    }

    /// Tells, while it serves, when the last round began.
    #[must_use]
    pub fn rounds(&self) -> LastRound {
        self.last_round.clone()
    }

    /// Serves until it is told to stop; then waits for the cycles that run.
    pub fn serve(mut self) {
        let mut pause = HEARTBEAT;
        while !self.stopping() {
            self.connected = false;
            if let Err(e) = self.session() {
                tracing::warn!(
                    "group {}: the coordinator {}: {e}; its disks here go on alone",
                    self.group.name,
                    self.dial.dial
                );
            }
            if self.connected {
                pause = HEARTBEAT;
            }
            let ends = clock::monotonic() + pause;
            while !self.stopping() && clock::monotonic() < ends {
                clock::sleep(LOOK_EVERY);
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        self.reap(true);
    }

    fn stopping(&self) -> bool {
        self.shipping.stop.load(Ordering::Relaxed)
    }

    /// One connection, from hello to its end. However it ends, nothing is held afterwards: the crew
    /// goes with it.
    fn session(&mut self) -> Result<(), LinkError> {
        let address = self.dial.address();
        let mut link = Link::dial(self.tls.client(), self.name.clone(), address)?;
        link.send(&Tell::Hello { group: self.group.name.clone() }, HANDSHAKE_MAX)?;
        match link.receive(HANDSHAKE_MAX)? {
            Ask::Welcome => {}
            other => return Err(confused(&other, "welcome")),
        }
        self.connected = true;
        tracing::info!("group {}: connected to {}", self.group.name, self.dial.dial);
        let mut round: Option<InRound> = None;
        while !self.stopping() {
            // While disks are held nothing is waited for longer than they may be.
            let patience = round.as_ref().and_then(|r| r.held).unwrap_or(SILENCE_MAX);
            let ask: Ask = link.receive(patience)?;
            // Once a second between rounds, and before each: who coordinates may have been revoked.
            if matches!(ask, Ask::Ping | Ask::Prepare { .. }) {
                self.tls.check_coordinator(link.certificates(), &self.name)?;
            }
            self.answer(ask, &mut round, &mut link)?;
        }
        Ok(())
    }

    fn answer(
        &mut self,
        ask: Ask,
        round: &mut Option<InRound>,
        link: &mut Link,
    ) -> Result<(), LinkError> {
        let in_round = |number: u64, round: &mut Option<InRound>| {
            round.take().filter(|round| round.number == number)
        };
        let tell = match ask {
            Ask::Ping => Tell::Pong,
            Ask::Prepare { round: number } => {
                // One that was not ended: its disks go on alone.
                drop(round.take());
                match self.prepare(number, link)? {
                    Ok(begun) => {
                        *round = Some(begun);
                        Tell::Here { round: number }
                    }
                    Err(reason) => Tell::Failed { round: number, reason },
                }
            }
            Ask::Quiesce { round: number } => match in_round(number, round) {
                Some(mut this) => {
                    this.crew.quiesce();
                    match self.all_in(number, link, |limit| this.crew.ready(limit))? {
                        Ok(()) => {
                            *round = Some(this);
                            Tell::Ready { round: number }
                        }
                        Err(e) => Tell::Failed { round: number, reason: e.to_string() },
                    }
                }
                None => no_such(number),
            },
            Ask::Cut { round: number, hold_ns } => match in_round(number, round) {
                Some(mut this) => {
                    // How long is for this host to say in the end.
                    let hold = Duration::from_nanos(hold_ns).min(self.group.config.hold_deadline);
                    match this.crew.cut(hold) {
                        Ok(()) => {
                            this.held = Some(hold);
                            *round = Some(this);
                            Tell::Cut { round: number }
                        }
                        Err(e) => Tell::Failed { round: number, reason: e.to_string() },
                    }
                }
                None => no_such(number),
            },
            Ask::Thaw { round: number } => match in_round(number, round) {
                Some(mut this) => {
                    let thawed = this.crew.thaw();
                    this.held = None;
                    *round = Some(this);
                    match thawed {
                        Ok(held) => thawed_for(number, true, held),
                        Err(Trouble::Expired { held, .. }) => thawed_for(number, false, held),
                        Err(e) => Tell::Failed { round: number, reason: e.to_string() },
                    }
                }
                None => no_such(number),
            },
            Ask::Finish { round: number } => match in_round(number, round) {
                Some(mut this) => loop {
                    match this.crew.done(HEARTBEAT) {
                        Ok(points) => {
                            let points = points.into_iter().map(Into::into).collect();
                            break Tell::Done { round: number, points };
                        }
                        Err(Trouble::Late { .. }) => {
                            link.send(&Tell::Working { round: number }, SILENCE_MAX)?;
                        }
                        Err(e) => break Tell::Failed { round: number, reason: e.to_string() },
                    }
                },
                None => no_such(number),
            },
            Ask::Abort { round: number } => {
                drop(round.take());
                Tell::Aborted { round: number }
            }
            other @ Ask::Welcome => return Err(confused(&other, "begin a round")),
        };
        link.send(&tell, SILENCE_MAX)
    }

    /// Starts the cycles of this host's disks and waits until all can be cut.
    fn prepare(
        &mut self,
        number: u64,
        link: &mut Link,
    ) -> Result<Result<InRound, String>, LinkError> {
        self.reap(false);
        if let Some((name, _)) = self.threads.first() {
            return Ok(Err(format!("disk {name} still ships the round before")));
        }
        for disk in &self.disks {
            let reason = match disk.in_step() {
                Ok(true) => match self.shipping.may_begin(&disk.name) {
                    Ok(()) => continue,
                    Err(until) => format!("disk {}: {until}", disk.name),
                },
                Ok(false) => format!("disk {} has to be shipped as a whole first", disk.name),
                Err(e) => format!("disk {}: {e}", disk.name),
            };
            self.last_round.gives_up();
            return Ok(Err(reason));
        }
        self.last_round.begins();
        let mut crew = Crew::new(self.shipping.stop.clone());
        match start_all(self.disks.clone(), &self.shipping, &mut crew) {
            Ok(threads) => self.threads = threads,
            Err(e) => return Ok(Err(e.to_string())),
        }
        Ok(match self.all_in(number, link, |limit| crew.here(limit))? {
            Ok(()) => Ok(InRound { number, crew, held: None }),
            Err(e) => Err(e.to_string()),
        })
    }

    /// Waits until all disks have done a step, and lets the coordinator know that they are at it.
    fn all_in(
        &self,
        number: u64,
        link: &mut Link,
        mut step: impl FnMut(Duration) -> Result<(), Trouble>,
    ) -> Result<Result<(), Trouble>, LinkError> {
        let ends = clock::monotonic() + self.group.config.ready_deadline;
        loop {
            match step(HEARTBEAT) {
                Err(Trouble::Late { .. }) if clock::monotonic() < ends => {
                    link.send(&Tell::Working { round: number }, SILENCE_MAX)?;
                }
                done => return Ok(done),
            }
        }
    }

    /// Forgets the cycles that have ended; waits for all if told to.
    fn reap(&mut self, all: bool) {
        let (ended, running): (Vec<_>, Vec<_>) = std::mem::take(&mut self.threads)
            .into_iter()
            .partition(|(_, t)| all || t.is_finished());
        self.threads = running;
        drop(join_all(ended));
    }
}

fn thawed_for(round: u64, in_force: bool, held: Duration) -> Tell {
    Tell::Thawed { round, in_force, held_ns: held.as_nanos() as u64 }
}

fn no_such(round: u64) -> Tell {
    Tell::Failed { round, reason: "it is not in this round".into() }
}

fn confused(said: &Ask, step: &'static str) -> LinkError {
    LinkError::Confused { said: format!("{said:?}"), step }
}

//! Staying at the newest point.

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use backstay_engine::schedule::Retry;
use backstay_host::clock;
use backstay_types::{Classified, DiskId};
use backstay_vault::retain::held::HOLDER_LASTS;
use backstay_vault::terms::Line;
use backstay_vault::{Manifest, Vault, VaultError, Vaults};
use crossbeam_channel::{Receiver, bounded};

use super::error::ReplicaError;
use super::record::{PointRef, ReplicaState};
use super::status::{Phase, Shown};
use super::{Activity, Moved, Replica, Watch, now_unix_ns};

/// How to follow.
pub struct Follow<'a> {
    /// What vaults are opened with.
    pub vaults: &'a Vaults,
    /// How often to look for a newer point.
    pub interval: Duration,
    /// Waits after failures.
    pub retry: &'a Retry,
    /// End at the newest point instead of waiting for the next; and with the first failure.
    pub once: bool,
    /// Ends it when something comes.
    pub stop: Receiver<()>,
    /// Told how far work is.
    pub progress: &'a (dyn Fn(Activity, u64, u64) + Sync),
    /// Told of each point it got to.
    pub arrived: &'a dyn Fn(&PointRef, &Moved),
}

/// The newest point of a disk on the line that its newest term goes on: what a source that was failed
/// over still committed, or what a failover to an older point left behind, is not on it.
///
/// # Errors
/// If the vault cannot be read.
pub fn newest(vault: &Vault, disk: DiskId) -> Result<Option<Manifest>, VaultError> {
    Ok(newest_on(vault, disk)?.0)
}

fn newest_on(vault: &Vault, disk: DiskId) -> Result<(Option<Manifest>, Line), VaultError> {
    let line = vault.line(disk)?;
    for &cycle in vault.points(disk)?.iter().rev() {
        match vault.manifest(disk, cycle) {
            Ok(point) if line.has(&point) => return Ok((Some(point), line)),
            // Left behind, or retired since it was listed; then there is a newer one soon.
            Ok(_) | Err(VaultError::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    Ok((None, line))
}

/// Keeps a replica at the newest point until it is stopped.
///
/// # Errors
/// What does not pass by itself and is not the vault's; with `once`, any failure.
pub fn follow(replica: &mut Replica, how: &Follow<'_>) -> Result<(), ReplicaError> {
    let stop = Arc::new(AtomicBool::new(false));
    let (woken, wake) = bounded::<()>(1);
    let (stopper, told) = (Arc::clone(&stop), how.stop.clone());
    // Lives as long as the process: nobody has to wait for a signal that never comes.
    let listen = move || {
        if told.recv().is_ok() {
            stopper.store(true, Relaxed);
            let _ = woken.send(());
        }
    };
    let listener = thread::Builder::new().name("replica-stop".into()).spawn(listen);
    listener.map_err(super::io_error("starting a thread"))?;
    let mut shown = Shown::new(replica.record());
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut follower = Follower { how, stop: &stop, vault: None, held: None, given_up: None };
    let ended = loop {
        let step = follower.round(replica, &mut shown);
        let wait = match step {
            Ok(_) if how.once => break Ok(()),
            Ok(Round::Fine) => {
                shown.fine();
                how.interval
            }
            // What failed still does.
            Ok(Round::GivenUp) => how.interval,
            Err(ReplicaError::Stopped) => break Ok(()),
            Err(e) if how.once => {
                shown.failed(&e, None);
                break Err(e);
            }
            Err(e) => {
                follower.vault = None;
                let passes = e.may_pass();
                let vaults = matches!(e, ReplicaError::Vault(_));
                if !passes && !vaults {
                    shown.failed(&e, None);
                    break Err(e);
                }
                let wait = match passes {
                    true => how.retry.wait(shown.failures + 1),
                    // A person must act; or the next point is a better one.
                    false => how.interval,
                };
                shown.failed(&e, passes.then(|| now_unix_ns() + wait.as_nanos() as u64));
                wait
            }
        };
        shown.show(replica);
        if wake.recv_timeout(wait).is_ok() {
            break Ok(());
        }
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // What can be finished without the vault is finished: a replica that was stopped is a whole point.
    let finished = replica.finish().map(|_| ());
    shown.phase = Phase::Stopped;
    shown.show(replica);
    ended.and(finished)
}

/// How a look at the vault ended that did not fail.
enum Round {
    /// At the newest point.
    Fine,
    /// The newest point is one that cannot be had.
    GivenUp,
}

struct Follower<'a> {
    how: &'a Follow<'a>,
    stop: &'a AtomicBool,
    vault: Option<Vault>,
    /// When the steady hold was renewed.
    held: Option<Instant>,
    /// A point that cannot be had, whatever is tried.
    given_up: Option<backstay_types::PointId>,
}

impl Follower<'_> {
    fn round(&mut self, replica: &mut Replica, shown: &mut Shown) -> Result<Round, ReplicaError> {
        // Needs no vault.
        replica.finish()?;
        let vault = match &self.vault {
            Some(vault) => vault.clone(),
            None => self.vault.insert(self.how.vaults.open(&replica.record().vault)?).clone(),
        };
        let disk = replica.record().disk;
        let (Some(point), line) = newest_on(&vault, disk)? else {
            // An empty folder where a vault was says so itself.
            self.how.vaults.open(&replica.record().vault)?;
            return Err(ReplicaError::NoPoint(replica.record().name.clone()));
        };
        shown.saw(&point);
        if self.given_up == Some(point.point) {
            return Ok(Round::GivenUp);
        }
        if let ReplicaState::At { point: at, .. } = *replica.standing() {
            if at.point == point.point {
                self.stay(replica, &vault)?;
                return Ok(Round::Fine);
            }
            // A point that a failover left behind is left in whichever direction that is.
            let on_line = line.has_cycle(at.term, at.cycle);
            if at.term != point.term || !on_line {
                tracing::info!(
                    "replica {}: the disk was failed over: it goes on with point {} in term {}",
                    replica.record().name,
                    point.cycle,
                    point.term
                );
            }
            let how = match point.cycle.cmp(&at.cycle) {
                _ if !on_line => None,
                Ordering::Less => Some("already"),
                Ordering::Equal => Some("of another history"),
                Ordering::Greater => None,
            };
            if let Some(how) = how {
                return Err(ReplicaError::Behind { newest: point.cycle, at: at.cycle, how });
            }
        }
        let from = replica.standing().whole();
        shown.phase = Phase::Working;
        shown.show(replica);
        let brought = {
            let tell = shown.teller(replica.dir(), self.how.progress);
            let watch = Watch {
                progress: &|doing, done, all| tell.tell(doing, done, all),
                stop: self.stop,
            };
            replica.bring_to(&vault, &point, watch)
        };
        let moved = match brought {
            Ok(moved) => moved,
            Err(e) => {
                self.given_up = (!e.may_pass() && e.is_damage()).then_some(point.point);
                return Err(e);
            }
        };
        self.held = Some(clock::monotonic());
        shown.arrived(from.as_ref(), &point, &moved);
        (self.how.arrived)(&PointRef::from(&point), &moved);
        Ok(Round::Fine)
    }

    /// At the newest point: nothing to do but to keep it.
    fn stay(&mut self, replica: &Replica, vault: &Vault) -> Result<(), ReplicaError> {
        if self.held.is_none_or(|held| clock::since(held) > HOLDER_LASTS / 8) {
            replica.hold(vault, None)?;
            self.held = Some(clock::monotonic());
        }
        Ok(())
    }
}

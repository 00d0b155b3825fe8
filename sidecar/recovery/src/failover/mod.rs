//! Failover and failback: which host serves a disk. docs/explanation/failover.md describes the states, and what
//! remains after a kill in each of them.
//!
//! - [`record`]: what a command was doing, so that it can continue or be undone
//! - [`lock`]: one command at a time for each name
//! - [`rules`]: what each verb does in each state
//! - [`vault`]: the checks in the vault, and taking the term: only the vault decides who writes
//! - [`stopped`]: what a stopped disk proves about itself
//!
//! - [`executor`]: the trait for all actions on the host
//! - [`target`]: bringing up, changing, removing, committing
//! - [`source`]: handing over; [`take_back`]: withdrawing a handover
//! - [`back`]: an old source takes its disk back
//! - [`group`]: disks of a group as a whole
//! - [`give_up`]: freeing a name whose disk is gone

pub mod back;
pub mod executor;
pub mod give_up;
pub mod group;
#[cfg(test)]
mod kill_tests;
pub mod lock;
pub mod record;
pub mod rules;
pub mod source;
pub mod stopped;
pub mod take_back;
pub mod target;
pub mod vault;

use std::io;
use std::path::{Path, PathBuf};

use backstay_host::kill_point;
use backstay_types::{Class, Classified, CycleNo, DiskName, Term};
use backstay_vault::VaultError;

use crate::host::HostError;
use crate::mount::MountError;

pub use executor::{Executor, ServedDisk};
pub use lock::{NameLock, Starting};
pub use record::{FailoverRecord, Kind, OfGroup, PointRef, State, now_unix_ns};

/// The result of a step of a failover.
pub type Result<T, E = FailoverError> = std::result::Result<T, E>;

/// Ends a function with a failure that a person must look at.
macro_rules! failed {
    ($($said:tt)*) => { return Err($crate::host::HostError::Failed(format!($($said)*)).into()) };
}
pub(crate) use failed;

/// Why a failover cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum FailoverError {
    /// The vault failed or refused.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The local record cannot be used.
    #[error(
        "{path}: {source}; nobody knows what was being done for this disk. Nothing was changed: look at \
         backstay status and at the vault's terms before removing the file"
    )]
    State {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The requested state cannot follow the current one.
    #[error("disk {name} is {}; it cannot be {} from there. Nothing was changed", state.explain(), next.explain())]
    Illegal {
        /// The name here.
        name: DiskName,
        /// Where it is.
        state: State,
        /// Where it was to go.
        next: State,
    },
    /// Another command is at work on the name.
    #[error(
        "disk {name}: another command is at work on it (backstay {doing}, process {pid}). Nothing was changed: \
         wait until it has ended"
    )]
    Busy {
        /// The name.
        name: DiskName,
        /// Which command.
        doing: String,
        /// Its process.
        pid: i32,
    },
    /// The command would not be safe.
    #[error("disk {name}: {reason}. Nothing was changed")]
    Refused {
        /// The name.
        name: DiskName,
        /// Why, and what to do.
        reason: String,
    },
    /// The source did not hand over.
    #[error(
        "disk {name} was not handed over: on the source, run backstay failover handover {name}. If the source is \
         gone, that is an unplanned failover. Nothing was changed"
    )]
    NotHandedOver {
        /// The disk.
        name: DiskName,
    },
    /// The handover names a point that is not the newest.
    #[error(
        "disk {name} was handed over at recovery point {at}, and point {newest} came after it: the source was \
         not as quiet as it said. Nothing was changed; fail over unplanned, to the point you want"
    )]
    NotQuiet {
        /// The disk.
        name: DiskName,
        /// The handover's point.
        at: CycleNo,
        /// The newest.
        newest: CycleNo,
    },
    /// The point belongs to a history that was left.
    #[error(
        "recovery point {cycle} of disk {name} belongs to a history that was left when the disk was failed over \
         (now in term {term}). Nothing was changed; if it is what you want, pass --left-history"
    )]
    LeftHistory {
        /// The disk.
        name: DiskName,
        /// The point.
        cycle: CycleNo,
        /// The newest term.
        term: Term,
    },
    /// Another host has taken the term.
    #[error(
        "disk {name} was failed over by somebody else meanwhile: term {term} belongs to {writer}. Nothing was \
         committed here; what is up stays up, and is not replicated. Cancel it: backstay failover cancel {name}"
    )]
    TakenOver {
        /// The name.
        name: DiskName,
        /// The newest term.
        term: Term,
        /// Whose it is.
        writer: String,
    },
    /// Nothing has failed, but the command would not be safe.
    #[error("{0}")]
    NotSafe(String),
    /// An action on this host failed.
    #[error("{0}")]
    Host(#[from] HostError),
    /// Bringing up or removing a mounted point failed.
    #[error("{0}")]
    Lazy(#[from] MountError),
    /// Another error, with the action that failed.
    #[error("{doing}: {source}")]
    At {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: Box<FailoverError>,
    },
    /// The disk did not become quiet.
    #[error("disk {name}: {reason}; run the handover again, or cancel it")]
    NotStopped {
        /// The name.
        name: DiskName,
        /// What it says of itself.
        reason: String,
    },
}

impl Classified for FailoverError {
    fn class(&self) -> Class {
        match self {
            Self::Vault(e) => e.class(),
            Self::Host(e) => e.class(),
            Self::Lazy(e) => e.class(),
            Self::At { source, .. } => source.class(),
            Self::State { .. } | Self::NotStopped { .. } => Class::Person,
            Self::Illegal { .. }
            | Self::Busy { .. }
            | Self::Refused { .. }
            | Self::NotHandedOver { .. }
            | Self::NotQuiet { .. }
            | Self::LeftHistory { .. }
            | Self::TakenOver { .. }
            | Self::NotSafe(_) => Class::Refused,
        }
    }
}

impl FailoverError {
    /// This error, with the action that failed.
    #[must_use]
    pub fn while_doing(self, doing: String) -> Self {
        Self::At { doing, source: Box::new(self) }
    }
}

/// Refuses to serve a disk that another host has or may take at any moment.
///
/// # Errors
/// Why, and what to do instead.
pub fn refuse_to_serve(state_root: &Path, name: &DiskName) -> Result<()> {
    let Some(record) = FailoverRecord::load(state_root, name)? else { return Ok(()) };
    let reason = match record.state {
        State::HandingOver | State::HandedOver | State::TakingBack => format!(
            "it was handed over{}: another host may serve it. {}",
            record
                .point
                .map_or(String::new(), |point| format!(" at recovery point {}", point.cycle)),
            way_on(name, record.kind, record.state)
        ),
        State::Seeding | State::TakingOver => format!(
            "it is being brought back: run backstay failback {name} again, which goes on where it was"
        ),
        State::Removing => format!(
            "what is left of it is being removed: {}",
            way_on(name, record.kind, record.state)
        ),
        State::Starting | State::Up | State::Committing | State::Committed => return Ok(()),
    };
    Err(FailoverError::Refused { name: name.clone(), reason })
}

/// The commands that lead on from a state, as a sentence. docs/reference/failover-states.md lists all of them.
#[must_use]
pub fn way_on(name: &DiskName, kind: Kind, state: State) -> String {
    let failback = format!("backstay failback {name} --to BACKING goes on");
    let leave = format!("backstay unprotect {name} --keep-points");
    match (kind, state) {
        (Kind::Test, _) => format!("backstay failover cleanup {name} removes it"),
        (_, State::HandedOver) => format!(
            "backstay failover cancel {name} takes it back as long as nobody has taken it over, backstay failback \
             {name} --to BACKING brings it back after that, {leave} gives it up here"
        ),
        (_, State::HandingOver | State::TakingBack) => {
            format!("backstay failover cancel {name} takes it back")
        }
        (Kind::Source, State::Removing) => format!("{leave} goes on"),
        (Kind::Failback, State::Seeding) => {
            format!("{failback}, backstay failover cancel {name} gives that up")
        }
        (_, State::Committed) => format!(
            "backstay failover handover {name} gives it to another host; after that {leave} gives it up here"
        ),
        (Kind::Failback, _) | (_, State::Seeding | State::TakingOver) => failback,
        (_, State::Committing) => format!("backstay failover commit {name} goes on"),
        (_, State::Up) => format!(
            "backstay failover commit {name} makes it this host's, backstay failover cancel {name} removes it"
        ),
        (_, State::Starting | State::Removing) => {
            format!("backstay failover cancel {name} removes it")
        }
    }
}

/// The failover record to remove when a disk leaves this host and its points are kept; none if the disk was never
/// failed over. For a disk that was handed over, nothing is lost: its last point is in the vault.
///
/// # Errors
/// If a failover is unfinished. The error names the command that ends it.
pub fn record_that_leaves(state_root: &Path, name: &DiskName) -> Result<Option<FailoverRecord>> {
    let Some(record) = FailoverRecord::load(state_root, name)? else { return Ok(None) };
    match (record.kind, record.state) {
        (Kind::Test, _) => {}
        (_, State::Committed | State::HandedOver) | (Kind::Source, State::Removing) => {
            return Ok(Some(record));
        }
        _ => {}
    }
    let way_on = way_on(name, record.kind, record.state);
    let reason = format!("it is {}: {way_on}", record.state.explain());
    Err(FailoverError::Refused { name: name.clone(), reason })
}

/// The name of the kill points of failovers, for tests.
pub const STEPS: &str = "failover";

/// Called before every durable step; tests kill the process there.
pub fn step() {
    #[cfg(test)]
    kill_tests::step();
    kill_point::step(STEPS, "");
}

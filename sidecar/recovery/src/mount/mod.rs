//! A recovery point served as a protected disk at once: its blocks come from the vault when they are read.
//!
//! For other parts and the command:
//!
//! - [`PointChoice`]: `latest`, a cycle, or a time; [`choose`] finds the point in a vault
//! - [`serve`]: serves a point in this process until it is told to stop; [`start`]: the same in the
//!   background (before any thread was started); [`spawn`]: by running the command, from anywhere
//! - [`MountedPoint::load`]: which point a disk of this host is of, if it is a mounted point
//! - [`Mounted::load`]: how a mounted point is now; [`Hydration`]: whether it is to be hydrated
//! - [`forget`]: removes everything this host has of a mounted point, and its hold in the vault
//!
//! docs/explanation/mount.md says how it works and what survives what; docs/explanation/format.md has the files.
//!
//! Reading order: `medium`, `map`, `present`, `overlay` (what was written), `index`, `window` (where a
//! sector is in the vault), `flight`, `fetch`, `cache`, `source` (reading the point), `ahead`, `backing` (both
//! together), `hydrate`, `keeper` (the hold), `record`, `make`, `mount` (start and end).

mod ahead;
mod backing;
mod cache;
mod choice;
mod fetch;
mod heap;
mod hydrate;
mod index;
mod keeper;
mod make;
mod map;
mod medium;
mod overlay;
mod present;
mod record;
mod serve;
mod single_flight;
mod source;
mod window;

use std::io;
use std::path::PathBuf;

use backstay_types::{Class, Classified, DiskName};
use backstay_vault::VaultError;

pub use choice::{PointChoice, choose};
pub use make::forget;
pub use record::{FirstRead, Hydration, HydrationStatus, Mounted, MountedPoint};
pub use serve::{MountOptions, serve, spawn, start};

/// Why something was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The vault cannot be reached, or does not answer.
    Gone(String),
    /// What the vault holds is not right. It stays so.
    Damaged(String),
    /// The local files cannot be used.
    Local(String),
    /// A local index is damaged: it has to be fetched again.
    IndexLost,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(why) => write!(f, "the vault cannot be reached: {why}"),
            Self::Damaged(what) => f.write_str(what),
            Self::Local(what) => f.write_str(what),
            Self::IndexLost => f.write_str("a local index is damaged"),
        }
    }
}

/// Why a point was not mounted, or a mounted point not changed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The vault did not do it.
    #[error("{0}")]
    Vault(#[from] VaultError),
    /// It would not be safe.
    #[error("disk {name}: {reason}. Nothing was changed")]
    Refused {
        /// The disk on this host.
        name: DiskName,
        /// Why.
        reason: String,
    },
    /// There is no such point.
    #[error("{0}")]
    NoPoint(String),
    /// What is here of the mounted point is damaged.
    #[error(
        "disk {name}: {what}. What was written to the mounted point since then may be lost; nothing was \
         changed. To give it up and mount the point again: backstay umount {name} --forget"
    )]
    Damaged {
        /// The disk on this host.
        name: DiskName,
        /// What.
        what: String,
    },
    /// The driver said no.
    #[error("disk {name} was not mounted: {said}")]
    Driver {
        /// The disk on this host.
        name: DiskName,
        /// What it said.
        said: String,
        /// What to do about it.
        class: Class,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What it answered.
        source: io::Error,
    },
}

impl Classified for MountError {
    fn class(&self) -> Class {
        match self {
            Self::Vault(e) => e.class(),
            Self::Refused { .. } => Class::Refused,
            Self::NoPoint(_) => Class::Person,
            Self::Damaged { .. } => Class::Damaged,
            Self::Driver { class, .. } => *class,
            Self::Io { source, .. } => source.class(),
        }
    }
}

impl MountError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}

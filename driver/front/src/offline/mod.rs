//! What can be done to a disk while no driver serves it: moving it to another backing, renaming it.
//!
//! Both hold the disk's lock all the time, want a clean stop before, and take effect with one durable
//! step: killed before it, nothing has happened; after it, what is left to do is tidying, which the
//! same command does when it is run again.

mod relocate;
mod rename;

use backstay_track::TrackError;
use backstay_types::{Class, Classified, DiskName};

pub use relocate::{Moved, Relocation, relocate};
pub use rename::{Renaming, Stage};

use crate::backing::OpenError;
use crate::backing::copy::CopyError;
use crate::life::DriverError;

/// Why something was not done to a disk that nobody serves.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is no such disk on this host.
    #[error("there is no disk {name} on this host (no superblock in {state})")]
    NoDisk {
        /// The name.
        name: DiskName,
        /// Its state directory.
        state: String,
    },
    /// The disk is served, or its lock not to be had.
    #[error("{0}; umount the disk first. Nothing was changed")]
    Served(DriverError),
    /// The disk's state does not allow it.
    #[error("disk {name}: {source}. Nothing was changed")]
    State {
        /// The disk.
        name: DiskName,
        /// Why.
        source: TrackError,
    },
    /// It would not be safe.
    #[error("{0}. Nothing was changed")]
    Refused(String),
    /// A backing cannot be used.
    #[error("{0}. Nothing was changed")]
    Backing(#[from] OpenError),
    /// The copy failed; the disk has its old backing.
    #[error("{0}. The disk still has its old backing")]
    Copy(#[from] CopyError),
    /// The system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system answered.
        source: std::io::Error,
    },
}

impl Classified for OfflineError {
    fn class(&self) -> Class {
        match self {
            Self::NoDisk { .. } => Class::Person,
            Self::Served(e) => e.class(),
            Self::State { source, .. } => source.class(),
            Self::Refused(_) => Class::Refused,
            Self::Backing(e) => e.class(),
            Self::Copy(e) => e.class(),
            Self::Io { source, .. } => source.class(),
        }
    }
}

pub(crate) fn io_error(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> OfflineError {
    let doing = doing.into();
    move |source| OfflineError::Io { doing, source }
}

//! Why something was not done on this host.

use backstay_types::{Class, Classified};
use std::io;

use backstay_engine::CycleError;
use backstay_front::control::ClientError;
use backstay_host::own_dir::OwnDirError;
use backstay_host::record::RecordError;

use crate::replica::ReplicaError;

/// Why something was not done on this host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Nothing is wrong, but it would not be safe.
    #[error("{0}")]
    Refused(String),
    /// It failed; a person must act.
    #[error("{0}")]
    Failed(String),
    /// It failed while something was being done.
    #[error("{doing}: {source}")]
    At {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: Box<HostError>,
    },
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A driver did not do it.
    #[error("{0}")]
    Driver(#[source] Box<ClientError>),
    /// No recovery point was made.
    #[error("{0}")]
    Cycle(#[source] Box<CycleError>),
    /// A folder of ours is somebody else's.
    #[error("{0}")]
    OwnDir(#[from] OwnDirError),
    /// What is known cannot be read.
    #[error("{0}")]
    Record(#[from] RecordError),
    /// A replica did not get there.
    #[error("{0}")]
    Replica(#[source] Box<ReplicaError>),
}

impl Classified for HostError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(_) => Class::Refused,
            Self::Failed(_) => Class::Person,
            Self::At { source, .. } => source.class(),
            Self::Io(e) => e.class(),
            Self::Driver(e) => e.class(),
            Self::Cycle(e) => e.class(),
            Self::OwnDir(e) => e.class(),
            Self::Record(e) => e.class(),
            Self::Replica(e) => e.class(),
        }
    }
}

macro_rules! boxed {
    ($($kind:ident of $error:ty),*) => {
        $(impl From<$error> for HostError {
            fn from(error: $error) -> Self {
                Self::$kind(Box::new(error))
            }
        })*
    };
}
boxed!(Driver of ClientError, Cycle of CycleError, Replica of ReplicaError);

impl HostError {
    /// Whether another cycle of the disk runs.
    #[must_use]
    pub fn is_busy_cycle(&self) -> bool {
        match self {
            Self::At { source, .. } => source.is_busy_cycle(),
            Self::Cycle(e) => e.is_busy(),
            _ => false,
        }
    }
}

/// Says what was being done when it failed.
pub(crate) trait Doing<T> {
    /// In a few words, of which disk.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, HostError>;
}

impl<T, E: Into<HostError>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|e| HostError::At { doing: what(), source: Box::new(e.into()) })
    }
}

impl<T> Doing<T> for Option<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, HostError> {
        self.ok_or_else(|| HostError::Failed(what()))
    }
}

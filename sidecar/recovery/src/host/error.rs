//! Why something was not done on this host.

use std::io;

use backstay_engine::CycleError;
use backstay_front::control::ClientError;
use backstay_host::own_dir::OwnDirError;
use backstay_host::record::RecordError;
use backstay_vault::VaultError;

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
    /// What the vault said, if it was that.
    fn vault(&self) -> Option<&VaultError> {
        match self {
            Self::Cycle(e) => match &**e {
                CycleError::Vault(e) => Some(e),
                _ => None,
            },
            Self::Replica(e) => match &**e {
                ReplicaError::Vault(e) => Some(e),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether nothing is wrong but it would not be safe.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        if self.vault().is_some_and(VaultError::is_refusal) {
            return true;
        }
        match self {
            Self::Refused(_) => true,
            Self::At { source, .. } => source.is_refusal(),
            Self::Driver(e) => e.is_busy(),
            Self::Cycle(e) => e.is_busy() || e.is_refusal(),
            Self::OwnDir(e) => e.is_refusal(),
            Self::Replica(e) => e.is_refusal(),
            Self::Failed(_) | Self::Io(_) | Self::Record(_) => false,
        }
    }

    /// Whether damaged data was found.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        if self.vault().is_some_and(VaultError::is_damage) {
            return true;
        }
        match self {
            Self::At { source, .. } => source.is_damage(),
            Self::Cycle(e) => e.is_damage(),
            Self::Record(e) => e.is_damage(),
            Self::Replica(e) => e.is_damage(),
            _ => false,
        }
    }

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

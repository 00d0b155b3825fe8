//! Why a replica did not do what was asked.

use std::io;
use std::path::{Path, PathBuf};

use backstay_format::FormatError;
use backstay_front::backing::OpenError;
use backstay_front::life::DriverError;
use backstay_front::offline::OfflineError;
use backstay_track::TrackError;
use backstay_types::{ByteLen, Class, Classified, CycleNo, DiskName};
use backstay_vault::VaultError;

/// Why a replica did not do what was asked. What it holds is in its standing.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Another process has it.
    #[error("replica {name}: {source}")]
    Running {
        /// Its name.
        name: DiskName,
        /// Who has it.
        source: Box<DriverError>,
    },
    /// It would not be safe.
    #[error("replica {name}: {reason}. Nothing was changed")]
    Refused {
        /// Its name.
        name: DiskName,
        /// Why, and what to do.
        reason: String,
    },
    /// There is no such replica.
    #[error("there is no replica {name} on this host (looked in {dir}); start one with --to")]
    None {
        /// Its name.
        name: DiskName,
        /// Where.
        dir: PathBuf,
    },
    /// It was made a disk.
    #[error(
        "replica {0} was taken over: its target is the backing of disk {0} now. To make it a replica \
         again, fail back, or umount the disk and start again with --seed changes"
    )]
    TakenOver(DiskName),
    /// It is at no whole point.
    #[error("replica {name} is not at a whole point and needs its vault to get there: {standing}")]
    NotWhole {
        /// Its name.
        name: DiskName,
        /// What it is.
        standing: String,
    },
    /// The vault has no points.
    #[error("disk {0} has no recovery point in this vault yet")]
    NoPoint(DiskName),
    /// The vault's newest point is older than what the replica holds, or of another history.
    #[error(
        "the vault's newest recovery point is {newest}, the replica is at {at} {how}; a replica never \
         goes back by itself. If the vault is the right one, use --seed compare --force"
    )]
    Behind {
        /// The vault's newest.
        newest: CycleNo,
        /// The replica's.
        at: CycleNo,
        /// How they differ.
        how: &'static str,
    },
    /// Its state is damaged.
    #[error("{path}: {source}; remove the folder it is in and seed the replica again")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The redo log is damaged.
    #[error("redo log {path}: {source}; nothing of it was written")]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The target is too small.
    #[error(
        "{path} has {there} bytes, recovery point {cycle} needs {needed}: extend the device. The \
         replica stays where it is"
    )]
    TooSmall {
        /// The target.
        path: PathBuf,
        /// Bytes it has.
        there: ByteLen,
        /// The point.
        cycle: CycleNo,
        /// Bytes it needs.
        needed: ByteLen,
    },
    /// The target cannot be used.
    #[error("target: {0}")]
    Target(#[from] OpenError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The old state of a disk that becomes a replica.
    #[error("disk {name}: {source}. Nothing was changed")]
    Track {
        /// The disk.
        name: DiskName,
        /// Why.
        source: TrackError,
    },
    /// The same, while no driver serves it.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// It was told to stop; what was done is done.
    #[error("stopped; the replica goes on where it is when it is started again")]
    Stopped,
    /// The system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl Classified for ReplicaError {
    fn class(&self) -> Class {
        match self {
            Self::Running { .. }
            | Self::Refused { .. }
            | Self::TakenOver(_)
            | Self::NotWhole { .. }
            | Self::Behind { .. } => Class::Refused,
            Self::None { .. } | Self::Stopped => Class::Person,
            Self::NoPoint(_) | Self::TooSmall { .. } => Class::Retry,
            Self::State { .. } | Self::Log { .. } => Class::Damaged,
            Self::Target(e) => e.class(),
            Self::Vault(e) => e.class(),
            Self::Track { source, .. } => source.class(),
            Self::Offline(e) => e.class(),
            Self::Io { source, .. } => source.class(),
        }
    }

    fn may_pass(&self) -> bool {
        match self {
            // A vault on a file system that is not mounted, or a share that is gone, looks like this.
            Self::Vault(
                VaultError::Url { .. } | VaultError::NotFound { .. } | VaultError::NoVault { .. },
            ) => true,
            // Another point is there by now.
            Self::Vault(VaultError::Retired(_)) => true,
            Self::Vault(VaultError::Target { source, .. }) | Self::Io { source, .. } => {
                full(source)
            }
            Self::Vault(e) => e.may_pass() && e.class() != Class::Person,
            // It is fetched again.
            Self::Log { .. } => true,
            Self::NoPoint(_) | Self::TooSmall { .. } => true,
            _ => false,
        }
    }
}

fn full(source: &io::Error) -> bool {
    matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Adds what was being done.
pub(super) fn io_error(doing: impl Into<String>) -> impl FnOnce(io::Error) -> ReplicaError {
    let doing = doing.into();
    move |source| ReplicaError::Io { doing, source }
}

/// The same for a file.
pub(super) fn on(doing: &str, path: &Path) -> impl FnOnce(io::Error) -> ReplicaError + use<> {
    io_error(format!("{doing} {}", path.display()))
}

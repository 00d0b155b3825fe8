//! Errors of control operations on a protected disk. The guest never sees them.

use std::io;

use backstay_format::FormatError;
use backstay_types::{ByteLen, Class, Classified, EpochNo};

/// Why opening, cutting, releasing or closing failed.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The state directory or its memory could not be used.
    #[error("{doing}: {source}")]
    State {
        /// What was being done.
        doing: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// The backing could not be read or written.
    #[error("backing: {doing}: {source}")]
    Backing {
        /// What was being done.
        doing: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// Neither slot of the superblock can be read.
    #[error(
        "the disk's superblock is unusable ({0}); nothing was changed. If the state directory \
         cannot be restored, move it away and mount again: the disk will be new to Backstay and \
         ship whole"
    )]
    Superblock(FormatError),
    /// The backing is larger than the protected disk.
    #[error(
        "the backing has {found} bytes, the protected disk {expected}; nothing was changed. If the \
         backing was extended and the disk should grow with it, mount it with --grow; if not, mount \
         the right backing"
    )]
    Larger {
        /// Bytes the superblock says.
        expected: ByteLen,
        /// Bytes the backing has.
        found: ByteLen,
    },
    /// The requested size is below the size of the disk or of its backing.
    #[error(
        "the disk has {size} bytes and its backing {there}: it cannot become {asked}; a protected \
         disk never shrinks, and never uses a part of its backing only. Nothing was changed"
    )]
    GrowTo {
        /// Bytes the disk has.
        size: ByteLen,
        /// Bytes the backing has.
        there: ByteLen,
        /// Bytes asked for.
        asked: ByteLen,
    },
    /// A growth could not be finished.
    #[error(
        "{source}; the disk keeps its old size, and the backing may have the new one. Fix the cause \
         and grow the disk again, or mount it again, which finishes the growth"
    )]
    Unfinished {
        /// Why it could not be finished.
        source: Box<TrackError>,
    },
    /// The backing is smaller than the protected disk.
    #[error(
        "the backing has {found} bytes, the protected disk {expected}; nothing was changed. A \
         protected disk never shrinks: mount the right backing, or give it back its size"
    )]
    Size {
        /// Bytes the superblock says.
        expected: ByteLen,
        /// Bytes the backing has.
        found: ByteLen,
    },
    /// A backing that cannot be protected.
    #[error("a backing of {0} bytes cannot be protected (1 byte to 1 PiB can)")]
    Unfit(ByteLen),
    /// The state of the disk does not allow the operation.
    #[error("{0}")]
    Order(&'static str),
    /// The epoch named is not the newest closed one.
    #[error("epoch {asked} is not the newest closed one ({closed:?})")]
    WrongEpoch {
        /// The epoch that was named.
        asked: EpochNo,
        /// The newest closed one.
        closed: Option<EpochNo>,
    },
}

impl TrackError {
    /// Whether the state or runtime directory is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::State { source, .. } if full.contains(&source.kind()))
    }
}

impl Classified for TrackError {
    fn class(&self) -> Class {
        match self {
            Self::State { source, .. } | Self::Backing { source, .. } => source.class(),
            Self::Superblock(e) => e.class(),
            Self::Unfinished { source } => source.class(),
            Self::Order(_) => Class::Refused,
            Self::Larger { .. }
            | Self::GrowTo { .. }
            | Self::Size { .. }
            | Self::Unfit(_)
            | Self::WrongEpoch { .. } => Class::Person,
        }
    }
}

/// Adds what was being done to an I/O error of the state directory.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, TrackError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, TrackError> {
        self.map_err(|source| TrackError::State { doing, source })
    }
}

//! Why a control operation on a protected disk was not done. The guest never sees these.

use std::io;

use backstay_format::{ByteLen, EpochNo, FormatError};

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
    /// The backing's size is not the protected disk's.
    #[error(
        "the backing has {found} bytes, the protected disk {expected}; nothing was changed. \
         Mount the right backing, or give it back its size"
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
    /// The operation does not fit the state the disk is in.
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

/// Adds what was being done to an I/O error of the state directory.
pub(crate) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, TrackError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str) -> Result<T, TrackError> {
        self.map_err(|source| TrackError::State { doing, source })
    }
}

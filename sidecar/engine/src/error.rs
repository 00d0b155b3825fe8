//! Why a cycle failed, and what to do about it.

use std::io;

use backstay_driver::control::ClientError;
use backstay_format::FormatError;
use backstay_vault::{Class, VaultError};

/// Why a cycle failed. Its sectors are dirty again and ship with the next one.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    /// The driver does not answer or refused.
    #[error(transparent)]
    Driver(#[from] ClientError),
    /// The vault failed or refused.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The disk could not be read.
    #[error("reading {what}: {source}")]
    Source {
        /// What was being read.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The preserved blocks are not what they should be.
    #[error("preserved blocks: {0}; the next cycle ships these sectors")]
    Preserved(FormatError),
    /// The driver could not keep the disk of the cut.
    #[error("the cycle lost its point in time: {0}; the next cycle ships these sectors")]
    Lost(String),
    /// A disk of this name is in the vault, and it is another one.
    #[error(
        "the vault has another disk named {name}; mount this one under another name, or use \
         another vault"
    )]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The point would not have been application-consistent, and the settings want no other.
    #[error("no application-consistent point could be made (hooks.require is set): {0}")]
    Hooks(String),
    /// The cycle was told to stop.
    #[error("the cycle was stopped")]
    Stopped,
    /// A stage of the pipeline ended without saying why.
    #[error("the pipeline broke ({0}); this is a fault of Backstay")]
    Broken(&'static str),
    /// zstd refused.
    #[error("compressing: {0}")]
    Compress(io::Error),
}

impl CycleError {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Vault(e) => e.class(),
            Self::NameTaken { .. } => Class::PersonMustAct,
            _ => Class::Recoverable,
        }
    }

    /// Whether somebody else is at it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Driver(e) if e.is_busy())
    }

    pub(crate) fn source(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Source { what, source }
    }
}

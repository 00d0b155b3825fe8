//! Consistency groups: disks of one or several hosts, cut at the same instant. docs/explanation/groups.md
//! explains the guarantee and why it holds.
//!
//! - `settings`: the settings of groups
//! - [`crew`]: the members of a round, the requests to them and their answers
//! - `disk`: a disk of this host as a member: an ordinary cycle whose cut waits for the crew
//! - [`round`]: one round, from prepare to the group point
//! - [`wire`]: the messages between hosts; [`tls`] and [`link`]: their transport
//! - [`hosts`]: the coordinator's side; [`member`]: the side of the other hosts
//! - [`service`]: runs the rounds of all groups of this host

pub mod crew;
mod disk;
pub mod hosts;
pub mod link;
pub mod member;
pub mod round;
pub mod service;
mod settings;
pub mod tls;
pub mod wire;

use backstay_types::{Class, Classified};
use backstay_vault::{GroupName, VaultError};

pub use disk::{Current, LocalDisk, Shipping};
pub use round::{GroupJob, GroupReport, MemberReport, run_group};
pub use settings::{CoordinatorConfig, Group, GroupConfig, MemberConfig, PORT_DEFAULT, TlsConfig};

/// Why a group could not be run at all. A round without a group point is no error but a
/// [`GroupReport`] that says why.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The configuration makes no sense.
    #[error("group {group}: {reason}")]
    Config {
        /// The group.
        group: GroupName,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// Certificates or keys cannot be used.
    #[error("{0}")]
    Tls(#[from] tls::TlsError),
    /// The system refused.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// The vault failed or refused.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Classified for GroupError {
    fn class(&self) -> Class {
        match self {
            Self::Config { .. } => Class::Person,
            Self::Tls(e) => e.class(),
            Self::Io { .. } => Class::Retry,
            Self::Vault(e) => e.class(),
        }
    }

    fn may_pass(&self) -> bool {
        match self {
            Self::Vault(e) => e.may_pass(),
            _ => self.class() == Class::Retry,
        }
    }
}

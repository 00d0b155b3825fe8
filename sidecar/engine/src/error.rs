//! Why a cycle failed, and what to do about it.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use backstay_format::FormatError;
use backstay_format::control::BackingFault;
use backstay_front::control::ClientError;
use backstay_types::{Class, Classified, CycleNo, DiskName};
use backstay_vault::{VaultError, Vaults};

use crate::home::HomeError;

/// Why a cycle failed. Its sectors are dirty again and ship with the next one.
#[derive(Debug, thiserror::Error)]
pub enum CycleError {
    /// The driver does not answer or refused.
    #[error(transparent)]
    Driver(#[from] ClientError),
    /// Another cycle of the disk runs.
    #[error(
        "disk {name}: another cycle runs ({by}). Nothing was changed; backstay status {name} shows it, and this command \
         works when it has ended"
    )]
    Busy {
        /// The disk.
        name: DiskName,
        /// Who runs it.
        by: String,
    },
    /// The vault failed or refused.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The disk is not shipped to that vault.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The vault is on the disk.
    #[error(
        "disk {name}: vault {vault} is on this very disk. It would be lost with the disk, and each cycle would make the \
         next one. Nothing was shipped. Use a vault elsewhere: backstay set {name} --vault URL"
    )]
    VaultOnDisk {
        /// The disk.
        name: DiskName,
        /// The vault.
        vault: String,
    },
    /// The disk could not be read.
    #[error("reading {what}: {source}")]
    Source {
        /// What was being read.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
    /// The backing is not what the disk is served from any more.
    #[error(
        "{}. {}, then: backstay resume {name}",
        fault.message,
        capital(&fault.advice(name))
    )]
    Backing {
        /// The disk.
        name: DiskName,
        /// What is wrong.
        fault: BackingFault,
    },
    /// The preserved blocks are not what they should be.
    #[error("preserved blocks: {0}; the next cycle ships these sectors")]
    Preserved(FormatError),
    /// The driver could not keep the disk of the cut.
    #[error("the cycle lost its point in time: {0}; the next cycle ships these sectors")]
    Lost(String),
    /// Nothing proves that the disk is newer than the vault; see [`crate::cycle`]'s flow.
    #[error(
        "the vault has recovery points of disk {name} that this disk does not know as its own \
         (newest: {newest}, cut {}; the disk counts from {}). {} Nothing was shipped. If the disk is \
         right and what it holds shall follow these points, say so: backstay resync {name} --now \
         --the-disk-is-right. If the vault is right, restore the disk from it. If it is another \
         disk, give it another name",
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(*cut_unix_ns)),
        known.map_or("no point".into(), |cycle| format!("point {cycle}")),
        match known {
            Some(known) if known > newest =>
                "A point that this disk made is not there any more: somebody deleted it, or the vault is an older copy.",
            _ => "It may be older than they are, as after coming back from a backup, or another disk.",
        }
    )]
    WhichSide {
        /// The disk.
        name: String,
        /// The vault's newest point.
        newest: CycleNo,
        /// Its cut, nanoseconds since 1970.
        cut_unix_ns: u64,
        /// The point that the disk counts from.
        known: Option<CycleNo>,
    },
    /// The newest point cannot be read, so nothing can be laid over it.
    #[error(
        "{source}. It is the newest recovery point of disk {name}, so nothing can follow it; older points are not \
         touched. Nothing was shipped. If it cannot be brought back (the vault's backup, backstay vault undelete), \
         begin again with a full copy: backstay resync {name} --now --full"
    )]
    NewestDamaged {
        /// The disk.
        name: String,
        /// What is wrong with it.
        source: VaultError,
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

impl Classified for CycleError {
    fn class(&self) -> Class {
        match self {
            Self::Driver(e) => e.class(),
            Self::Vault(e) => e.class(),
            Self::Home(e) => e.class(),
            Self::Busy { .. } | Self::VaultOnDisk { .. } => Class::Refused,
            Self::NewestDamaged { .. } => Class::Damaged,
            Self::WhichSide { .. } | Self::Backing { .. } => Class::Person,
            Self::Source { .. }
            | Self::Preserved(_)
            | Self::Lost(_)
            | Self::Hooks(_)
            | Self::Stopped
            | Self::Compress(_) => Class::Retry,
            Self::Broken(_) => Class::Bug,
        }
    }

    /// Its sectors ship with the next cycle: unless a person has to decide something, that is tried.
    fn may_pass(&self) -> bool {
        match self {
            Self::Vault(e) => e.may_pass(),
            Self::Driver(e) => e.class() != Class::Person,
            Self::Busy { .. } | Self::Broken(_) => true,
            _ => self.class() == Class::Retry,
        }
    }
}

impl CycleError {
    /// What it means: an object that is not there is a vault that is away, if the vault is not there either
    /// (its file system was unmounted meanwhile). That heals by itself; an object that is missing does not.
    #[must_use]
    pub fn explained(self, vaults: &Vaults, url: &str) -> Self {
        let missing = matches!(self, Self::Vault(VaultError::NotFound { .. }));
        match missing.then(|| vaults.open(url).err()).flatten() {
            Some(gone @ VaultError::VaultGone { .. }) => gone.into(),
            _ => self,
        }
    }

    /// Whether the disk was failed over: another host writes it now (I5).
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Vault(VaultError::Fenced { .. }))
    }

    /// Whether points that this disk made are not in the vault any more: all of them, or the newest.
    #[must_use]
    pub fn is_vanished(&self) -> bool {
        match self {
            Self::Vault(VaultError::PointsVanished { .. })
            | Self::Home(HomeError::Forgotten { .. }) => true,
            Self::WhichSide { newest, known, .. } => known.is_some_and(|known| known > *newest),
            _ => false,
        }
    }

    /// Whether somebody else is at it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. }) || matches!(self, Self::Driver(e) if e.is_refusal())
    }

    /// Whether it is neither the disk's trouble nor the vault's: the disk was unmounted, or we were told to stop, or
    /// somebody else runs a cycle of it.
    #[must_use]
    pub fn is_nobodys_fault(&self) -> bool {
        self.is_busy()
            || matches!(self, Self::Stopped | Self::Driver(ClientError::NotRunning { .. }))
    }

    pub(crate) fn source(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Source { what, source }
    }
}

/// A sentence's first letter, large.
fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

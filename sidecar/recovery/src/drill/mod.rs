//! Points that were tried: mounted, checked, and the verdict put beside them in the vault.
//!
//! - `mounted`: a drill from its beginning to its end
//! - `fsck`: file systems are mounted and checked
//! - [`boot`]: a machine is started
//!
//! What counts as passed, and what a drill leaves when it is killed: docs/explanation/drills.md.

pub mod boot;
mod fsck;
mod mounted;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use backstay_types::{Class, Classified, DiskName};
use backstay_vault::{DrillCheck, VaultError};

use crate::mount::MountError;
use crate::run::{run_to_us, shell};
pub use boot::Boot;
pub use mounted::{Drill, drill, records};

/// How a point is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Its file systems are mounted and checked.
    Fsck,
    /// A line for the shell that must end with 0.
    Command(String),
    /// A machine is started from it.
    Boot(Boot),
}

impl Check {
    /// What it is in a verdict.
    #[must_use]
    pub fn kind(&self) -> DrillCheck {
        match self {
            Self::Fsck => DrillCheck::Fsck,
            Self::Command(_) => DrillCheck::Command,
            Self::Boot(_) => DrillCheck::Boot,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the point passed.
    pub passed: bool,
    /// What was found. For people.
    pub message: String,
}

/// Why there is no verdict: the point was not tried.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The point was not mounted.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Another one is at it.
    #[error("another drill of disk {0} is running on this host")]
    Busy(DiskName),
    /// Something of this host.
    #[error("{0}")]
    Io(io::Error),
    /// A program that is needed.
    #[error("{0}")]
    Tool(String),
    /// It was told to stop.
    #[error("the drill was stopped; it says nothing of the point")]
    Stopped,
}

impl Classified for DrillError {
    fn class(&self) -> Class {
        match self {
            Self::Vault(e) => e.class(),
            Self::Mount(e) => e.class(),
            Self::Busy(_) => Class::Refused,
            Self::Io(e) => e.class(),
            Self::Tool(_) | Self::Stopped => Class::Person,
        }
    }
}

/// Tries a disk that is served as a file. Whatever it attached is gone when this returns.
///
/// # Errors
/// If it could not be tried; that says nothing of the disk.
pub fn try_disk(
    served: &Path,
    check: &Check,
    work: &Path,
    environment: &[(&str, OsString)],
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Verdict, DrillError> {
    match check {
        Check::Fsck => fsck::check(served, work, timeout, stop),
        Check::Boot(boot) => boot::check(boot, served, timeout, stop),
        Check::Command(line) => {
            let device = fsck::Loop::attach(served, None, stop)?;
            let mut command = shell(line);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            command.env("BACKSTAY_DISK", served).env("BACKSTAY_DEVICE", &device.0);
            command.env("BACKSTAY_WORK", work);
            let ended = run_to_us(command, timeout, stop);
            let (ended, said) = ended.map_err(DrillError::Io)?;
            if ended == crate::run::Ended::Stopped {
                return Err(DrillError::Stopped);
            }
            let passed = ended.is_success();
            let message = format!("{line:?}: {}; {said}", ended.words(timeout));
            Ok(Verdict { passed, message })
        }
    }
}

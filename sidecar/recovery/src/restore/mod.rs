//! A recovery point to a file or a block device, so that nothing half written is ever taken for a disk.
//!
//! - [`Goal`]: where to write; refused if somebody uses it, whatever `--force` says
//! - [`Part`]: a file in the making, beside its place; it gets its name when it is whole
//! - `device`: a block device, marked while it is written
//!
//! Why it is made so: docs/decisions/0017-restores-take-effect-at-once.md.

mod device;
mod goal;
mod part;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_host::kill_point;
use backstay_types::{ByteLen, Class, Classified, DiskName};
use backstay_vault::read::{Fetch, FileTarget, Progress, RestoreTarget};
use backstay_vault::{Manifest, Vault, VaultError};

pub use goal::{Goal, GoalError, Occupied};
pub use part::Part;

/// Sectors after which a restore to a file notes how far it is: 256 MiB. Each costs a sync.
const STRETCH_SECTORS: u64 = (256 << 20) / 512;

/// A restore.
pub struct Restore<'a> {
    /// The vault.
    pub vault: &'a Vault,
    /// The disk's name there.
    pub name: &'a DiskName,
    /// The point.
    pub point: &'a Manifest,
    /// Where to.
    pub goal: &'a Goal,
    /// Threads that fetch, check and write.
    pub threads: usize,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Set from outside to end it.
    pub stop: &'a AtomicBool,
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Bytes that an earlier run had restored already.
    pub resumed: ByteLen,
}

/// Why a point was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The vault cannot be read or is damaged, or the target cannot be written.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The target must not be used.
    #[error(transparent)]
    Goal(#[from] GoalError),
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}

impl Classified for RestoreError {
    fn class(&self) -> Class {
        match self {
            Self::Vault(e) => e.class(),
            Self::Goal(e) => e.class(),
            Self::Stopped => Class::Person,
        }
    }
}

impl RestoreError {
    /// Whether the same restore may go on later: what is there is right, but not all.
    fn is_interruption(&self) -> bool {
        match self {
            Self::Vault(VaultError::Target { .. }) => false,
            Self::Vault(e) => !e.is_damage(),
            _ => false,
        }
    }
}

impl Restore<'_> {
    /// Restores the point. When this returns, all of it is durable, and a file has its name.
    ///
    /// # Errors
    /// See [`RestoreError`]. A file that was there is as it was. What was made of a new one is removed;
    /// it stays only if the vault could not be reached, for the same restore to go on with. A device that
    /// was written to is marked.
    pub fn run(&self) -> Result<Restored, RestoreError> {
        let done = match self.goal {
            Goal::File { .. } => self.to_file(),
            Goal::Device { .. } => device::restore(self),
        };
        match done {
            Err(RestoreError::Vault(VaultError::Stopped { .. })) => Err(RestoreError::Stopped),
            // The signal may have reached the network first.
            Err(e) if !e.is_refusal() && self.stop.load(Ordering::Relaxed) => {
                tracing::debug!("stopped, and: {e}");
                Err(RestoreError::Stopped)
            }
            done => done,
        }
    }

    fn to_file(&self) -> Result<Restored, RestoreError> {
        let part = Part::begin(self.goal)?;
        let filled = self.fill(&part).and_then(|resumed| {
            self.go_on()?;
            Ok(resumed)
        });
        match filled {
            Ok(resumed) => {
                part.finish(self.goal, Some(self.point.size))?;
                Ok(Restored { resumed })
            }
            Err(e) => {
                if e.is_interruption() && !self.stop.load(Ordering::Relaxed) {
                    part.keep();
                }
                Err(e)
            }
        }
    }

    /// Fetches what the part has not yet, and notes how far it is; bytes that it had.
    fn fill(&self, part: &Part) -> Result<ByteLen, RestoreError> {
        let size = self.point.size;
        let seen = part.seen(self.point).map_err(part.error("looking at"))?;
        let file = part.file().map_err(part.error("opening"))?;
        if seen == 0 {
            file.set_len(0).and_then(|()| file.set_len(size.0)).map_err(part.error("making"))?;
        }
        let target = FileTarget::on(file, part.path().into(), true);
        let mut fetch = Fetch::whole(self.vault, self.point, seen)?;
        let resumed = ByteLen((fetch.done() * 512).min(size.0));
        loop {
            let more =
                fetch.step(&target, self.threads, STRETCH_SECTORS, self.progress, self.stop)?;
            target.sync().map_err(target_error(&target))?;
            if !more {
                break;
            }
            kill_point::step("restore", "noting how far it is");
            part.note(self.point, fetch.seen()).map_err(part.error("noting how far it is in"))?;
        }
        fetch.finish()?;
        Ok(resumed)
    }

    fn go_on(&self) -> Result<(), RestoreError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(RestoreError::Stopped),
            false => Ok(()),
        }
    }
}

fn target_error(target: &dyn RestoreTarget) -> impl FnOnce(io::Error) -> VaultError {
    let what = format!("making {} durable", target.name());
    move |source| VaultError::Target { what, source }
}

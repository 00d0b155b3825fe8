//! The witness: a mark on the backing, for the case that the state directory fails.
//!
//! If the state directory cannot record a change, the driver first sets the mark to [`Tracked::NotAll`]
//! and makes it durable; only then may the change reach the backing. After a reboot, the intents are
//! trusted only if the mark says [`Tracked::All`]. If there is no mark, or no place for one (a block
//! device), the disk is compared (docs/decisions/0021).
//!
//! | the mark says | the state was | what counts as dirty |
//! |---|---|---|
//! | another disk | any | everything: somebody else served the backing |
//! | opened later than the superblock knows | any | everything: the state is an old copy |
//! | not all was tracked | any | everything |
//! | all was tracked | any | what the state says |
//! | nothing | stopped cleanly, or the bitmaps of this boot are there | what the state says |
//! | nothing | anything else | everything |

use std::io;

use backstay_format::mark::{Mark, Tracked};
use backstay_format::superblock::{Resync, Superblock};

use crate::Backing;

/// What the mark on the backing says about the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Testimony {
    /// Every change was tracked.
    Confirms,
    /// There is no mark, or no place for one.
    Silent,
    /// The state must not be trusted, for this reason.
    Denies(Resync, &'static str),
}

/// Compares the mark with the superblock.
pub(crate) fn ask<B: Backing>(backing: &B, sb: &Superblock) -> Testimony {
    let mark = match backing.mark() {
        Ok(Some(mark)) => mark,
        Ok(None) => return Testimony::Silent,
        Err(e) => {
            if e.kind() != io::ErrorKind::Unsupported {
                tracing::warn!("the mark of the backing cannot be read: {e}");
            }
            return Testimony::Silent;
        }
    };
    if mark.disk != sb.disk {
        Testimony::Denies(Resync::BackingChanged, "the backing was served as another disk since")
    } else if mark.tracked == Tracked::NotAll {
        Testimony::Denies(
            Resync::StateUnwritable,
            "the backing was changed while the state directory could not be written",
        )
    } else if mark.generation > sb.generation {
        Testimony::Denies(Resync::Unproven, "the state directory is an old copy of itself")
    } else {
        Testimony::Confirms
    }
}

/// Maintains the mark while a driver serves the disk.
#[derive(Debug)]
pub(crate) struct Witness {
    mark: Mark,
    /// The backing has our mark, so an untracked change must be recorded there.
    sworn: bool,
}

impl Witness {
    /// Sets the mark for a disk that was just opened. Its superblock is already durable.
    pub fn swear<B: Backing>(backing: &B, sb: &Superblock) -> Self {
        let mark = Mark { disk: sb.disk, generation: sb.generation, tracked: Tracked::All };
        let sworn = match backing.set_mark(&mark) {
            Ok(()) => true,
            Err(e) => {
                if e.kind() != io::ErrorKind::Unsupported {
                    tracing::warn!("the backing cannot be marked: {e}");
                }
                // The next start would trust a mark that an earlier start has left.
                ask(backing, sb) == Testimony::Confirms
            }
        };
        Self { mark, sworn }
    }

    /// Records durably that changes are not tracked from now on. Returns whether the backing has a mark.
    ///
    /// # Errors
    /// If the mark says that every change is tracked and cannot be changed. Then no untracked change may
    /// reach the backing.
    pub fn not_all<B: Backing>(&mut self, backing: &B) -> io::Result<bool> {
        if self.sworn && self.mark.tracked == Tracked::All {
            let mark = Mark { tracked: Tracked::NotAll, ..self.mark };
            backing.set_mark(&mark)?;
            self.mark = mark;
        }
        Ok(self.sworn)
    }

    /// Changes are tracked again, and the state directory is durable.
    pub fn all<B: Backing>(&mut self, backing: &B) {
        if self.mark.tracked == Tracked::All {
            return;
        }
        let mark = Mark { tracked: Tracked::All, ..self.mark };
        match backing.set_mark(&mark) {
            Ok(()) => self.mark = mark,
            // The next start then compares the disk, which is slow but safe.
            Err(e) => tracing::warn!("the mark of the backing cannot be reset: {e}"),
        }
    }
}

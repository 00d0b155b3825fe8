//! The second witness: what the backing's own mark says, should the state directory die.
//!
//! Before the first change is let through that the state directory cannot note, the mark is set to
//! [`Tracked::NotAll`] and made durable. So after a reboot a whole set of intents is believed only
//! together with a mark that says [`Tracked::All`]: where it is missing, or there is no place for one
//! (a block device), the disk is compared (docs/decisions/0021).
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

/// What a backing says about the state that is about to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Testimony {
    /// All was tracked.
    Confirms,
    /// There is no mark, or no place for one.
    Silent,
    /// The state must not be believed, for this reason.
    Denies(Resync, &'static str),
}

/// Asks the backing about a state.
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

/// The driver's side of the mark, while it serves the disk.
#[derive(Debug)]
pub(crate) struct Witness {
    mark: Mark,
    /// The backing carries a mark of ours: what is not tracked must be noted there.
    sworn: bool,
}

impl Witness {
    /// Sets the mark for a disk that was just opened; its superblock is durable.
    pub fn swear<B: Backing>(backing: &B, sb: &Superblock) -> Self {
        let mark = Mark { disk: sb.disk, generation: sb.generation, tracked: Tracked::All };
        let sworn = match backing.set_mark(&mark) {
            Ok(()) => true,
            Err(e) => {
                if e.kind() != io::ErrorKind::Unsupported {
                    tracing::warn!("the backing cannot be marked: {e}");
                }
                // A mark of an earlier start would be believed by the next one.
                ask(backing, sb) == Testimony::Confirms
            }
        };
        Self { mark, sworn }
    }

    /// Notes durably that changes are not tracked from now on; whether there is a place to note it.
    ///
    /// # Errors
    /// If the backing says that all is tracked and cannot be made to say otherwise: what is not
    /// tracked must not be changed then.
    pub fn not_all<B: Backing>(&mut self, backing: &B) -> io::Result<bool> {
        if self.sworn && self.mark.tracked == Tracked::All {
            let mark = Mark { tracked: Tracked::NotAll, ..self.mark };
            backing.set_mark(&mark)?;
            self.mark = mark;
        }
        Ok(self.sworn)
    }

    /// The state directory says durably all there is to say again.
    pub fn all<B: Backing>(&mut self, backing: &B) {
        if self.mark.tracked == Tracked::All {
            return;
        }
        let mark = Mark { tracked: Tracked::All, ..self.mark };
        match backing.set_mark(&mark) {
            Ok(()) => self.mark = mark,
            // It costs the next start a comparison.
            Err(e) => tracing::warn!("the mark of the backing cannot be taken back: {e}"),
        }
    }
}

//! How often the disk is open: it ends only when nobody has it, and nobody gets it while it ends.
//!
//! The kernel's own count does not tell this. A mount namespace that somebody makes copies all mounts; the copy of
//! this one keeps the file system busy, or alive, though nobody has the disk open there.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the open handles of the disk.
#[derive(Default)]
pub struct Opens {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    count: u64,
    /// New opens are refused.
    ending: bool,
    /// Service ends when the last handle is closed.
    ends_when_closed: bool,
}

impl Opens {
    /// Counts an open. Returns whether it is allowed.
    pub(super) fn open(&self) -> bool {
        let mut state = self.state();
        if !state.ending {
            state.count += 1;
        }
        !state.ending
    }

    /// Counts a close. Returns whether service ends now.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state();
        state.count = state.count.saturating_sub(1);
        let ends = state.count == 0 && state.ends_when_closed && !state.ending;
        state.ending |= ends;
        ends
    }

    /// Ends service now.
    ///
    /// # Errors
    /// The number of open handles, if there are any. Nothing is changed then, and service does not end later.
    pub fn end(&self) -> Result<(), u64> {
        let mut state = self.state();
        if state.count > 0 {
            return Err(state.count);
        }
        state.ending = true;
        Ok(())
    }

    /// Ends service once no handle is open. Returns whether that is now.
    #[must_use]
    pub fn end_when_closed(&self) -> bool {
        let mut state = self.state();
        state.ends_when_closed = true;
        state.ending |= state.count == 0;
        state.ending
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_nobody_has_it_and_nobody_gets_it_then() {
        let opens = Opens::default();
        assert!(opens.open() && opens.open());
        assert_eq!(opens.end(), Err(2));
        assert!(!opens.close() && !opens.close(), "a refused end is not done later");
        assert!(opens.open());
        assert!(!opens.end_when_closed());
        assert!(opens.open(), "until then it is a disk as ever");
        assert!(!opens.close());
        assert!(opens.close());
        assert!(!opens.open());
        assert_eq!(opens.end(), Ok(()));
    }
}

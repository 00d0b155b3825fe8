//! Who looks on while a shipment goes: is told what went, and may end it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backstay_vault::frame::FinishedSegment;
use backstay_vault::{Pace, SegmentRef};

use crate::error::CycleError;

/// How often one looks whether there is still something to ship for.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Says why what is shipped is of no use any more, if it is not.
pub type Watch<'a> = Box<dyn FnMut() -> Option<CycleError> + Send + 'a>;

/// Who looks on.
pub struct Beside<'a> {
    /// Told of each segment as soon as it is put and proven, by the threads that upload.
    pub put: &'a (dyn Fn(&SegmentRef) + Sync),
    /// Told how many bytes of the disk went since it was told last, by the same threads.
    pub went: &'a (dyn Fn(u64) + Sync),
    /// Asked a few times a second; what it answers ends the shipment.
    pub watch: Option<Watch<'a>>,
}

impl Default for Beside<'_> {
    fn default() -> Self {
        Self { put: &|_| (), went: &|_| (), watch: None }
    }
}

/// A pace that tells how much of the disk has gone with what it let through: what was read ahead and waits has not.
pub(super) struct Counted<'a> {
    pace: &'a dyn Pace,
    went: &'a (dyn Fn(u64) + Sync),
    /// Bytes of the disk in the segment.
    covers: u64,
    /// Bytes to be put for them, about.
    stored: u64,
    passed: AtomicU64,
    told: AtomicU64,
}

impl<'a> Counted<'a> {
    pub fn new(
        pace: &'a dyn Pace,
        segment: &FinishedSegment,
        went: &'a (dyn Fn(u64) + Sync),
    ) -> Self {
        let (covers, stored) = (segment.covers().0, segment.about().0.max(1));
        Self { pace, went, covers, stored, passed: AtomicU64::new(0), told: AtomicU64::new(0) }
    }

    /// The segment is put.
    pub fn all_went(&self) {
        self.tell(self.covers);
    }

    fn tell(&self, now: u64) {
        let before = self.told.fetch_max(now, Ordering::Relaxed);
        if now > before {
            (self.went)(now - before);
        }
    }
}

impl Pace for Counted<'_> {
    fn let_through(&self, want: u64) -> Option<u64> {
        let some = self.pace.let_through(want)?;
        // Asked for part by part, and again when a part is tried again.
        let passed = self.passed.fetch_add(some, Ordering::Relaxed) + some;
        let share = u128::from(passed.min(self.stored)) * u128::from(self.covers);
        self.tell((share / u128::from(self.stored)) as u64);
        Some(some)
    }
}

//! Held cuts: a cut that keeps the gate closed until the thaw.
//!
//! This adds nothing to the write path: a held write waits at the gate, as it does during every cut.
//! The owner of the [`HeldCut`] must limit the duration (I4).

use std::time::{Duration, Instant};

use backstay_format::control::CutMode;
use backstay_format::control::CutReply;
use backstay_host::clock;

use crate::env::Env;
use crate::state::Live;
use crate::sums::Sums;
use crate::sync::atomic::Ordering;
use crate::sync::{RwLockWriteGuard, lock};
use crate::{Backing, ProtectedDisk, TrackError};

/// A cut after which no write has begun. Dropping it ends the hold.
///
/// While a thread owns this, it must not call any other operation of the disk: that would deadlock.
pub struct HeldCut<'a, E: Env> {
    since: Instant,
    sums: &'a Sums,
    _gate: RwLockWriteGuard<'a, Live<E>>,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Makes a point-in-time cut, and delays all writes and discards until the [`HeldCut`] is dropped.
    /// The delayed writes belong to the next epoch.
    ///
    /// # Errors
    /// As for [`Self::cut`]; no writes are held then.
    pub fn cut_and_hold(&self) -> Result<(CutReply, HeldCut<'_, E>), TrackError> {
        let mut admin = lock(&self.admin);
        let (swap, gate) = self.swap(&mut admin, CutMode::PointInTime)?;
        let since = swap.asked;
        let info = self.after_swap(&mut admin, swap, clock::since(since).as_nanos() as u64);
        // Other operations may now take this lock; they wait at the gate.
        drop(admin);
        Ok((info, HeldCut { since, sums: &self.sums, _gate: gate }))
    }
}

impl<E: Env> HeldCut<'_, E> {
    /// Ends the hold. Returns how long writes were held.
    pub fn thaw(self) -> Duration {
        clock::since(self.since)
    }
}

impl<E: Env> Drop for HeldCut<'_, E> {
    fn drop(&mut self) {
        self.sums.note_held(clock::since(self.since).as_nanos() as u64);
    }
}

impl Sums {
    /// Records how long a cut has held writes.
    pub fn note_held(&self, held_ns: u64) {
        self.cut_held_ns_last.store(held_ns, Ordering::Relaxed);
        self.cut_held_ns_max.fetch_max(held_ns, Ordering::Relaxed);
    }
}

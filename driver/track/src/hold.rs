//! Held cuts: the gate is kept after the swap, until the thaw.
//!
//! Nothing is added to the write path: a held write waits at the gate, where it waits for every
//! cut. How long is up to the owner of the [`HeldCut`], which must be bounded in time (I4).

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

/// A cut since which no write began. Dropping it ends the hold.
///
/// Its thread must ask nothing else of the disk while it has this: it would wait for itself.
pub struct HeldCut<'a, E: Env> {
    since: Instant,
    sums: &'a Sums,
    _gate: RwLockWriteGuard<'a, Live<E>>,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// A point-in-time cut after which no write and no discard begins until the hold is dropped;
    /// those that come meanwhile wait, and are in the next epoch.
    ///
    /// # Errors
    /// As for [`Self::cut`]; nothing is held then.
    pub fn cut_and_hold(&self) -> Result<(CutReply, HeldCut<'_, E>), TrackError> {
        let mut admin = lock(&self.admin);
        let (swap, gate) = self.swap(&mut admin, CutMode::PointInTime)?;
        let since = swap.asked;
        let info = self.after_swap(&mut admin, swap, clock::since(since).as_nanos() as u64);
        // The other operations go on to the gate and wait there; this one asks for nothing more.
        drop(admin);
        Ok((info, HeldCut { since, sums: &self.sums, _gate: gate }))
    }
}

impl<E: Env> HeldCut<'_, E> {
    /// Ends the hold; how long writes have been held.
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
    /// Writes were held for so long.
    pub fn note_held(&self, held_ns: u64) {
        self.cut_held_ns_last.store(held_ns, Ordering::Relaxed);
        self.cut_held_ns_max.fetch_max(held_ns, Ordering::Relaxed);
    }
}

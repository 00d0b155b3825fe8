//! Growth: enlarges a disk while it is in use.
//!
//! Each step is durable before the next one begins:
//!
//! 1. The superblock records the target size. After a crash, the next start finishes the growth instead
//!    of refusing a backing of the wrong size.
//! 2. The backing is extended.
//! 3. An epoch of the new size is made. The new sectors are dirty in it and have intents.
//! 4. The superblock takes the new size and names the new epoch beside the current one.
//! 5. The new epoch replaces the current one inside the gate. Only now may a write reach the new sectors.
//! 6. The old epoch is folded into the new one and removed from the superblock.
//!
//! The superblock always names every epoch that may hold dirty sectors (I1). Files of the old size are
//! read with the size in their own headers.
//!
//! The last sector of the old size counts as new, because it may have been partial.

use backstay_format::superblock::{Geometry, Resync};
use backstay_types::{ByteLen, EpochNo, SECTOR_BYTES, SectorRange};

use crate::bitmap::RegionBits;
use crate::env::Env;
use crate::epoch::{Epoch, NotReady, remove_files};
use crate::error::Doing;
use crate::state::Admin;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, alone, lock};
use crate::{Backing, ProtectedDisk, TrackError};

/// The result of a growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grown {
    /// The size before.
    pub from: ByteLen,
    /// The size now. Equal to `from` if there was nothing to do.
    pub to: ByteLen,
}

/// The sectors that a growth makes dirty. Empty if the size is the same.
pub(crate) fn grown_sectors(from: Geometry, to: Geometry) -> SectorRange {
    let end = to.sectors();
    if from.size == to.size {
        return SectorRange::new(end, end);
    }
    SectorRange::new(from.size.0 / SECTOR_BYTES, end)
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Grows the disk to the requested size, and extends a backing file to it. Without a requested size,
    /// grows to the current size of the backing. Growing to the present size does nothing.
    ///
    /// # Errors
    /// If a cycle is open, the size is smaller, the backing cannot have it, or the state cannot be
    /// written. The disk then keeps its old size. After [`TrackError::Unfinished`] the backing may have the
    /// new one.
    pub fn grow(&self, size: Option<ByteLen>) -> Result<Grown, TrackError> {
        let mut admin = lock(&self.admin);
        if self.stopped.load(Ordering::SeqCst) {
            return Err(TrackError::Order("the disk is stopped"));
        }
        if self.newest_closed(&admin).is_some() {
            return Err(TrackError::Order("a cycle is open: it must end before the disk grows"));
        }
        let old = self.geometry();
        let examined = |source| TrackError::Backing { doing: "finding out its size", source };
        let there = self.backing.size_now().map_err(examined)?;
        let to = size.unwrap_or(there);
        let done = Grown { from: old.size, to };
        if to == old.size {
            return Ok(done);
        }
        if to < old.size || to < there {
            return Err(TrackError::GrowTo { size: old.size, there, asked: to });
        }
        let new = old.with_size(to).map_err(|_| TrackError::Unfit(to))?;
        // A prepared cut has the old size, and it uses the number of the epoch that is made here.
        self.forget_prepared(&mut admin);
        admin.record(|sb| sb.growing_to = Some(to)).doing("writing the superblock")?;
        if let Err(source) = self.backing.grow(to) {
            if self.backing.size_now().is_ok_and(|there| there == old.size)
                && let Err(e) = admin.record(|sb| sb.growing_to = None)
            {
                tracing::warn!("the superblock still says that the disk grows: {e}");
            }
            return Err(TrackError::Backing { doing: "extending it", source });
        }
        self.take_size(&mut admin, old, new)
            .map_err(|source| TrackError::Unfinished { source: Box::new(source) })?;
        Ok(done)
    }

    /// The backing has the new size.
    fn take_size(
        &self,
        admin: &mut Admin<E>,
        old: Geometry,
        new: Geometry,
    ) -> Result<(), TrackError> {
        let before = Arc::clone(&self.live().current);
        let no = before.no.next();
        let grown = grown_sectors(old, new);
        let declared = RegionBits::new(new.regions());
        let tracked = before.dirty.reserved().runs().flatten();
        tracked.chain(grown.regions(new.region_shift)).for_each(|region| declared.set(region));
        let next = Epoch::create(&self.env, self.id, no, new, &declared)
            .doing("making the epoch of the new size")?;
        next.add_dirty(grown);
        let next = Arc::new(next);
        admin
            .record(|sb| {
                sb.geometry = new;
                sb.growing_to = None;
                // No cycle is open, so any other named epoch was already folded in; only the removal
                // of its name failed.
                sb.live = vec![before.no, no];
            })
            .doing("writing the superblock")?;
        {
            let mut live = alone(&self.gate);
            live.current = Arc::clone(&next);
        }
        // After this swap no write marks the old epoch. The new size is set after the gate is left, so a
        // write that sees it also finds the new epoch.
        self.size_bytes.store(new.size.0, Ordering::Release);
        let default_limit = old.size.0 / 2;
        let _ = self.change_log_limit.compare_exchange(
            default_limit,
            new.size.0 / 2,
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        self.sums.intent_commits.fetch_add(before.intents.commits(), Ordering::Relaxed);
        self.forget_outgrown(admin, &before, &next);
        Ok(())
    }

    /// Folds the epoch of the old size into the new one. The disk has already grown: a failure here causes
    /// a resync, or leaves an epoch that the next start reads once more.
    fn forget_outgrown(&self, admin: &mut Admin<E>, before: &Epoch<E>, next: &Epoch<E>) {
        if let Err(trouble) = next.fold_in(before) {
            let reason = match trouble {
                NotReady::Intent(_) => Resync::StateUnwritable,
                NotReady::Memory(_) => Resync::NoMemory,
            };
            tracing::error!("disk {}: folding in epoch {}: {trouble:?}", self.id, before.no);
            admin.raise(reason);
        }
        let only: Vec<EpochNo> = vec![next.no];
        match admin.record(|sb| sb.live = only) {
            Ok(()) => remove_files(&self.env, before.no),
            Err(e) => tracing::warn!("epoch {} stays named until the next cut: {e}", before.no),
        }
    }
}

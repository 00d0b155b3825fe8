//! The life of a cycle in the driver: cut, seal (end preserve), then release or fold back.
//!
//! The admin lock serializes control operations. Everything durable is written before the gate is
//! taken, so that a cut holds the gate only to swap two pointers. The superblock always names every
//! epoch that may hold dirty sectors, and recovery takes their union. So a crash at any step can add
//! dirty sectors but never lose one (I1).

use backstay_format::control::{CutMode, CutReply};
use backstay_format::superblock::{ANNOUNCED_MAX, Base, Resync, Superblock};
use backstay_host::clock;
use backstay_types::{ByteLen, ByteOffset, EpochNo};

use crate::env::Env;
use crate::epoch::remove_files;
use crate::error::Doing;
use crate::prepare::Swap;
use crate::state::Admin;
use crate::sync::atomic::Ordering;
use crate::sync::{Arc, alone, lock};
use crate::{Backing, ProtectedDisk, TrackError, clean};

/// The result of [`ProtectedDisk::seal`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The end of the preserved log, in bytes from the start of its file.
    pub log_end: ByteOffset,
    /// Why the point in time was lost, if it was.
    pub lost: Option<String>,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Closes the current epoch. It contains every write that was acknowledged before the cut and no
    /// write that began after it (I2).
    ///
    /// # Errors
    /// If the open cycle does not allow this cut, or if the new epoch could not be made. Nothing was
    /// changed.
    pub fn cut(&self, mode: CutMode) -> Result<CutReply, TrackError> {
        let mut admin = lock(&self.admin);
        let (swap, live) = self.swap(&mut admin, mode)?;
        drop(live);
        let held_ns = clock::since(swap.asked).as_nanos() as u64;
        self.sums.note_held(held_ns);
        Ok(self.after_swap(&mut admin, swap, held_ns))
    }

    /// Updates the counters after a swap, and makes the reply for the sidecar.
    pub(crate) fn after_swap(&self, admin: &mut Admin<E>, swap: Swap<E>, held_ns: u64) -> CutReply {
        let Swap { closing, mode, cut_unix_ns, paths, .. } = swap;
        self.sums.cuts.fetch_add(1, Ordering::Relaxed);
        self.sums.intent_commits.fetch_add(closing.intents.commits(), Ordering::Relaxed);
        let whole_disk = admin.resync_current.take();
        admin.resync_closed = admin.resync_closed.or(whole_disk);
        let info = CutReply {
            epoch: closing.no,
            mode,
            cut_unix_ns,
            held_ns,
            whole_disk,
            dirty_sectors: closing.dirty_sectors(),
            written: ByteLen(closing.written_bytes()),
            dirty: closing.dirty.path(),
            preserved: paths.as_ref().map(|p| p[0].clone()),
            shipped: paths.as_ref().map(|p| p[1].clone()),
            log: paths.as_ref().map(|p| p[2].clone()),
        };
        if mode == CutMode::Fuzzy {
            admin.fuzzy.push(closing);
        }
        info
    }

    /// Ends copy-before-write: the sidecar has read every sector that it still needs from the disk.
    ///
    /// # Errors
    /// If `epoch` is not the one closed by the last point-in-time cut.
    pub fn seal(&self, epoch: EpochNo) -> Result<Sealed, TrackError> {
        let _admin = lock(&self.admin);
        // Exclusive, so that no writer is in the middle of a log record.
        let live = alone(&self.gate);
        let closed = match &live.closed {
            Some(closed) if closed.epoch.no == epoch => closed,
            other => return Err(wrong_epoch(epoch, other.as_ref().map(|c| c.epoch.no))),
        };
        Ok(Sealed { log_end: closed.seal(), lost: closed.lost() })
    }

    /// The cycle is committed as `base`: drops the closed epochs.
    ///
    /// # Errors
    /// If `epoch` is not the one closed by the last point-in-time cut, or if the backing cannot be
    /// flushed or the superblock cannot be written. The epochs then stay dirty, which is safe.
    pub fn release(&self, epoch: EpochNo, base: Base) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        let closed = self.newest_closed(&admin);
        let pointed = self.live().closed.as_ref().map(|c| (c.epoch.no, c.lost()));
        match pointed {
            Some((no, None)) if no == epoch => {}
            Some((no, Some(_))) if no == epoch => {
                return Err(TrackError::Order("the epoch lost its point in time: fold it back"));
            }
            _ => return Err(wrong_epoch(epoch, closed)),
        }
        // The point may contain writes that were acknowledged but never flushed. A power loss could
        // remove them from the backing, and without the epoch nothing would mark them. Flush first.
        self.backing.sync().map_err(|source| TrackError::Backing {
            doing: "the flush before the epoch is released",
            source,
        })?;
        let current = self.live().current.no;
        let resync = admin.resync_current;
        admin
            .record(|sb| {
                sb.live = vec![current];
                sb.base = Some(base);
                sb.announced.clear();
                sb.coarse = false;
                sb.resync = resync;
            })
            .doing("writing the superblock")?;
        admin.lost_last = None;
        admin.witness.all(&self.backing);
        self.forget_closed(&mut admin);
        Ok(())
    }

    /// The cycle failed: the sectors of every closed epoch become dirty again.
    ///
    /// # Errors
    /// If `epoch` is not the newest closed one, or if the superblock cannot be written. An epoch that
    /// cannot be folded back is no error: a resync of the disk is then required.
    pub fn fold_back(&self, epoch: EpochNo) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        match self.newest_closed(&admin) {
            Some(no) if no == epoch => self.fold_all(&mut admin),
            other => Err(wrong_epoch(epoch, other)),
        }
    }

    /// Folds back every closed epoch. Called when the sidecar's connection has ended.
    ///
    /// # Errors
    /// If the superblock cannot be written.
    pub fn fold_back_open(&self) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        match self.newest_closed(&admin) {
            Some(_) => self.fold_all(&mut admin),
            None => {
                self.forget_prepared(&mut admin);
                Ok(())
            }
        }
    }

    /// Records a point before it is committed. If the sidecar dies now, only the vault knows whether
    /// the point exists. So the base and every point announced since then prove that this disk belongs
    /// to the vault's newest point.
    ///
    /// # Errors
    /// If the record cannot be made durable. The point must not be committed then.
    pub fn announce(&self, point: Base) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        let announce = |sb: &mut Superblock| {
            sb.announced.retain(|before| before.point != point.point);
            if sb.announced.len() == ANNOUNCED_MAX {
                sb.announced.remove(0);
            }
            sb.announced.push(point);
        };
        admin.record(announce).doing("writing the superblock")
    }

    /// From now on every sector counts as dirty.
    ///
    /// # Errors
    /// If the superblock cannot be written.
    pub fn require_resync(&self, reason: Resync) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        admin.raise(reason);
        admin.record(|_| ()).doing("writing the superblock")
    }

    /// Stops cleanly: waits for writes in flight, flushes the backing and saves the bitmap. Later
    /// writes fail with `ESHUTDOWN`.
    ///
    /// # Errors
    /// If the backing or the state directory cannot be written. The next start then treats this stop
    /// as a crash, which loses nothing.
    pub fn close(&self) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        if self.stopped.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        // Take the gate once, to wait for every write that still saw the disk open.
        drop(alone(&self.gate));
        self.backing
            .sync()
            .map_err(|source| TrackError::Backing { doing: "the last flush", source })?;
        if self.newest_closed(&admin).is_some() {
            self.fold_all(&mut admin)?;
        }
        self.forget_prepared(&mut admin);
        let current = Arc::clone(&self.live().current);
        let stop = clean::save(&self.env, &self.backing, self.id, &current)?;
        admin.record(|sb| sb.clean = Some(stop)).doing("writing the superblock")
    }

    fn fold_all(&self, admin: &mut Admin<E>) -> Result<(), TrackError> {
        self.forget_prepared(admin);
        let (current, closed) = {
            let live = self.live();
            (Arc::clone(&live.current), live.closed.clone())
        };
        if let Some(closed) = &closed {
            if let Some(reason) = closed.lost() {
                admin.lost_last = Some(reason);
            }
            // Nobody reads the preserved blocks any more, so the guest need not pay for them.
            closed.seal();
        }
        admin.resync_current = admin.resync_current.or(admin.resync_closed);
        let mut forgotten = false;
        for epoch in admin.fuzzy.iter().chain(closed.as_ref().map(|c| &c.epoch)) {
            if let Err(trouble) = current.fold_in(epoch) {
                tracing::error!("disk {}: folding back epoch {}: {trouble:?}", self.id, epoch.no);
                forgotten = true;
            }
        }
        if forgotten {
            admin.raise(Resync::StateUnwritable);
        }
        admin.record(|sb| sb.live = vec![current.no]).doing("writing the superblock")?;
        self.forget_closed(admin);
        Ok(())
    }

    /// Drops the closed epochs and their files. The superblock no longer names them.
    fn forget_closed(&self, admin: &mut Admin<E>) {
        let closed = {
            let mut live = alone(&self.gate);
            live.closed.take()
        };
        admin.resync_closed = None;
        if let Some(closed) = &closed {
            self.sums.preserved_sectors.fetch_add(closed.preserved_sectors(), Ordering::Relaxed);
        }
        for epoch in admin.fuzzy.drain(..).chain(closed.map(|c| Arc::clone(&c.epoch))) {
            remove_files(&self.env, epoch.no);
        }
    }
}

fn wrong_epoch(asked: EpochNo, closed: Option<EpochNo>) -> TrackError {
    TrackError::WrongEpoch { asked, closed }
}

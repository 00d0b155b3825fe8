//! The life of a cycle in the driver: cut, seal, then release or fold back.
//!
//! One control operation runs at a time, under the admin lock. What has to last is prepared and
//! made durable before the gate is taken, so the gate itself holds only the swap of two pointers.
//! At every instant the superblock names every epoch that may hold dirty sectors; recovery takes
//! their union, so a crash anywhere in here can add sectors but never lose one (I1).

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

/// What a seal gives to the sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Where the preserved log ends, in bytes from the file's start.
    pub log_end: ByteOffset,
    /// If set, the point in time was lost, for this reason.
    pub lost: Option<String>,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Closes the current epoch: every write answered before is in it, none begun after (I2).
    ///
    /// # Errors
    /// If a cycle is open that this cut does not fit, or the new epoch could not be made; then
    /// nothing has changed.
    pub fn cut(&self, mode: CutMode) -> Result<CutReply, TrackError> {
        let mut admin = lock(&self.admin);
        let (swap, live) = self.swap(&mut admin, mode)?;
        drop(live);
        let held_ns = clock::since(swap.asked).as_nanos() as u64;
        self.sums.note_held(held_ns);
        Ok(self.after_swap(&mut admin, swap, held_ns))
    }

    /// What a cut gives to the sidecar, and what the swap leaves to be noted.
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

    /// Every sector was read or is preserved: ends copy-before-write.
    ///
    /// # Errors
    /// If `epoch` is not the one closed by the last point-in-time cut.
    pub fn seal(&self, epoch: EpochNo) -> Result<Sealed, TrackError> {
        let _admin = lock(&self.admin);
        // Alone in the gate: no writer is in the middle of a record.
        let live = alone(&self.gate);
        let closed = match &live.closed {
            Some(closed) if closed.epoch.no == epoch => closed,
            other => return Err(wrong_epoch(epoch, other.as_ref().map(|c| c.epoch.no))),
        };
        Ok(Sealed { log_end: closed.seal(), lost: closed.lost() })
    }

    /// The cycle is committed as `base`: the closed epochs are forgotten.
    ///
    /// # Errors
    /// If `epoch` is not the one closed by the last point-in-time cut, or the backing could not be
    /// flushed or the superblock not be written; then the epochs stay dirty, which is safe.
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
        // The point may hold writes that were answered but never flushed. Once the epoch is
        // forgotten nothing would say that a power loss took them from the backing: flush first.
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

    /// The cycle failed: the sectors of every closed epoch are dirty again.
    ///
    /// # Errors
    /// If `epoch` is not the newest closed one. Trouble with the state directory is not an error
    /// here: the disk is then marked to be resynced.
    pub fn fold_back(&self, epoch: EpochNo) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        match self.newest_closed(&admin) {
            Some(no) if no == epoch => self.fold_all(&mut admin),
            other => Err(wrong_epoch(epoch, other)),
        }
    }

    /// Folds back whatever is open: the sidecar is gone.
    ///
    /// # Errors
    /// If the superblock could not be written.
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

    /// A point is about to be committed. It proves what the dirty set is counted from, as all that were
    /// announced since the base do: which of them were committed only the vault knows.
    ///
    /// # Errors
    /// If that could not be made durable; then it must not be committed.
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
    /// If that could not be made durable.
    pub fn require_resync(&self, reason: Resync) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        admin.raise(reason);
        admin.record(|_| ()).doing("writing the superblock")
    }

    /// Stops cleanly: waits for writes, flushes the backing and saves the bitmap. Writes that come
    /// later fail with `ESHUTDOWN`.
    ///
    /// # Errors
    /// If the backing or the state directory could not be written. The next start then takes this
    /// stop for a crash, which loses nothing.
    pub fn close(&self) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        if self.stopped.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        // Through the gate once: every write that saw the disk open is done.
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
            // No one will read the preserved blocks any more: spare the guest making them.
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

    /// Drops the closed epochs and their files; the superblock names them no longer.
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

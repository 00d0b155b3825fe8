//! The first half of a cut, up to the swap of the epochs.
//!
//! The slow steps run before the gate is taken: making files, taking memory, writing a superblock that
//! names the next epoch. [`ProtectedDisk::prepare_cut`] runs them in advance, so that the disks of a
//! group do not wait for these steps while their writes are held.

use std::path::PathBuf;
use std::time::Instant;

use backstay_format::control::CutMode;
use backstay_format::superblock::Superblock;
use backstay_host::clock;
use backstay_types::EpochNo;

use crate::closed::Closed;
use crate::env::Env;
use crate::epoch::{Epoch, remove_files};
use crate::error::Doing;
use crate::state::{Admin, Live, Prepared};
use crate::sync::{Arc, RwLockWriteGuard, alone, lock};
use crate::{Backing, ProtectedDisk, TrackError};

/// A cut that was just made.
pub(crate) struct Swap<E: Env> {
    pub closing: Arc<Epoch<E>>,
    pub mode: CutMode,
    pub cut_unix_ns: u64,
    /// When the gate was asked for.
    pub asked: Instant,
    pub paths: Option<[PathBuf; 3]>,
}

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Prepares the next point-in-time cut in advance. A cut that was not prepared does this itself.
    ///
    /// # Errors
    /// As for [`Self::cut`].
    pub fn prepare_cut(&self) -> Result<(), TrackError> {
        let mut admin = lock(&self.admin);
        if !self.is_prepared(&admin, CutMode::PointInTime) {
            let prepared = self.prepare(&mut admin, CutMode::PointInTime)?;
            admin.prepared = Some(prepared);
        }
        Ok(())
    }

    /// Makes the cut. The caller leaves the gate by dropping the returned guard.
    pub(crate) fn swap(
        &self,
        admin: &mut Admin<E>,
        mode: CutMode,
    ) -> Result<(Swap<E>, RwLockWriteGuard<'_, Live<E>>), TrackError> {
        self.may_cut(admin, mode)?;
        let ready = self.is_prepared(admin, mode);
        let prepared = match admin.prepared.take_if(|_| ready) {
            Some(prepared) => prepared,
            None => self.prepare(admin, mode)?,
        };
        let Prepared { next, mut closed, .. } = prepared;
        let no = next.no;
        // The name is durable before the first write enters the epoch (I1). A prepared cut has
        // written it already.
        if !admin.meta.get().live.contains(&no) {
            admin.record(|sb| sb.live.push(no)).doing("writing the superblock")?;
        }
        let asked = clock::monotonic();
        let mut live = alone(&self.gate);
        if let Some(closed) = &mut closed {
            if let Err(e) = closed.take_memory() {
                drop(live);
                self.unname(admin, no);
                return Err(e).doing("taking memory for the preserved bits");
            }
            closed.cut_unix_ns = self.env.now_unix_ns();
        }
        let cut_unix_ns = closed.as_ref().map_or_else(|| self.env.now_unix_ns(), |c| c.cut_unix_ns);
        let closing = std::mem::replace(&mut live.current, Arc::new(next));
        live.closed = closed.map(Arc::new);
        // The intents of the next epoch could be written, so changes are tracked again.
        admin.untracked = None;
        let paths = live.closed.as_ref().map(|closed| closed.paths());
        Ok((Swap { closing, mode, cut_unix_ns, asked, paths }, live))
    }

    fn prepare(&self, admin: &mut Admin<E>, mode: CutMode) -> Result<Prepared<E>, TrackError> {
        self.may_cut(admin, mode)?;
        self.forget_prepared(admin);
        let closing = Arc::clone(&self.live().current);
        let no = closing.no.next();
        // Regions in use now get their intents in advance, so that a steady working set never waits
        // for the state directory after a cut.
        let hot = closing.hot_regions();
        let next = Epoch::create(&self.env, self.id, no, self.geometry(), &hot)
            .doing("making the next epoch")?;
        let closed = match mode {
            CutMode::PointInTime => Some(
                Closed::prepare(&self.env, self.id, &closing, self.geometry(), &self.stripes)
                    .doing("making the preserved log")?,
            ),
            CutMode::Fuzzy => None,
        };
        let name_it = |sb: &mut Superblock| {
            if !sb.live.contains(&no) {
                sb.live.push(no);
            }
        };
        admin.record(name_it).doing("writing the superblock")?;
        Ok(Prepared { closing: closing.no, next, closed })
    }

    fn may_cut(&self, admin: &Admin<E>, mode: CutMode) -> Result<(), TrackError> {
        if self.live().closed.is_some() {
            return Err(TrackError::Order("a cut is open already: release or fold it back"));
        }
        if mode == CutMode::PointInTime && admin.resync_current.is_some() {
            // Copy-before-write preserves only sectors with a dirty bit. Here the bits are incomplete,
            // so the cut could not be a point in time.
            return Err(TrackError::Order("the whole disk is dirty: a fuzzy cut must come first"));
        }
        if mode == CutMode::Fuzzy && !admin.fuzzy.is_empty() {
            return Err(TrackError::Order("a fuzzy cut is open: a point-in-time cut must follow"));
        }
        Ok(())
    }

    fn is_prepared(&self, admin: &Admin<E>, mode: CutMode) -> bool {
        let current = self.live().current.no;
        admin.prepared.as_ref().is_some_and(|prepared| {
            prepared.closing == current
                && prepared.closed.is_some() == (mode == CutMode::PointInTime)
        })
    }

    /// Removes a prepared cut that was not used.
    pub(crate) fn forget_prepared(&self, admin: &mut Admin<E>) {
        if let Some(prepared) = admin.prepared.take() {
            let no = prepared.next.no;
            drop(prepared);
            self.unname(admin, no);
        }
    }

    /// Removes the name of an unused epoch from the superblock. If that fails the name stays, which is
    /// safe because the epoch is empty.
    fn unname(&self, admin: &mut Admin<E>, no: EpochNo) {
        if admin.record(|sb| sb.live.retain(|&epoch| epoch != no)).is_ok() {
            remove_files(&self.env, no);
        }
    }
}

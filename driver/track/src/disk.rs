//! The protected disk: the write path.
//!
//! Every write goes the same five steps: its regions have durable intents (I1) → it enters the gate
//! (I2) → what a running cycle still needs is preserved → its sectors are marked dirty → the backing
//! is written. On the way a warm write takes one lock (the gate, shared) and no system call but the
//! backing's own.

use std::io;
use std::ops::Range;

use backstay_format::control::{Noted, Untracked};
use backstay_format::superblock::Resync;
use backstay_types::{ByteLen, ByteOffset, SectorRange};

use crate::closed::Stripes;
use crate::env::Env;
use crate::epoch::{Epoch, NotReady, names};
use crate::state::{Admin, Live, OpenOptions};
use crate::sums::Sums;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, RwLock, RwLockReadGuard, lock, shared};
use crate::waits::Access;
use crate::{Backing, ProtectedDisk, TrackError, recover};

/// Most bytes discarded or zeroed in one stay inside the gate, so that a cut never waits for a
/// whole-disk discard.
const DISCARD_STEP_BYTES: u64 = 8 << 20;

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Opens a disk's state, or makes it for a new disk, and finds out what may differ from the
    /// last recovery point.
    ///
    /// # Errors
    /// If the state cannot be used or the backing is not the one it belongs to. Nothing was
    /// changed then.
    pub fn open(env: E, backing: B, options: OpenOptions) -> Result<Self, TrackError> {
        let opened = recover::open(&env, &backing, &options)?;
        let geometry = opened.meta.get().geometry;
        let limit = options.change_log_limit.unwrap_or(ByteLen(geometry.size.0 / 2));
        let disk = Self {
            id: opened.meta.get().disk,
            size_bytes: AtomicU64::new(geometry.size.0),
            region_shift: geometry.region_shift,
            found: opened.found,
            started_unix_ns: env.now_unix_ns(),
            tracking: options.tracking,
            stripes: Arc::new(Stripes::new()),
            gate: RwLock::new(Live { current: Arc::clone(&opened.current), closed: None }),
            admin: Mutex::new(Admin::new(opened.meta, opened.witness)),
            change_log_limit: AtomicU64::new(limit.0),
            stopped: AtomicBool::new(false),
            sums: Sums::default(),
            env,
            backing,
        };
        if !disk.tracking {
            disk.require_resync(Resync::BackingChanged)?;
        }
        Ok(disk)
    }

    /// Reads exactly `buf.len()` bytes.
    ///
    /// # Errors
    /// `EINVAL` outside the disk; else what the backing answered.
    pub fn read(&self, offset: ByteOffset, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64, libc::EINVAL)?;
        self.sums.reads.fetch_add(1, Ordering::Relaxed);
        self.sums.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.counted(Access::Read, || self.backing.read_at(buf, offset))
    }

    /// Writes `data`, whatever its alignment.
    ///
    /// # Errors
    /// `ENOSPC` outside the disk; else what the backing answered.
    pub fn write(&self, offset: ByteOffset, data: &[u8]) -> io::Result<()> {
        let range = self.check(offset, data.len() as u64, libc::ENOSPC)?;
        self.sums.writes.fetch_add(1, Ordering::Relaxed);
        self.sums.written_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.tracked(range, || self.backing.write_at(data, offset))
    }

    /// Makes a range read as zeroes and gives its space back.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn discard(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.clear(offset, len, |at, n| self.backing.punch(at, n))
    }

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As for [`Self::write`].
    pub fn write_zeroes(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.clear(offset, len, |at, n| self.backing.zero(at, n))
    }

    fn clear(
        &self,
        offset: ByteOffset,
        len: ByteLen,
        step: impl Fn(ByteOffset, ByteLen) -> io::Result<()>,
    ) -> io::Result<()> {
        self.check(offset, len.0, libc::ENOSPC)?;
        self.sums.discards.fetch_add(1, Ordering::Relaxed);
        self.sums.discarded_bytes.fetch_add(len.0, Ordering::Relaxed);
        let (mut at, end) = (offset.0, offset.0 + len.0);
        while at < end {
            let stop = ((at / DISCARD_STEP_BYTES + 1) * DISCARD_STEP_BYTES).min(end);
            let (here, n) = (ByteOffset(at), ByteLen(stop - at));
            self.tracked(SectorRange::covering(here, n), || step(here, n))?;
            at = stop;
        }
        Ok(())
    }

    /// Makes every write that was answered durable (I3). Intents are durable before writes begin,
    /// so the backing is all there is to sync.
    ///
    /// # Errors
    /// What the backing answered.
    pub fn flush(&self) -> io::Result<()> {
        self.sums.flushes.fetch_add(1, Ordering::Relaxed);
        self.counted(Access::Flush, || self.backing.sync())
    }

    /// Tracks a change of `range` and makes it.
    fn tracked(
        &self,
        range: SectorRange,
        change: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        if !self.tracking {
            return self.counted(Access::Write, change);
        }
        let (live, ready) = self.enter(range)?;
        if let Some(closed) = &live.closed {
            let limit = ByteLen(self.change_log_limit.load(Ordering::Relaxed));
            closed.preserve(range, &self.backing, limit);
        }
        if ready {
            live.current.mark(range);
        } else {
            live.current.mark_what_can_be(range);
        }
        if self.stopped.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ESHUTDOWN));
        }
        // I1: what may change is durable as an intent, or the whole disk is known to be dirty.
        debug_assert!(!ready || live.current.ready(range.regions(self.region_shift)));
        self.counted(Access::Write, change)
    }

    /// Enters the gate with the regions of a write ready in the epoch that is current then. The
    /// state directory is waited for outside the gate, so that it never delays a cut.
    ///
    /// # Errors
    /// If tracking failed and the backing, which says that all is tracked, cannot be made to say
    /// otherwise.
    fn enter(&self, range: SectorRange) -> io::Result<(RwLockReadGuard<'_, Live<E>>, bool)> {
        let regions = range.regions(self.region_shift);
        let mut given_up = None;
        loop {
            let live = shared(&self.gate);
            if live.current.ready(regions.clone()) {
                return Ok((live, true));
            }
            if given_up == Some(live.current.no) {
                return Ok((live, false));
            }
            let epoch = Arc::clone(&live.current);
            drop(live);
            if let Err(trouble) = epoch.make_ready(regions.clone()) {
                self.distrust(&epoch, regions.clone(), &trouble)?;
                given_up = Some(epoch.no);
            }
        }
    }

    /// Tracking of a region failed. The guest goes on (I4); from now on the whole disk counts as
    /// dirty. That is durable when this returns, wherever it can be: in the superblock, or else in the
    /// backing's mark; where it can be in neither, the next start finds no proof and compares.
    ///
    /// # Errors
    /// If the backing carries a mark that says that all is tracked and cannot be made to say otherwise.
    /// The next start would believe it, so the change must not be made.
    fn distrust(
        &self,
        epoch: &Epoch<E>,
        regions: Range<u32>,
        trouble: &NotReady,
    ) -> io::Result<()> {
        let (reason, error) = match trouble {
            NotReady::Intent(e) => (Resync::StateUnwritable, e),
            NotReady::Memory(e) => (Resync::NoMemory, e),
        };
        let mut admin = lock(&self.admin);
        if admin.distrusted != Some(epoch.no) {
            let first = admin.untracked.is_none();
            if first {
                admin.raise(reason);
            }
            let noted = match admin.record(|_| ()) {
                Ok(()) => Ok(Noted::State),
                Err(_) => admin.witness.not_all(&self.backing).map(|noted| match noted {
                    true => Noted::Backing,
                    false => Noted::Nowhere,
                }),
            };
            let error = format!("{}: {error}", reason.explain());
            if first {
                self.cry(&error, noted.as_ref());
            }
            let since_unix_ns = self.env.now_unix_ns();
            let since_unix_ns = admin.untracked.as_ref().map_or(since_unix_ns, |u| u.since_unix_ns);
            let where_to = *noted.as_ref().unwrap_or(&Noted::Nowhere);
            admin.untracked = Some(Untracked { since_unix_ns, error, noted: where_to });
            noted?;
            admin.distrusted = Some(epoch.no);
        }
        let noted_in_state = admin.untracked.as_ref().is_none_or(|u| u.noted == Noted::State);
        if !noted_in_state && !epoch.dirty.reserved().has_all(regions) {
            // Bits of this epoch are missing: a start in this boot must not take them for whole.
            let _ = self.env.remove_bits(&names::dirty(epoch.no));
        }
        Ok(())
    }

    fn cry(&self, error: &str, noted: Result<&Noted, &io::Error>) {
        let then = match noted {
            Ok(Noted::State) => "the disk goes on, and will be compared".into(),
            Ok(Noted::Backing) => "the state directory is dead; the disk goes on, and will be \
                                   compared (the backing was marked)"
                .into(),
            Ok(Noted::Nowhere) => "the state directory is dead; the disk goes on, and will be \
                                   compared"
                .into(),
            Err(e) => format!(
                "neither the state directory nor the backing can be written ({e}): new writes fail"
            ),
        };
        tracing::error!("disk {}: {error}; {then}", self.id);
        if !matches!(noted, Ok(Noted::State)) {
            self.env.alarm(&format!("changes are not tracked: {error}; {then}"));
        }
    }

    /// The sectors of a request, which must lie inside the disk.
    fn check(&self, offset: ByteOffset, len: u64, errno: i32) -> io::Result<SectorRange> {
        match offset.0.checked_add(len) {
            Some(end) if end <= self.size().0 => Ok(SectorRange::covering(offset, ByteLen(len))),
            _ => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn counted<T>(&self, access: Access, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let result = self.sums.waits.during(access, work);
        if let Err(e) = &result {
            self.sums.note_failure(access, e, self.env.now_unix_ns());
        }
        result
    }
}

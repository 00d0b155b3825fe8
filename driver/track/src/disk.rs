//! The protected disk: the write path.
//!
//! Every write takes the same five steps:
//!
//! 1. Its regions get durable intents (I1).
//! 2. It enters the gate (I2).
//! 3. It preserves the old content that a running cycle still needs.
//! 4. It marks its sectors dirty.
//! 5. It writes to the backing.
//!
//! A write to regions that already have intents takes one lock (the gate, shared) and makes no system
//! call besides the write to the backing.

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

/// A discard leaves the gate after this many bytes, so that a cut never waits for a discard of the
/// whole disk.
const DISCARD_STEP_BYTES: u64 = 8 << 20;

impl<E: Env, B: Backing> ProtectedDisk<E, B> {
    /// Opens a disk's state, or creates it for a new disk. Finds the sectors that may differ from
    /// the last recovery point.
    ///
    /// # Errors
    /// If the state cannot be used, or belongs to another backing. Nothing was changed.
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
    /// `EINVAL` outside the disk; otherwise the error of the backing.
    pub fn read(&self, offset: ByteOffset, buf: &mut [u8]) -> io::Result<()> {
        self.check(offset, buf.len() as u64, libc::EINVAL)?;
        self.sums.reads.fetch_add(1, Ordering::Relaxed);
        self.sums.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.counted(Access::Read, || self.backing.read_at(buf, offset))
    }

    /// Writes `data`, at any alignment.
    ///
    /// # Errors
    /// `ENOSPC` outside the disk; otherwise the error of the backing.
    pub fn write(&self, offset: ByteOffset, data: &[u8]) -> io::Result<()> {
        let range = self.check(offset, data.len() as u64, libc::ENOSPC)?;
        self.sums.writes.fetch_add(1, Ordering::Relaxed);
        self.sums.written_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.tracked(range, || self.backing.write_at(data, offset))
    }

    /// Makes a range read as zeroes and frees its space in the backing.
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

    /// Makes every acknowledged write durable (I3). Intents are durable before a write begins, so
    /// only the backing needs a sync.
    ///
    /// # Errors
    /// The error of the backing.
    pub fn flush(&self) -> io::Result<()> {
        self.sums.flushes.fetch_add(1, Ordering::Relaxed);
        self.counted(Access::Flush, || self.backing.sync())
    }

    /// Tracks a change of `range`, then makes it.
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
        // I1: the regions have durable intents, or the whole disk already counts as dirty.
        debug_assert!(!ready || live.current.ready(range.regions(self.region_shift)));
        self.counted(Access::Write, change)
    }

    /// Enters the gate once the current epoch has durable intents for the regions of a write.
    /// Intents are written outside the gate, so that a slow state directory never delays a cut.
    /// Returns whether the regions are ready; they are not if tracking failed.
    ///
    /// # Errors
    /// As for [`Self::distrust`].
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

    /// Tracking of a region failed. The guest's write continues (I4), and from now on the whole disk
    /// counts as dirty. This function records that durably: in the superblock, or else in the mark on
    /// the backing. If neither can be written, the next start finds no proof that every change was
    /// tracked, and compares the disk.
    ///
    /// # Errors
    /// If the backing has a mark that says "every change is tracked" and the mark cannot be changed. The
    /// next start would trust that mark, so the write must fail.
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
                self.report_untracked(&error, noted.as_ref());
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
            // This epoch misses some dirty bits: a start in the same boot must not trust the rest.
            let _ = self.env.remove_bits(&names::dirty(epoch.no));
        }
        Ok(())
    }

    fn report_untracked(&self, error: &str, noted: Result<&Noted, &io::Error>) {
        let consequence = match noted {
            Ok(Noted::State) => "the disk stays in service; a resync will compare it".into(),
            Ok(Noted::Backing) => "the state directory cannot be written; the disk stays in \
                                   service, and a resync will compare it (the backing is marked)"
                .into(),
            Ok(Noted::Nowhere) => "the state directory cannot be written; the disk stays in \
                                   service, and a resync will compare it"
                .into(),
            Err(e) => format!(
                "neither the state directory nor the backing can be written ({e}): new writes fail"
            ),
        };
        tracing::error!("disk {}: {error}; {consequence}", self.id);
        if !matches!(noted, Ok(Noted::State)) {
            self.env.alarm(&format!("changes are not tracked: {error}; {consequence}"));
        }
    }

    /// The sectors of a request; fails with `errno` if it reaches beyond the disk.
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

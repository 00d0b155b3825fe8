//! A closed epoch: copy-before-write keeps the content of the cut readable (I2).
//!
//! Between cut and seal, a write to a sector that the sidecar has not read yet first copies the old
//! content to the preserved log. Correctness depends on this order:
//!
//! - The driver sets the *preserved* bit of a sector after the old content is in the log, and before the
//!   new content can reach the backing.
//! - The sidecar reads the backing first and the preserved bit second. If the bit is clear, the data it
//!   has read is the content of the cut.
//! - The sidecar sets the *shipped* bit of a sector once it has that content. The driver then need not
//!   preserve the sector. A driver that saw the bit clear makes a needless copy, which is harmless.
//!
//! On a failure (log limit reached, disk full, read error) the cycle loses its point in time, but the
//! guest's write succeeds (I4). The epoch is marked *lost*, and the seal reports that to the sidecar.

use std::io;

use backstay_format::preserved::{PreservedHeader, RECORD_BYTES, RECORD_SECTORS_MAX, Record};
use backstay_format::superblock::Geometry;
use backstay_types::{ByteLen, ByteOffset, DiskId, SECTOR_BYTES, SectorRange};

use crate::Backing;
use crate::bitmap::{Bitmap, words_of};
use crate::env::{Env, StateFile};
use crate::epoch::{Epoch, names};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, lock};

/// Locks for writers that preserve: two writers of one sector must not both copy it.
const STRIPES: usize = 16;
/// Sectors under one lock, and most sectors copied at a time.
const STRIPE_SECTORS: u64 = RECORD_SECTORS_MAX;

/// The locks, each with a copy buffer for its holder. All closed epochs of a disk share them. New buffers
/// for each cut would touch 2 MiB per disk, even on a disk without writes; shared buffers take memory only
/// once they are used.
pub(crate) struct Stripes(Box<[Mutex<Box<[u8]>>]>);

impl Stripes {
    pub fn new() -> Self {
        let stripe = |_| {
            let buffer = vec![0u8; RECORD_BYTES + (STRIPE_SECTORS * SECTOR_BYTES) as usize];
            Mutex::new(buffer.into_boxed_slice())
        };
        Self((0..STRIPES).map(stripe).collect())
    }
}

/// A closed epoch whose content at the cut must stay readable.
pub(crate) struct Closed<E: Env> {
    pub epoch: Arc<Epoch<E>>,
    pub cut_unix_ns: u64,
    preserved: Bitmap<E::Bits>,
    shipped: Bitmap<E::Bits>,
    log: E::File,
    geometry: Geometry,
    log_end: AtomicU64,
    /// Set by the seal, or when the point in time is lost. Nothing is preserved after that.
    ended: AtomicBool,
    lost: Mutex<Option<String>>,
    stripes: Arc<Stripes>,
    preserved_sectors: AtomicU64,
}

impl<E: Env> Closed<E> {
    /// Makes the files for closing an epoch, and takes memory for all regions it has touched so far.
    pub fn prepare(
        env: &E,
        disk: DiskId,
        epoch: &Arc<Epoch<E>>,
        geometry: Geometry,
        stripes: &Arc<Stripes>,
    ) -> io::Result<Self> {
        let no = epoch.no;
        let preserved = Bitmap::create(env, &names::preserved(no), disk, no, geometry)?;
        let shipped = Bitmap::create(env, &names::shipped(no), disk, no, geometry)?;
        let header = PreservedHeader { disk, epoch: no }.encode();
        let log = env.create_scratch(&names::log(no), &header)?;
        let closed = Self {
            epoch: Arc::clone(epoch),
            cut_unix_ns: 0,
            preserved,
            shipped,
            log,
            geometry,
            log_end: AtomicU64::new(header.len() as u64),
            ended: AtomicBool::new(false),
            lost: Mutex::new(None),
            stripes: Arc::clone(stripes),
            preserved_sectors: AtomicU64::new(0),
        };
        closed.take_memory()?;
        Ok(closed)
    }

    /// Takes memory for the regions that the epoch has touched since the last call. The last call is made
    /// inside the gate, when the epoch can no longer change.
    pub fn take_memory(&self) -> io::Result<()> {
        self.preserved.reserve_like(self.epoch.dirty.reserved())?;
        self.shipped.reserve_like(self.epoch.dirty.reserved())
    }

    /// Copies the sectors that a write is about to overwrite and that the sidecar still needs. The caller
    /// is inside the gate.
    pub fn preserve<B: Backing>(&self, range: SectorRange, backing: &B, limit: ByteLen) {
        if self.ended.load(Ordering::SeqCst) {
            return;
        }
        for piece in range.split_at_multiples(STRIPE_SECTORS) {
            if !self.needs_any(piece) {
                continue;
            }
            let stripe = (piece.start.0 / STRIPE_SECTORS) as usize % STRIPES;
            let mut buffer = lock(&self.stripes.0[stripe]);
            let mut at = piece.start.0;
            while at < piece.end.0 {
                if !self.needs(at) {
                    at += 1;
                    continue;
                }
                // Do not check the first sector again: it may be shipped by now, and the run would be
                // empty.
                let start = at;
                at += 1;
                while at < piece.end.0 && self.needs(at) {
                    at += 1;
                }
                let run = SectorRange::new(start, at);
                if let Err(reason) = self.copy(run, backing, &mut buffer, limit) {
                    self.lose(reason);
                    return;
                }
            }
        }
    }

    /// Whether the sidecar still needs any of these sectors from the backing.
    fn needs_any(&self, range: SectorRange) -> bool {
        range.split_at_multiples(1 << self.geometry.region_shift).any(|piece| {
            // A region without memory for dirty bits had no dirty sector at the cut.
            self.epoch.dirty.reserved().has_all(piece.regions(self.geometry.region_shift))
                && words_of(piece).any(|(word, mask)| self.needed_bits(word) & mask != 0)
        })
    }

    fn needs(&self, sector: u64) -> bool {
        let region = (sector >> self.geometry.region_shift) as u32;
        self.epoch.dirty.reserved().has(region)
            && self.needed_bits(sector / 64) & (1 << (sector % 64)) != 0
    }

    fn needed_bits(&self, word: u64) -> u64 {
        match self.epoch.dirty.word(word) {
            0 => 0,
            dirty => dirty & !self.preserved.word(word) & !self.shipped.word(word),
        }
    }

    /// Copies one run to the log and marks it preserved.
    fn copy<B: Backing>(
        &self,
        run: SectorRange,
        backing: &B,
        buffer: &mut [u8],
        limit: ByteLen,
    ) -> Result<(), String> {
        let record_bytes = Record::bytes(run.sectors());
        let at = self.log_end.fetch_add(record_bytes, Ordering::AcqRel);
        if at + record_bytes > limit.0 {
            return Err(format!("the change log reached its limit of {limit} bytes"));
        }
        let (head, data) = buffer[..record_bytes as usize].split_at_mut(RECORD_BYTES);
        let offset = run.start.byte_offset();
        // The last sector of the disk may be partial: fill the rest with zeroes.
        let there = (self.geometry.size.0 - offset.0).min(data.len() as u64) as usize;
        data[there..].fill(0);
        backing
            .read_at(&mut data[..there], offset)
            .map_err(|e| format!("reading the old content of {run}: {e}"))?;
        let record = Record { epoch: self.epoch.no, range: run, data_crc: crc32c::crc32c(data) };
        if let Ok(head) = head.try_into() {
            record.encode_into(head);
        }
        self.log
            .write_at(&buffer[..record_bytes as usize], at)
            .map_err(|e| format!("writing the change log: {e}"))?;
        for (word, mask) in words_of(run) {
            self.preserved.or_word(word, mask);
        }
        self.preserved_sectors.fetch_add(run.sectors(), Ordering::Relaxed);
        Ok(())
    }

    /// The cycle loses its point in time. The guest's write continues (I4).
    pub fn lose(&self, reason: String) {
        let mut lost = lock(&self.lost);
        if lost.is_none() {
            tracing::warn!("epoch {}: point in time lost: {reason}", self.epoch.no);
            *lost = Some(reason);
        }
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Why the point in time was lost, if it was.
    pub fn lost(&self) -> Option<String> {
        lock(&self.lost).clone()
    }

    /// Ends copy-before-write. The caller holds the gate exclusively, so no record is half written.
    pub fn seal(&self) -> ByteOffset {
        self.ended.store(true, Ordering::SeqCst);
        ByteOffset(self.log_end.load(Ordering::Acquire))
    }

    /// Bytes in the log.
    pub fn log_bytes(&self) -> ByteLen {
        ByteLen(self.log_end.load(Ordering::Relaxed))
    }

    /// Sectors preserved.
    pub fn preserved_sectors(&self) -> u64 {
        self.preserved_sectors.load(Ordering::Relaxed)
    }

    /// Paths of the preserved bits, the shipped bits and the log, for the sidecar.
    pub fn paths(&self) -> [std::path::PathBuf; 3] {
        [self.preserved.path(), self.shipped.path(), self.log.path()]
    }
}

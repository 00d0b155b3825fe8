//! What was written to a mounted point, and what of it was hydrated: a sparse file, and a map that says
//! which of its sectors count.
//!
//! A write goes to the file and then sets bits in memory; a flush syncs the file first and only then
//! writes the bits down. So a bit that is durable never says more than the file holds: after a power loss
//! a sector that was flushed is there, one that was not is what it was before or what was written, and
//! never what the file system found in its place.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use backstay_types::{ByteLen, ByteOffset, DiskId, PointId, SECTOR_BYTES, SectorRange};

use super::map::{
    CHUNK_BYTES, CHUNK_SECTORS, CHUNKS_AT, Header, SLOT_BYTES, decode_chunk, encode_chunk,
};
use super::medium::Medium;
use super::present::Present;

/// Bytes of the disk under one lock: writes and hydration of the same sectors.
const STRIPE_BYTES: u64 = 1 << 20;
const STRIPES: usize = 256;

/// Why an overlay cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OverlayError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Format(#[from] backstay_format::FormatError),
    #[error("it belongs to another recovery point")]
    Other,
}

pub(crate) struct Overlay<D: Medium, M: Medium> {
    data: D,
    map: M,
    size: ByteLen,
    present: Present,
    stripes: Vec<Mutex<()>>,
    flush: Mutex<Flush>,
}

/// What the map on disk says.
struct Flush {
    header: Header,
    /// A sync failed: nobody knows what of the data is there. Nothing is promised any more.
    broken: bool,
}

/// Bytes that the map of a disk has.
pub(crate) fn map_bytes(size: ByteLen) -> u64 {
    let chunks = SectorRange::whole(size).sectors().div_ceil(CHUNK_SECTORS);
    CHUNKS_AT + chunks * CHUNK_BYTES as u64
}

/// The first header of a map: nothing is in the overlay.
pub(crate) fn first_header(disk: DiskId, point: PointId, size: ByteLen) -> Header {
    let sectors = SectorRange::whole(size).sectors();
    Header { generation: 0, disk, point, sectors, whole_to: 0 }
}

impl<D: Medium, M: Medium> Overlay<D, M> {
    /// Opens an overlay of a point.
    pub fn open(
        data: D,
        map: M,
        size: ByteLen,
        disk: DiskId,
        point: PointId,
    ) -> Result<Self, OverlayError> {
        let mut slots = [[0; 512]; 2];
        map.read_at(&mut slots[0], 0)?;
        map.read_at(&mut slots[1], SLOT_BYTES)?;
        let header = Header::newest([&slots[0], &slots[1]])?;
        if (header.disk, header.point) != (disk, point)
            || header.sectors != SectorRange::whole(size).sectors()
        {
            return Err(OverlayError::Other);
        }
        let present = Present::new(header.whole_to);
        let end = map_bytes(size);
        let mut at = CHUNKS_AT;
        while let Some((from, to)) = map.next_data(at)? {
            let first = from.saturating_sub(CHUNKS_AT) / CHUNK_BYTES as u64;
            let last = to.min(end).saturating_sub(CHUNKS_AT).div_ceil(CHUNK_BYTES as u64);
            for number in first..last {
                let mut bytes = [0; CHUNK_BYTES];
                map.read_at(&mut bytes, CHUNKS_AT + number * CHUNK_BYTES as u64)?;
                let words = decode_chunk(number, &bytes)?;
                let below = (number + 1) * CHUNK_SECTORS <= header.whole_to;
                if !below && words.iter().any(|&word| word != 0) {
                    present.load(number, &words);
                }
            }
            at = to;
            if at >= end {
                break;
            }
        }
        Ok(Self {
            data,
            map,
            size,
            present,
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            flush: Mutex::new(Flush { header, broken: false }),
        })
    }

    /// The file.
    pub fn data(&self) -> &D {
        &self.data
    }

    /// Whether all sectors of a run are here.
    pub fn has(&self, run: SectorRange) -> bool {
        self.present.has(run)
    }

    /// The runs inside `run` that are here, or that are not.
    pub fn runs(&self, run: SectorRange, wanted: bool) -> Vec<SectorRange> {
        self.present.runs(run, wanted)
    }

    /// Bytes of the disk that are here.
    pub fn bytes_here(&self) -> ByteLen {
        ByteLen((self.present.count() * SECTOR_BYTES).min(self.size.0))
    }

    /// Everything below this sector is here.
    pub fn whole_to(&self) -> u64 {
        self.present.whole_to()
    }

    /// Whether the whole disk is here.
    pub fn is_whole(&self) -> bool {
        self.present.whole_to() >= SectorRange::whole(self.size).end.0
    }

    /// Reads bytes of sectors that are here.
    pub fn read(&self, buf: &mut [u8], offset: ByteOffset) -> io::Result<()> {
        self.data.read_at(buf, offset.0)
    }

    /// The sectors that a change of these bytes covers only in part and that are not here: two at most.
    pub fn edges(&self, offset: ByteOffset, len: ByteLen) -> Vec<SectorRange> {
        if len.0 == 0 {
            return vec![];
        }
        let (start, end) = (offset.0, offset.0 + len.0);
        let mut edges = vec![];
        let mut add = |sector: u64| {
            let run = SectorRange::new(sector, sector + 1);
            if !edges.contains(&run) && !self.has(run) {
                edges.push(run);
            }
        };
        if !start.is_multiple_of(SECTOR_BYTES) {
            add(start / SECTOR_BYTES);
        }
        // The disk's last sector may be shorter than a sector.
        if !end.is_multiple_of(SECTOR_BYTES) && end < self.size.0 {
            add(end / SECTOR_BYTES);
        }
        edges
    }

    /// Writes. Sectors that are covered only in part must be here: see [`Self::edges`].
    pub fn write(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let run = SectorRange::covering(offset, ByteLen(data.len() as u64));
        let _locks = self.lock(run);
        self.refuse_if_broken()?;
        self.data.write_at(data, offset.0)?;
        self.present.set(run);
        Ok(())
    }

    /// Makes whole sectors read as zeroes.
    pub fn clear(&self, run: SectorRange) -> io::Result<()> {
        for piece in run.split_at_multiples(STRIPES as u64 / 2 * STRIPE_BYTES / SECTOR_BYTES) {
            let _locks = self.lock(piece);
            self.refuse_if_broken()?;
            self.punch(piece)?;
            self.present.set(piece);
        }
        Ok(())
    }

    /// Puts what the point has there into those sectors of a run that are not here yet.
    pub fn fill(&self, run: SectorRange, bytes: &[u8]) -> io::Result<()> {
        let _locks = self.lock(run);
        self.refuse_if_broken()?;
        self.put_absent(run, bytes)?;
        self.present.set(run);
        Ok(())
    }

    /// As [`Self::fill`] for the run that begins where everything before is here; then everything up to
    /// its end is.
    pub fn fill_next(&self, run: SectorRange, bytes: &[u8]) -> io::Result<()> {
        let _locks = self.lock(run);
        self.refuse_if_broken()?;
        debug_assert_eq!(run.start.0, self.present.whole_to());
        self.put_absent(run, bytes)?;
        self.present.set_whole_to(run.end.0);
        Ok(())
    }

    /// As [`Self::fill_next`] where the point is zero.
    pub fn clear_next(&self, run: SectorRange) -> io::Result<()> {
        let _locks = self.lock(run);
        self.refuse_if_broken()?;
        debug_assert_eq!(run.start.0, self.present.whole_to());
        self.present.runs(run, false).into_iter().try_for_each(|absent| self.punch(absent))?;
        self.present.set_whole_to(run.end.0);
        Ok(())
    }

    fn put_absent(&self, run: SectorRange, bytes: &[u8]) -> io::Result<()> {
        for absent in self.present.runs(run, false) {
            let from = ((absent.start.0 - run.start.0) * SECTOR_BYTES) as usize;
            let bytes = &bytes[from..from + absent.bytes().0 as usize];
            let end = self.size.0 - absent.start.byte_offset().0;
            let bytes = &bytes[..bytes.len().min(end as usize)];
            // Before, there may be what a power loss left of a write that was not flushed.
            match backstay_vault::frame::is_zero(bytes) {
                true => self.punch(absent)?,
                false => self.data.write_at(bytes, absent.start.byte_offset().0)?,
            }
        }
        Ok(())
    }

    fn punch(&self, run: SectorRange) -> io::Result<()> {
        let at = run.start.byte_offset().0;
        self.data.punch(at, run.bytes().0.min(self.size.0 - at))
    }

    /// Makes everything that was written durable.
    pub fn sync(&self) -> io::Result<()> {
        let mut flush = self.flush.lock().unwrap_or_else(PoisonError::into_inner);
        if flush.broken {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        // Bits first, then the mark: what the mark has made superfluous in them is below it.
        let dirty = self.present.take_dirty();
        let whole_to = self.present.whole_to();
        if let Err(e) = self.data.sync() {
            flush.broken = true;
            tracing::error!(
                "the overlay cannot be written ({e}): what was written since the last flush is lost, \
                 and the disk takes no more writes until it is mounted again"
            );
            self.forget(&dirty, flush.header.whole_to);
            return Err(e);
        }
        let written = self.write_map(&mut flush, whole_to, &dirty);
        if written.is_err() {
            self.present.put_back(dirty.into_iter().map(|(number, _)| number));
        }
        written
    }

    fn write_map(
        &self,
        flush: &mut Flush,
        whole_to: u64,
        dirty: &[(u64, Box<super::map::Words>)],
    ) -> io::Result<()> {
        if whole_to != flush.header.whole_to {
            let generation = flush.header.generation + 1;
            let next = Header { generation, whole_to, ..flush.header };
            self.map.write_at(&next.encode(), next.at())?;
            // Durable before chunks that have forgotten what is below it.
            self.map.sync()?;
            flush.header = next;
        }
        for (number, words) in dirty {
            let at = CHUNKS_AT + number * CHUNK_BYTES as u64;
            self.map.write_at(&encode_chunk(*number, words), at)?;
        }
        if dirty.is_empty() { Ok(()) } else { self.map.sync() }
    }

    /// After a failed sync: back to what is durable, as after a power loss.
    fn forget(&self, dirty: &[(u64, Box<super::map::Words>)], whole_to: u64) {
        for (number, _) in dirty {
            let mut bytes = [0; CHUNK_BYTES];
            let at = CHUNKS_AT + number * CHUNK_BYTES as u64;
            let words = self.map.read_at(&mut bytes, at).map(|()| decode_chunk(*number, &bytes));
            if let Ok(Ok(words)) = words {
                self.present.load(*number, &words);
            }
        }
        self.present.lower_whole_to(whole_to);
    }

    fn refuse_if_broken(&self) -> io::Result<()> {
        // Not the flush's lock: a write must not wait for a flush.
        if self.present.is_broken() { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    /// Locks the stripes of a run, in order.
    fn lock(&self, run: SectorRange) -> Vec<MutexGuard<'_, ()>> {
        let sectors = STRIPE_BYTES / SECTOR_BYTES;
        let (first, last) = (run.start.0 / sectors, run.end.0.div_ceil(sectors));
        let mut numbers: Vec<usize> = (first..last.min(first + STRIPES as u64))
            .map(|stripe| (stripe % STRIPES as u64) as usize)
            .collect();
        numbers.sort_unstable();
        numbers
            .into_iter()
            .map(|n| self.stripes[n].lock().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;

//! From sectors to frames to segments: what the shipping pipeline's middle does.
//!
//! A [`Chunk`] is up to 256 KiB of sectors as they were read. Sealing it finds what is zero, takes
//! the checksum of each run of the rest (I6: before compression), and compresses it into one frame.
//! A [`SegmentBuilder`] strings frames together without copying them again.

use backstay_types::{ByteLen, CycleNo, DiskId, SECTOR_BYTES, Sector, SectorRange};
use bytes::Bytes;
use object_store::PutPayload;

use crate::encrypt::segment::{
    Envelope, INDEX_OVERHEAD_BYTES, NotAuthentic, SegmentKey, TAG_BYTES,
};
use crate::format::bounds::Bounds;
use crate::format::segment::{
    CHUNK_SHIFT_DEFAULT, ChunkSum, Codec, Extent, FOOTER_BYTES, FRAME_BYTES_MAX, Footer,
    FrameEntry, HEADER_BYTES, INDEX_BYTES_MAX, Index, Place, SEGMENT_BYTES_MAX, SegmentId,
    chunk_sum, encode_header,
};

/// Granularity of looking for zeroes inside a run.
const ZERO_SECTORS: u64 = 8;

/// Sectors as they were read, one run after the other in `data`.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The runs.
    pub runs: Vec<SectorRange>,
    /// Their bytes.
    pub data: Vec<u8>,
}

impl Chunk {
    /// An empty chunk with room for the largest frame.
    #[must_use]
    pub fn with_room() -> Self {
        Self { runs: Vec::with_capacity(64), data: Vec::with_capacity(FRAME_BYTES_MAX) }
    }

    /// Bytes that still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        FRAME_BYTES_MAX - self.data.len()
    }

    /// Adds a run; it must fit.
    pub fn push(&mut self, run: SectorRange, bytes: &[u8]) {
        debug_assert_eq!(run.bytes().0, bytes.len() as u64);
        debug_assert!(bytes.len() <= self.room());
        self.runs.push(run);
        self.data.extend_from_slice(bytes);
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.data.clear();
    }
}

/// A chunk, checksummed and compressed.
#[derive(Debug, Clone)]
pub struct EncodedFrame {
    /// The stored bytes; empty if all was zero.
    stored: Bytes,
    raw_len: u32,
    stored_crc: u32,
    codec: Codec,
    /// Runs in the frame: sectors, offset, checksum.
    extents: Vec<(SectorRange, u32, u32)>,
    /// Runs that are zero.
    zeroes: Vec<SectorRange>,
    chunk_shift: u32,
    /// Checksums of the whole chunks in it.
    sums: Vec<ChunkSum>,
}

impl EncodedFrame {
    /// The same frame so many sectors further on, for tests and measurements of disks that nobody could
    /// write in time. Its chunks' checksums are made up, so that an index of many takes as much room as one of a
    /// real disk: a resync would not find them right.
    #[doc(hidden)]
    #[must_use]
    pub fn further(&self, sectors: u64) -> Self {
        let moved = |run: SectorRange| SectorRange::new(run.start.0 + sectors, run.end.0 + sectors);
        let mut frame = self.clone();
        frame.extents.iter_mut().for_each(|extent| extent.0 = moved(extent.0));
        frame.zeroes.iter_mut().for_each(|run| *run = moved(*run));
        for sum in &mut frame.sums {
            sum.start.0 += sectors;
            sum.sum = chunk_sum(&sum.start.0.to_le_bytes());
        }
        frame
    }
}

impl EncodedFrame {
    /// The same frame with a bit in its content that the sectors' checksums do not know of, while that of the stored bytes is
    /// right, for tests: what a client ships that lies. The content must not have been compressible.
    #[doc(hidden)]
    #[must_use]
    pub fn lying(&self) -> Self {
        debug_assert_eq!(self.codec, Codec::Raw);
        let mut stored = self.stored.to_vec();
        if let Some(byte) = stored.first_mut() {
            *byte ^= 1;
        }
        Self { stored_crc: crc32c::crc32c(&stored), stored: stored.into(), ..self.clone() }
    }
}

/// Compresses chunks; one a thread, its memory is used again and again.
pub struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
    chunk_shift: u32,
    level: i32,
}

impl Compressor {
    /// A compressor of a zstd level.
    ///
    /// # Errors
    /// If there is no such level.
    pub fn new(level: i32) -> std::io::Result<Self> {
        let scratch = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_BYTES_MAX));
        let zstd = zstd::bulk::Compressor::new(level)?;
        Ok(Self { zstd, scratch, chunk_shift: CHUNK_SHIFT_DEFAULT, level })
    }

    /// The same with checksums of chunks of `1 << chunk_shift` sectors; see
    /// [`crate::format::segment::CHUNK_SHIFTS`].
    #[must_use]
    pub fn with_chunks(self, chunk_shift: u32) -> Self {
        Self { chunk_shift, ..self }
    }

    /// Makes a frame of a chunk, which is empty afterwards.
    ///
    /// # Errors
    /// If zstd fails, which it does only without memory.
    pub fn seal(&mut self, chunk: &mut Chunk) -> std::io::Result<EncodedFrame> {
        let (mut extents, mut zeroes) = (vec![], vec![]);
        let sums = chunk_sums(chunk, self.chunk_shift);
        // Runs move down over the zeroes before them, so the frame has no gaps.
        let (mut from, mut to) = (0usize, 0usize);
        for &run in &chunk.runs {
            for_each_piece(run, &chunk.data[from..from + run.bytes().0 as usize], |piece, zero| {
                if zero { zeroes.push(piece) } else { extents.push((piece, 0, 0)) }
            });
            from += run.bytes().0 as usize;
        }
        if !zeroes.is_empty() {
            let mut kept = extents.iter().map(|e| e.0).peekable();
            from = 0;
            for &run in &chunk.runs {
                while let Some(piece) = kept.next_if(|p| p.start >= run.start && p.end <= run.end) {
                    let at = from + ((piece.start.0 - run.start.0) * SECTOR_BYTES) as usize;
                    let len = piece.bytes().0 as usize;
                    chunk.data.copy_within(at..at + len, to);
                    to += len;
                }
                from += run.bytes().0 as usize;
            }
            chunk.data.truncate(to);
        }
        let mut offset = 0usize;
        for (piece, place, crc) in &mut extents {
            let len = piece.bytes().0 as usize;
            *place = offset as u32;
            *crc = crc32c::crc32c(&chunk.data[offset..offset + len]);
            offset += len;
        }
        let (stored, codec) = self.compress(&chunk.data)?;
        let frame = EncodedFrame {
            raw_len: chunk.data.len() as u32,
            stored_crc: crc32c::crc32c(&stored),
            stored,
            codec,
            extents,
            zeroes,
            chunk_shift: self.chunk_shift,
            sums,
        };
        chunk.clear();
        Ok(frame)
    }

    fn compress(&mut self, data: &[u8]) -> std::io::Result<(Bytes, Codec)> {
        if data.is_empty() {
            return Ok((Bytes::new(), Codec::Raw));
        }
        self.scratch.clear();
        self.zstd.compress_to_buffer(data, &mut self.scratch)?;
        Ok(if self.scratch.len() < data.len() {
            (Bytes::copy_from_slice(&self.scratch), Codec::Zstd)
        } else {
            (Bytes::copy_from_slice(data), Codec::Raw)
        })
    }
}

/// The checksums of the whole chunks in each run. Those that are zero have none: that they are zero
/// says all.
fn chunk_sums(chunk: &Chunk, shift: u32) -> Vec<ChunkSum> {
    let (sectors, mut sums, mut from) = (1u64 << shift, vec![], 0usize);
    for run in &chunk.runs {
        let mut start = run.start.0.next_multiple_of(sectors);
        while start + sectors <= run.end.0 {
            let at = from + ((start - run.start.0) * SECTOR_BYTES) as usize;
            let bytes = &chunk.data[at..at + (sectors * SECTOR_BYTES) as usize];
            if !is_zero(bytes) {
                sums.push(ChunkSum { start: Sector(start), sum: chunk_sum(bytes) });
            }
            start += sectors;
        }
        from += run.bytes().0 as usize;
    }
    sums
}

/// Whether bytes are all zero.
#[must_use]
pub fn is_zero(bytes: &[u8]) -> bool {
    // The compiler turns blocks into wide comparisons; the first word ends most calls.
    let (head, words, tail) = {
        let (words, tail) = bytes.as_chunks::<64>();
        (bytes.first().copied().unwrap_or(0), words, tail)
    };
    head == 0
        && words.iter().all(|block| block.iter().fold(0, |all, b| all | b) == 0)
        && tail.iter().all(|&b| b == 0)
}

/// Splits a run into pieces that are all zero or hold data.
fn for_each_piece(run: SectorRange, bytes: &[u8], mut each: impl FnMut(SectorRange, bool)) {
    let mut open: Option<(SectorRange, bool)> = None;
    for part in run.split_at_multiples(ZERO_SECTORS) {
        let at = ((part.start.0 - run.start.0) * SECTOR_BYTES) as usize;
        let zero = is_zero(&bytes[at..at + part.bytes().0 as usize]);
        open = Some(match open {
            Some((piece, was)) if was == zero => {
                (SectorRange { start: piece.start, end: part.end }, zero)
            }
            Some((piece, was)) => {
                each(piece, was);
                (part, zero)
            }
            None => (part, zero),
        });
    }
    if let Some((piece, zero)) = open {
        each(piece, zero);
    }
}

/// Strings frames together to a segment.
#[derive(Debug)]
pub struct SegmentBuilder {
    id: SegmentId,
    frames: Vec<Bytes>,
    len: u64,
    index: Index,
}

/// A segment, ready to be put.
#[derive(Debug)]
pub struct FinishedSegment {
    pub(crate) id: SegmentId,
    frames: Vec<Bytes>,
    index: Index,
    level: i32,
}

/// A segment's object.
#[derive(Debug)]
pub(crate) struct Object {
    pub payload: PutPayload,
    pub len: u64,
    pub sectors: (u64, u64),
    pub bounds: Bounds,
    pub index_digest: [u8; 32],
    /// Bytes from where its index begins to its end.
    pub tail: u64,
}

impl SegmentBuilder {
    /// Starts a segment.
    #[must_use]
    pub fn new(disk: DiskId, cycle: CycleNo, attempt: u64, number: u32) -> Self {
        let id = SegmentId { disk, cycle, attempt, number };
        Self { id, frames: vec![], len: HEADER_BYTES as u64, index: Index::default() }
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: EncodedFrame) {
        frame.zeroes.iter().for_each(|&range| self.push_zero(range));
        if frame.stored.is_empty() {
            return;
        }
        let number = self.index.frames.len() as u32;
        self.index.frames.push(FrameEntry {
            offset: self.len,
            stored_len: frame.stored.len() as u32,
            raw_len: frame.raw_len,
            stored_crc: frame.stored_crc,
            codec: frame.codec,
        });
        self.index.extents.extend(frame.extents.iter().map(|&(range, offset, crc)| Extent {
            range,
            place: Some(Place { frame: number, offset, crc }),
        }));
        if !frame.sums.is_empty() {
            self.index.chunk_shift = frame.chunk_shift;
            self.index.sums.extend(frame.sums);
        }
        self.len += frame.stored.len() as u64;
        self.frames.push(frame.stored);
    }

    /// Says that a run is zero. Runs that follow each other become one.
    pub fn push_zero(&mut self, range: SectorRange) {
        // An extent's length has 32 bits.
        const MAX: u64 = 1 << 31;
        for piece in range.split_at_multiples(MAX) {
            match self.index.extents.last_mut() {
                Some(Extent { range: last, place: None })
                    if last.end == piece.start && last.sectors() + piece.sectors() <= MAX =>
                {
                    last.end = piece.end;
                }
                _ => self.index.extents.push(Extent { range: piece, place: None }),
            }
        }
    }

    /// Bytes of frames so far.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.len
    }

    /// Extents so far; they cost memory too.
    #[must_use]
    pub fn extents(&self) -> usize {
        self.index.extents.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.extents.is_empty()
    }

    /// Ends the segment.
    ///
    /// # Errors
    /// If it is larger than a reader would accept.
    pub fn finish(self, compressor: &mut Compressor) -> std::io::Result<FinishedSegment> {
        let index = self.index.encoded_len();
        let sealing = self.frames.len() * TAG_BYTES + INDEX_OVERHEAD_BYTES;
        let most = self.len + (index + sealing + FOOTER_BYTES) as u64;
        if index > INDEX_BYTES_MAX || most > SEGMENT_BYTES_MAX {
            return Err(std::io::Error::other(format!(
                "a segment of {most} bytes with an index of {index} bytes is too large: end \
                 segments earlier"
            )));
        }
        let Self { id, frames, index, .. } = self;
        Ok(FinishedSegment { id, frames, index, level: compressor.level })
    }
}

impl FinishedSegment {
    /// Bytes of the disk that it stands for.
    #[must_use]
    pub fn covers(&self) -> ByteLen {
        ByteLen(self.index.extents.iter().map(|extent| extent.range.bytes().0).sum())
    }

    /// About how many bytes its object has.
    #[must_use]
    pub fn about(&self) -> ByteLen {
        ByteLen(self.frames.iter().map(|frame| frame.len() as u64).sum())
    }

    /// Its object: as it is, or sealed.
    ///
    /// # Errors
    /// If zstd fails, which it does only without memory.
    pub(crate) fn into_object(
        mut self,
        key: Option<(SegmentKey, Envelope)>,
    ) -> std::io::Result<Object> {
        let failed = |_: NotAuthentic| std::io::Error::other("AES-256-GCM failed");
        let public = key.as_ref().map(|(key, _)| key.public_start());
        let mut parts = vec![Bytes::from(encode_header(self.id, public))];
        let (mut at, mut frames_crc) = (HEADER_BYTES as u64, 0);
        for (entry, stored) in self.index.frames.iter_mut().zip(self.frames) {
            entry.offset = at;
            match &key {
                None => parts.push(stored),
                Some((key, _)) => {
                    // Nobody else has these bytes: sealed where they are.
                    let mut bytes =
                        stored.try_into_mut().unwrap_or_else(|shared| shared[..].into());
                    let tag = key.seal_frame(at, entry.codec, entry.raw_len, &mut bytes);
                    let tag = tag.map_err(failed)?;
                    entry.stored_len += TAG_BYTES as u32;
                    entry.stored_crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &tag);
                    frames_crc = crc32c::crc32c_combine(
                        frames_crc,
                        entry.stored_crc,
                        entry.stored_len as usize,
                    );
                    parts.extend([bytes.freeze(), Bytes::copy_from_slice(&tag)]);
                }
            }
            at += u64::from(entry.stored_len);
        }
        let raw = self.index.encode();
        let (raw_len, digest) = (raw.len() as u32, *blake3::hash(&raw).as_bytes());
        let compressed = zstd::bulk::compress(&raw, self.level)?;
        let (stored, index_codec) = if compressed.len() < raw.len() {
            (compressed, Codec::Zstd)
        } else {
            (raw, Codec::Raw)
        };
        let overhead = key.as_ref().map_or(0, |_| INDEX_OVERHEAD_BYTES);
        let mut footer = Footer {
            id: self.id,
            index_offset: at,
            index_stored_len: (stored.len() + overhead) as u32,
            index_raw_len: raw_len,
            index_codec,
            frames: self.index.frames.len() as u32,
            extents: self.index.extents.len() as u32,
            index_digest: digest,
            sums: self.index.sums.len() as u32,
            chunk_shift: self.index.chunk_shift,
            sealed: key.is_some(),
            frames_crc,
        };
        let stored = match &key {
            None => stored,
            Some((key, envelope)) => {
                let mut sealed = key.seal_index(&footer, stored).map_err(failed)?;
                sealed.extend_from_slice(&envelope.encode());
                footer.index_digest = *blake3::hash(&sealed).as_bytes();
                sealed
            }
        };
        let len = at + (stored.len() + FOOTER_BYTES) as u64;
        parts.extend([Bytes::from(stored), Bytes::from(footer.encode())]);
        Ok(Object {
            sectors: self.index.sectors(),
            bounds: self.index.span().map_or(Bounds::UNKNOWN, Bounds::around),
            payload: parts.into_iter().collect(),
            len,
            index_digest: footer.index_digest,
            tail: len - at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_are_found_and_squeezed_out() {
        let mut chunk = Chunk::with_room();
        let mut data = vec![1u8; 512 * 32];
        data[512 * 8..512 * 16].fill(0);
        chunk.push(SectorRange::new(0, 32), &data);
        chunk.push(SectorRange::new(64, 72), &[0; 512 * 8]);
        chunk.push(SectorRange::new(100, 101), &[2; 512]);
        let frame = Compressor::new(1).unwrap().seal(&mut chunk).unwrap();
        assert_eq!(frame.zeroes, [SectorRange::new(8, 16), SectorRange::new(64, 72)]);
        let places: Vec<_> = frame.extents.iter().map(|e| (e.0, e.1)).collect();
        let run = SectorRange::new;
        assert_eq!(places, [(run(0, 8), 0), (run(16, 32), 4096), (run(100, 101), 4096 + 8192)]);
        assert_eq!(frame.raw_len, 4096 + 8192 + 512);
        assert_eq!(frame.extents[2].2, crc32c::crc32c(&[2; 512]));
    }

    #[test]
    fn whole_chunks_get_checksums_of_what_was_read() {
        let mut chunk = Chunk::with_room();
        let mut data = vec![1u8; 512 * 300];
        data[..512].fill(9);
        chunk.push(SectorRange::new(100, 400), &data);
        chunk.push(SectorRange::new(512, 640), &[0; 512 * 128]);
        let frame = Compressor::new(1).unwrap().seal(&mut chunk).unwrap();
        // Sectors 128..256 and 256..384; 512..640 is zero.
        let starts: Vec<_> = frame.sums.iter().map(|sum| sum.start.0).collect();
        assert_eq!(starts, [128, 256]);
        assert!(frame.sums.iter().all(|sum| sum.sum == chunk_sum(&[1; 512 * 128])));
        // A zero block inside is squeezed out, and still counts in the chunk's checksum.
        let mut data = vec![1u8; 512 * 128];
        data[4096..8192].fill(0);
        chunk.push(SectorRange::new(0, 128), &data);
        let frame = Compressor::new(1).unwrap().seal(&mut chunk).unwrap();
        assert_eq!((frame.extents.len(), frame.sums[0].sum), (2, chunk_sum(&data)));
    }

    #[test]
    fn is_zero_sees_every_byte() {
        let mut bytes = vec![0u8; 1000];
        assert!(is_zero(&bytes));
        for at in 0..1000 {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}

//! The segment: frames of compressed sectors, the index that says what they are, a footer.
//!
//! Written front to back in one go, read from the end: footer, index, then only the frames that are
//! needed. The index's digest stands in the manifest, so an index cannot be swapped; each piece's
//! checksum stands in the index, so no sector can be.

use backstay_format::FormatError;
use backstay_types::{ByteLen, CycleNo, DiskId, Sector, SectorRange};

use super::key::{ObjectKey, Piece};
use super::{Reader, checked, seal};
use crate::encrypt::segment::{INDEX_OVERHEAD_BYTES, Opens, TAG_BYTES};

const WHAT: &str = "segment";
const MAGIC: &[u8; 8] = b"BSTYSEGM";
const FOOTER_MAGIC: &[u8; 8] = b"BSTYSEGF";
const VERSION: u32 = 1;
/// Of the footer of a segment that is sealed (see [`crate::encrypt`]).
const SEALED: u32 = 2;
/// In a header: frames and index are sealed with AES-256-GCM.
const AES_256_GCM: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 128;
/// Most uncompressed bytes in a frame.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Most sectors in a frame.
pub const FRAME_SECTORS_MAX: u64 = FRAME_BYTES_MAX as u64 / 512;
/// Longest segment, in bytes.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Longest index, uncompressed, in bytes.
pub const INDEX_BYTES_MAX: usize = 64 << 20;
const FRAME_ENTRY_BYTES: usize = 24;
const EXTENT_ENTRY_BYTES: usize = 24;
/// In place of a frame's number: the extent is zero.
const ZERO: u32 = u32::MAX;
const SUM_ENTRY_BYTES: usize = 24;
/// log2 of the sectors in a checksum chunk: 4 KiB at least, one frame at most.
pub const CHUNK_SHIFTS: std::ops::RangeInclusive<u32> = 3..=9;
/// 64 KiB.
pub const CHUNK_SHIFT_DEFAULT: u32 = 7;

/// Which segment a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentId {
    /// The disk.
    pub disk: DiskId,
    /// The cycle.
    pub cycle: CycleNo,
    /// The attempt at the cycle.
    pub attempt: u64,
    /// Its number in the attempt.
    pub number: u32,
}

impl SegmentId {
    /// The key of it.
    #[must_use]
    pub const fn key(self) -> ObjectKey {
        let Self { disk, cycle, attempt, number } = self;
        Piece::Segment { cycle, attempt, number }.of(disk)
    }
}

/// How a frame or index is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As it is: it would not have become smaller.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    fn of(code: u32) -> Result<Self, FormatError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            other => Err(FormatError::Bounds { what: WHAT, field: "codec", value: other.into() }),
        }
    }
}

/// A frame in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameEntry {
    /// Where it starts in the object.
    pub offset: u64,
    /// Bytes stored.
    pub stored_len: u32,
    /// Bytes of sectors in it.
    pub raw_len: u32,
    /// CRC-32C of the stored bytes.
    pub stored_crc: u32,
    /// How it is stored.
    pub codec: Codec,
}

/// A run of sectors in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The sectors.
    pub range: SectorRange,
    /// Where they are; `None` if they are zero.
    pub place: Option<Place>,
}

/// Where a run's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The frame's number.
    pub frame: u32,
    /// Where in the uncompressed frame, in bytes.
    pub offset: u32,
    /// CRC-32C of the sectors' bytes, taken before compression (I6).
    pub crc: u32,
}

/// The strong checksum of a whole chunk, as a resync compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSum {
    /// First sector of the chunk.
    pub start: Sector,
    /// See [`chunk_sum`].
    pub sum: [u8; 16],
}

/// The strong checksum of a chunk's bytes: the first half of their BLAKE3. Anyone who writes the disk
/// (a guest, its users) must not be able to make two chunks of one checksum, so a plain fast hash
/// will not do.
#[must_use]
pub fn chunk_sum(bytes: &[u8]) -> [u8; 16] {
    let mut sum = [0; 16];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    sum
}

/// What a segment holds.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its frames.
    pub frames: Vec<FrameEntry>,
    /// Its runs, in the order they were read.
    pub extents: Vec<Extent>,
    /// log2 of the sectors in a chunk; 0 if there are no sums.
    pub chunk_shift: u32,
    /// Checksums of the chunks that it holds whole and that are not all zero.
    pub sums: Vec<ChunkSum>,
    /// What opens its frames, if they are sealed. No part of its bytes.
    pub opens: Opens,
}

/// The end of a segment: where its index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Which segment it is.
    pub id: SegmentId,
    /// Where the index starts.
    pub index_offset: u64,
    /// Bytes of the index as stored.
    pub index_stored_len: u32,
    /// Bytes of the index itself.
    pub index_raw_len: u32,
    /// How it is stored.
    pub index_codec: Codec,
    /// Frames in the index.
    pub frames: u32,
    /// Extents in the index.
    pub extents: u32,
    /// BLAKE3 of the index itself.
    pub index_digest: [u8; 32],
    /// Chunk checksums in the index.
    pub sums: u32,
    /// log2 of the sectors in a chunk; 0 if there are no sums.
    pub chunk_shift: u32,
    /// Whether frames and index are sealed. Then [`Self::index_digest`] is of the index as it is stored, since
    /// that of its content would tell something of it.
    pub sealed: bool,
    /// CRC-32C of all frames as they are stored, one after the other. Only in one that is sealed, for
    /// those who have no key: a gateway.
    pub frames_crc: u32,
}

/// The first bytes of a segment; of one that is sealed, with the first bytes of its key's public half.
#[must_use]
pub fn encode_header(id: SegmentId, sealed: Option<[u8; 8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&id.number.to_le_bytes());
    out.extend_from_slice(&id.disk.to_bytes());
    out.extend_from_slice(&id.cycle.0.to_le_bytes());
    out.extend_from_slice(&id.attempt.to_le_bytes());
    if let Some(public) = sealed {
        out.extend_from_slice(&AES_256_GCM.to_le_bytes());
        out.extend_from_slice(&public);
    }
    out.resize(HEADER_BYTES - 4, 0);
    seal(out)
}

/// Reads a segment's first bytes: which it is, and whether it is sealed.
///
/// # Errors
/// Anything but a whole header of a known version and encryption.
pub fn decode_header(bytes: &[u8]) -> Result<(SegmentId, Option<[u8; 8]>), FormatError> {
    if bytes.len() != HEADER_BYTES {
        return Err(FormatError::Short { what: WHAT, have: bytes.len(), need: HEADER_BYTES });
    }
    Reader::new(WHAT, bytes).magic(MAGIC)?;
    let mut r = Reader::new(WHAT, checked(WHAT, bytes)?);
    r.magic(MAGIC)?;
    r.version(VERSION)?;
    let number = r.u32()?;
    let disk = DiskId::from_bytes(r.array()?);
    let (cycle, attempt) = (CycleNo(r.u64()?), r.u64()?);
    let id = SegmentId { disk, cycle, attempt, number };
    match r.u32()? {
        0 => Ok((id, None)),
        AES_256_GCM => Ok((id, Some(r.array()?))),
        other => Err(FormatError::Bounds { what: WHAT, field: "encryption", value: other.into() }),
    }
}

/// Whether a stored length fits its codec: raw is as long as it is, zstd is shorter. So nothing
/// stored is longer than the limit on what it holds.
fn stored_len_fits(codec: Codec, stored: u32, raw: u32, sealed: Option<usize>) -> bool {
    // What sealing adds to all, it adds to what is compressed, too.
    let Some(stored) = stored.checked_sub(sealed.unwrap_or(0) as u32) else { return false };
    match codec {
        Codec::Raw => stored == raw,
        Codec::Zstd => stored > 0 && stored < raw,
    }
}

/// Extents of one segment must not overlap: which of them would hold is not said.
fn check_disjoint(extents: &[Extent]) -> Result<(), FormatError> {
    let mut runs: Vec<SectorRange> = extents.iter().map(|extent| extent.range).collect();
    runs.sort_unstable_by_key(|run| run.start);
    match runs.windows(2).find(|pair| pair[1].start < pair[0].end) {
        None => Ok(()),
        Some(pair) => Err(FormatError::Bounds {
            what: WHAT,
            field: "extent, which overlaps another, at sector",
            value: pair[1].start.0,
        }),
    }
}

/// Whole chunks inside the disk. That the segment holds their sectors is for the reader to see.
fn read_sums(
    r: &mut Reader<'_>,
    footer: &Footer,
    disk: SectorRange,
) -> Result<Vec<ChunkSum>, FormatError> {
    let mut sums = Vec::with_capacity(footer.sums as usize);
    for _ in 0..footer.sums {
        let (start, sum) = (r.u64()?, r.array()?);
        let sectors = 1u64 << footer.chunk_shift;
        let inside = start < disk.end.0 && disk.end.0 - start >= sectors;
        if !inside || !start.is_multiple_of(sectors) {
            return Err(FormatError::Bounds { what: WHAT, field: "chunk's start", value: start });
        }
        sums.push(ChunkSum { start: Sector(start), sum });
    }
    Ok(sums)
}

impl Index {
    /// How many bytes [`Self::encode`] gives.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        self.frames.len() * FRAME_ENTRY_BYTES
            + self.extents.len() * EXTENT_ENTRY_BYTES
            + self.sums.len() * SUM_ENTRY_BYTES
    }

    /// The index's bytes, before they are compressed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.encoded_len());
        for frame in &self.frames {
            out.extend_from_slice(&frame.offset.to_le_bytes());
            for number in [frame.stored_len, frame.raw_len, frame.stored_crc, frame.codec as u32] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        for extent in &self.extents {
            let place = extent.place.unwrap_or(Place { frame: ZERO, offset: 0, crc: 0 });
            out.extend_from_slice(&extent.range.start.0.to_le_bytes());
            for number in [extent.range.sectors() as u32, place.frame, place.offset, place.crc] {
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        for chunk in &self.sums {
            out.extend_from_slice(&chunk.start.0.to_le_bytes());
            out.extend_from_slice(&chunk.sum);
        }
        out
    }

    /// Reads an index and checks every number in it against the footer and the disk's size.
    ///
    /// # Errors
    /// Anything that could lead outside a frame, the object or the disk.
    pub fn decode(bytes: &[u8], footer: &Footer, disk: SectorRange) -> Result<Self, FormatError> {
        let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
        // Of one that is sealed it was compared before it was opened.
        if !footer.sealed && *blake3::hash(bytes).as_bytes() != footer.index_digest {
            return Err(FormatError::Text {
                what: WHAT,
                reason: "its index does not have the digest in its footer".into(),
            });
        }
        let need = footer.frames as usize * FRAME_ENTRY_BYTES
            + footer.extents as usize * EXTENT_ENTRY_BYTES
            + footer.sums as usize * SUM_ENTRY_BYTES;
        if bytes.len() != need {
            return Err(FormatError::Short { what: WHAT, have: bytes.len(), need });
        }
        let mut r = Reader::new(WHAT, bytes);
        let mut frames = Vec::with_capacity(footer.frames as usize);
        // Frames follow each other without a gap, from the header to the index.
        let mut next = HEADER_BYTES as u64;
        for _ in 0..footer.frames {
            let offset = r.u64()?;
            let (stored_len, raw_len, stored_crc) = (r.u32()?, r.u32()?, r.u32()?);
            let codec = Codec::of(r.u32()?)?;
            if offset != next {
                return Err(bounds("frame's offset", offset));
            }
            // At most 2^32 frames of less than 2^32 bytes: cannot overflow.
            next += u64::from(stored_len);
            if raw_len == 0 || raw_len as usize > FRAME_BYTES_MAX {
                return Err(bounds("frame's length", raw_len.into()));
            }
            if !stored_len_fits(codec, stored_len, raw_len, footer.sealed.then_some(TAG_BYTES)) {
                return Err(bounds("frame's stored length", stored_len.into()));
            }
            frames.push(FrameEntry { offset, stored_len, raw_len, stored_crc, codec });
        }
        if next != footer.index_offset {
            return Err(bounds("end of the frames", next));
        }
        let mut extents = Vec::with_capacity(footer.extents as usize);
        for _ in 0..footer.extents {
            let (start, sectors) = (r.u64()?, u64::from(r.u32()?));
            let (frame, offset, crc) = (r.u32()?, r.u32()?, r.u32()?);
            if sectors == 0 || start >= disk.end.0 || sectors > disk.end.0 - start {
                return Err(bounds("extent's sectors", start));
            }
            // One way to say a thing, so that a digest stands for what is said.
            if frame == ZERO && (offset, crc) != (0, 0) {
                return Err(bounds("zero extent's offset or checksum", start));
            }
            let place = (frame != ZERO).then_some(Place { frame, offset, crc });
            if let Some(place) = place {
                let Some(of) = frames.get(place.frame as usize) else {
                    return Err(bounds("extent's frame", place.frame.into()));
                };
                if u64::from(offset) + sectors * 512 > u64::from(of.raw_len) {
                    return Err(bounds("extent's place in its frame", offset.into()));
                }
            }
            extents.push(Extent { range: SectorRange::new(start, start + sectors), place });
        }
        check_disjoint(&extents)?;
        let sums = read_sums(&mut r, footer, disk)?;
        Ok(Self { frames, extents, chunk_shift: footer.chunk_shift, sums, opens: Opens::default() })
    }

    /// The sectors of a chunk with a checksum.
    #[must_use]
    pub fn chunk(&self, sum: &ChunkSum) -> SectorRange {
        SectorRange::new(sum.start.0, sum.start.0 + (1 << self.chunk_shift))
    }

    /// From its first sector to the end of its last; `None` if it holds nothing.
    #[must_use]
    pub fn span(&self) -> Option<SectorRange> {
        let ranges = || self.extents.iter().map(|extent| extent.range);
        let start = ranges().map(|range| range.start).min()?;
        let end = ranges().map(|range| range.end).max()?;
        Some(SectorRange { start, end })
    }

    /// Sectors held as data, and sectors said to be zero.
    #[must_use]
    pub fn sectors(&self) -> (u64, u64) {
        self.extents.iter().fold((0, 0), |(data, zero), extent| match extent.place {
            Some(_) => (data + extent.range.sectors(), zero),
            None => (data, zero + extent.range.sectors()),
        })
    }
}

impl Footer {
    /// The footer's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        out.extend_from_slice(FOOTER_MAGIC);
        let version = if self.sealed { SEALED } else { VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&self.id.number.to_le_bytes());
        out.extend_from_slice(&self.id.disk.to_bytes());
        out.extend_from_slice(&self.id.cycle.0.to_le_bytes());
        out.extend_from_slice(&self.id.attempt.to_le_bytes());
        out.extend_from_slice(&self.index_offset.to_le_bytes());
        for number in [
            self.index_stored_len,
            self.index_raw_len,
            self.index_codec as u32,
            self.frames,
            self.extents,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.index_digest);
        out.extend_from_slice(&self.sums.to_le_bytes());
        out.extend_from_slice(&self.chunk_shift.to_le_bytes());
        out.extend_from_slice(&if self.sealed { self.frames_crc } else { 0 }.to_le_bytes());
        out.resize(FOOTER_BYTES - 4, 0);
        seal(out)
    }

    /// Reads the footer of an object of a known length.
    ///
    /// # Errors
    /// Anything but a whole footer of a known version that fits the object.
    pub fn decode(bytes: &[u8], object: ByteLen) -> Result<Self, FormatError> {
        let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
        if bytes.len() != FOOTER_BYTES {
            return Err(FormatError::Short { what: WHAT, have: bytes.len(), need: FOOTER_BYTES });
        }
        Reader::new(WHAT, bytes).magic(FOOTER_MAGIC)?;
        let mut r = Reader::new(WHAT, checked(WHAT, bytes)?);
        r.magic(FOOTER_MAGIC)?;
        let sealed = match r.u32()? {
            VERSION => false,
            SEALED => true,
            found => return Err(FormatError::Version { what: WHAT, found, known: SEALED }),
        };
        let number = r.u32()?;
        let disk = DiskId::from_bytes(r.array()?);
        let (cycle, attempt) = (CycleNo(r.u64()?), r.u64()?);
        let index_offset = r.u64()?;
        let (index_stored_len, index_raw_len) = (r.u32()?, r.u32()?);
        let index_codec = Codec::of(r.u32()?)?;
        let (frames, extents) = (r.u32()?, r.u32()?);
        let index_digest = r.array()?;
        let (sums, chunk_shift) = (r.u32()?, r.u32()?);
        let frames_crc = if sealed { r.u32()? } else { 0 };
        if (sums, chunk_shift) != (0, 0) && !CHUNK_SHIFTS.contains(&chunk_shift) {
            return Err(bounds("chunk's size", chunk_shift.into()));
        }
        let end = index_offset.checked_add(u64::from(index_stored_len) + FOOTER_BYTES as u64);
        if object.0 > SEGMENT_BYTES_MAX {
            return Err(bounds("object's length", object.0));
        }
        if index_offset < HEADER_BYTES as u64 || end != Some(object.0) {
            return Err(bounds("index's offset", index_offset));
        }
        if index_raw_len as usize > INDEX_BYTES_MAX {
            return Err(bounds("index's length", index_raw_len.into()));
        }
        let overhead = sealed.then_some(INDEX_OVERHEAD_BYTES);
        if !stored_len_fits(index_codec, index_stored_len, index_raw_len, overhead) {
            return Err(bounds("index's stored length", index_stored_len.into()));
        }
        Ok(Self {
            id: SegmentId { disk, cycle, attempt, number },
            index_offset,
            index_stored_len,
            index_raw_len,
            index_codec,
            frames,
            extents,
            index_digest,
            sums,
            chunk_shift,
            sealed,
            frames_crc,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: SectorRange =
        SectorRange { start: backstay_types::Sector(0), end: backstay_types::Sector(100_000) };

    fn sample() -> (Index, Footer, ByteLen) {
        let frame = FrameEntry {
            offset: 64,
            stored_len: 900,
            raw_len: 4096,
            stored_crc: 7,
            codec: Codec::Zstd,
        };
        let place = Some(Place { frame: 0, offset: 512, crc: 9 });
        let index = Index {
            frames: vec![frame],
            extents: vec![
                Extent { range: SectorRange::new(8, 15), place },
                Extent { range: SectorRange::new(100, 5_000), place: None },
            ],
            chunk_shift: 3,
            sums: vec![ChunkSum { start: Sector(104), sum: [6; 16] }],
            opens: Opens::default(),
        };
        let raw = index.encode();
        let footer = Footer {
            id: SegmentId {
                disk: DiskId::from_bytes([7; 16]),
                cycle: CycleNo(3),
                attempt: 5,
                number: 1,
            },
            index_offset: 964,
            index_stored_len: raw.len() as u32,
            index_raw_len: raw.len() as u32,
            index_codec: Codec::Raw,
            frames: 1,
            extents: 2,
            index_digest: *blake3::hash(&raw).as_bytes(),
            sums: 1,
            chunk_shift: 3,
            sealed: false,
            frames_crc: 0,
        };
        let object = ByteLen(964 + raw.len() as u64 + FOOTER_BYTES as u64);
        (index, footer, object)
    }

    #[test]
    fn round_trip_and_golden() {
        let (index, footer, object) = sample();
        assert_eq!(Footer::decode(&footer.encode(), object).unwrap(), footer);
        assert_eq!(Index::decode(&index.encode(), &footer, DISK).unwrap(), index);
        assert_eq!(index.sectors(), (7, 4_900));
        let mut all = encode_header(footer.id, None);
        all.extend(index.encode());
        all.extend(footer.encode());
        if std::env::var_os("BACKSTAY_GOLDEN_WRITE").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/segment.bin"), &all)
                .unwrap();
        }
        assert_eq!(all, include_bytes!("../../tests/golden/segment.bin"));
    }

    /// What a hostile segment could say to make a reader fetch or hold far more than it is.
    #[test]
    fn stored_lengths_are_bounded_by_what_they_hold() {
        let (mut index, mut footer, object) = sample();
        index.frames[0].stored_len = 1 << 29;
        let raw = index.encode();
        footer.index_digest = *blake3::hash(&raw).as_bytes();
        assert!(matches!(
            Index::decode(&raw, &footer, DISK),
            Err(FormatError::Bounds { field: "frame's stored length", .. })
        ));
        let (_, mut footer, _) = sample();
        footer.index_codec = Codec::Zstd;
        assert!(matches!(
            Footer::decode(&footer.encode(), object),
            Err(FormatError::Bounds { field: "index's stored length", .. })
        ));
    }

    #[test]
    fn frames_leave_no_gap_and_extents_do_not_overlap() {
        let refused = |change: fn(&mut Index)| {
            let (mut index, mut footer, _) = sample();
            change(&mut index);
            let raw = index.encode();
            footer.index_digest = *blake3::hash(&raw).as_bytes();
            Index::decode(&raw, &footer, DISK).unwrap_err()
        };
        let gap = refused(|index| index.frames[0].offset += 1);
        assert!(matches!(gap, FormatError::Bounds { field: "frame's offset", .. }), "{gap}");
        let short = refused(|index| index.frames[0].stored_len -= 1);
        assert!(matches!(short, FormatError::Bounds { field: "end of the frames", .. }), "{short}");
        let twice = refused(|index| index.extents[1].range = SectorRange::new(14, 100));
        assert!(twice.to_string().contains("overlaps"), "{twice}");
    }

    #[test]
    fn a_header_says_which_segment_it_is() {
        let (_, footer, _) = sample();
        let bytes = encode_header(footer.id, None);
        assert_eq!(decode_header(&bytes).unwrap(), (footer.id, None));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(decode_header(&bad).is_err(), "{at}");
        }
    }

    #[test]
    fn sums_are_of_whole_chunks_inside_the_disk() {
        for start in [1, 99_999, 100_000, u64::MAX - 7] {
            let (mut index, mut footer, _) = sample();
            index.sums[0].start = Sector(start);
            let raw = index.encode();
            footer.index_digest = *blake3::hash(&raw).as_bytes();
            assert!(matches!(
                Index::decode(&raw, &footer, DISK),
                Err(FormatError::Bounds { field: "chunk's start", .. })
            ));
        }
        let (_, mut footer, object) = sample();
        footer.chunk_shift = 64;
        assert!(Footer::decode(&footer.encode(), object).is_err());
    }

    #[test]
    fn extents_outside_the_disk_are_refused() {
        let (index, footer, _) = sample();
        let small = SectorRange::new(0, 4_999);
        assert!(matches!(
            Index::decode(&index.encode(), &footer, small),
            Err(FormatError::Bounds { field: "extent's sectors", .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_footer_or_an_error(bytes: Vec<u8>, object: u64) {
            let _ = Footer::decode(&bytes, ByteLen(object));
            let mut marked = FOOTER_MAGIC.to_vec();
            marked.extend_from_slice(&VERSION.to_le_bytes());
            marked.extend(bytes);
            marked.resize(FOOTER_BYTES - 4, 0);
            let _ = Footer::decode(&seal(marked), ByteLen(object));
        }

        /// With a digest that fits, so that every field is reached.
        #[test]
        fn any_bytes_are_an_index_or_an_error(bytes: Vec<u8>, frames in 0u32..8) {
            let (_, mut footer, _) = sample();
            footer.frames = frames;
            let entries = (bytes.len() as u32 / 24).saturating_sub(frames);
            footer.sums = entries / 2;
            footer.extents = entries - footer.sums;
            footer.index_digest = *blake3::hash(&bytes).as_bytes();
            let _ = Index::decode(&bytes, &footer, DISK);
        }

        #[test]
        fn any_flip_is_seen(at: prop::sample::Index, bit in 0u8..8) {
            let (index, footer, object) = sample();
            let mut bytes = footer.encode();
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(Footer::decode(&bytes, object).is_err());
            let mut bytes = index.encode();
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(Index::decode(&bytes, &footer, DISK).is_err());
        }
    }
}

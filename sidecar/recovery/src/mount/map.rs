//! The overlay's map on disk: which sectors are in the overlay. docs/explanation/format.md says the same in words.
//!
//! Bits are only ever set, so a write of a block that a crash tears leaves a mixture of two states of
//! which each bit was allowed to be there; the checksum of each 512 bytes is against damage.

use backstay_format::FormatError;
use backstay_types::{DiskId, PointId};

const WHAT: &str = "overlay map";
const MAGIC: &[u8; 8] = b"BSTYOVLM";
const VERSION: u32 = 1;
/// Bytes of a header slot.
pub(crate) const SLOT_BYTES: u64 = 4096;
/// Where the chunks begin.
pub(crate) const CHUNKS_AT: u64 = 2 * SLOT_BYTES;
/// Bytes of a chunk in the file.
pub(crate) const CHUNK_BYTES: usize = 4096;
const BLOCK_BYTES: usize = 512;
const BLOCK_WORDS: usize = 62;
/// Words of a chunk.
pub(crate) const CHUNK_WORDS: usize = BLOCK_WORDS * CHUNK_BYTES / BLOCK_BYTES;
/// Sectors that a chunk is about.
pub(crate) const CHUNK_SECTORS: u64 = CHUNK_WORDS as u64 * 64;

/// One bit a sector.
pub(crate) type Words = [u64; CHUNK_WORDS];

/// What the map is of, and how much of the disk is here as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Counts the writes of the header.
    pub generation: u64,
    /// The disk in the vault.
    pub disk: DiskId,
    /// The point.
    pub point: PointId,
    /// Sectors of the disk.
    pub sectors: u64,
    /// All sectors below this one are in the overlay, whatever the bits say.
    pub whole_to: u64,
}

impl Header {
    /// Where this generation is written.
    pub fn at(&self) -> u64 {
        self.generation % 2 * SLOT_BYTES
    }

    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let mut out = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.generation.to_le_bytes());
        put(24, &self.disk.to_bytes());
        put(40, &self.point.to_bytes());
        put(56, &self.sectors.to_le_bytes());
        put(64, &self.whole_to.to_le_bytes());
        let crc = crc32c::crc32c(&out[..BLOCK_BYTES - 4]);
        out[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8; BLOCK_BYTES]) -> Result<Self, FormatError> {
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        check(bytes)?;
        let version = u32::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(FormatError::Version { what: WHAT, found: version, known: VERSION });
        }
        let header = Self {
            generation: u64::from_le_bytes(array(bytes, 16)),
            disk: DiskId::from_bytes(array(bytes, 24)),
            point: PointId::from_bytes(array(bytes, 40)),
            sectors: u64::from_le_bytes(array(bytes, 56)),
            whole_to: u64::from_le_bytes(array(bytes, 64)),
        };
        if header.whole_to > header.sectors {
            let value = header.whole_to;
            return Err(FormatError::Bounds { what: WHAT, field: "whole_to", value });
        }
        Ok(header)
    }

    /// The newest whole header of the two slots.
    pub fn newest(slots: [&[u8; BLOCK_BYTES]; 2]) -> Result<Self, FormatError> {
        match slots.map(Self::decode) {
            [Ok(a), Ok(b)] => Ok(if a.generation > b.generation { a } else { b }),
            [Ok(one), Err(_)] | [Err(_), Ok(one)] => Ok(one),
            // A slot that was never written says less than the other.
            [Err(FormatError::Magic { .. }), Err(e)] | [Err(e), Err(_)] => Err(e),
        }
    }
}

/// The bytes of a chunk.
pub(crate) fn encode_chunk(number: u64, words: &Words) -> [u8; CHUNK_BYTES] {
    let mut out = [0; CHUNK_BYTES];
    for (i, (block, words)) in
        out.chunks_exact_mut(BLOCK_BYTES).zip(words.chunks_exact(BLOCK_WORDS)).enumerate()
    {
        for (bytes, word) in block.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        block[496..504].copy_from_slice(&block_number(number, i).to_le_bytes());
        let crc = crc32c::crc32c(&block[..BLOCK_BYTES - 4]);
        block[BLOCK_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    out
}

/// Reads a chunk. Blocks that are all zero were never written.
pub(crate) fn decode_chunk(number: u64, bytes: &[u8; CHUNK_BYTES]) -> Result<Words, FormatError> {
    let mut out = [0; CHUNK_WORDS];
    for (i, (block, words)) in
        bytes.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(BLOCK_WORDS)).enumerate()
    {
        if block.iter().all(|&byte| byte == 0) {
            continue;
        }
        check(block)?;
        let here = u64::from_le_bytes(array(block, 496));
        if here != block_number(number, i) {
            return Err(FormatError::Bounds { what: WHAT, field: "block's number", value: here });
        }
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(8)) {
            *word = u64::from_le_bytes(array(bytes, 0));
        }
    }
    Ok(out)
}

fn block_number(chunk: u64, block: usize) -> u64 {
    chunk * (CHUNK_BYTES / BLOCK_BYTES) as u64 + block as u64
}

fn check(block: &[u8]) -> Result<(), FormatError> {
    let at = block.len() - 4;
    let (computed, stored) = (crc32c::crc32c(&block[..at]), u32::from_le_bytes(array(block, at)));
    match computed == stored {
        true => Ok(()),
        false => Err(FormatError::Checksum { what: WHAT, computed, stored }),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Header {
        Header {
            generation: 7,
            disk: DiskId::from_bytes([1; 16]),
            point: PointId::from_bytes([2; 16]),
            sectors: 1 << 21,
            whole_to: 4096,
        }
    }

    #[test]
    fn golden() {
        let mut words = [0; CHUNK_WORDS];
        for (i, word) in words.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
            *word = (i as u64) << 7 | 1;
        }
        let bytes = [&sample().encode()[..], &encode_chunk(5, &words)].concat();
        let golden = include_bytes!("../../tests/golden/overlay-map.bin");
        assert!(bytes == golden, "the format changed");
        assert_eq!(Header::decode(bytes[..512].try_into().unwrap()).unwrap(), sample());
        assert!(decode_chunk(5, bytes[512..].try_into().unwrap()).unwrap() == words);
    }

    #[test]
    fn a_torn_header_leaves_the_other() {
        let (old, mut new) = (sample().encode(), Header { generation: 8, ..sample() }.encode());
        assert_eq!(Header::newest([&new, &old]).unwrap().generation, 8);
        new[30] ^= 1;
        assert_eq!(Header::newest([&new, &old]).unwrap().generation, 7);
        assert!(Header::newest([&new, &[0; 512]]).is_err());
    }

    proptest! {
        #[test]
        fn any_flip_in_a_chunk_is_seen(at in 0..CHUNK_BYTES, bit in 0u8..8, fill: u64) {
            let mut bytes = encode_chunk(3, &[fill | 1; CHUNK_WORDS]);
            bytes[at] ^= 1 << bit;
            prop_assert!(decode_chunk(3, &bytes).is_err());
        }

        #[test]
        fn any_bytes_are_a_map_or_an_error(seed: u64, share in 0.0..1.0f64) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut header = sample().encode();
            let mut chunk = encode_chunk(0, &[seed; CHUNK_WORDS]);
            for byte in header.iter_mut().chain(&mut chunk) {
                if rng.f64() < share * 0.01 {
                    *byte = rng.u8(..);
                }
            }
            // With a fitting checksum, too, so that the fields are reached.
            let crc = crc32c::crc32c(&header[..508]);
            header[508..].copy_from_slice(&crc.to_le_bytes());
            let _ = Header::decode(&header);
            let _ = decode_chunk(0, &chunk);
        }
    }
}

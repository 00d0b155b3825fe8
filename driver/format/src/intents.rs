//! Write intents: the part of the change log that survives a power loss.
//!
//! One bit a region, in blocks of 512 bytes that each carry the epoch and a checksum, rewritten in
//! place. A bit is made durable before the first write of its region in an epoch can reach the
//! backing (I1). The file has its full size from the start, so making an intent durable overwrites
//! one sector and never allocates.
//!
//! A map instead of a log of records, because it cannot fill up, needs no replay, and a torn or
//! damaged block has a safe meaning: all its regions are dirty.

use crate::FormatError;
use crate::wire::{Fields, check_crc, check_version, expect};
use backstay_types::units::{DiskId, EpochNo, Region};

/// Bytes of one block: what a disk writes whole.
pub const BLOCK_BYTES: usize = 512;
/// Bytes of the file's header (its own size in blocks is 8).
pub const HEADER_BYTES: usize = 4096;
/// Bytes of bits in a block.
pub const BLOCK_MAP_BYTES: usize = BLOCK_BYTES - 16;
/// Regions a block speaks for.
pub const BLOCK_REGIONS: u32 = BLOCK_MAP_BYTES as u32 * 8;

const WHAT: &str = "intent map";
const MAGIC: &[u8; 8] = b"BSTYINTM";
const VERSION: u32 = 1;
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"IBLK");

/// The header of an intent map file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntentHeader {
    /// The disk it belongs to.
    pub disk: DiskId,
    /// The epoch it belongs to.
    pub epoch: EpochNo,
    /// Regions of the disk.
    pub regions: u32,
}

impl IntentHeader {
    /// Length of the whole file, in bytes.
    #[must_use]
    pub fn file_bytes(regions: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(regions.div_ceil(BLOCK_REGIONS)) * BLOCK_BYTES as u64
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.regions.to_le_bytes());
        out[16..32].copy_from_slice(&self.disk.to_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        let crc = crc32c::crc32c(&out[..HEADER_BYTES - 4]);
        out[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Anything but a whole header of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = expect(WHAT, bytes, HEADER_BYTES, MAGIC)?;
        check_crc(WHAT, &f.0[..HEADER_BYTES - 4], f.u32(HEADER_BYTES - 4))?;
        check_version(WHAT, f.u32(8), VERSION)?;
        Ok(Self {
            regions: f.u32(12),
            disk: DiskId::from_bytes(f.array(16)),
            epoch: EpochNo(f.u64(32)),
        })
    }
}

/// The block that holds a region's bit, and where it lies in the file.
#[must_use]
pub fn block_of(region: Region) -> u32 {
    region.0 / BLOCK_REGIONS
}

/// Where a block lies in the file, in bytes.
#[must_use]
pub fn block_offset(block: u32) -> u64 {
    HEADER_BYTES as u64 + u64::from(block) * BLOCK_BYTES as u64
}

/// Makes the bytes of a block from its bits.
#[must_use]
pub fn encode_block(epoch: EpochNo, map: &[u8; BLOCK_MAP_BYTES]) -> [u8; BLOCK_BYTES] {
    let mut out = [0u8; BLOCK_BYTES];
    out[..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
    out[8..16].copy_from_slice(&epoch.0.to_le_bytes());
    out[16..].copy_from_slice(map);
    // The checksum covers everything but itself: magic, epoch and bits.
    let crc = block_crc(&out);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out
}

fn block_crc(block: &[u8; BLOCK_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..4]), &block[8..])
}

/// What a block of an intent map says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block<'a> {
    /// Never written in this epoch: no region of it has an intent.
    Unwritten,
    /// The intents of its regions.
    Intents(&'a [u8; BLOCK_MAP_BYTES]),
    /// Torn or damaged: every region of it must count as dirty.
    Damaged,
}

/// Reads a block. Never fails: what cannot be trusted is [`Block::Damaged`].
#[must_use]
pub fn decode_block(epoch: EpochNo, bytes: &[u8; BLOCK_BYTES]) -> Block<'_> {
    if bytes.iter().all(|&b| b == 0) {
        return Block::Unwritten;
    }
    let f = Fields(bytes);
    if f.u32(0) != BLOCK_MAGIC || f.u32(4) != block_crc(bytes) || f.u64(8) != epoch.0 {
        return Block::Damaged;
    }
    match bytes[16..].try_into() {
        Ok(map) => Block::Intents(map),
        Err(_) => Block::Damaged,
    }
}

/// The intents of a whole file, as it was found after a crash. It may speak for fewer regions than
/// the disk has now: an epoch from before the disk grew.
///
/// # Errors
/// If the header is unusable or the file is not this disk's; then nothing is known of the epoch
/// and the whole disk must count as dirty.
pub fn read_all(
    bytes: &[u8],
    disk: DiskId,
    epoch: EpochNo,
    regions_max: u32,
    mut dirty: impl FnMut(Region),
) -> Result<IntentSummary, FormatError> {
    let header = IntentHeader::decode(bytes)?;
    let bounds = |field, value| Err(FormatError::Bounds { what: WHAT, field, value });
    if header.disk != disk {
        return Err(FormatError::Text { what: WHAT, reason: format!("of disk {}", header.disk) });
    }
    if header.epoch != epoch {
        return bounds("epoch", header.epoch.0);
    }
    let regions = header.regions;
    if regions == 0 || regions > regions_max {
        return bounds("regions", regions.into());
    }
    let need = IntentHeader::file_bytes(regions) as usize;
    if bytes.len() < need {
        return Err(FormatError::Short { what: WHAT, have: bytes.len(), need });
    }
    let mut found = IntentSummary::default();
    for (block, chunk) in bytes[HEADER_BYTES..need].chunks_exact(BLOCK_BYTES).enumerate() {
        let first = block as u32 * BLOCK_REGIONS;
        let count = BLOCK_REGIONS.min(regions - first);
        let chunk: &[u8; BLOCK_BYTES] = chunk.try_into().unwrap_or(&[0; BLOCK_BYTES]);
        match decode_block(epoch, chunk) {
            Block::Unwritten => {}
            Block::Intents(map) => {
                for i in (0..count).filter(|i| map[(i / 8) as usize] & (1 << (i % 8)) != 0) {
                    found.regions += 1;
                    dirty(Region(first + i));
                }
            }
            Block::Damaged => {
                found.damaged_blocks += 1;
                for i in 0..count {
                    found.regions += 1;
                    dirty(Region(first + i));
                }
            }
        }
    }
    Ok(found)
}

/// What [`read_all`] came across.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct IntentSummary {
    /// Regions with an intent.
    pub regions: u64,
    /// Blocks that were torn or damaged; all their regions were reported.
    pub damaged_blocks: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: DiskId = DiskId(uuid::Uuid::from_bytes([3; 16]));

    fn file(epoch: EpochNo, regions: u32, set: &[u32]) -> Vec<u8> {
        let mut file = vec![0; IntentHeader::file_bytes(regions) as usize];
        file[..HEADER_BYTES].copy_from_slice(&IntentHeader { disk: DISK, epoch, regions }.encode());
        let mut maps = std::collections::BTreeMap::<u32, [u8; BLOCK_MAP_BYTES]>::new();
        for &r in set {
            let i = r % BLOCK_REGIONS;
            maps.entry(block_of(Region(r))).or_insert([0; BLOCK_MAP_BYTES])[(i / 8) as usize] |=
                1 << (i % 8);
        }
        for (block, map) in maps {
            let at = block_offset(block) as usize;
            file[at..at + BLOCK_BYTES].copy_from_slice(&encode_block(epoch, &map));
        }
        file
    }

    fn read(bytes: &[u8], regions: u32) -> (Vec<u32>, Result<IntentSummary, FormatError>) {
        let mut out = vec![];
        let found = read_all(bytes, DISK, EpochNo(8), regions, |r| out.push(r.0));
        (out, found)
    }

    #[test]
    fn reads_back_what_was_set() {
        let set = [0, 7, 3967, 3968, 5000];
        let (got, found) = read(&file(EpochNo(8), 5001, &set), 5001);
        assert_eq!(got, set);
        assert_eq!(found.unwrap(), IntentSummary { regions: 5, damaged_blocks: 0 });
    }

    #[test]
    fn a_torn_block_makes_all_its_regions_dirty() {
        let mut bytes = file(EpochNo(8), 5001, &[1, 4000]);
        let at = block_offset(1) as usize;
        bytes[at + 100] ^= 1;
        let (got, found) = read(&bytes, 5001);
        assert_eq!(found.unwrap().damaged_blocks, 1);
        assert_eq!(got[0], 1);
        assert_eq!(got[1..], (3968..5001).collect::<Vec<_>>());
    }

    #[test]
    fn another_epochs_block_is_not_believed() {
        assert_eq!(
            decode_block(EpochNo(8), &encode_block(EpochNo(7), &[0xFF; BLOCK_MAP_BYTES])),
            Block::Damaged
        );
    }

    #[test]
    fn a_damaged_header_is_an_error() {
        let mut bytes = file(EpochNo(8), 5001, &[1]);
        bytes[20] ^= 1;
        assert!(matches!(read(&bytes, 5001).1, Err(FormatError::Checksum { .. })));
        assert!(matches!(read(&bytes[..100], 5001).1, Err(FormatError::Short { .. })));
    }
}

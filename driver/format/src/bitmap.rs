//! The files of bits that driver and sidecar share by mmap: dirty, preserved and shipped sectors.
//!
//! A header page, then one bit a sector in little-endian 64-bit words: bit `i` of word `w` is
//! sector `64 w + i`. The files are sparse and live on tmpfs: they survive the death of a process
//! exactly, vanish with the boot, and cost memory only where they were touched.

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};
use backstay_types::units::{DiskId, EpochNo};

/// Bytes before the first word.
pub const HEADER_BYTES: usize = 4096;
/// Sectors one 4 KiB page of bits speaks for.
pub const PAGE_SECTORS: u64 = 4096 * 8;

const WHAT: &str = "bitmap";
const MAGIC: &[u8; 8] = b"BSTYBITS";
const VERSION: u32 = 1;

/// The header of a bitmap file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitmapHeader {
    /// The disk it belongs to.
    pub disk: DiskId,
    /// The epoch it belongs to.
    pub epoch: EpochNo,
    /// The kernel's boot id when it was made.
    pub boot_id: [u8; 16],
    /// Sectors of the disk.
    pub sectors: u64,
}

impl BitmapHeader {
    /// Words needed for a disk of so many sectors.
    #[must_use]
    pub fn words(sectors: u64) -> u64 {
        sectors.div_ceil(64)
    }

    /// Length of the file, in bytes: header and whole pages of bits.
    #[must_use]
    pub fn file_bytes(sectors: u64) -> u64 {
        HEADER_BYTES as u64 + sectors.div_ceil(PAGE_SECTORS) * 4096
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.disk.to_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[40..56].copy_from_slice(&self.boot_id);
        out[56..64].copy_from_slice(&self.sectors.to_le_bytes());
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
            disk: DiskId::from_bytes(f.array(16)),
            epoch: EpochNo(f.u64(32)),
            boot_id: f.array(40),
            sectors: f.u64(56),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let header = BitmapHeader {
            disk: DiskId::from_bytes([1; 16]),
            epoch: EpochNo(6),
            boot_id: [4; 16],
            sectors: 1 << 30,
        };
        assert_eq!(BitmapHeader::decode(&header.encode()).unwrap(), header);
        assert_eq!(BitmapHeader::file_bytes(1), 8192);
    }
}

//! Preserved blocks: the part of a closed epoch's change log that copy-before-write fills.
//!
//! A header of 4 KiB, then records one after the other: a 512-byte record header and the old
//! content of a run of sectors. Records are only ever read by the sidecar of the same boot (after
//! a crash the cycle's sectors fold into the next one), but carry checksums all the same: what is
//! shipped must be what the driver read.

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};
use backstay_types::units::{DiskId, EpochNo, SECTOR_BYTES, SectorRange};

/// Bytes of the file's header.
pub const HEADER_BYTES: usize = 4096;
/// Bytes of a record's header, before its sectors.
pub const RECORD_BYTES: usize = 512;
/// Most sectors in one record (128 KiB).
pub const RECORD_SECTORS_MAX: u64 = 256;

const WHAT: &str = "preserved blocks";
const MAGIC: &[u8; 8] = b"BSTYPRES";
const RECORD: &str = "preserved block record";
const RECORD_MAGIC: &[u8; 8] = b"BSTYPREC";
const VERSION: u32 = 1;
const CRC_AT: usize = RECORD_BYTES - 4;

/// The header of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreservedHeader {
    /// The disk it belongs to.
    pub disk: DiskId,
    /// The closed epoch it belongs to.
    pub epoch: EpochNo,
}

impl PreservedHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0u8; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.disk.to_bytes());
        out[32..40].copy_from_slice(&self.epoch.0.to_le_bytes());
        let crc = crc32c::crc32c(&out[..HEADER_BYTES - 4]);
        out[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header.
    ///
    /// # Errors
    /// Anything but a whole header of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = expect(WHAT, bytes, HEADER_BYTES, MAGIC)?;
        check_crc(WHAT, &f.0[..HEADER_BYTES - 4], f.u32(HEADER_BYTES - 4))?;
        check_version(WHAT, f.u32(8), VERSION)?;
        Ok(Self { disk: DiskId::from_bytes(f.array(16)), epoch: EpochNo(f.u64(32)) })
    }
}

/// The header of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The epoch whose content this is.
    pub epoch: EpochNo,
    /// The sectors that follow, 1 to [`RECORD_SECTORS_MAX`].
    pub range: SectorRange,
    /// CRC-32C of their bytes.
    pub data_crc: u32,
}

impl Record {
    /// Bytes of a record of so many sectors, header and content.
    #[must_use]
    pub fn bytes(sectors: u64) -> u64 {
        RECORD_BYTES as u64 + sectors * SECTOR_BYTES
    }

    /// Writes the record's header in front of its content.
    pub fn encode_into(&self, out: &mut [u8; RECORD_BYTES]) {
        out.fill(0);
        out[..8].copy_from_slice(RECORD_MAGIC);
        out[8..12].copy_from_slice(&(self.range.sectors() as u32).to_le_bytes());
        out[12..16].copy_from_slice(&self.data_crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.range.start.0.to_le_bytes());
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a record's header and checks it against its epoch and the disk's size.
    ///
    /// # Errors
    /// Anything but a whole record header; a torn tail is one of these.
    pub fn decode(bytes: &[u8], epoch: EpochNo, disk: SectorRange) -> Result<Self, FormatError> {
        let f = expect(RECORD, bytes, RECORD_BYTES, RECORD_MAGIC)?;
        check_crc(RECORD, &f.0[..CRC_AT], f.u32(CRC_AT))?;
        let bounds = |field, value| Err(FormatError::Bounds { what: RECORD, field, value });
        let sectors = u64::from(f.u32(8));
        let start = f.u64(24);
        if sectors == 0 || sectors > RECORD_SECTORS_MAX {
            return bounds("sectors", sectors);
        }
        if start >= disk.end.0 || sectors > disk.end.0 - start {
            return bounds("start sector", start);
        }
        if f.u64(16) != epoch.0 {
            return bounds("epoch", f.u64(16));
        }
        Ok(Self { epoch, range: SectorRange::new(start, start + sectors), data_crc: f.u32(12) })
    }

    /// Compares the content that was read with the record's checksum.
    ///
    /// # Errors
    /// [`FormatError::Checksum`] if it differs.
    pub fn check_data(&self, data: &[u8]) -> Result<(), FormatError> {
        check_crc(RECORD, data, self.data_crc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_flip_seen() {
        let record =
            Record { epoch: EpochNo(2), range: SectorRange::new(100, 108), data_crc: 0xABCD };
        let mut bytes = [0u8; RECORD_BYTES];
        record.encode_into(&mut bytes);
        let disk = SectorRange::new(0, 1000);
        assert_eq!(Record::decode(&bytes, EpochNo(2), disk).unwrap(), record);
        assert!(Record::decode(&bytes, EpochNo(3), disk).is_err());
        assert!(Record::decode(&bytes, EpochNo(2), SectorRange::new(0, 107)).is_err());
        for at in 0..RECORD_BYTES {
            let mut bad = bytes;
            bad[at] ^= 0x10;
            assert!(Record::decode(&bad, EpochNo(2), disk).is_err(), "byte {at}");
        }
    }
}

//! The mark: what stands beside a backing's bytes and does not die with the state directory.
//!
//! A backing file carries it as an extended attribute. It says whose the backing is and whether
//! everything that was changed on it was tracked. A driver sets it to [`Tracked::All`] when it opens
//! the disk and to [`Tracked::NotAll`] before the first change that is written down nowhere else.

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};
use backstay_types::units::DiskId;

/// Bytes of a mark. All marks have the same length, so that one is replaced in place.
pub const MARK_BYTES: usize = 64;

const WHAT: &str = "mark of the backing";
const MAGIC: &[u8; 8] = b"BSTYMARK";
const VERSION: u32 = 1;
const CRC_AT: usize = MARK_BYTES - 4;

/// Whether everything that was changed on a backing was tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tracked {
    /// Everything, as far as the mark's writer came.
    All,
    /// Not everything: the state directory could not be written.
    NotAll,
}

/// What a backing says about the disk that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The disk that was served from it last.
    pub disk: DiskId,
    /// The superblock's generation when that driver opened the disk. A superblock with a smaller one
    /// is an old copy.
    pub generation: u64,
    /// Whether its changes were tracked.
    pub tracked: Tracked,
}

impl Mark {
    /// The bytes of a mark.
    #[must_use]
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut out = [0u8; MARK_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12] = u8::from(self.tracked == Tracked::NotAll);
        out[16..32].copy_from_slice(&self.disk.to_bytes());
        out[32..40].copy_from_slice(&self.generation.to_le_bytes());
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a mark.
    ///
    /// # Errors
    /// Anything but a whole mark of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let f = expect(WHAT, bytes, MARK_BYTES, MAGIC)?;
        check_crc(WHAT, &f.0[..CRC_AT], f.u32(CRC_AT))?;
        check_version(WHAT, f.u32(8), VERSION)?;
        let tracked = match f.0[12] {
            0 => Tracked::All,
            1 => Tracked::NotAll,
            other => {
                let (field, value) = ("tracked", other.into());
                return Err(FormatError::Bounds { what: WHAT, field, value });
            }
        };
        Ok(Self { disk: DiskId::from_bytes(f.array(16)), generation: f.u64(32), tracked })
    }
}

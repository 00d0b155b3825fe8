//! Reading parts of a point in any order, frame by frame.
//!
//! For those who cannot go through a point from its newest segment to its oldest as a restore does,
//! because somebody waits for a block of it.

use backstay_types::DiskId;

use super::frames::{Decompressor, fetch_frames};
use super::opens;
use crate::error::VaultError;
use crate::format::manifest::SegmentRef;
use crate::format::segment::{Extent, FrameEntry, Place};
use crate::store::Vault;

/// Reads frames; one a thread.
pub struct FrameReader {
    decompressor: Decompressor,
}

impl FrameReader {
    /// A reader.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub fn new() -> Result<Self, VaultError> {
        Ok(Self { decompressor: Decompressor::new()? })
    }

    /// Reads frames of a segment that lie near each other, in the order they lie there, with one
    /// request. Each comes with its own verdict: a damaged one says nothing about its neighbours. What
    /// is in a frame is checked against its stored checksum only: see [`check_extent`].
    ///
    /// # Errors
    /// If the segment cannot be read.
    pub fn read(
        &mut self,
        vault: &Vault,
        disk: DiskId,
        segment: &SegmentRef,
        frames: &[FrameEntry],
    ) -> Result<Vec<Result<Vec<u8>, VaultError>>, VaultError> {
        let key = segment.id(disk).key();
        let stored = match frames {
            [] => vec![],
            frames => fetch_frames(vault, &key, frames, &opens(vault, disk, segment)?)?,
        };
        let read = frames.iter().zip(stored).map(|(frame, stored)| {
            self.decompressor.open(&key, frame, &stored).map(<[u8]>::to_vec)
        });
        Ok(read.collect())
    }
}

/// How many of these frames, sorted by their offset, are best read with one request: somebody waits, so little is
/// read along.
#[must_use]
pub fn one_request(frames: &[FrameEntry]) -> usize {
    const GAP_BYTES_MAX: u64 = 32 << 10;
    super::frames::one_request(frames.iter().copied(), GAP_BYTES_MAX)
}

/// I6: a run's bytes in an uncompressed frame of a segment, if they have the checksum taken before
/// compression.
///
/// # Errors
/// If they have not.
pub fn check_extent<'a>(
    disk: DiskId,
    segment: &SegmentRef,
    extent: &Extent,
    place: &Place,
    frame: &'a [u8],
) -> Result<&'a [u8], VaultError> {
    let key = segment.id(disk).key();
    if place.offset as u64 + extent.range.bytes().0 > frame.len() as u64 {
        let reason = format!("{} lies outside its frame", extent.range);
        return Err(VaultError::Inconsistent { object: key.into(), reason });
    }
    super::frames::check(&key, extent, place, frame)
}

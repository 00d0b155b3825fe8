//! Reading frames: many with one request, each checked before anyone sees it.

use std::ops::Range;

use bytes::Bytes;

use crate::error::VaultError;
use crate::format::segment::{Codec, Extent, FRAME_BYTES_MAX, FrameEntry, Index, Place};
use crate::seal::segment::Opens;
use crate::store::Vault;

/// Most stored bytes asked for at once.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// Frames that are not needed are read along if they are not longer than this.
const GAP_BYTES_MAX: u64 = 128 << 10;

/// Groups frames (sorted numbers) so that each group is one request.
pub(crate) fn requests(index: &Index, frames: &[u32]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = vec![];
    for (i, &frame) in frames.iter().enumerate() {
        let entry = &index.frames[frame as usize];
        let joined = groups.last_mut().filter(|group| {
            let (first, last) = (
                &index.frames[frames[group.start] as usize],
                &index.frames[frames[i - 1] as usize],
            );
            let end = last.offset + u64::from(last.stored_len);
            entry.offset >= end
                && entry.offset - end <= GAP_BYTES_MAX
                && entry.offset + u64::from(entry.stored_len) - first.offset <= REQUEST_BYTES_MAX
        });
        match joined {
            Some(group) => group.end = i + 1,
            None => groups.push(i..i + 1),
        }
    }
    groups
}

/// A frame as it is stored, and what opens it.
pub(crate) struct Stored {
    bytes: Bytes,
    opens: Opens,
}

impl Stored {
    /// Of these bytes.
    pub fn new(bytes: Bytes, opens: Opens) -> Self {
        Self { bytes, opens }
    }
}

/// Reads the stored bytes of a group of frames.
pub(crate) fn fetch(
    vault: &Vault,
    key: &str,
    index: &Index,
    group: &[u32],
) -> Result<Vec<(u32, Stored)>, VaultError> {
    let (Some(&first), Some(&last)) = (group.first(), group.last()) else { return Ok(vec![]) };
    let (first, last) = (&index.frames[first as usize], &index.frames[last as usize]);
    let end = last.offset + u64::from(last.stored_len);
    let bytes = vault.get_range(key, first.offset, end - first.offset)?;
    let slice = |&frame: &u32| {
        let entry = &index.frames[frame as usize];
        let at = (entry.offset - first.offset) as usize;
        let bytes = bytes.slice(at..at + entry.stored_len as usize);
        (frame, Stored::new(bytes, index.opens.clone()))
    };
    Ok(group.iter().map(slice).collect())
}

/// Decompresses frames; one a thread.
pub(crate) struct Decompressor {
    zstd: zstd::bulk::Decompressor<'static>,
    raw: Vec<u8>,
    /// Where sealed frames are opened.
    opened: Vec<u8>,
}

impl Decompressor {
    pub fn new() -> Result<Self, VaultError> {
        let zstd = zstd::bulk::Decompressor::new()
            .map_err(|source| VaultError::Target { what: "starting zstd".into(), source })?;
        Ok(Self { zstd, raw: Vec::with_capacity(FRAME_BYTES_MAX), opened: vec![] })
    }

    /// The sectors of a frame. Its stored bytes are checked, and opened if they are sealed; its runs are not
    /// checked yet: see [`check`].
    pub fn open(
        &mut self,
        key: &str,
        frame: &FrameEntry,
        stored: &Stored,
    ) -> Result<&[u8], VaultError> {
        let wrong = |reason: String| VaultError::Inconsistent {
            object: key.into(),
            reason: format!("frame at {}: {reason}", frame.offset),
        };
        if crc32c::crc32c(&stored.bytes) != frame.stored_crc {
            return Err(wrong("checksum of the stored bytes differs".into()));
        }
        let stored = match &stored.opens.0 {
            None => &stored.bytes[..],
            Some(key) => {
                self.opened.clear();
                self.opened.extend_from_slice(&stored.bytes);
                let opened =
                    key.open_frame(frame.offset, frame.codec, frame.raw_len, &mut self.opened);
                opened.map_err(|_| {
                    wrong("it is not what was sealed for this disk, cycle and place".into())
                })?
            }
        };
        self.raw.clear();
        match frame.codec {
            Codec::Raw => self.raw.extend_from_slice(stored),
            Codec::Zstd => {
                // The buffer's room bounds what a bomb could make of it.
                self.raw.reserve(FRAME_BYTES_MAX);
                self.zstd
                    .decompress_to_buffer(stored, &mut self.raw)
                    .map_err(|e| wrong(format!("cannot be decompressed: {e}")))?;
            }
        }
        if self.raw.len() != frame.raw_len as usize {
            return Err(wrong(format!("{} bytes, {} expected", self.raw.len(), frame.raw_len)));
        }
        Ok(&self.raw)
    }
}

/// I6: a run's bytes, if they have the checksum taken before compression.
pub(crate) fn check<'a>(
    key: &str,
    extent: &Extent,
    place: &Place,
    raw: &'a [u8],
) -> Result<&'a [u8], VaultError> {
    let at = place.offset as usize;
    let bytes = &raw[at..at + extent.range.bytes().0 as usize];
    if crc32c::crc32c(bytes) == place.crc {
        return Ok(bytes);
    }
    Err(VaultError::Inconsistent {
        object: key.into(),
        reason: format!("checksum of {} differs after decompression", extent.range),
    })
}

//! Reading frames: many with one request, each checked before anyone sees it, and read again before it is called damaged.

use backstay_types::Classified;
use std::ops::Range;

use bytes::Bytes;

use crate::encrypt::segment::Opens;
use crate::error::{In, VaultError};
use crate::format::key::ObjectKey;
use crate::format::segment::{
    Codec, Extent, FRAME_BYTES_MAX, FrameEntry, HEADER_BYTES, Index, Place, decode_header,
};
use crate::store::Vault;

/// Most stored bytes asked for at once.
const REQUEST_BYTES_MAX: u64 = 4 << 20;
/// Who reads much reads frames along that are not needed, if they are not longer than this.
pub(crate) const BULK_GAP_BYTES_MAX: u64 = 128 << 10;

/// How many of these frames, sorted by their offset, are best read with one request: gaps between them may have so
/// many bytes.
pub(crate) fn one_request(
    mut frames: impl Iterator<Item = FrameEntry>,
    gap_bytes_max: u64,
) -> usize {
    let Some(first) = frames.next() else { return 0 };
    let mut end = first.offset + u64::from(first.stored_len);
    let joined = frames.take_while(|frame| {
        let gap = frame.offset.checked_sub(end);
        end = frame.offset + u64::from(frame.stored_len);
        gap.is_some_and(|gap| gap <= gap_bytes_max) && end - first.offset <= REQUEST_BYTES_MAX
    });
    joined.count() + 1
}

/// Groups frames (sorted numbers) so that each group is one request.
pub(crate) fn requests(index: &Index, frames: &[u32], gap_bytes_max: u64) -> Vec<Range<usize>> {
    let (mut groups, mut at) = (vec![], 0);
    while at < frames.len() {
        let rest = frames[at..].iter().map(|&frame| index.frames[frame as usize]);
        let end = at + one_request(rest, gap_bytes_max);
        groups.push(at..end);
        at = end;
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
    key: &ObjectKey,
    index: &Index,
    group: &[u32],
) -> Result<Vec<(u32, Stored)>, VaultError> {
    let frames: Vec<FrameEntry> = group.iter().map(|&frame| index.frames[frame as usize]).collect();
    let stored = fetch_frames(vault, key, &frames, &index.opens)?;
    Ok(group.iter().copied().zip(stored).collect())
}

/// Reads the stored bytes of frames, in the order they lie in a segment, with one request. Where a checksum says that
/// something changed them, or nothing is there, they are read again before that is believed; what is then still damaged
/// is told by [`Decompressor::open`], frame by frame.
///
/// Who reads the first frame reads the header before it, too, so that all readers find the same damage.
pub(crate) fn fetch_frames(
    vault: &Vault,
    key: &ObjectKey,
    frames: &[FrameEntry],
    opens: &Opens,
) -> Result<Vec<Stored>, VaultError> {
    let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(vec![]) };
    let end = last.offset + u64::from(last.stored_len);
    let from = if first.offset == HEADER_BYTES as u64 { 0 } else { first.offset };
    let of = |bytes: &Bytes, frame: &FrameEntry| {
        let at = (frame.offset - from) as usize;
        bytes.slice(at..at + frame.stored_len as usize)
    };
    let mut found = None;
    let read = vault.judged(true, || {
        let bytes = vault.get_range(key, from, end - from)?;
        let bytes = found.insert(bytes);
        if from == 0 {
            check_header(key, &bytes[..HEADER_BYTES], opens)?;
        }
        let wrong =
            frames.iter().find(|frame| crc32c::crc32c(&of(bytes, frame)) != frame.stored_crc);
        wrong.map_or(Ok(()), |frame| {
            Err(damaged(key, frame, "checksum of the stored bytes differs"))
        })
    });
    match (read, found) {
        (Ok(()), Some(bytes)) => {
            Ok(frames.iter().map(|frame| Stored::new(of(&bytes, frame), opens.clone())).collect())
        }
        // The frames beside the damaged one may be what is needed.
        (Err(e), Some(bytes))
            if e.is_damage() && (from > 0 || header_is_fine(key, &bytes, opens)) =>
        {
            Ok(frames.iter().map(|frame| Stored::new(of(&bytes, frame), opens.clone())).collect())
        }
        (Err(e), _) => Err(e),
        (Ok(()), None) => Ok(vec![]),
    }
}

fn header_is_fine(key: &ObjectKey, bytes: &Bytes, opens: &Opens) -> bool {
    check_header(key, &bytes[..HEADER_BYTES], opens).is_ok()
}

/// Reads and checks a segment's header, for who reads no frame of it.
pub(crate) fn read_header(vault: &Vault, key: &ObjectKey, opens: &Opens) -> Result<(), VaultError> {
    vault.judged(true, || check_header(key, &vault.get_range(key, 0, HEADER_BYTES as u64)?, opens))
}

/// Whether a segment's header says that it is this segment, sealed as its index says.
fn check_header(key: &ObjectKey, header: &[u8], opens: &Opens) -> Result<(), VaultError> {
    let (id, sealed) = decode_header(header).within(key)?;
    let as_index = opens.0.as_ref().map(|key| key.public_start());
    if id.key() == *key && sealed == as_index {
        return Ok(());
    }
    let reason = "its header says it is another segment, or sealed otherwise".into();
    Err(VaultError::Inconsistent { object: key.into(), reason })
}

/// A frame that is not as it should be.
fn damaged(key: &ObjectKey, frame: &FrameEntry, reason: &str) -> VaultError {
    let reason = format!("frame at {}: {reason}", frame.offset);
    VaultError::Inconsistent { object: key.into(), reason }
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
        key: &ObjectKey,
        frame: &FrameEntry,
        stored: &Stored,
    ) -> Result<&[u8], VaultError> {
        let wrong = |reason: String| damaged(key, frame, &reason);
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
    key: &ObjectKey,
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

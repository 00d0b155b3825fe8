//! Reading a vault back: indexes, frames, whole points.
//!
//! Whatever is read is checked on the way: an index against the digest in the manifest, a frame's
//! stored bytes against the checksum in the index, and each run of sectors after decompression
//! against the checksum taken before compression (I6).

mod ahead;
mod cache;
pub mod compare;
pub(crate) mod frames;
pub mod ordered;
mod plan;
pub mod random;
mod restore;
mod target;
mod verify;

use backstay_format::{ByteLen, DiskId, SectorRange};
use bytes::Bytes;

use crate::error::{In, VaultError};
use crate::format::manifest::SegmentRef;
use crate::format::segment::{Codec, FOOTER_BYTES, Footer, Index};
use crate::store::{Vault, segment_id, segment_key};

pub use restore::{Fetch, restore};
pub use target::{FileTarget, RestoreTarget};
pub use verify::{Verified, verify_point, verify_points};

/// Tells how far a long operation is: bytes done, bytes in all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Reads a segment's index as the vault holds it and checks it against the reference.
///
/// # Errors
/// If the segment is missing, or anything in it is not as it should be.
pub fn read_index(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
) -> Result<Index, VaultError> {
    let key = segment_key(segment_id(disk, segment));
    let wrong =
        |reason: &str| VaultError::Inconsistent { object: key.clone(), reason: reason.into() };
    let len = vault.len(&key)?;
    if len != segment.object.0 {
        return Err(wrong(&format!("{len} bytes, its manifest says {}", segment.object)));
    }
    let Some(footer_at) = len.checked_sub(FOOTER_BYTES as u64) else {
        return Err(wrong("shorter than a footer"));
    };
    let footer = vault.get_range(&key, footer_at, FOOTER_BYTES as u64)?;
    index_of(disk, size, segment, &footer, |_| (), |at, len| vault.get_range(&key, at, len))
}

/// The index that a segment's footer names, read by `get` and checked against the reference.
fn index_of(
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
    footer: &[u8],
    admit: impl FnOnce(u64),
    get: impl FnOnce(u64, u64) -> Result<Bytes, VaultError>,
) -> Result<Index, VaultError> {
    let id = segment_id(disk, segment);
    let key = segment_key(id);
    let wrong =
        |reason: &str| VaultError::Inconsistent { object: key.clone(), reason: reason.into() };
    let footer = Footer::decode(footer, segment.object).within(&key)?;
    if footer.id != id {
        return Err(wrong("it is another segment"));
    }
    if footer.index_digest != segment.index_digest {
        return Err(wrong("its index is not the one its manifest names"));
    }
    admit(footer.index_raw_len.into());
    let stored = get(footer.index_offset, footer.index_stored_len.into())?;
    let raw = match footer.index_codec {
        Codec::Raw => stored.to_vec(),
        // Into a buffer of the exact size, which was checked: no bomb can grow it.
        Codec::Zstd => zstd::bulk::decompress(&stored, footer.index_raw_len as usize)
            .map_err(|e| wrong(&format!("its index cannot be decompressed: {e}")))?,
    };
    let index = Index::decode(&raw, &footer, SectorRange::whole(size)).within(&key)?;
    if index.sectors() != (segment.data_sectors, segment.zero_sectors) {
        return Err(wrong("its index holds other sectors than its manifest says"));
    }
    // Whoever looked for one of these by the bounds did not find it.
    if let Some(span) = index.span().filter(|span| !segment.bounds.admit(*span)) {
        return Err(VaultError::OutOfBounds { object: key, span });
    }
    Ok(index)
}

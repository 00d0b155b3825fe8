//! Reading a vault back: indexes, frames, whole points.
//!
//! Whatever is read is checked on the way: an index against the digest in the manifest, a frame's
//! stored bytes against the checksum in the index, and each run of sectors after decompression
//! against the checksum taken before compression (I6).

pub(crate) mod ahead;
pub mod cache;
pub mod compare;
pub(crate) mod frames;
pub mod mend;
pub mod ordered;
mod plan;
pub mod random;
mod restore;
pub mod survey;
pub(crate) mod tails;
mod target;
mod verify;

use std::sync::Arc;

use backstay_types::{ByteLen, DiskId, SectorRange};
use bytes::Bytes;

use crate::encrypt::segment::{ENVELOPE_BYTES, Envelope, Opens, SegmentKey};
use crate::error::{In, VaultError};
use crate::format::manifest::SegmentRef;
use crate::format::segment::{Codec, FOOTER_BYTES, Footer, Index, SegmentId};
use crate::remote::gateway::Role;
use crate::store::Vault;

pub use restore::{Fetch, restore};
pub use target::{FileTarget, RestoreTarget};
pub(crate) use verify::verify_segment;
pub use verify::{Verified, verify_newest_segments, verify_point, verify_points};

/// Tells how far a long operation is: bytes done, bytes in all.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// Bytes of a segment's end that are read at once by who does not know how long its index is: with a footer,
/// most indexes whole.
const TAIL_BYTES: u64 = 64 << 10;

/// Reads a segment's index as the vault holds it and checks it against the reference; with one request, if it
/// was put through this handle or is not very long.
///
/// # Errors
/// If the segment is missing, or anything in it is not as it should be.
pub fn read_index(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
) -> Result<Index, VaultError> {
    read_index_admitted(vault, disk, size, segment, |_| ())
}

/// The same; `admit` is told how many bytes the index has before it is unpacked, and may wait until there is room for
/// some three times as many.
///
/// # Errors
/// As for [`read_index`].
pub fn read_index_admitted(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
    admit: impl FnOnce(u64),
) -> Result<Index, VaultError> {
    let mut admit = Some(admit);
    // Somebody names it, so it must be there.
    vault.judged(true, || {
        read_index_once(vault, disk, size, segment, |bytes| {
            if let Some(admit) = admit.take() {
                admit(bytes);
            }
        })
    })
}

fn read_index_once(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
    admit: impl FnOnce(u64),
) -> Result<Index, VaultError> {
    let id = segment.id(disk);
    let tail = match vault.inner.tails.get(id) {
        Some(bytes) => bytes,
        // A source reads of a segment nothing before its index.
        None if vault.is_behind_gateway() && vault.role()? == Some(Role::Source) => 0,
        None => TAIL_BYTES,
    };
    let end = read_end(vault, disk, segment, tail)?;
    let from = segment.object.0 - end.len() as u64;
    let footer = end.slice(end.len() - FOOTER_BYTES..);
    index_of(vault, disk, size, segment, &footer, admit, |at, len| match at.checked_sub(from) {
        Some(at) if at + len <= end.len() as u64 => Ok(end.slice(at as usize..(at + len) as usize)),
        _ => vault.get_range(&id.key(), at, len),
    })
}

/// Reads a segment's end as the vault holds it, at least its footer; its length is as the reference has it.
fn read_end(
    vault: &Vault,
    disk: DiskId,
    segment: &SegmentRef,
    tail: u64,
) -> Result<Bytes, VaultError> {
    let key = segment.id(disk).key();
    let len = segment.object.0;
    let (there, end) = vault.get_end(&key, len, tail.max(FOOTER_BYTES as u64).min(len))?;
    let reason = match there {
        there if there != len => format!("{there} bytes, its manifest says {len}"),
        _ if end.len() < FOOTER_BYTES => "shorter than a footer".into(),
        _ => return Ok(end),
    };
    Err(VaultError::Inconsistent { object: key.into(), reason })
}

/// Reads a segment's footer as the vault holds it, and checks it, and the length, against the reference.
pub(crate) fn read_footer(
    vault: &Vault,
    disk: DiskId,
    segment: &SegmentRef,
) -> Result<Footer, VaultError> {
    footer_of(vault, disk, segment, &read_end(vault, disk, segment, 0)?)
}

/// The index that a segment's footer names, read by `get` and checked against the reference.
fn index_of(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
    footer: &[u8],
    admit: impl FnOnce(u64),
    get: impl FnOnce(u64, u64) -> Result<Bytes, VaultError>,
) -> Result<Index, VaultError> {
    let id = segment.id(disk);
    let key = id.key();
    let wrong =
        |reason: &str| VaultError::Inconsistent { object: (&key).into(), reason: reason.into() };
    let footer = footer_of(vault, disk, segment, footer)?;
    admit(footer.index_raw_len.into());
    let stored = get(footer.index_offset, footer.index_stored_len.into())?;
    let (stored, opens) = match footer.sealed {
        false => (stored, Opens::default()),
        true => {
            let (sealed, opener) = opener(vault, id, &footer, &stored)?;
            let opened = opener.open_index(&footer, sealed);
            let opened =
                opened.map_err(|_| wrong("its index is not what was sealed for this segment"))?;
            (opened.into(), Opens(Some(opener)))
        }
    };
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
    // Anyone who looked for one of these by the bounds did not find it.
    if let Some(span) = index.span().filter(|span| !segment.bounds.admit(*span)) {
        return Err(VaultError::OutOfBounds { object: key.into(), span });
    }
    Ok(Index { opens, ..index })
}

/// A segment's footer, compared with the reference, and with what the vault is: who could put segments that
/// are not sealed into a vault that is encrypted would not need its key.
fn footer_of(
    vault: &Vault,
    disk: DiskId,
    segment: &SegmentRef,
    footer: &[u8],
) -> Result<Footer, VaultError> {
    let id = segment.id(disk);
    let key = id.key();
    let wrong =
        |reason: &str| VaultError::Inconsistent { object: (&key).into(), reason: reason.into() };
    let footer = Footer::decode(footer, segment.object).within(&key)?;
    if footer.id != id {
        return Err(wrong("it is another segment"));
    }
    if footer.index_digest != segment.index_digest {
        return Err(wrong("its index is not the one its manifest names"));
    }
    match (footer.sealed, vault.is_encrypted()) {
        (true, false) => Err(wrong("it is encrypted, and its vault says that it is not")),
        (false, true) => Err(wrong("it is not encrypted, and its vault says that it is")),
        _ => Ok(footer),
    }
}

/// What opens a sealed segment, and its sealed index without the envelope.
fn opener<'a>(
    vault: &Vault,
    id: SegmentId,
    footer: &Footer,
    stored: &'a [u8],
) -> Result<(&'a [u8], Arc<SegmentKey>), VaultError> {
    let key = id.key();
    // Before any of it is used: the digest stands in the point, which is signed.
    if *blake3::hash(stored).as_bytes() != footer.index_digest {
        let reason = "its index does not have the digest in its footer".into();
        return Err(VaultError::Inconsistent { object: key.into(), reason });
    }
    let at = stored.len().saturating_sub(ENVELOPE_BYTES);
    let (sealed, envelope) = stored.split_at(at);
    let envelope = Envelope::decode(envelope).within(&key)?;
    Ok((sealed, vault.segment_key_to_open(id, &envelope)?))
}

/// What opens a segment's frames, for who has its index from elsewhere.
fn opens(vault: &Vault, disk: DiskId, segment: &SegmentRef) -> Result<Opens, VaultError> {
    let id = segment.id(disk);
    if !vault.is_encrypted() {
        return Ok(Opens::default());
    }
    if let Some(known) = vault.known_segment_key(id) {
        return Ok(Opens(Some(known)));
    }
    let key = id.key();
    let Some(footer_at) = segment.object.0.checked_sub(FOOTER_BYTES as u64) else {
        let reason = "shorter than a footer".into();
        return Err(VaultError::Inconsistent { object: key.into(), reason });
    };
    vault.judged(true, || {
        let footer = vault.get_range(&key, footer_at, FOOTER_BYTES as u64)?;
        let footer = footer_of(vault, disk, segment, &footer)?;
        let stored = vault.get_range(&key, footer.index_offset, footer.index_stored_len.into())?;
        Ok(Opens(Some(opener(vault, id, &footer, &stored)?.1)))
    })
}

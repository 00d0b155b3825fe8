//! Mending a damaged segment: the same object again, byte for byte.
//!
//! Points name segments by digests, and nothing in a vault is ever changed; so what mends a segment must be the very
//! bytes that were put. They can be made again where somebody still has the sectors: compression of the same sectors by
//! the same library gives the same bytes, and so does sealing them at the same place with the segment's key. The
//! checksums in the index, which the point's digest covers, prove it before anything is put: what is not exactly what
//! was there is not put. So every point that needs the segment is whole again, and no reader has to know.
//!
//! An index that is damaged cannot be made again: it says what the frames are.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use backstay_types::{ByteLen, ByteOffset, DiskId, SectorRange};
use bytes::Bytes;
use object_store::PutPayload;

use super::frames::{Decompressor, Stored, check};
use super::read_index;
use super::restore::Fetch;
use super::target::RestoreTarget;
use crate::error::VaultError;
use crate::format::key::ObjectKey;
use crate::format::manifest::{Manifest, SegmentRef};
use crate::format::segment::{
    Codec, Extent, FrameEntry, HEADER_BYTES, Index, Place, decode_header, encode_header,
};
use crate::sectors::SectorSet;
use crate::store::Vault;

/// Levels of zstd that frames may have been made with; the usual one first.
const LEVELS: std::ops::RangeInclusive<i32> = 1..=19;
const LEVELS_FAST: std::ops::RangeInclusive<i32> = -7..=-1;
/// Bytes that are read at a time.
const STEP_BYTES: u64 = 8 << 20;

/// Somebody who may still have sectors as they were: a disk, another point. What it gives is checked.
pub trait Spare: Sync {
    /// Reads a run of sectors, if it has them.
    fn read(&self, range: SectorRange) -> Option<Vec<u8>>;
}

/// Another point's sectors.
pub struct OfPoint<'a> {
    vault: &'a Vault,
    point: &'a Manifest,
}

/// Where what is fetched of a point goes.
struct Memory {
    from: u64,
    bytes: Mutex<Vec<u8>>,
}

impl RestoreTarget for Memory {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (offset.0 - self.from) as usize;
        bytes[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.write_at(&vec![0; len.0 as usize], offset)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

impl Spare for OfPoint<'_> {
    fn read(&self, range: SectorRange) -> Option<Vec<u8>> {
        if range.end > SectorRange::whole(self.point.size).end {
            return None;
        }
        let mut wanted = SectorSet::new();
        wanted.insert(range);
        let bytes = Mutex::new(vec![0; range.bytes().0 as usize]);
        let target = Memory { from: range.start.byte_offset().0, bytes };
        let mut fetch = Fetch::part(self.vault, self.point, &wanted, 0).ok()?;
        fetch.step(&target, 1, u64::MAX, &|_, _| {}, &AtomicBool::new(false)).ok()?;
        fetch.finish().ok()?;
        Some(target.bytes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What became of a damaged segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// It is what was put, again.
    Whole,
    /// Nobody has all of what is damaged in it.
    Not,
}

impl Vault {
    /// The sectors of a point, for mending what another one has lost.
    #[must_use]
    pub fn spare<'a>(&'a self, point: &'a Manifest) -> OfPoint<'a> {
        OfPoint { vault: self, point }
    }

    /// Makes a damaged segment what it was, from what is not damaged of it and from the first of `spares` that has the rest.
    ///
    /// # Errors
    /// If its index is damaged, or the vault cannot be read or written.
    pub fn mend_segment(
        &self,
        disk: DiskId,
        size: ByteLen,
        segment: &SegmentRef,
        spares: &[&dyn Spare],
    ) -> Result<Mended, VaultError> {
        if self.is_behind_gateway() {
            let reason = "a gateway overwrites nothing: mend it where the gateway's store is";
            return Err(VaultError::Url { url: self.url().into(), reason: reason.into() });
        }
        let id = segment.id(disk);
        let key = id.key();
        let index = read_index(self, disk, size, segment)?;
        let mut bytes = self.whole_object(&key, segment.object.0)?;
        if bytes.len() as u64 != segment.object.0 {
            return Ok(Mended::Not);
        }
        let public = index.opens.0.as_ref().map(|key| key.public_start());
        if !decode_header(&bytes[..HEADER_BYTES]).is_ok_and(|header| header == (id, public)) {
            bytes[..HEADER_BYTES].copy_from_slice(&encode_header(id, public));
        }
        let mut decompressor = Decompressor::new()?;
        for (number, frame) in index.frames.iter().enumerate() {
            let at = frame.offset as usize..(frame.offset + u64::from(frame.stored_len)) as usize;
            let stored = Bytes::copy_from_slice(&bytes[at.clone()]);
            if is_fine(&mut decompressor, &key, &index, number, stored) {
                continue;
            }
            let Some(stored) = remade(&index, number, spares) else { return Ok(Mended::Not) };
            bytes[at].copy_from_slice(&stored);
        }
        self.overwrite(&key, bytes)?;
        Ok(Mended::Whole)
    }

    /// All bytes of an object, as many as there are.
    fn whole_object(&self, key: &ObjectKey, len: u64) -> Result<Vec<u8>, VaultError> {
        let there = self.len(key)?;
        let mut bytes = Vec::with_capacity(len as usize);
        while (bytes.len() as u64) < there.min(len) {
            let at = bytes.len() as u64;
            bytes.extend_from_slice(&self.get_range(
                key,
                at,
                STEP_BYTES.min(there.min(len) - at),
            )?);
        }
        Ok(bytes)
    }

    /// Replaces an object by what it was. The only thing in a vault that is put over another.
    fn overwrite(&self, key: &ObjectKey, bytes: Vec<u8>) -> Result<(), VaultError> {
        let payload = PutPayload::from(bytes);
        self.inner.store.replace(self, key, &payload)?;
        match self.has_exactly(key, &[payload], None)? {
            true => Ok(()),
            false => Err(VaultError::Altered { object: key.into(), tries: 1 }),
        }
    }
}

/// The runs in a frame, and where they are in it.
fn runs_of(index: &Index, number: usize) -> impl Iterator<Item = (&Extent, &Place)> {
    let of =
        move |extent: &Extent| extent.place.is_some_and(|place| place.frame as usize == number);
    index
        .extents
        .iter()
        .filter(move |extent| of(extent))
        .filter_map(|extent| Some((extent, extent.place.as_ref()?)))
}

/// Whether a frame is as it was put, to the last sector.
fn is_fine(
    decompressor: &mut Decompressor,
    key: &ObjectKey,
    index: &Index,
    number: usize,
    stored: Bytes,
) -> bool {
    let stored = Stored::new(stored, index.opens.clone());
    let Ok(raw) = decompressor.open(key, &index.frames[number], &stored) else { return false };
    runs_of(index, number).all(|(extent, place)| check(key, extent, place, raw).is_ok())
}

/// A frame as it was stored, made again of what spares have of its sectors.
fn remade(index: &Index, number: usize, spares: &[&dyn Spare]) -> Option<Vec<u8>> {
    let frame = &index.frames[number];
    let mut raw = vec![0; frame.raw_len as usize];
    let mut filled = 0;
    for (extent, place) in runs_of(index, number) {
        let found = spares.iter().find_map(|spare| {
            spare.read(extent.range).filter(|bytes| crc32c::crc32c(bytes) == place.crc)
        })?;
        let at = place.offset as usize;
        raw.get_mut(at..at + found.len())?.copy_from_slice(&found);
        filled += found.len();
    }
    // What is between runs nobody knows.
    if filled != raw.len() {
        return None;
    }
    let levels = LEVELS.chain(LEVELS_FAST);
    match frame.codec {
        Codec::Raw => as_stored(index, frame, raw),
        Codec::Zstd => levels
            .filter_map(|level| zstd::bulk::compress(&raw, level).ok())
            .find_map(|stored| as_stored(index, frame, stored)),
    }
}

/// A frame's bytes, sealed if the others are, if they are the ones that the index tells of.
fn as_stored(index: &Index, frame: &FrameEntry, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    if let Some(key) = &index.opens.0 {
        let tag = key.seal_frame(frame.offset, frame.codec, frame.raw_len, &mut bytes).ok()?;
        bytes.extend_from_slice(&tag);
    }
    let same =
        bytes.len() == frame.stored_len as usize && crc32c::crc32c(&bytes) == frame.stored_crc;
    same.then_some(bytes)
}

//! The indexes of a point's segments in two local files, so that where a sector is can be looked up in any
//! order without holding them in memory. docs/explanation/format.md has the files field by field.
//!
//! Each page has its own checksum and number: nothing here is ever synced, and whatever a power loss or
//! a bad disk makes of it is noticed where it is used and fetched from the vault again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock};

use backstay_types::{PointId, SectorRange};
use backstay_vault::format::segment::{Codec, Extent, FrameEntry, Index, Place};
use backstay_vault::{Bounds, Manifest};

const PAGE_BYTES: usize = 4096;
const PAGE_HEAD: usize = 8;
const ENTRY_BYTES: usize = 24;
const ENTRIES: usize = 170;
const KIND_FRAMES: u16 = 1;
const KIND_EXTENTS: u16 = 2;
const ZERO: u32 = u32::MAX;

const TOC_MAGIC: &[u8; 8] = b"BSTYIDXT";
const TOC_VERSION: u32 = 1;
const TOC_HEAD: usize = 64;
const TOC_ENTRY: usize = 80;

/// Where a segment's index is in the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    page: u64,
    frames: u32,
    extents: u32,
    /// From its first sector to the end of its last.
    span: SectorRange,
}

pub(crate) struct IndexStore {
    toc: File,
    pages: File,
    segments: RwLock<Vec<Option<Entry>>>,
    /// Which part of the disk each segment may hold sectors of.
    bounds: Vec<Bounds>,
    ends: Mutex<Ends>,
}

#[derive(Clone, Copy)]
struct Ends {
    page: u64,
    toc: u64,
}

/// What is in the files is not what was put there.
#[derive(Debug)]
pub(crate) struct Lost;

impl IndexStore {
    /// Opens the files in a directory, or makes them. What does not fit the point is thrown away.
    pub fn open(dir: &Path, point: &Manifest) -> io::Result<Self> {
        let open = |name: &str| {
            let mut how = OpenOptions::new();
            how.read(true).write(true).create(true).truncate(false).mode(0o600);
            how.open(dir.join(name))
        };
        let (toc, pages) = (open("index.toc")?, open("index.pages")?);
        let mut segments = vec![None; point.segments.len()];
        let page_end = pages.metadata()?.len() / PAGE_BYTES as u64;
        let len = toc.metadata()?.len();
        let mut head = [0; TOC_HEAD];
        let known = len >= TOC_HEAD as u64 && {
            toc.read_exact_at(&mut head, 0)?;
            head == toc_head(point.point)
        };
        let mut ends = Ends { page: 0, toc: TOC_HEAD as u64 };
        if known {
            let mut bytes = vec![0; (len as usize - TOC_HEAD) / TOC_ENTRY * TOC_ENTRY];
            toc.read_exact_at(&mut bytes, TOC_HEAD as u64)?;
            for entry in bytes.chunks_exact(TOC_ENTRY) {
                let Some((number, digest, entry)) = decode_toc(entry) else { break };
                ends.toc += TOC_ENTRY as u64;
                let of_point = point.segments.get(number as usize);
                let fits = of_point.is_some_and(|of| of.index_digest == digest)
                    && entry.page.checked_add(entry.pages()).is_some_and(|end| end <= page_end);
                if fits && let Some(slot) = segments.get_mut(number as usize) {
                    *slot = Some(entry);
                }
            }
            ends.page = page_end;
        } else {
            toc.set_len(0)?;
            pages.set_len(0)?;
            toc.write_all_at(&toc_head(point.point), 0)?;
        }
        let bounds = point.segments.iter().map(|segment| segment.bounds).collect();
        Ok(Self { toc, pages, segments: RwLock::new(segments), bounds, ends: Mutex::new(ends) })
    }

    /// How many segments' indexes are here.
    pub fn loaded(&self) -> usize {
        self.entries().iter().flatten().count()
    }

    /// Whether a segment's index is here.
    pub fn has(&self, segment: usize) -> bool {
        self.entries().get(segment).is_some_and(Option::is_some)
    }

    /// Of the segments from the newest to the oldest, those that are not here.
    pub fn missing(&self) -> Vec<usize> {
        let entries = self.entries();
        (0..entries.len()).rev().filter(|&segment| entries[segment].is_none()).collect()
    }

    /// Of the segments that may hold sectors of a run, from the newest to the oldest, those that are not here.
    pub fn missing_near(&self, run: SectorRange) -> Vec<usize> {
        let entries = self.entries();
        let may = |&segment: &usize| entries[segment].is_none() && self.bounds[segment].reach(run);
        (0..entries.len()).rev().filter(may).collect()
    }

    /// Segments that hold sectors near a run, newest first.
    pub fn near(&self, run: SectorRange) -> Vec<usize> {
        let entries = self.entries();
        let near = |entry: &Entry| !entry.span.intersect(run).is_empty();
        (0..entries.len()).rev().filter(|&s| entries[s].as_ref().is_some_and(near)).collect()
    }

    /// Keeps a segment's index.
    pub fn put(&self, segment: usize, digest: [u8; 32], index: Index) -> io::Result<()> {
        let mut extents = index.extents;
        extents.sort_unstable_by_key(|extent| extent.range.start);
        let (Some(first), Some(last)) = (extents.first(), extents.last()) else {
            // A segment without sectors: nobody writes such.
            return Err(io::ErrorKind::InvalidData.into());
        };
        let mut entry = Entry {
            page: 0,
            frames: index.frames.len() as u32,
            extents: extents.len() as u32,
            span: SectorRange { start: first.range.start, end: last.range.end },
        };
        {
            let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            entry.page = ends.page;
            ends.page += entry.pages();
        }
        let frames = index.frames.chunks(ENTRIES).map(|part| (KIND_FRAMES, encode_frames(part)));
        let extents = extents.chunks(ENTRIES).map(|part| (KIND_EXTENTS, encode_extents(part)));
        let mut bytes = Vec::with_capacity(entry.pages() as usize * PAGE_BYTES);
        for (number, (kind, entries)) in (entry.page..).zip(frames.chain(extents)) {
            bytes.extend_from_slice(&page(number, kind, &entries));
        }
        self.pages.write_all_at(&bytes, entry.page * PAGE_BYTES as u64)?;
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        self.toc.write_all_at(&encode_toc(segment as u32, digest, &entry), ends.toc)?;
        ends.toc += TOC_ENTRY as u64;
        drop(ends);
        let mut entries = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = entries.get_mut(segment) {
            *slot = Some(entry);
        }
        Ok(())
    }

    /// Forgets a segment's index, so that it is fetched again.
    pub fn forget(&self, segment: usize) {
        let mut entries = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = entries.get_mut(segment) {
            *slot = None;
        }
    }

    /// The extents of a segment that hold sectors of a run, in order.
    pub fn extents(&self, segment: usize, run: SectorRange) -> Result<Vec<Extent>, Lost> {
        let entry = self.entry(segment)?;
        let first_page = entry.page + u64::from(entry.frames).div_ceil(ENTRIES as u64);
        let pages = u64::from(entry.extents).div_ceil(ENTRIES as u64);
        // The first page whose last extent ends behind the run's start.
        let (mut low, mut high) = (0, pages);
        while low < high {
            let middle = (low + high) / 2;
            let page = self.page(first_page + middle, KIND_EXTENTS)?;
            match page.last().map(decode_extent) {
                Some(last) if last.range.end <= run.start => low = middle + 1,
                Some(_) => high = middle,
                None => return Err(Lost),
            }
        }
        let mut found = vec![];
        for number in low..pages {
            for bytes in self.page(first_page + number, KIND_EXTENTS)? {
                let extent = decode_extent(&bytes);
                if extent.range.start >= run.end {
                    return Ok(found);
                }
                if extent.range.end > run.start {
                    found.push(extent);
                }
            }
        }
        Ok(found)
    }

    /// A frame of a segment.
    pub fn frame(&self, segment: usize, frame: u32) -> Result<FrameEntry, Lost> {
        let entry = self.entry(segment)?;
        let (page, at) = (u64::from(frame) / ENTRIES as u64, frame as usize % ENTRIES);
        if frame >= entry.frames {
            return Err(Lost);
        }
        let page = self.page(entry.page + page, KIND_FRAMES)?;
        page.get(at).and_then(decode_frame).ok_or(Lost)
    }

    fn entry(&self, segment: usize) -> Result<Entry, Lost> {
        self.entries().get(segment).copied().flatten().ok_or(Lost)
    }

    fn entries(&self) -> std::sync::RwLockReadGuard<'_, Vec<Option<Entry>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, number: u64, kind: u16) -> Result<Vec<[u8; ENTRY_BYTES]>, Lost> {
        let mut bytes = [0; PAGE_BYTES];
        self.pages.read_exact_at(&mut bytes, number * PAGE_BYTES as u64).map_err(|_| Lost)?;
        entries_of(&bytes, number, kind).ok_or(Lost)
    }
}

impl Entry {
    fn pages(&self) -> u64 {
        let pages = |entries: u32| u64::from(entries).div_ceil(ENTRIES as u64);
        pages(self.frames) + pages(self.extents)
    }
}

fn page(number: u64, kind: u16, entries: &[u8]) -> [u8; PAGE_BYTES] {
    let mut out = [0; PAGE_BYTES];
    out[4..6].copy_from_slice(&((entries.len() / ENTRY_BYTES) as u16).to_le_bytes());
    out[6..8].copy_from_slice(&kind.to_le_bytes());
    out[PAGE_HEAD..PAGE_HEAD + entries.len()].copy_from_slice(entries);
    out[PAGE_BYTES - 8..].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&out[4..]);
    out[..4].copy_from_slice(&crc.to_le_bytes());
    out
}

/// The entries of a page, if it is the page it should be.
fn entries_of(bytes: &[u8; PAGE_BYTES], number: u64, kind: u16) -> Option<Vec<[u8; ENTRY_BYTES]>> {
    let count = usize::from(u16::from_le_bytes(array(bytes, 4)));
    let fits = u32::from_le_bytes(array(bytes, 0)) == crc32c::crc32c(&bytes[4..])
        && u16::from_le_bytes(array(bytes, 6)) == kind
        && u64::from_le_bytes(array(bytes, PAGE_BYTES - 8)) == number
        && count <= ENTRIES;
    let entries = bytes[PAGE_HEAD..].chunks_exact(ENTRY_BYTES).take(count);
    fits.then(|| entries.map(|entry| array(entry, 0)).collect())
}

fn encode_frames(frames: &[FrameEntry]) -> Vec<u8> {
    let mut out = vec![];
    for frame in frames {
        out.extend_from_slice(&frame.offset.to_le_bytes());
        for number in [frame.stored_len, frame.raw_len, frame.stored_crc, frame.codec as u32] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    out
}

fn decode_frame(bytes: &[u8; ENTRY_BYTES]) -> Option<FrameEntry> {
    Some(FrameEntry {
        offset: u64::from_le_bytes(array(bytes, 0)),
        stored_len: u32::from_le_bytes(array(bytes, 8)),
        raw_len: u32::from_le_bytes(array(bytes, 12)),
        stored_crc: u32::from_le_bytes(array(bytes, 16)),
        codec: match u32::from_le_bytes(array(bytes, 20)) {
            0 => Codec::Raw,
            1 => Codec::Zstd,
            _ => return None,
        },
    })
}

fn encode_extents(extents: &[Extent]) -> Vec<u8> {
    let mut out = vec![];
    for extent in extents {
        let place = extent.place.unwrap_or(Place { frame: ZERO, offset: 0, crc: 0 });
        out.extend_from_slice(&extent.range.start.0.to_le_bytes());
        for number in [extent.range.sectors() as u32, place.frame, place.offset, place.crc] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
    out
}

fn decode_extent(bytes: &[u8; ENTRY_BYTES]) -> Extent {
    let start = u64::from_le_bytes(array(bytes, 0));
    let number = |at: usize| u32::from_le_bytes(array(bytes, at));
    let place = Place { frame: number(12), offset: number(16), crc: number(20) };
    Extent {
        range: SectorRange::new(start, start.saturating_add(number(8).into())),
        place: (place.frame != ZERO).then_some(place),
    }
}

fn toc_head(point: PointId) -> [u8; TOC_HEAD] {
    let mut out = [0; TOC_HEAD];
    out[..8].copy_from_slice(TOC_MAGIC);
    out[8..12].copy_from_slice(&TOC_VERSION.to_le_bytes());
    out[16..32].copy_from_slice(&point.to_bytes());
    let crc = crc32c::crc32c(&out[..TOC_HEAD - 4]);
    out[TOC_HEAD - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn encode_toc(segment: u32, digest: [u8; 32], entry: &Entry) -> [u8; TOC_ENTRY] {
    let mut out = [0; TOC_ENTRY];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &segment.to_le_bytes());
    put(4, &entry.frames.to_le_bytes());
    put(8, &entry.extents.to_le_bytes());
    put(16, &entry.page.to_le_bytes());
    put(24, &entry.span.start.0.to_le_bytes());
    put(32, &entry.span.end.0.to_le_bytes());
    put(40, &digest);
    let crc = crc32c::crc32c(&out[..TOC_ENTRY - 4]);
    out[TOC_ENTRY - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode_toc(bytes: &[u8]) -> Option<(u32, [u8; 32], Entry)> {
    let crc = u32::from_le_bytes(array(bytes, TOC_ENTRY - 4));
    if crc != crc32c::crc32c(&bytes[..TOC_ENTRY - 4]) {
        return None;
    }
    let (start, end) = (u64::from_le_bytes(array(bytes, 24)), u64::from_le_bytes(array(bytes, 32)));
    let entry = Entry {
        frames: u32::from_le_bytes(array(bytes, 4)),
        extents: u32::from_le_bytes(array(bytes, 8)),
        page: u64::from_le_bytes(array(bytes, 16)),
        span: SectorRange::new(start, end.max(start)),
    };
    Some((u32::from_le_bytes(array(bytes, 0)), array(bytes, 40), entry))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;

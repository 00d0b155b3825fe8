//! A bitmap with one bit per sector in shared words. Memory is allocated per region.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use backstay_format::bitmap::BitmapHeader;
use backstay_format::superblock::Geometry;
use backstay_types::{DiskId, EpochNo, Region, SectorRange};

use crate::env::{Env, SharedBits};
use crate::sync::atomic::{AtomicU64, Ordering};

/// One bit per sector. A region must be reserved before its bits are accessed. Bits of other regions are
/// clear.
pub(crate) struct Bitmap<B> {
    bits: B,
    geometry: Geometry,
    reserved: RegionBits,
}

impl<B: SharedBits> Bitmap<B> {
    /// Makes an empty bitmap.
    pub fn create<E: Env<Bits = B>>(
        env: &E,
        name: &str,
        disk: DiskId,
        epoch: EpochNo,
        geometry: Geometry,
    ) -> io::Result<Self> {
        let sectors = geometry.sectors();
        let header = BitmapHeader { disk, epoch, boot_id: env.boot_id(), sectors };
        let bits = env.create_bits(name, &header.encode(), Self::words(sectors))?;
        Ok(Self { bits, geometry, reserved: RegionBits::new(geometry.regions()) })
    }

    /// Opens the bits that an earlier driver of this boot has left. `None` if there are none, or if they
    /// belong to another disk or epoch. Bits made before the disk grew are accepted; they are fewer.
    pub fn open<E: Env<Bits = B>>(
        env: &E,
        name: &str,
        disk: DiskId,
        epoch: EpochNo,
        geometry: Geometry,
    ) -> io::Result<Option<B>> {
        let boot_id = env.boot_id();
        env.open_bits(name, &|header| {
            let found = BitmapHeader::decode(header).ok()?;
            let want = BitmapHeader { disk, epoch, boot_id, sectors: found.sectors };
            let fits = found == want && (1..=geometry.sectors()).contains(&found.sectors);
            fits.then(|| Self::words(found.sectors))
        })
    }

    fn words(sectors: u64) -> u64 {
        // Whole pages, so that a region's words always exist.
        (BitmapHeader::file_bytes(sectors) - 4096) / 8
    }

    /// The words of a run of regions.
    fn region_words(&self, regions: Range<u32>) -> Range<u64> {
        let first_word = |region: u32| (u64::from(region) << self.geometry.region_shift) / 64;
        first_word(regions.start)..first_word(regions.end)
    }

    /// Takes the memory for regions.
    pub fn reserve(&self, regions: Range<u32>) -> io::Result<()> {
        for region in regions {
            if !self.reserved.has(region) {
                self.bits.reserve(self.region_words(region..region + 1))?;
                self.reserved.set(region);
            }
        }
        Ok(())
    }

    /// Takes the memory for every region that `other` has memory for, in runs.
    pub fn reserve_like(&self, other: &RegionBits) -> io::Result<()> {
        for run in other.runs() {
            if !self.reserved.has_all(run.clone()) {
                self.bits.reserve(self.region_words(run.clone()))?;
                run.for_each(|region| self.reserved.set(region));
            }
        }
        Ok(())
    }

    /// The regions that have memory; all others are clear.
    pub fn reserved(&self) -> &RegionBits {
        &self.reserved
    }

    /// Sets the bits of a run whose regions are all reserved; returns how many were clear.
    pub fn set(&self, range: SectorRange) -> u64 {
        let mut fresh = 0;
        for (word, mask) in words_of(range) {
            // Check first: a repeated write then does not dirty the cache line.
            if self.bits.load(word) & mask != mask {
                fresh += u64::from((mask & !self.bits.or(word, mask)).count_ones());
            }
        }
        fresh
    }

    /// Sets the bits of a run where its regions are reserved.
    pub fn set_where_reserved(&self, range: SectorRange) -> u64 {
        let mut fresh = 0;
        for piece in range.split_at_multiples(1 << self.geometry.region_shift) {
            if self.reserved.has_all(piece.regions(self.geometry.region_shift)) {
                fresh += self.set(piece);
            }
        }
        fresh
    }

    /// A word of a reserved region.
    pub fn word(&self, word: u64) -> u64 {
        self.bits.load(word)
    }

    /// Whether any sector of a reserved region is set.
    pub fn any_in(&self, region: Region) -> bool {
        words_of(self.geometry.region_sectors(region)).any(|(w, mask)| self.word(w) & mask != 0)
    }

    /// Adds words of another bitmap, which must lie in reserved regions; returns how many bits
    /// were clear.
    pub fn or_word(&self, word: u64, bits: u64) -> u64 {
        u64::from((bits & !self.bits.or(word, bits)).count_ones())
    }

    /// Every non-zero word.
    pub fn for_each_word(&self, mut each: impl FnMut(u64, u64)) {
        for run in self.reserved.runs() {
            for word in self.region_words(run) {
                let bits = self.word(word);
                if bits != 0 {
                    each(word, bits);
                }
            }
        }
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub fn path(&self) -> PathBuf {
        self.bits.path()
    }
}

/// The words a run touches, each with the mask of its bits.
pub(crate) fn words_of(range: SectorRange) -> impl Iterator<Item = (u64, u64)> {
    range.split_at_multiples(64).map(|piece| {
        let count = piece.sectors();
        let ones = if count == 64 { u64::MAX } else { (1 << count) - 1 };
        (piece.start.0 / 64, ones << (piece.start.0 % 64))
    })
}

/// One bit per region, in private memory.
pub(crate) struct RegionBits {
    words: Box<[AtomicU64]>,
}

impl RegionBits {
    pub fn new(regions: u32) -> Self {
        Self { words: (0..regions.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
    }

    pub fn has(&self, region: u32) -> bool {
        self.words[region as usize / 64].load(Ordering::Acquire) & (1 << (region % 64)) != 0
    }

    pub fn has_all(&self, mut regions: Range<u32>) -> bool {
        regions.all(|region| self.has(region))
    }

    pub fn set(&self, region: u32) {
        self.words[region as usize / 64].fetch_or(1 << (region % 64), Ordering::AcqRel);
    }

    /// All regions that are set, as runs.
    pub fn runs(&self) -> impl Iterator<Item = Range<u32>> {
        let end = self.words.len() as u32 * 64;
        let mut at = 0;
        std::iter::from_fn(move || {
            let start = self.next(at, end, true)?;
            at = self.next(start, end, false).unwrap_or(end);
            Some(start..at)
        })
    }

    /// The first region from `at` on whose bit is `value`.
    fn next(&self, mut at: u32, end: u32, value: bool) -> Option<u32> {
        while at < end {
            let word = self.words[at as usize / 64].load(Ordering::Acquire);
            let candidates = if value { word } else { !word };
            let word = candidates >> (at % 64);
            if word != 0 {
                return Some(at + word.trailing_zeros());
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_exactly_the_run() {
        let got: Vec<_> = words_of(SectorRange::new(60, 130)).collect();
        assert_eq!(got, [(0, 0xF << 60), (1, u64::MAX), (2, 3)]);
    }

    #[test]
    fn runs_of_regions() {
        let bits = RegionBits::new(200);
        for r in [0, 1, 63, 64, 65, 130] {
            bits.set(r);
        }
        assert_eq!(bits.runs().collect::<Vec<_>>(), [0..2, 63..66, 130..131]);
    }
}

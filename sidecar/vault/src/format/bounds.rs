//! Bounds: in four bytes, which part of the disk a segment may hold sectors of.
//!
//! They stand in a point's list, so that who wants one sector knows which segments not to look at. They are
//! rounded outward: to more of the disk, never to less. Nothing in them depends on the disk's size, so they
//! stay right when it grows.

use backstay_types::SectorRange;
use serde::{Deserialize, Serialize};

/// Bits of the number of granules, less one.
const COUNT_BITS: u32 = 8;
/// Bits of the first granule's number.
const FIRST_BITS: u32 = 19;
/// log2 of the sectors in the smallest granule, less one: 1 MiB.
const SHIFT_BASE: u32 = 10;
const SHIFTS: u32 = 31;

/// Which part of the disk a segment may hold sectors of.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bounds(u32);

impl Bounds {
    /// Nobody says: any sector.
    pub const UNKNOWN: Self = Self(0);

    /// The narrowest bounds around a run.
    #[must_use]
    pub fn around(run: SectorRange) -> Self {
        if run.is_empty() {
            return Self::UNKNOWN;
        }
        let granules = |size: u32| {
            let shift = size + SHIFT_BASE;
            let (first, last) = (run.start.0 >> shift, (run.end.0 - 1) >> shift);
            let fits = first < 1 << FIRST_BITS && last - first < 1 << COUNT_BITS;
            fits.then(|| Self(size << 27 | (first as u32) << COUNT_BITS | (last - first) as u32))
        };
        (1..=SHIFTS).find_map(granules).unwrap_or(Self::UNKNOWN)
    }

    /// The part of the disk; `None`: any.
    #[must_use]
    pub fn span(self) -> Option<SectorRange> {
        let shift = Some(self.0 >> 27).filter(|&size| size > 0)? + SHIFT_BASE;
        let first = u64::from(self.0 >> COUNT_BITS & ((1 << FIRST_BITS) - 1));
        let count = u64::from(self.0 & ((1 << COUNT_BITS) - 1)) + 1;
        Some(SectorRange::new(first << shift, (first + count) << shift))
    }

    /// Whether a segment with these bounds may hold a sector of a run.
    #[must_use]
    pub fn reach(self, run: SectorRange) -> bool {
        self.span().is_none_or(|span| !span.intersect(run).is_empty())
    }

    /// Whether a segment with these bounds may hold all of a run.
    #[must_use]
    pub fn admit(self, run: SectorRange) -> bool {
        self.span().is_none_or(|span| span.start <= run.start && run.end <= span.end)
    }

    /// As they stand in an entry.
    pub(super) fn to_bytes(self) -> [u8; 4] {
        self.0.to_le_bytes()
    }

    /// From an entry: any four bytes are bounds.
    pub(super) fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 2048;

    #[test]
    fn as_documented() {
        let of = |start, end| Bounds::around(SectorRange::new(start, end)).to_bytes();
        // 1 MiB granules: the third to the fifth.
        assert_eq!(of(2 * MIB + 1, 4 * MIB + 1), [2, 2, 0, 0x08]);
        // The last 32 MiB of 1 TiB: granules of 2 MiB.
        let tib = 1 << 31;
        assert_eq!(of(tib - 32 * MIB, tib), [15, 0xF0, 0xFF, 0x17]);
        // All of 1 TiB: 256 granules of 4 GiB.
        assert_eq!(of(0, tib), [255, 0, 0, 13 << 3]);
        assert_eq!(of(7, 7), [0; 4]);
    }

    #[test]
    fn a_full_disk_has_narrow_ones() {
        for (tib, most) in [(1, 4 * MIB), (16, 64 * MIB)] {
            let end = tib << 31;
            for start in [0, end / 3, end - 32 * MIB] {
                let run = SectorRange::new(start, start + 32 * MIB);
                let span = Bounds::around(run).span().unwrap();
                assert!(span.sectors() - run.sectors() <= most, "{span}");
            }
        }
    }

    proptest! {
        #[test]
        fn they_hold_the_run_and_no_narrower_ones_do(start in 0u64..1 << 41, shift in 0u32..42, n in 1u64..1000) {
            let run = SectorRange::new(start, (start + (n << shift >> 10).max(1)).min(1 << 41).max(start + 1));
            let bounds = Bounds::around(run);
            let span = bounds.span().unwrap();
            prop_assert!(bounds.admit(run) && bounds.reach(run));
            prop_assert!(span.start <= run.start && run.end <= span.end);
            // Outside there is nothing.
            prop_assert!(!bounds.reach(SectorRange::new(span.end.0, span.end.0 + 9)));
            prop_assert!(!bounds.admit(SectorRange::new(run.start.0, span.end.0 + 1)));
            if let Some(before) = span.start.0.checked_sub(1) {
                prop_assert!(!bounds.reach(SectorRange::new(before, span.start.0)));
            }
            // A wide one is a hundredth too wide at most at each end, a narrow one by where it is.
            let granule = (run.sectors() / 127).max(run.end.0 >> 18).max(MIB);
            prop_assert!(run.start.0 - span.start.0 <= granule && span.end.0 - run.end.0 <= granule);
        }

        #[test]
        fn any_bytes_are_bounds(bytes: [u8; 4], start in 0u64..1 << 60, len in 0u64..1 << 60) {
            let bounds = Bounds::from_bytes(bytes);
            prop_assert_eq!(bounds.to_bytes(), bytes);
            let run = SectorRange::new(start, start + len);
            let _ = (bounds.reach(run), bounds.admit(run));
            prop_assert_eq!(bounds.span().is_none(), bytes[3] >> 3 == 0);
        }
    }
}

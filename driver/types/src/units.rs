//! Newtypes for every number that has a unit, so that sectors and bytes cannot be mixed up.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes in a sector, the unit of tracking and of everything shipped.
pub const SECTOR_BYTES: u64 = 512;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl $name {
            /// The number after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
    };
}

number!(
    /// A 512-byte sector of a disk, counted from its start.
    Sector(u64)
);
number!(
    /// A region of a disk: the unit of a write intent, a few MiB (see `region_shift`).
    Region(u32)
);
number!(
    /// A position in a disk or file, in bytes.
    ByteOffset(u64)
);
number!(
    /// A length, in bytes.
    ByteLen(u64)
);
number!(
    /// A replication cycle of one disk in one vault; recovery points are named by it. First: 1.
    CycleNo(u64)
);
number!(
    /// A tracking epoch of the driver: the time from one cut to the next. First: 1.
    EpochNo(u64)
);
number!(
    /// Who may write a disk in a vault; a higher term ends every lower one. First: 1.
    Term(u64)
);

/// The identity of a protected disk, made once when it is first mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub uuid::Uuid);

/// The identity of one committed recovery point, made new for each commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PointId(pub uuid::Uuid);

macro_rules! identity {
    ($name:ident) => {
        impl $name {
            /// A new random identity.
            #[must_use]
            pub fn random() -> Self {
                Self(uuid::Uuid::new_v4())
            }
            /// The identity as 16 bytes, in the order a UUID is written.
            #[must_use]
            pub fn to_bytes(self) -> [u8; 16] {
                *self.0.as_bytes()
            }
            /// The identity held in 16 bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(uuid::Uuid::from_bytes(bytes))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}
identity!(DiskId);
identity!(PointId);

impl Sector {
    /// The sector that holds this byte.
    #[must_use]
    pub fn holding(offset: ByteOffset) -> Self {
        Self(offset.0 / SECTOR_BYTES)
    }
    /// Where the sector starts, in bytes.
    #[must_use]
    pub fn byte_offset(self) -> ByteOffset {
        ByteOffset(self.0 * SECTOR_BYTES)
    }
}

/// A run of sectors: `start` is in it, `end` is not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SectorRange {
    /// First sector of the run.
    pub start: Sector,
    /// The sector after the last.
    pub end: Sector,
}

impl SectorRange {
    /// The run from `start` up to, not including, `end`.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        debug_assert!(start <= end);
        Self { start: Sector(start), end: Sector(end) }
    }
    /// Every sector touched by `len` bytes at `offset`.
    #[must_use]
    pub fn covering(offset: ByteOffset, len: ByteLen) -> Self {
        let start = offset.0 / SECTOR_BYTES;
        let end = (offset.0 + len.0).div_ceil(SECTOR_BYTES).max(start);
        Self::new(start, end)
    }
    /// Every sector of a disk of `size` bytes; the last may be partial.
    #[must_use]
    pub fn whole(size: ByteLen) -> Self {
        Self::new(0, size.0.div_ceil(SECTOR_BYTES))
    }
    /// Sectors in the run.
    #[must_use]
    pub fn sectors(self) -> u64 {
        self.end.0 - self.start.0
    }
    /// Bytes in the run.
    #[must_use]
    pub fn bytes(self) -> ByteLen {
        ByteLen(self.sectors() * SECTOR_BYTES)
    }
    /// Whether the run holds nothing.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start >= self.end
    }
    /// The sectors both runs hold.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }
    /// As plain numbers, to iterate over.
    #[must_use]
    pub fn as_range(self) -> Range<u64> {
        self.start.0..self.end.0
    }
    /// The regions the run touches, for regions of `1 << region_shift` sectors.
    #[must_use]
    pub fn regions(self, region_shift: u8) -> Range<u32> {
        if self.is_empty() {
            return 0..0;
        }
        let first = self.start.0 >> region_shift;
        let last = (self.end.0 - 1) >> region_shift;
        // A disk has at most u32::MAX regions (see Geometry in superblock.rs), so these fit.
        first as u32..last as u32 + 1
    }
    /// The run cut into pieces that do not cross a multiple of `sectors`.
    pub fn split_at_multiples(self, sectors: u64) -> impl Iterator<Item = SectorRange> {
        let mut at = self.start.0;
        let end = self.end.0;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let stop = ((at / sectors + 1) * sectors).min(end);
            let piece = SectorRange::new(at, stop);
            at = stop;
            Some(piece)
        })
    }
}

impl fmt::Debug for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start.0, self.end.0)
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sectors {}..{}", self.start.0, self.end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_counts_partial_sectors() {
        let at = |o, l| SectorRange::covering(ByteOffset(o), ByteLen(l));
        assert_eq!(at(0, 512), SectorRange::new(0, 1));
        assert_eq!(at(511, 2), SectorRange::new(0, 2));
        assert_eq!(at(512, 1), SectorRange::new(1, 2));
        assert!(at(700, 0).sectors() <= 1);
        assert_eq!(SectorRange::whole(ByteLen(1025)), SectorRange::new(0, 3));
    }

    #[test]
    fn regions_of_a_run() {
        assert_eq!(SectorRange::new(0, 8192).regions(13), 0..1);
        assert_eq!(SectorRange::new(8191, 8193).regions(13), 0..2);
        assert_eq!(SectorRange::new(5, 5).regions(13), 0..0);
    }

    #[test]
    fn pieces_join_up() {
        let pieces: Vec<_> = SectorRange::new(5, 21).split_at_multiples(8).collect();
        assert_eq!(
            pieces,
            [SectorRange::new(5, 8), SectorRange::new(8, 16), SectorRange::new(16, 21)]
        );
    }
}

//! Newest wins: of layers that are gone through from the newest to the oldest, which sectors of each show.

use backstay_types::SectorRange;

use super::SectorSet;

/// What newer layers hold of a part of the disk.
#[derive(Debug)]
pub struct NewestWins {
    part: SectorRange,
    held: SectorSet,
}

impl NewestWins {
    /// Of a part of the disk; what lies outside of it never shows.
    #[must_use]
    pub fn within(part: SectorRange) -> Self {
        Self { part, held: SectorSet::new() }
    }

    /// Which sectors of the next extent show: those that nothing before it held. From now on it holds them.
    pub fn show(&mut self, extent: SectorRange) -> Vec<SectorRange> {
        let extent = extent.intersect(self.part);
        if extent.is_empty() {
            return vec![];
        }
        let shown = self.held.runs_within(extent, false);
        self.held.insert(extent);
        shown
    }

    /// The part of the disk.
    #[must_use]
    pub fn part(&self) -> SectorRange {
        self.part
    }

    /// Ends the part before a sector.
    pub fn end_at(&mut self, sector: u64) {
        self.part = self.part.intersect(SectorRange::new(0, sector));
    }

    /// The sectors that were held so far.
    #[must_use]
    pub fn held(&self) -> &SectorSet {
        &self.held
    }

    /// The runs that none held so far.
    #[must_use]
    pub fn holes(&self) -> Vec<SectorRange> {
        self.held.runs_within(self.part, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where a chunk of a set ends.
    const EDGE: u64 = 32_768;

    proptest! {
        /// As if each layer was written over the disk, the oldest first.
        #[test]
        fn newer_layers_show(
            extents in prop::collection::vec((EDGE - 200..EDGE + 100, 1u64..120), 1..40),
            end in EDGE - 50..EDGE + 150,
        ) {
            let (start, first_end) = (EDGE - 150, EDGE + 150);
            let mut disk = vec![None; 2 * EDGE as usize];
            for (layer, &(at, len)) in extents.iter().enumerate().rev() {
                disk[at as usize..(at + len) as usize].fill(Some(layer));
            }
            let mut newest = NewestWins::within(SectorRange::new(start, first_end));
            let mut shown = vec![None; disk.len()];
            for (layer, &(at, len)) in extents.iter().enumerate() {
                if layer == extents.len() / 2 {
                    newest.end_at(end);
                    shown[end as usize..].fill(None);
                }
                for run in newest.show(SectorRange::new(at, at + len)) {
                    for sector in &mut shown[run.start.0 as usize..run.end.0 as usize] {
                        prop_assert!(sector.replace(layer).is_none(), "shown once");
                    }
                }
            }
            prop_assert_eq!(newest.part(), SectorRange::new(start, end));
            let part = start as usize..end as usize;
            prop_assert_eq!(&shown[part.clone()], &disk[part.clone()]);
            prop_assert!(shown[..part.start].iter().chain(&shown[part.end..]).all(Option::is_none));
            let holes: u64 = newest.holes().iter().map(|run| run.sectors()).sum();
            prop_assert_eq!(holes as usize, disk[part].iter().filter(|s| s.is_none()).count());
        }
    }
}

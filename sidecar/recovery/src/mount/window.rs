//! What a stretch of a point is made of: the runs of it that show, each with its place in a segment.

use std::collections::BTreeMap;

use backstay_types::SectorRange;
use backstay_vault::format::segment::Extent;

/// Sectors that are looked up together: 32 MiB.
pub(crate) const WINDOW_SECTORS: u64 = 1 << 16;

/// A run that shows, and the extent it is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VisibleRun {
    pub run: SectorRange,
    pub segment: u32,
    pub extent: Extent,
}

/// The pieces of a window, in order and without overlap.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub pieces: Vec<VisibleRun>,
    /// Runs that no segment holds: the vault is damaged.
    pub holes: Vec<SectorRange>,
}

impl Window {
    /// The pieces that hold sectors of a run.
    pub fn within(&self, run: SectorRange) -> impl Iterator<Item = VisibleRun> {
        let first = self.pieces.partition_point(|piece| piece.run.end <= run.start);
        self.pieces[first..]
            .iter()
            .take_while(move |piece| piece.run.start < run.end)
            .map(move |piece| VisibleRun { run: piece.run.intersect(run), ..*piece })
    }
}

/// Puts a window together, from the newest segment to the oldest.
pub(crate) struct Builder {
    pieces: Vec<VisibleRun>,
    /// What no segment so far holds: start to end.
    open: BTreeMap<u64, u64>,
}

impl Builder {
    pub fn new(window: SectorRange) -> Self {
        Self { pieces: vec![], open: BTreeMap::from([(window.start.0, window.end.0)]) }
    }

    /// Whether older segments show nowhere.
    pub fn is_done(&self) -> bool {
        self.open.is_empty()
    }

    /// Adds an extent of a segment that is older than all before.
    pub fn add(&mut self, segment: u32, extent: Extent) {
        let (from, to) = (extent.range.start.0, extent.range.end.0);
        // The open run before, and those that begin inside.
        let mut hit: Vec<(u64, u64)> =
            self.open.range(..from).next_back().map(|(&s, &e)| (s, e)).into_iter().collect();
        hit.extend(self.open.range(from..to).map(|(&start, &end)| (start, end)));
        for (start, end) in hit {
            let (first, last) = (start.max(from), end.min(to));
            if first >= last {
                continue;
            }
            self.open.remove(&start);
            if start < first {
                self.open.insert(start, first);
            }
            if last < end {
                self.open.insert(last, end);
            }
            self.pieces.push(VisibleRun { run: SectorRange::new(first, last), segment, extent });
        }
    }

    pub fn finish(mut self) -> Window {
        self.pieces.sort_unstable_by_key(|piece| piece.run.start);
        self.pieces.shrink_to_fit();
        let holes = self.open.into_iter().map(|(start, end)| SectorRange::new(start, end));
        Window { pieces: self.pieces, holes: holes.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// As if each segment was written over the disk, oldest first.
        #[test]
        fn newer_segments_show(segments in prop::collection::vec((0u64..200, 1u64..80), 1..30)) {
            let window = SectorRange::new(40, 160);
            let mut builder = Builder::new(window);
            let mut shows = [None; 300];
            for (number, &(start, len)) in segments.iter().enumerate() {
                (start..start + len).for_each(|sector| shows[sector as usize] = Some(number as u32));
            }
            for (number, &(start, len)) in segments.iter().enumerate().rev() {
                let range = SectorRange::new(start, start + len);
                builder.add(number as u32, Extent { range, place: None });
            }
            let window = builder.finish();
            let found = |sector: u64| {
                let mut at = window.within(SectorRange::new(sector, sector + 1));
                at.next().map(|piece| piece.segment)
            };
            for sector in 40..160 {
                prop_assert_eq!(found(sector), shows[sector as usize], "{}", sector);
                let in_hole = window.holes.iter().any(|hole| hole.as_range().contains(&sector));
                prop_assert_eq!(in_hole, shows[sector as usize].is_none());
            }
        }
    }
}

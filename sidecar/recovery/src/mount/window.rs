//! What a stretch of a point is made of: the runs of it that show, each with its place in a segment.

use backstay_types::SectorRange;
use backstay_vault::NewestWins;
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
    newest: NewestWins,
}

impl Builder {
    pub fn new(window: SectorRange) -> Self {
        Self { pieces: vec![], newest: NewestWins::within(window) }
    }

    /// Whether older segments show nowhere.
    pub fn is_done(&self) -> bool {
        self.newest.held().count() == self.newest.part().sectors()
    }

    /// Adds an extent of a segment that is older than all before.
    pub fn add(&mut self, segment: u32, extent: Extent) {
        let shown = self.newest.show(extent.range).into_iter();
        self.pieces.extend(shown.map(|run| VisibleRun { run, segment, extent }));
    }

    pub fn finish(mut self) -> Window {
        self.pieces.sort_unstable_by_key(|piece| piece.run.start);
        self.pieces.shrink_to_fit();
        Window { pieces: self.pieces, holes: self.newest.holes() }
    }
}

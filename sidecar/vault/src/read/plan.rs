//! Which parts of which segments make up a point: newest first, so that what a later segment holds
//! is not read from an earlier one.

use std::collections::HashMap;

use backstay_types::SectorRange;

use crate::error::VaultError;
use crate::format::key::{ObjectKey, Piece};
use crate::format::manifest::{Manifest, SegmentRef};
use crate::format::segment::Index;
use crate::read::ahead::Indexes;
use crate::sectors::{NewestWins, SectorSet};
use crate::store::Vault;

/// What is needed of one segment.
pub(super) struct Layer {
    pub key: ObjectKey,
    pub index: Index,
    /// Runs needed, by the number of their extent.
    pub needed: Vec<(usize, Vec<SectorRange>)>,
    /// Where in `needed` the runs of each frame are, by the frame's number.
    pub of_frame: HashMap<u32, Vec<usize>>,
}

impl Layer {
    /// What is needed of one segment.
    fn new(key: ObjectKey, index: Index, needed: Vec<(usize, Vec<SectorRange>)>) -> Self {
        let mut of_frame: HashMap<u32, Vec<usize>> = HashMap::new();
        for (at, (number, _)) in needed.iter().enumerate() {
            if let Some(place) = index.extents[*number].place {
                of_frame.entry(place.frame).or_default().push(at);
            }
        }
        Self { key, index, needed, of_frame }
    }

    /// The part of it that is in a set.
    pub fn within(self, wanted: &SectorSet) -> Self {
        let within = |runs: Vec<SectorRange>| -> Vec<SectorRange> {
            runs.into_iter().flat_map(|run| wanted.runs_within(run, true)).collect()
        };
        let needed = self.needed.into_iter().map(|(number, runs)| (number, within(runs)));
        let needed = needed.filter(|(_, runs)| !runs.is_empty()).collect();
        Self::new(self.key, self.index, needed)
    }

    /// Sectors needed.
    pub fn sectors(&self) -> u64 {
        self.needed.iter().flat_map(|(_, runs)| runs).map(|run| run.sectors()).sum()
    }
}

/// A point's segments, newest first, each with what is needed of it.
pub(super) struct Layers<'a> {
    point: &'a Manifest,
    indexes: Indexes,
    newest: NewestWins,
    /// Segments not looked at yet.
    left: usize,
    /// Whether its own segments were compared with what it says that moved.
    compared: bool,
}

impl<'a> Layers<'a> {
    pub fn new(vault: &Vault, point: &'a Manifest) -> Self {
        let indexes = Indexes::new(vault, point);
        let newest = NewestWins::within(SectorRange::whole(point.size));
        Self { point, indexes, newest, left: point.segments.len(), compared: false }
    }

    /// Segments looked at so far.
    pub fn seen(&self) -> usize {
        self.point.segments.len() - self.left
    }

    /// What is needed of the next segment; `None` after the oldest.
    pub fn next(&mut self) -> Result<Option<(&'a SegmentRef, Layer)>, VaultError> {
        let Some(left) = self.left.checked_sub(1) else { return self.compare().map(|()| None) };
        let segment = &self.point.segments[left];
        if segment.cycle != self.point.cycle {
            self.compare()?;
        }
        let key = segment.id(self.point.disk).key();
        let Some(index) = self.indexes.next() else { return Ok(None) };
        let index = index?;
        let mut needed = vec![];
        for (number, extent) in index.extents.iter().enumerate() {
            let runs = self.newest.show(extent.range);
            if !runs.is_empty() {
                needed.push((number, runs));
            }
        }
        self.left = left;
        Ok(Some((segment, Layer::new(key, index, needed))))
    }

    /// Compares, after its own segments, what they hold with what the point says that moved: a list that lacks one
    /// would be another disk.
    fn compare(&mut self) -> Result<(), VaultError> {
        let moved = (self.point.moved_sectors, self.point.moved_digest);
        if std::mem::replace(&mut self.compared, true)
            || (self.newest.held().count(), self.newest.held().digest()) == moved
        {
            return Ok(());
        }
        Err(VaultError::Inconsistent {
            object: Piece::Point(self.point.cycle).of(self.point.disk).into(),
            reason: "its own segments do not hold what it says that moved".into(),
        })
    }

    /// Checks, after the oldest, that together they are the whole disk.
    pub fn finish(self) -> Result<(), VaultError> {
        match self.newest.holes().first() {
            None => Ok(()),
            Some(range) => Err(VaultError::Inconsistent {
                object: format!("recovery point {} of disk {}", self.point.cycle, self.point.disk),
                reason: format!("none of its segments holds {range}"),
            }),
        }
    }
}

/// Goes through a point's segments, newest first, and calls with what is needed of each; then
/// checks that together they are the whole disk.
pub(super) fn for_each_layer(
    vault: &Vault,
    point: &Manifest,
    mut each: impl FnMut(&SegmentRef, Layer) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let mut layers = Layers::new(vault, point);
    while let Some((segment, layer)) = layers.next()? {
        each(segment, layer)?;
    }
    layers.finish()
}

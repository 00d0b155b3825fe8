//! Which parts of which segments make up a point: newest first, so that what a later segment holds
//! is not read from an earlier one.

use std::collections::HashMap;

use backstay_format::SectorRange;

use crate::error::VaultError;
use crate::format::manifest::{Manifest, SegmentRef};
use crate::format::segment::Index;
use crate::read::read_index;
use crate::sectors::SectorSet;
use crate::store::{Vault, segment_id, segment_key};

/// What is needed of one segment.
pub(super) struct Layer {
    pub key: String,
    pub index: Index,
    /// Runs needed, by the number of their extent.
    pub needed: Vec<(usize, Vec<SectorRange>)>,
    /// Where in `needed` the runs of each frame are, by the frame's number.
    pub of_frame: HashMap<u32, Vec<usize>>,
}

/// Goes through a point's segments, newest first, and calls with what is needed of each; then
/// checks that together they are the whole disk.
pub(super) fn for_each_layer(
    vault: &Vault,
    point: &Manifest,
    mut each: impl FnMut(&SegmentRef, Layer) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let mut done = SectorSet::new();
    for segment in point.segments.iter().rev() {
        let key = segment_key(segment_id(point.disk, segment));
        let index = read_index(vault, point.disk, point.size, segment)?;
        let mut needed = vec![];
        for (number, extent) in index.extents.iter().enumerate() {
            let runs = done.runs_within(extent.range, false);
            if !runs.is_empty() {
                needed.push((number, runs));
            }
        }
        // Extents of one segment do not overlap, so they may all be added afterwards.
        for extent in &index.extents {
            done.insert(extent.range);
        }
        let mut of_frame: HashMap<u32, Vec<usize>> = HashMap::new();
        for (at, (number, _)) in needed.iter().enumerate() {
            if let Some(place) = index.extents[*number].place {
                of_frame.entry(place.frame).or_default().push(at);
            }
        }
        each(segment, Layer { key, index, needed, of_frame })?;
    }
    let mut whole = SectorSet::new();
    whole.insert(SectorRange::whole(point.size));
    match whole.first_difference(&done) {
        None => Ok(()),
        Some((range, _)) => Err(VaultError::Inconsistent {
            object: format!("recovery point {} of disk {}", point.cycle, point.disk),
            reason: format!("none of its segments holds {range}"),
        }),
    }
}

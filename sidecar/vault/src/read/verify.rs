//! Verifying points: everything is read back and every checksum compared.

use std::collections::{BTreeSet, HashMap};

use backstay_types::{ByteLen, Classified, CycleNo, DiskId};

use super::frames::{BULK_GAP_BYTES_MAX, Decompressor, check, fetch, read_header, requests};
use super::survey::{Reading, Survey, survey};
use super::{Progress, read_index};
use crate::error::VaultError;
use crate::format::key::Piece;
use crate::format::manifest::{CycleKind, Manifest, SegmentRef};
use crate::store::Vault;

/// What was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Recovery points.
    pub points: u64,
    /// Segments, each read once.
    pub segments: u64,
    /// Bytes of sectors whose checksums were compared.
    pub bytes: u64,
}

/// Verifies one point: its manifest, its chain, all its segments, and that they are a whole disk.
///
/// # Errors
/// The first thing that is missing, damaged or contradicts another.
pub fn verify_point(
    vault: &Vault,
    disk: DiskId,
    cycle: CycleNo,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Verified, VaultError> {
    verify_points(vault, disk, &[cycle], threads, progress)
}

/// Verifies several points, reading what they share once.
///
/// # Errors
/// As for [`verify_point`].
pub fn verify_points(
    vault: &Vault,
    disk: DiskId,
    cycles: &[CycleNo],
    threads: usize,
    progress: Progress<'_>,
) -> Result<Verified, VaultError> {
    let how = Reading { threads, progress, skip: &BTreeSet::new(), done: &|_, _| true };
    let Survey { verified, damaged, .. } = survey(vault, disk, cycles, &how)?;
    damaged.into_values().next().map_or(Ok(verified), Err)
}

/// Reads the newest and the oldest segment of a point, whole: whether it can be read at all, for little.
///
/// # Errors
/// As for [`verify_point`].
pub fn verify_newest_segments(
    vault: &Vault,
    disk: DiskId,
    cycle: CycleNo,
) -> Result<Verified, VaultError> {
    let point = vault.manifest(disk, cycle)?;
    let mut verified = Verified { points: 1, ..Verified::default() };
    let mut ends = [point.segments.last(), point.segments.first()];
    if point.segments.len() == 1 {
        ends[1] = None;
    }
    for segment in ends.into_iter().flatten() {
        verify_segment(vault, disk, point.size, segment, |bytes| verified.bytes += bytes)?;
        verified.segments += 1;
    }
    Ok(verified)
}

/// A point must follow the one it names, if that is still there, in a term not older than its.
/// The times of the cuts say nothing: a wall clock may step back.
pub(super) fn check_chain(vault: &Vault, point: &Manifest) -> Result<(), VaultError> {
    let Some((cycle, id)) = point.predecessor else { return Ok(()) };
    let before = match vault.manifest(point.disk, cycle) {
        // Deleted by retention, which is not done behind the ledger's back: see `missing_points`. Points do
        // not need the ones before them.
        Err(VaultError::NotFound { .. }) => return Ok(()),
        // The fault of that one, not of this.
        Err(e) if e.is_damage() => return Ok(()),
        before => before?,
    };
    // The first point of a term may lay over an older one: others were made after that.
    let follows = cycle.next() == point.cycle || before.term < point.term;
    let fits = before.point == id && before.term <= point.term && follows;
    // What a writer put that slept while the point of that cycle came and went is nobody's.
    let nobodys = before.point != id
        && vault.ledger(point.disk)?.is_some_and(|l| l.fate(cycle, before.point) == Some(None));
    if fits && !descends(&before, point) {
        return Err(VaultError::Inconsistent {
            object: Piece::Point(point.cycle).of(point.disk).into(),
            reason: format!(
                "its list of segments is not that of recovery point {cycle} with more on top"
            ),
        });
    }
    if fits || nobodys {
        return Ok(());
    }
    Err(VaultError::Inconsistent {
        object: Piece::Point(point.cycle).of(point.disk).into(),
        reason: format!("it does not follow recovery point {cycle}, which it names"),
    })
}

/// Compares a point's list with the one it lays over, where that is still there and can be read: what is
/// restored must not depend on a list that lacks segments. Anything else about the older point is not asked.
pub(super) fn check_list(vault: &Vault, point: &Manifest) -> Result<(), VaultError> {
    let Some((cycle, id)) = point.predecessor else { return Ok(()) };
    match vault.manifest(point.disk, cycle) {
        Ok(before) if before.point == id && !descends(&before, point) => check_chain(vault, point),
        _ => Ok(()),
    }
}

/// Whether a point inherits the list of the one it lays over: all of it in its order, but for stretches that
/// merged segments stand for.
fn descends(before: &Manifest, point: &Manifest) -> bool {
    let inherited: Vec<&SegmentRef> =
        point.segments.iter().filter(|segment| segment.cycle != point.cycle).collect();
    if inherited.is_empty() && point.kind != CycleKind::Delta {
        // It stands alone.
        return true;
    }
    let name = |segment: &SegmentRef| (segment.cycle, segment.attempt, segment.number);
    let places: HashMap<_, usize> =
        before.segments.iter().enumerate().map(|(at, segment)| (name(segment), at)).collect();
    // The next entry expected, and merged segments since the last that was found.
    let (mut next, mut merged) = (0, 0);
    for segment in inherited {
        match places.get(&name(segment)) {
            None => merged += 1,
            Some(&at) => {
                // Merged segments stand for something, and nothing is left out without them.
                if at < next || (at > next) != (merged > 0) || before.segments[at] != *segment {
                    return false;
                }
                (next, merged) = (at + 1, 0);
            }
        }
    }
    (next < before.segments.len()) == (merged > 0)
}

/// Reads a segment's frames and compares every checksum of its sectors.
pub(crate) fn verify_segment(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
    mut count: impl FnMut(u64),
) -> Result<(), VaultError> {
    let key = segment.id(disk).key();
    let index = read_index(vault, disk, size, segment)?;
    if index.frames.is_empty() {
        // With the first frame it is read anyway.
        read_header(vault, &key, &index.opens)?;
    }
    let mut decompressor = Decompressor::new()?;
    let frames: Vec<u32> = (0..index.frames.len() as u32).collect();
    let mut of_frame = vec![vec![]; frames.len()];
    for extent in &index.extents {
        if let Some(place) = &extent.place {
            of_frame[place.frame as usize].push((extent, place));
        }
    }
    for group in requests(&index, &frames, BULK_GAP_BYTES_MAX) {
        for (frame, stored) in fetch(vault, &key, &index, &frames[group])? {
            let raw = decompressor.open(&key, &index.frames[frame as usize], &stored)?;
            for (extent, place) in &of_frame[frame as usize] {
                check(&key, extent, place, raw)?;
                count(extent.range.bytes().0);
            }
        }
    }
    Ok(())
}

//! Verifying points: everything is read back and every checksum compared.

use std::collections::{BTreeSet, HashMap, HashSet};

use backstay_types::{ByteLen, CycleNo, DiskId};

use super::frames::{Decompressor, check, fetch, read_header, requests};
use super::survey::{Reading, Survey, survey};
use super::{Progress, read_index};
use crate::error::VaultError;
use crate::format::manifest::{Manifest, SegmentRef};
use crate::store::{Vault, point_key, segment_id, segment_key};

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
    check_own_last(point)?;
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
    if fits {
        return check_order(&before, point);
    }
    if nobodys {
        return Ok(());
    }
    Err(VaultError::Inconsistent {
        object: point_key(point.disk, point.cycle),
        reason: format!("it does not follow recovery point {cycle}, which it names"),
    })
}

/// A later segment holds over an earlier one, so a list in another order is another disk, although every
/// checksum fits. What a cycle added stands behind all that it went on from.
fn check_own_last(point: &Manifest) -> Result<(), VaultError> {
    let is_own = |segment: &&SegmentRef| segment.cycle == point.cycle;
    let own = point.segments.iter().rev().take_while(is_own).count();
    let mut names = HashSet::new();
    let twice = point.segments.iter().any(|s| !names.insert((s.cycle, s.attempt, s.number)));
    if own == point.own_segments().count() && !twice {
        return Ok(());
    }
    Err(out_of_order(point))
}

/// What a point shares with the one before it stands in the same order in both: merging puts few segments
/// in the place of neighbours, and changes nothing else.
fn check_order(before: &Manifest, point: &Manifest) -> Result<(), VaultError> {
    let name = |s: &SegmentRef| (s.cycle, s.attempt, s.number);
    let there: HashMap<_, usize> =
        before.segments.iter().enumerate().map(|(n, segment)| (name(segment), n)).collect();
    let shared = point.segments.iter().filter_map(|segment| there.get(&name(segment)));
    match shared.is_sorted() {
        true => Ok(()),
        false => Err(out_of_order(point)),
    }
}

fn out_of_order(point: &Manifest) -> VaultError {
    VaultError::Inconsistent {
        object: point_key(point.disk, point.cycle),
        reason: "its segments are listed in an order in which no cycle lists them".into(),
    }
}

/// Reads a segment's frames and compares every checksum of its sectors.
pub(crate) fn verify_segment(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    segment: &SegmentRef,
    mut count: impl FnMut(u64),
) -> Result<(), VaultError> {
    let key = segment_key(segment_id(disk, segment));
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
    for group in requests(&index, &frames) {
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

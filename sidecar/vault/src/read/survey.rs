//! Reading points back: every frame that a point needs, once, however many points need it; which points are whole, and
//! which are not.
//!
//! One damaged frame says nothing about the others, and a point that does not need it is whole. So reading goes on, and
//! what is damaged is told for each point.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use backstay_types::{ByteLen, CycleNo, DiskId};

use super::frames::{BULK_GAP_BYTES_MAX, Decompressor, check, fetch, read_header, requests};
use super::plan::for_each_layer;
use super::verify::{Verified, check_chain};
use super::{Progress, read_index};
use crate::error::VaultError;
use crate::format::key::Piece;
use crate::format::manifest::{Manifest, SegmentRef};
use crate::store::Vault;

/// What tells segments of a disk apart.
type Name = (CycleNo, u64, u32);

fn name(segment: &SegmentRef) -> Name {
    (segment.cycle, segment.attempt, segment.number)
}

/// How points are read back.
pub struct Reading<'a> {
    /// Segments at a time.
    pub threads: usize,
    /// Told how far it is.
    pub progress: Progress<'a>,
    /// Segments that were read before, by the last part of their keys.
    pub skip: &'a BTreeSet<String>,
    /// Told of each segment whose frames are all as they should be, and of its bytes; false to end it.
    pub done: &'a (dyn Fn(&str, u64) -> bool + Sync),
}

/// A segment in which something that is needed is damaged.
#[derive(Debug)]
pub struct DamagedSegment {
    /// The size of the disk it is of.
    pub size: ByteLen,
    /// Which.
    pub segment: SegmentRef,
    /// What is wrong.
    pub why: String,
    /// Its damaged frames; none: all of it.
    frames: Option<BTreeSet<u32>>,
}

/// What came of reading points back.
#[derive(Debug, Default)]
pub struct Survey {
    /// How much was read.
    pub verified: Verified,
    /// Points that are not whole, and why.
    pub damaged: BTreeMap<CycleNo, VaultError>,
    /// Segments that are damaged where some point needs them.
    pub segments: Vec<DamagedSegment>,
}

/// The last part of a segment's key.
#[must_use]
pub fn segment_name(disk: DiskId, segment: &SegmentRef) -> String {
    let key = segment.id(disk).key().to_string();
    key.rsplit('/').next().unwrap_or_default().to_owned()
}

struct Planned {
    size: ByteLen,
    segment: SegmentRef,
    frames: BTreeSet<u32>,
}

/// What is wrong with an object, without its name, which anyone who is told has already.
fn reason(e: &VaultError) -> String {
    match e {
        VaultError::Damaged { source, .. } => source.to_string(),
        VaultError::Inconsistent { reason, .. } => reason.clone(),
        VaultError::NotFound { .. } => "it is not there".into(),
        e => e.to_string(),
    }
}

/// Reads points back. What is damaged is no error.
///
/// # Errors
/// If the vault cannot be read; [`VaultError::Stopped`] if it was told to end.
pub fn survey(
    vault: &Vault,
    disk: DiskId,
    cycles: &[CycleNo],
    how: &Reading<'_>,
) -> Result<Survey, VaultError> {
    let mut survey = Survey::default();
    let mut planned: BTreeMap<Name, Planned> = BTreeMap::new();
    let mut points = vec![];
    for &cycle in cycles {
        match plan(vault, disk, cycle, &mut planned) {
            Ok(point) => points.push(point),
            Err(e) if e.is_loss() => drop(survey.damaged.insert(cycle, e)),
            Err(e) => return Err(e),
        }
    }
    read_all(vault, disk, planned.into_values().collect(), how, &mut survey)?;
    if !survey.segments.is_empty() {
        for point in &points {
            if let Some(e) = what_it_lacks(vault, point, &survey.segments)? {
                survey.damaged.insert(point.cycle, e);
            }
        }
    }
    survey.verified.points = (cycles.len() - survey.damaged.len()) as u64;
    Ok(survey)
}

/// Adds what a point needs.
fn plan(
    vault: &Vault,
    disk: DiskId,
    cycle: CycleNo,
    planned: &mut BTreeMap<Name, Planned>,
) -> Result<Manifest, VaultError> {
    let gone = || VaultError::NotFound { object: Piece::Point(cycle).of(disk).into() };
    let point = vault.listed_manifest(disk, cycle)?.ok_or_else(gone)?;
    check_chain(vault, &point)?;
    // Only when all of it is known: what a point that is damaged needs of others, they need themselves.
    let mut needs = vec![];
    for_each_layer(vault, &point, |segment, layer| {
        needs.push((*segment, layer.of_frame.into_keys().collect::<Vec<u32>>()));
        Ok(())
    })?;
    for (segment, frames) in needs {
        let one = || Planned { size: point.size, segment, frames: BTreeSet::new() };
        planned.entry(name(&segment)).or_insert_with(one).frames.extend(frames);
    }
    Ok(point)
}

fn read_all(
    vault: &Vault,
    disk: DiskId,
    segments: Vec<Planned>,
    how: &Reading<'_>,
    survey: &mut Survey,
) -> Result<(), VaultError> {
    let all: u64 = segments.iter().map(|planned| planned.segment.data_sectors * 512).sum();
    let (next, done, bytes) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (failed, error) = (AtomicBool::new(false), Mutex::new(None));
    let damaged = Mutex::new(vec![]);
    let fail = |e: VaultError| {
        error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        failed.store(true, Ordering::Relaxed);
    };
    thread::scope(|scope| {
        for _ in 0..how.threads.max(1) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some(planned) = segments.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    let name = segment_name(disk, &planned.segment);
                    let of_segment = planned.segment.data_sectors * 512;
                    let read = match how.skip.contains(&name) {
                        true => Ok(None),
                        false => read_frames(vault, disk, planned, &bytes),
                    };
                    match read {
                        Ok(Some(found)) => {
                            damaged.lock().unwrap_or_else(PoisonError::into_inner).push(found);
                        }
                        Ok(None) if !(how.done)(&name, of_segment) => {
                            fail(VaultError::Stopped { object: format!("reading {name}") });
                        }
                        Ok(None) => {}
                        Err(e) => fail(e),
                    }
                    let so_far = done.fetch_add(of_segment, Ordering::Relaxed) + of_segment;
                    (how.progress)(so_far, all);
                }
            });
        }
    });
    if let Some(error) = error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    survey.segments = damaged.into_inner().unwrap_or_else(PoisonError::into_inner);
    survey.verified.segments = segments.len() as u64;
    survey.verified.bytes = bytes.into_inner();
    Ok(())
}

/// Reads frames of a segment and compares every checksum in them; what is damaged, if something is.
fn read_frames(
    vault: &Vault,
    disk: DiskId,
    planned: &Planned,
    bytes: &AtomicU64,
) -> Result<Option<DamagedSegment>, VaultError> {
    let Planned { size, segment, frames } = planned;
    let key = segment.id(disk).key();
    let damage = |e: &VaultError, frames| {
        let why = reason(e);
        Ok(Some(DamagedSegment { size: *size, segment: *segment, why, frames }))
    };
    let index = match read_index(vault, disk, *size, segment) {
        Err(e) if e.is_loss() => return damage(&e, None),
        index => index?,
    };
    if frames.is_empty() {
        // With the first frame it is read anyway.
        return match read_header(vault, &key, &index.opens) {
            Err(e) if e.is_loss() => damage(&e, None),
            header => header.map(|()| None),
        };
    }
    let mut of_frame: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for extent in &index.extents {
        if let Some(place) = extent.place.as_ref().filter(|place| frames.contains(&place.frame)) {
            of_frame.entry(place.frame).or_default().push((extent, place));
        }
    }
    let (mut bad, mut why) = (BTreeSet::new(), None);
    let mut decompressor = Decompressor::new()?;
    let frames: Vec<u32> = frames.iter().copied().collect();
    for group in requests(&index, &frames, BULK_GAP_BYTES_MAX) {
        let stored = match fetch(vault, &key, &index, &frames[group.clone()]) {
            Err(e) if e.is_loss() => {
                bad.extend(&frames[group]);
                why.get_or_insert(e);
                continue;
            }
            stored => stored?,
        };
        for (frame, stored) in stored {
            let checked = decompressor.open(&key, &index.frames[frame as usize], &stored);
            let checked = checked.and_then(|raw| {
                of_frame.get(&frame).into_iter().flatten().try_for_each(|(extent, place)| {
                    bytes.fetch_add(extent.range.bytes().0, Ordering::Relaxed);
                    check(&key, extent, place, raw).map(drop)
                })
            });
            if let Err(e) = checked {
                bad.insert(frame);
                why.get_or_insert(e);
            }
        }
    }
    match why {
        Some(why) => damage(&why, Some(bad)),
        None => Ok(None),
    }
}

/// Why a point is not whole, if it needs something that is damaged.
fn what_it_lacks(
    vault: &Vault,
    point: &Manifest,
    damaged: &[DamagedSegment],
) -> Result<Option<VaultError>, VaultError> {
    let of = |segment: &SegmentRef| damaged.iter().find(|bad| name(&bad.segment) == name(segment));
    if !point.segments.iter().any(|segment| of(segment).is_some()) {
        return Ok(None);
    }
    let mut lacks = None;
    for_each_layer(vault, point, |segment, layer| {
        if let Some(bad) = of(segment)
            && !layer.needed.is_empty()
            && bad.frames.as_ref().is_none_or(|bad| layer.of_frame.keys().any(|f| bad.contains(f)))
        {
            let object = segment.id(point.disk).key().into();
            let reason = bad.why.clone();
            lacks.get_or_insert(VaultError::Inconsistent { object, reason });
        }
        Ok(())
    })?;
    Ok(lacks)
}

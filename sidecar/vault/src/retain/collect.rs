//! Segments that nothing names go: of deleted points, of merges, of attempts that failed.
//!
//! The order is everything: segments are listed first, points are read after that, then the ledger
//! is advanced, and only then is anything deleted. docs/explanation/format-vault.md has the proof.

use std::collections::HashSet;

use backstay_types::{CycleNo, DiskId};
use object_store::path::Path;

use super::ledger::{Advanced, blank, settled_objects};
use super::{Job, ROUNDS_MAX};
use crate::error::VaultError;
use crate::format::key::DiskFolder;
use crate::format::ledger::Ledger;
use crate::format::manifest::SegmentRef;
use crate::format::segment::SegmentId;
use crate::store::Vault;

/// Segments deleted at a time.
const DELETES: usize = 256;

/// What was collected.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Collected {
    /// Segments that stay.
    pub kept: u64,
    /// Bytes of these.
    pub kept_bytes: u64,
    /// Segments deleted.
    pub deleted: u64,
    /// Bytes of these.
    pub deleted_bytes: u64,
}

/// What tells segments of a disk apart.
type Name = (CycleNo, u64, u32);

/// What nothing names, and the ledger that has to hold before it may go.
struct Garbage {
    garbage: Vec<SegmentId>,
    next: Option<Ledger>,
    collected: Collected,
}

/// Looks for garbage as if the points of the cycles in `gone`, which are in order, were deleted already.
fn find(job: &Job<'_>, gone: &[CycleNo]) -> Result<Garbage, VaultError> {
    let (vault, disk) = (job.vault, job.disk);
    let base = vault.ledger(disk)?;
    let segments = segments_of(vault, disk)?;
    let objects = settled_objects(vault, disk, base.as_ref())?;
    let base = base.unwrap_or_else(|| blank(disk));
    let mut named: HashSet<Name> = HashSet::new();
    let mut name = |segments: &[SegmentRef]| {
        named.extend(segments.iter().map(|s| (s.cycle, s.attempt, s.number)));
    };
    let mut newest = None;
    for &cycle in objects.iter().filter(|cycle| gone.binary_search(cycle).is_err()) {
        job.go_on()?;
        // Deleted by another maintainer.
        let Some(point) = vault.listed_manifest(disk, cycle)? else { continue };
        name(&point.segments);
        newest = Some(point);
    }
    let Some(newest) = newest else {
        // Before the first point, everything may belong to the cycle that runs.
        let (kept, kept_bytes) = (segments.len() as u64, segments.iter().map(|s| s.1).sum());
        let collected = Collected { kept, kept_bytes, ..Collected::default() };
        return Ok(Garbage { garbage: vec![], next: None, collected });
    };
    let (_, fit) = base.merged(&newest.segments);
    let merges: Vec<_> = base
        .merges
        .iter()
        .zip(fit)
        .filter(|(_, fit)| *fit)
        .map(|(merge, _)| merge.clone())
        .collect();
    merges.iter().for_each(|merge| name(&merge.segments));
    let mut collected = Collected::default();
    let mut garbage = vec![];
    for (id, bytes) in segments {
        if id.cycle <= newest.cycle && !named.contains(&(id.cycle, id.attempt, id.number)) {
            garbage.push(id);
            collected.deleted += 1;
            collected.deleted_bytes += bytes;
        } else {
            collected.kept += 1;
            collected.kept_bytes += bytes;
        }
    }
    let mut points = base.points.clone();
    points.retain(|point| objects.binary_search(&point.cycle).is_ok());
    let changes = merges != base.merges || points != base.points || !garbage.is_empty();
    let next = changes.then_some(Ledger { points, merges, ..base });
    Ok(Garbage { garbage, next, collected })
}

pub(super) fn collect(job: &Job<'_>) -> Result<Collected, VaultError> {
    for _ in 0..ROUNDS_MAX {
        job.go_on()?;
        let Garbage { garbage, next, collected } = find(job, &[])?;
        // Only if it is seen to hold: see the head of this file.
        if let Some(next) = next
            && job.vault.advance(next)? != Advanced::Holds
        {
            continue;
        }
        for some in garbage.chunks(DELETES) {
            job.go_on()?;
            job.vault.delete_all(some.iter().map(|id| Path::from(&id.key())))?;
        }
        job.vault.sweep_unfinished(job.disk)?;
        return Ok(collected);
    }
    Err(VaultError::Contended { disk: job.disk })
}

pub(super) fn preview(job: &Job<'_>, gone: &[CycleNo]) -> Result<Collected, VaultError> {
    Ok(find(job, gone)?.collected)
}

/// All segments of a disk and their lengths.
fn segments_of(vault: &Vault, disk: DiskId) -> Result<Vec<(SegmentId, u64)>, VaultError> {
    let objects = vault.listed(&DiskFolder::Segments.of(disk))?;
    Ok(objects.iter().filter_map(|(key, len)| Some((key.segment()?, *len))).collect())
}

//! Which sectors may differ between two points (docs/explanation/replica.md says why these do).

use backstay_types::{CycleNo, DiskId, SectorRange};
use backstay_vault::read::read_index;
use backstay_vault::{Manifest, SectorSet, SegmentRef, Vault, VaultError};

use super::record::PointRef;

/// Most points between two whose lists are read to find a smaller difference.
const STEPS_MAX: usize = 256;

/// Segments to be looked at, each with the point that names it.
type Segments = Vec<(Manifest, Vec<SegmentRef>)>;

/// All sectors of `to` in which it may be another than `from`; `None` if that cannot be told, because
/// `from` is gone.
///
/// # Errors
/// If the vault cannot be read or is damaged.
pub fn between(
    vault: &Vault,
    disk: DiskId,
    from: &PointRef,
    to: &Manifest,
) -> Result<Option<SectorSet>, VaultError> {
    if from.point == to.point {
        return Ok(Some(SectorSet::new()));
    }
    // It must be there, and be that point: then the vault's history is the one that `from` is of, and
    // not that of a vault which was brought back from a backup and went on.
    let Some(base) = point_of(vault, disk, from)? else { return Ok(None) };
    let sure = match from.term == to.term && from.cycle < to.cycle {
        true => newer(from.cycle, to),
        false => not_common(base, to),
    };
    let segments = match each_step(vault, disk, from, to)? {
        Some(steps) if sectors(&steps) < sectors(&sure) => steps,
        _ => sure,
    };
    let whole = SectorRange::whole(to.size);
    let mut differ = SectorSet::new();
    for (point, segments) in &segments {
        for segment in segments {
            for extent in read_index(vault, disk, point.size, segment)?.extents {
                differ.insert(extent.range.intersect(whole));
            }
        }
    }
    if from.size_bytes < to.size {
        // What growth added was moved; the old last sector may have been a part of one.
        let first = from.size_bytes.0 / backstay_types::SECTOR_BYTES;
        differ.insert(SectorRange::new(first, whole.end.0));
    }
    Ok(Some(differ))
}

fn sectors(segments: &Segments) -> u64 {
    segments.iter().flat_map(|(_, s)| s).map(|s| s.data_sectors + s.zero_sectors).sum()
}

/// Within a term: the segments that hold anything of after a cycle.
fn newer(cycle: CycleNo, to: &Manifest) -> Segments {
    let newer = to.segments.iter().filter(|segment| segment.cycle > cycle).copied().collect();
    vec![(to.clone(), newer)]
}

/// What each point from one to the other moved, if they are all there and each went on from the one
/// before.
fn each_step(
    vault: &Vault,
    disk: DiskId,
    from: &PointRef,
    to: &Manifest,
) -> Result<Option<Segments>, VaultError> {
    let (mut steps, mut point) = (vec![], to.clone());
    loop {
        if steps.len() == STEPS_MAX {
            return Ok(None);
        }
        let Some((before, id)) = point.predecessor else { return Ok(None) };
        if before < from.cycle {
            return Ok(None);
        }
        let own = point.own_segments().copied().collect();
        steps.push((point, own));
        if before == from.cycle {
            return Ok((id == from.point).then_some(steps));
        }
        point = match vault.manifest(disk, before) {
            Ok(point) if point.point == id => point,
            Ok(_) | Err(VaultError::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(e),
        };
    }
}

/// What is not at the beginning of both lists.
fn not_common(from: Manifest, to: &Manifest) -> Segments {
    let common = from.segments.iter().zip(&to.segments).take_while(|(a, b)| a == b).count();
    let (ours, theirs) = (from.segments[common..].to_vec(), to.segments[common..].to_vec());
    vec![(from, ours), (to.clone(), theirs)]
}

/// The point that a replica knows, if the vault has that very one.
pub(super) fn point_of(
    vault: &Vault,
    disk: DiskId,
    point: &PointRef,
) -> Result<Option<Manifest>, VaultError> {
    match vault.manifest(disk, point.cycle) {
        Ok(there) if there.point == point.point => Ok(Some(there)),
        Ok(_) | Err(VaultError::NotFound { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

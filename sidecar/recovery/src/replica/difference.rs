//! Which sectors may differ between two points (docs/recovery/replica.md says why these do).

use backstay_format::{CycleNo, DiskId, SectorRange};
use backstay_vault::read::read_index;
use backstay_vault::{Manifest, SectorSet, SegmentRef, Vault, VaultError};

use super::record::PointRef;

/// Most points between two whose lists are read to find a smaller difference.
const STEPS_MAX: u64 = 256;

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
    let segments = if from.term == to.term && from.cycle < to.cycle {
        let newer = newer(from.cycle, to);
        match each_step(vault, disk, from, to)? {
            Some(steps) if sectors(&steps) < sectors(&newer) => steps,
            _ => newer,
        }
    } else {
        match not_common(vault, disk, from, to)? {
            Some(segments) => segments,
            None => return Ok(None),
        }
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
        // What growth added was moved; the last sector of before may have been a part of one.
        let first = from.size_bytes.0 / backstay_format::SECTOR_BYTES;
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

/// What each point from one to the other moved, if they are all there and follow each other.
fn each_step(
    vault: &Vault,
    disk: DiskId,
    from: &PointRef,
    to: &Manifest,
) -> Result<Option<Segments>, VaultError> {
    if to.cycle.0 - from.cycle.0 > STEPS_MAX {
        return Ok(None);
    }
    let (mut steps, mut point) = (vec![], to.clone());
    loop {
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
fn not_common(
    vault: &Vault,
    disk: DiskId,
    from: &PointRef,
    to: &Manifest,
) -> Result<Option<Segments>, VaultError> {
    let from = match vault.manifest(disk, from.cycle) {
        Ok(point) if point.point == from.point => point,
        Ok(_) | Err(VaultError::NotFound { .. }) => return Ok(None),
        Err(e) => return Err(e),
    };
    let common = from.segments.iter().zip(&to.segments).take_while(|(a, b)| a == b).count();
    let (ours, theirs) = (from.segments[common..].to_vec(), to.segments[common..].to_vec());
    Ok(Some(vec![(from, ours), (to.clone(), theirs)]))
}

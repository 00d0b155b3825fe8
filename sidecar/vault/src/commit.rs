//! From segments to a recovery point.
//!
//! The only way to a commit is through [`verify_cycle`], which reads back what the vault holds and
//! compares it with what had to move (I7): a manifest of anything else cannot be made.
//!
//! Cycle numbers have no gaps, and a manifest is put only if it is absent, so of two writers one
//! wins. A new term takes effect by being written and then taking the next cycle number: the old
//! writer, who can commit only at that number, loses the put; it reads the terms again and knows
//! why (I5).
//!
//! The first point of a new term need not lay over the newest one: a failover goes on from the point
//! that the term's record names. docs/explanation/format-vault.md says why that loses no segment.

use backstay_types::{ByteLen, CycleNo, DiskId, PointId, SECTOR_BYTES, SectorRange, Term};

use crate::error::VaultError;
use crate::format::key::Piece;
use crate::format::manifest::{Consistency, CycleKind, Manifest, SegmentRef};
use crate::read::ahead::Indexes;
use crate::sectors::{SectorSet, Side};
use crate::store::{Vault, at_once, now_unix_ns};

/// One pass of a cycle over the disk: what had to move, and the segments that moved it.
#[derive(Debug)]
pub struct Pass {
    /// The source's set.
    pub must_move: SectorSet,
    /// What was put.
    pub segments: Vec<SegmentRef>,
}

/// A cycle whose segments are in the vault, whole, and hold exactly what had to move.
#[derive(Debug)]
pub struct VerifiedCycle {
    disk: DiskId,
    size: ByteLen,
    cycle: CycleNo,
    segments: Vec<SegmentRef>,
    moved_sectors: u64,
    moved_digest: [u8; 32],
    moved: SectorSet,
}

/// What a point is laid over. A delta is over some point, an initial point never; a resync is, if it was compared.
#[derive(Debug, Clone)]
pub enum Base {
    /// Nothing: the point holds the whole disk.
    Nothing {
        /// The older point whose history it continues, as in [`Base::Older`]; none: the newest's.
        continues: Option<Manifest>,
    },
    /// The newest point.
    Newest,
    /// The point that a new term goes on from, for the first point of that term. Anyone who commits holds it until
    /// that is done.
    Older(Manifest),
}

impl Base {
    /// The point that is continued, if it is not the newest.
    fn older(&self) -> Option<&Manifest> {
        match self {
            Self::Nothing { continues } => continues.as_ref(),
            Self::Newest => None,
            Self::Older(point) => Some(point),
        }
    }
}

/// What else a manifest says.
#[derive(Debug, Clone)]
pub struct PointMeta {
    /// The writer's term.
    pub term: Term,
    /// The newest point, after which this one is counted.
    pub predecessor: Option<Manifest>,
    /// What it is laid over.
    pub base: Base,
    /// What kind of cycle this is.
    pub kind: CycleKind,
    /// The point's identity.
    pub point: PointId,
    /// What the point promises.
    pub consistency: Consistency,
    /// The instant of the cut, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Bytes the guest wrote since the last cut.
    pub written: ByteLen,
}

/// Reads back the indexes of a cycle's segments, as the vault holds them, and compares them, sector
/// by sector, with what had to move.
///
/// # Errors
/// [`VaultError::Missed`] for the first run that differs; damage; or an unreachable vault.
pub fn verify_cycle(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    cycle: CycleNo,
    passes: Vec<Pass>,
) -> Result<VerifiedCycle, VaultError> {
    let mut moved = SectorSet::new();
    let mut segments = vec![];
    for pass in passes {
        let mut arrived = SectorSet::new();
        if let Some(segment) = pass.segments.iter().find(|segment| segment.cycle != cycle) {
            return Err(VaultError::Inconsistent {
                object: segment.id(disk).key().into(),
                reason: format!("it was made by cycle {}, not by {cycle}", segment.cycle),
            });
        }
        let mut indexes = Indexes::of(vault, disk, size, &pass.segments);
        while let Some(index) = indexes.next() {
            let index = index.map_err(|e| match e {
                // It was put a moment ago. A gateway that had it and was killed may still have it.
                VaultError::NotFound { object } => VaultError::Lost { object },
                e => e,
            })?;
            for extent in &index.extents {
                if arrived.insert(extent.range) != extent.range.sectors() {
                    let problem = "arrived twice";
                    return Err(VaultError::Missed { range: extent.range, problem });
                }
                moved.insert(extent.range);
            }
        }
        if let Some((range, side)) = pass.must_move.first_difference(&arrived) {
            let problem = match side {
                Side::Left => "had to move and did not arrive",
                Side::Right => "arrived and did not have to move",
            };
            return Err(VaultError::Missed { range, problem });
        }
        segments.extend(pass.segments);
    }
    let (moved_sectors, moved_digest) = (moved.count(), moved.digest());
    Ok(VerifiedCycle { disk, size, cycle, segments, moved_sectors, moved_digest, moved })
}

/// I7: a range must have moved whole, because no earlier point stands in for it.
fn must_have_moved(moved: &SectorSet, range: SectorRange) -> Result<(), VaultError> {
    match moved.runs_within(range, false).first() {
        None => Ok(()),
        Some(&range) => {
            let problem = "did not move, and no earlier point stands in for it";
            Err(VaultError::Missed { range, problem })
        }
    }
}

impl Vault {
    /// Commits a cycle: from now on its recovery point exists.
    ///
    /// # Errors
    /// [`VaultError::Fenced`] if the writer's term is over, [`VaultError::LostRace`] if another
    /// writer committed this cycle, [`VaultError::Missed`] if the point would not be a whole disk;
    /// or the vault cannot be written. The point does not exist then.
    pub fn commit(&self, cycle: VerifiedCycle, meta: PointMeta) -> Result<Manifest, VaultError> {
        let VerifiedCycle { disk, size, cycle, mut segments, moved_sectors, moved_digest, moved } =
            cycle;
        let (term, ledger) = at_once(|| self.check_term(disk, meta.term), || self.ledger(disk));
        let (term, ledger) = (term?, ledger?);
        let newest = meta.predecessor.as_ref();
        let older = meta.base.older();
        let before = older.or(newest);
        let wrong = |reason: String| {
            Err(VaultError::Inconsistent { object: Piece::Point(cycle).of(disk).into(), reason })
        };
        // Where points were deleted behind our back, a full copy begins again beyond them: no number is used twice.
        if newest.is_some_and(|point| point.cycle.next() != cycle) || cycle < CycleNo(1) {
            return wrong("its cycle is not the one after the newest point's".into());
        }
        let is_first = newest.is_some_and(|newest| newest.term < meta.term);
        let told = term.from.filter(|_| is_first).map(|from| (from.cycle, from.point));
        let lays_over = before.map(|before| (before.cycle, before.point));
        // A delta of another point than the disk counts from would be a disk that never was.
        let must = older.is_some() || meta.kind == CycleKind::Delta;
        if must && told.is_some_and(|told| lays_over != Some(told))
            || (older.is_some() && told.is_none())
        {
            return wrong(format!("term {} does not go on from the point it lays over", meta.term));
        }
        match (&meta.base, before) {
            // Lays over what is there, which must be the same disk; it may have grown.
            (Base::Newest | Base::Older(_), Some(before)) => {
                if before.disk != disk || before.size > size {
                    return wrong(format!(
                        "a delta of a disk of {size} bytes cannot follow a point of {} bytes of \
                         disk {}: a resync is needed",
                        before.size, before.disk
                    ));
                }
                if before.size < size {
                    // The old last sector may have been partial: it counts as new.
                    let end = SectorRange::whole(size).end.0;
                    let new = SectorRange::new(before.size.0 / SECTOR_BYTES, end);
                    must_have_moved(&moved, new)?;
                }
                let inherited = match newest {
                    Some(newest) if newest.point != before.point => {
                        self.forget_merges(disk)?;
                        before.segments.clone()
                    }
                    _ => ledger.as_ref().map_or_else(
                        || before.segments.clone(),
                        |ledger| ledger.merged(&before.segments).0,
                    ),
                };
                segments = inherited.into_iter().chain(segments).collect();
            }
            // Stands alone: what did not move now could never be restored.
            _ => must_have_moved(&moved, SectorRange::whole(size))?,
        }
        let manifest = Manifest {
            disk,
            size,
            point: meta.point,
            cycle,
            term: meta.term,
            predecessor: before.map(|point| (point.cycle, point.point)),
            kind: meta.kind,
            consistency: meta.consistency,
            cut_unix_ns: meta.cut_unix_ns,
            committed_unix_ns: now_unix_ns(),
            written: meta.written,
            moved_sectors,
            moved_digest,
            segments,
        };
        match self.put_manifest(&manifest) {
            Ok(()) => self.unless_stale(manifest, ledger),
            // A put whose answer was lost may have been done, and sent again it finds itself.
            Err(e) if self.is_ours(&manifest) => {
                tracing::debug!("recovery point {cycle} is there: {e}");
                self.unless_stale(manifest, ledger)
            }
            Err(VaultError::Store {
                source: object_store::Error::AlreadyExists { .. }, ..
            }) => {
                self.check_term(disk, meta.term)?;
                Err(VaultError::LostRace(cycle))
            }
            Err(e) => Err(e),
        }
    }

    /// Whether the point in the vault is this one, and durable.
    fn is_ours(&self, point: &Manifest) -> bool {
        let there = self.manifest(point.disk, point.cycle);
        there.is_ok_and(|there| there == *point)
            && self.settle(&Piece::Point(point.cycle).of(point.disk)).is_ok()
    }
}

//! Points that no rule keeps and nothing holds go.
//!
//! The ledger retires them first, at one stroke; then holds are listed, and only what is still not
//! held is deleted. Whoever held a point before it was retired is in that list; whoever came later
//! was told that it is gone.

use std::collections::BTreeSet;

use backstay_types::{CycleNo, PointId};

use super::hold::covered;
use super::keep::Candidate;
use super::ledger::{Advanced, blank, settled_objects};
use super::{Job, ROUNDS_MAX, groups};
use crate::error::VaultError;
use crate::format::hold::HoldRecord;
use crate::format::ledger::{Fate, Ledger, LedgerPoint};
use crate::store::point_key;

/// Unless asked to be thorough, points go when they are this part of all.
const BATCH: usize = 16;
/// Points beyond the horizon after which the ledger learns of them, so that they are not read again.
const BEYOND_MAX: usize = 16;

/// What happened to points.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Retired {
    /// Points that stay, but for those held back.
    pub kept: u64,
    /// Cycles of the points that were retired.
    pub retired: Vec<CycleNo>,
    /// Point objects deleted, those of earlier runs too.
    pub deleted: u64,
    /// Retired points that a hold keeps back.
    pub held_back: u64,
}

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Its cycle.
    pub cycle: CycleNo,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Whether it stays.
    pub stays: bool,
    /// Names of what holds it.
    pub held_by: Vec<String>,
}

/// A disk's points as they are.
struct Survey {
    base: Ledger,
    points: Vec<LedgerPoint>,
    /// Objects that are no points.
    nobodys: Vec<CycleNo>,
    holds: Vec<HoldRecord>,
    /// Cycles of kept points that no rule keeps.
    doomed: BTreeSet<CycleNo>,
    /// What group points name of the disk.
    parts: groups::Parts,
}

fn survey(job: &Job<'_>) -> Result<Survey, VaultError> {
    let (vault, disk) = (job.vault, job.disk);
    // The ledger before everything else: what is put later must build on this one.
    let base = vault.ledger(disk)?;
    let objects = settled_objects(vault, disk, base.as_ref())?;
    let holds = job.live_holds()?;
    let base = base.unwrap_or_else(|| blank(disk));
    let (mut points, mut nobodys) = (vec![], vec![]);
    for cycle in objects {
        if cycle <= base.horizon {
            match base.point(cycle) {
                Some(point) => points.push(*point),
                None => nobodys.push(cycle),
            }
            continue;
        }
        job.go_on()?;
        let point = match vault.manifest(disk, cycle) {
            // Another maintainer was faster; then the ledger cannot be advanced from this base.
            Err(VaultError::NotFound { .. }) => continue,
            point => point?,
        };
        points.push(LedgerPoint {
            cycle,
            point: point.point,
            cut_unix_ns: point.cut_unix_ns,
            fate: Fate::Kept,
        });
    }
    let kept = points.iter().filter(|point| point.fate == Fate::Kept);
    let candidates: Vec<Candidate> = kept
        .map(|point| Candidate {
            cycle: point.cycle,
            cut_unix_ns: point.cut_unix_ns,
            held: holds.iter().any(|hold| hold.covers(point.cycle)),
        })
        .collect();
    let (mut doomed, mut parts) = (BTreeSet::new(), groups::Parts::new());
    if points.iter().any(|point| point.fate == Fate::Retired) || job.policy.keep.is_some() {
        parts = groups::parts_of(vault, disk)?;
    }
    if let (Some(keep), Some(newest)) = (&job.policy.keep, candidates.last()) {
        let mut stay = keep.choose(&candidates, job.now_unix_ns);
        let from = newest.cut_unix_ns.min(job.now_unix_ns);
        stay.extend(groups::kept(&parts, keep, &stay, from));
        doomed = candidates.iter().map(|c| c.cycle).filter(|c| !stay.contains(c)).collect();
    }
    Ok(Survey { base, points, nobodys, holds, doomed, parts })
}

pub(super) fn retire(job: &Job<'_>) -> Result<Retired, VaultError> {
    if job.policy.keep.is_none() && !job.policy.thorough {
        // Nothing can go: the points need not be read.
        return Ok(Retired::default());
    }
    for _ in 0..ROUNDS_MAX {
        job.go_on()?;
        let Survey { base, mut points, nobodys, mut doomed, parts, .. } = survey(job)?;
        let kept = points.iter().filter(|point| point.fate == Fate::Kept).count();
        if !job.policy.thorough && doomed.len() * BATCH < kept {
            doomed.clear();
        }
        let beyond = points.iter().filter(|point| point.cycle > base.horizon).count();
        let horizon = points.last().map_or(base.horizon, |point| point.cycle).max(base.horizon);
        for point in points.iter_mut().filter(|point| doomed.contains(&point.cycle)) {
            point.fate = Fate::Retired;
        }
        // What is about to go is looked at: something else may stand in its place.
        for point in points.iter().filter(|point| point.fate == Fate::Retired) {
            job.go_on()?;
            is_ours(job, point.cycle)?;
        }
        for &cycle in &nobodys {
            is_ours(job, cycle)?;
        }
        if !doomed.is_empty() || beyond > BEYOND_MAX {
            let next = Ledger { horizon, points: points.clone(), ..base };
            if job.vault.advance(next)? != Advanced::Holds {
                continue;
            }
        }
        let retired: Vec<(CycleNo, PointId)> = points
            .iter()
            .filter(|point| point.fate == Fate::Retired)
            .map(|point| (point.cycle, point.point))
            .collect();
        let mut done = Retired {
            kept: (kept - doomed.len()) as u64,
            retired: doomed.into_iter().collect(),
            ..Retired::default()
        };
        // Only now: see the head of this file.
        let holds = job.live_holds()?;
        let cycles: Vec<CycleNo> = retired.iter().map(|&(cycle, _)| cycle).collect();
        let held = covered(&cycles, &holds);
        done.held_back = held.len() as u64;
        let going = cycles.iter().copied().filter(|cycle| !held.contains(cycle)).collect();
        groups::delete_naming(job.vault, &parts, &going)?;
        for cycle in cycles.into_iter().filter(|c| !held.contains(c)).chain(nobodys) {
            job.go_on()?;
            job.vault.delete(&point_key(job.disk, cycle))?;
            done.deleted += 1;
        }
        job.vault.delete_ended_holds(job.disk, job.now_unix_ns)?;
        if done.deleted > 0 || job.policy.thorough {
            let there = points
                .iter()
                .filter(|point| point.fate == Fate::Kept || held.contains(&point.cycle))
                .map(|point| point.cycle)
                .collect();
            job.vault.delete_drills(job.disk, horizon, &there)?;
        }
        return Ok(done);
    }
    Err(VaultError::Contended { disk: job.disk })
}

/// An error if what stands under the key of a point is another disk's, or another point than the ledger keeps:
/// somebody copied it there, and nothing is deleted on the word of such a list. What cannot be read at all is what
/// its key says, as far as anybody knows.
fn is_ours(job: &Job<'_>, cycle: CycleNo) -> Result<(), VaultError> {
    match job.vault.manifest(job.disk, cycle) {
        Err(
            VaultError::Damaged { .. } | VaultError::Forged { .. } | VaultError::NotFound { .. },
        ) => Ok(()),
        point => point.map(drop),
    }
}

pub(super) fn preview(job: &Job<'_>) -> Result<(Retired, Vec<Verdict>), VaultError> {
    let Survey { points, nobodys, holds, doomed, .. } = survey(job)?;
    let verdicts: Vec<Verdict> = points
        .iter()
        .map(|point| {
            let by = holds.iter().filter(|hold| hold.covers(point.cycle));
            let mut held_by: Vec<String> = by.map(|hold| hold.name.to_string()).collect();
            held_by.dedup();
            let goes = doomed.contains(&point.cycle) || point.fate == Fate::Retired;
            let stays = !goes || !held_by.is_empty();
            Verdict { cycle: point.cycle, cut_unix_ns: point.cut_unix_ns, stays, held_by }
        })
        .collect();
    let stay = verdicts.iter().filter(|verdict| verdict.stays).count();
    let held_back = points
        .iter()
        .zip(&verdicts)
        .filter(|(point, verdict)| point.fate == Fate::Retired && verdict.stays)
        .count();
    let retired = Retired {
        kept: (stay - held_back) as u64,
        retired: doomed.into_iter().collect(),
        deleted: (verdicts.len() - stay + nobodys.len()) as u64,
        held_back: held_back as u64,
    };
    Ok((retired, verdicts))
}

//! Points that no rule keeps and nothing holds go.
//!
//! The ledger retires them first, at one stroke; then holds are listed, and only what is still not
//! held is deleted. Anyone who held a point before it was retired is in that list; anyone who came later
//! was told that it is gone.

use std::collections::{BTreeMap, BTreeSet};

use backstay_types::{CycleNo, PointId};

use super::hold::covered;
use super::keep::{Candidate, ages_from};
use super::ledger::{Advanced, blank, settled_objects};
use super::marks::Marks;
use super::{Job, ROUNDS_MAX, groups};
use crate::error::VaultError;
use crate::format::hold::{HoldName, HoldRecord};
use crate::format::key::Piece;
use crate::format::ledger::{Fate, Ledger, LedgerPoint};

/// Unless asked to be thorough, points go when they are this part of all.
const BATCH: usize = 16;
/// A newest point that is dated further ahead than this contradicts the clock, in nanoseconds.
const FUTURE_NS: u64 = 5 * 60 * 1_000_000_000;
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
    /// Why no point was retired, whatever the rules say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
}

/// Why no point is retired: dates contradict each other, and history must not be lost by a clock.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Withheld {
    /// A stable name of the cause.
    pub cause: String,
    /// In words.
    pub reason: String,
}

/// The cause of a point that stays because of a hold that no list shows.
pub const HOLD_NOT_LISTED: &str = "hold-not-listed";

/// What becomes of a point.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Its cycle.
    pub cycle: CycleNo,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Whether it stays.
    pub stays: bool,
    /// Why it is known to be damaged, if it is.
    pub damaged: Option<String>,
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
    /// Why none of its points is retired now.
    withheld: Option<Withheld>,
    /// Points that are known to be damaged, and why.
    damaged: BTreeMap<CycleNo, String>,
}

fn survey(job: &Job<'_>) -> Result<Survey, VaultError> {
    let (vault, disk) = (job.vault, job.disk);
    // The ledger before everything else: what is put later must build on this one.
    let base = vault.ledger(disk)?;
    let objects = settled_objects(vault, disk, base.as_ref())?;
    let holds = vault.hold_versions(disk)?;
    let listed: BTreeSet<HoldName> = holds.iter().map(|hold| hold.name.clone()).collect();
    let holds = job.time.live(disk, holds, job.look);
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
        // Another maintainer was faster; then the ledger cannot be advanced from this base.
        let Some(point) = vault.listed_manifest(disk, cycle)? else { continue };
        points.push(LedgerPoint {
            cycle,
            point: point.point,
            cut_unix_ns: point.cut_unix_ns,
            fate: Fate::Kept,
        });
    }
    // Where nobody can say what is damaged, nothing is retired.
    let damaged = match job.policy.keep {
        Some(_) => vault.damaged_points(disk)?,
        None => BTreeMap::new(),
    };
    let kept = points.iter().filter(|point| point.fate == Fate::Kept);
    let candidates: Vec<Candidate> = kept
        .map(|point| Candidate {
            cycle: point.cycle,
            cut_unix_ns: point.cut_unix_ns,
            held: holds.iter().any(|hold| hold.covers(point.cycle)),
            damaged: damaged.contains_key(&point.cycle),
        })
        .collect();
    let (mut doomed, mut parts) = (BTreeSet::new(), groups::Parts::new());
    if points.iter().any(|point| point.fate == Fate::Retired) || job.policy.keep.is_some() {
        parts = groups::parts_of(vault, disk)?;
    }
    let mut withheld = None;
    if let (Some(keep), Some(newest)) = (&job.policy.keep, candidates.last()) {
        // When the store got the newest point, by its own clock: a point is not newer than that.
        let stored =
            vault.judged(true, || vault.stored_unix_ns(&Piece::Point(newest.cycle).of(disk)))?;
        let now = stored.unwrap_or(u64::MAX).min(job.time.now_unix_ns());
        let mut stay = keep.choose(&candidates, now);
        stay.extend(groups::kept(&parts, keep, &stay, ages_from(&candidates, now)));
        doomed = candidates.iter().map(|c| c.cycle).filter(|c| !stay.contains(c)).collect();
        withheld = why_withheld(job, newest, stored);
    }
    if withheld.is_some() {
        doomed.clear();
    }
    for cycle in doomed.clone() {
        job.go_on()?;
        let marks = vault.marks(disk, cycle)?;
        // A hold that has ended is listed until it is deleted.
        if marks.holding.iter().any(|name| !listed.contains(name)) {
            let why = unlisted(cycle, &marks);
            tracing::warn!("disk {disk}: {}", why.reason);
            withheld.get_or_insert(why);
            doomed.remove(&cycle);
        }
    }
    Ok(Survey { base, points, nobodys, holds, doomed, parts, withheld, damaged })
}

/// What a point is kept for that something holds which no list shows.
fn unlisted(cycle: CycleNo, marks: &Marks) -> Withheld {
    let names: Vec<String> = marks.holding.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    let reason = format!(
        "recovery point {cycle} is held by {names}, and no list of the vault shows that hold: the point stays. If nobody \
         needs it: backstay unpin NAME {names} --force"
    );
    Withheld { cause: HOLD_NOT_LISTED.into(), reason }
}

/// Why no point is retired now, if the clocks contradict each other.
fn why_withheld(job: &Job<'_>, newest: &Candidate, stored: Option<u64>) -> Option<Withheld> {
    if job.time.accepted {
        return None;
    }
    if let Some(doubt) = &job.time.doubt {
        return Some(Withheld { cause: doubt.id().into(), reason: doubt.to_string() });
    }
    let ahead = |of: u64| newest.cut_unix_ns.saturating_sub(of) > FUTURE_NS;
    let by = match (ahead(job.time.now_unix_ns()), stored.is_some_and(ahead)) {
        (true, _) => "this host's clock",
        (_, true) => "the store's clock",
        _ => return None,
    };
    let reason = format!("recovery point {} is dated after {by}", newest.cycle);
    Some(Withheld { cause: "point-from-the-future".into(), reason })
}

pub(super) fn retire(job: &Job<'_>) -> Result<Retired, VaultError> {
    if job.policy.keep.is_none() && !job.policy.thorough {
        // Nothing can go: the points need not be read.
        return Ok(Retired::default());
    }
    for _ in 0..ROUNDS_MAX {
        job.go_on()?;
        let Survey { base, mut points, nobodys, mut doomed, parts, withheld, .. } = survey(job)?;
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
            withheld,
            ..Retired::default()
        };
        // Only now: see the head of this file.
        let all = job.vault.hold_versions(job.disk)?;
        let holds = job.time.live(job.disk, all.clone(), job.look);
        // What a hold that has ended has marked is free then.
        job.vault.delete_ended_holds(job.disk, &all, &holds)?;
        let cycles: Vec<CycleNo> = retired.iter().map(|&(cycle, _)| cycle).collect();
        let mut held = covered(&cycles, &holds);
        let mut marks: BTreeMap<CycleNo, Marks> = BTreeMap::new();
        for &cycle in cycles.iter().filter(|cycle| !held.contains(cycle)) {
            job.go_on()?;
            marks.insert(cycle, job.vault.marks(job.disk, cycle)?);
        }
        // I12: no list says that nothing holds these.
        for (&cycle, marks) in marks.iter().filter(|(_, marks)| !marks.holding.is_empty()) {
            let why = unlisted(cycle, marks);
            tracing::warn!("disk {}: {}", job.disk, why.reason);
            done.withheld.get_or_insert(why);
            held.push(cycle);
        }
        done.held_back = held.len() as u64;
        let going = cycles.iter().copied().filter(|cycle| !held.contains(cycle)).collect();
        groups::delete_naming(job.vault, &parts, &going)?;
        for cycle in cycles.into_iter().filter(|c| !held.contains(c)).chain(nobodys) {
            job.go_on()?;
            job.vault.delete(&Piece::Point(cycle).of(job.disk))?;
            if let Some(marks) = marks.get(&cycle) {
                job.vault.delete_marks(job.disk, cycle, marks)?;
            }
            done.deleted += 1;
        }
        if done.deleted > 0 || job.policy.thorough {
            let there = points
                .iter()
                .filter(|point| point.fate == Fate::Kept || held.contains(&point.cycle))
                .map(|point| point.cycle)
                .collect();
            // What a verdict says of others that stay must not go with its point. Where there is no room for that, they
            // all stay until the next run.
            match job.vault.note_inferred(job.disk, &there) {
                Ok(()) => job.vault.delete_drills(job.disk, horizon, &there)?,
                Err(e) => tracing::warn!("disk {}: verdicts on points stay for now: {e}", job.disk),
            }
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
    let Survey { points, nobodys, holds, doomed, withheld, mut damaged, .. } = survey(job)?;
    let verdicts: Vec<Verdict> = points
        .iter()
        .map(|point| {
            let by = holds.iter().filter(|hold| hold.covers(point.cycle));
            let mut held_by: Vec<String> = by.map(|hold| hold.name.to_string()).collect();
            held_by.dedup();
            let goes = doomed.contains(&point.cycle) || point.fate == Fate::Retired;
            let stays = !goes || !held_by.is_empty();
            let (cycle, cut_unix_ns) = (point.cycle, point.cut_unix_ns);
            Verdict { cycle, cut_unix_ns, stays, damaged: damaged.remove(&cycle), held_by }
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
        withheld,
    };
    Ok((retired, verdicts))
}

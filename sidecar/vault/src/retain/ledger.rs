//! Reading the ledger, and advancing it: one revision at a time, each built on the one before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use backstay_types::{CycleNo, DiskId, PointId};

use super::hold::covered;
use crate::encrypt::sign::TRAILER_BYTES;
use crate::error::{In, VaultError};
use crate::format::key::{DiskFolder, ObjectKey, Piece};
use crate::format::ledger::{Fate, LEDGER_BYTES_MAX, Ledger};
use crate::format::manifest::Manifest;
use crate::store::{Vault, at_once, now_unix_ns};

/// Revisions that may come while one is read; each takes a maintainer's round.
const ROUNDS_MAX: usize = 16;

/// What became of a revision that was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advanced {
    /// It was the highest when it was there.
    Holds,
    /// A higher one is there. Either that was so before, and ours was never seen by anybody; or
    /// somebody saw it and built on it at once. What it names may be needed.
    Overtaken,
    /// Another's was there first; ours never was.
    Lost,
}

fn key(disk: DiskId, revision: u64) -> ObjectKey {
    Piece::Ledger(revision).of(disk)
}

/// The cycles of the points that exist: the objects, less what the ledger has retired and nothing
/// holds, and less what is nobody's.
pub(crate) fn existing_points(vault: &Vault, disk: DiskId) -> Result<Vec<CycleNo>, VaultError> {
    let listed = vault.point_objects(disk)?;
    let ledger = vault.ledger(disk)?;
    let mut objects = asked_for(vault, disk, listed, ledger.as_ref())?;
    let Some(ledger) = ledger else { return Ok(objects) };
    let is = |cycle: CycleNo, fate: Fate| ledger.point(cycle).is_some_and(|p| p.fate == fate);
    let kept = |cycle: CycleNo| cycle > ledger.horizon || is(cycle, Fate::Kept);
    let retired: Vec<CycleNo> =
        objects.iter().copied().filter(|&cycle| !kept(cycle) && is(cycle, Fate::Retired)).collect();
    let held = match retired.is_empty() {
        true => vec![],
        false => covered(&retired, &vault.hold_versions(disk)?),
    };
    objects.retain(|cycle| kept(*cycle) || held.contains(cycle));
    Ok(objects)
}

/// What a list shows of a disk's points, and those that it does not show and that are there all the same: points that
/// the ledger names, and those that follow the newest. They are asked for by name, because a list may lag, and a point
/// that it lacks is needed by anyone who goes on from it.
pub(super) fn asked_for(
    vault: &Vault,
    disk: DiskId,
    mut objects: Vec<CycleNo>,
    ledger: Option<&Ledger>,
) -> Result<Vec<CycleNo>, VaultError> {
    for point in ledger.into_iter().flat_map(|ledger| &ledger.points) {
        if let Err(at) = objects.binary_search(&point.cycle)
            && vault.has_point(disk, point.cycle, point.fate == Fate::Kept)?
        {
            objects.insert(at, point.cycle);
        }
    }
    // A directory's list is what its names are.
    while !vault.is_local() {
        let horizon = ledger.map_or(CycleNo(0), |ledger| ledger.horizon);
        let next = objects.last().copied().unwrap_or_default().max(horizon).next();
        if !vault.has_point(disk, next, false)? {
            break;
        }
        objects.push(next);
    }
    Ok(objects)
}

impl Vault {
    /// The cycles of points that should be there and are not: those that the ledger keeps, and gaps behind
    /// what it knows, for there cycles follow each other. Retention tells the ledger first, so it is not what
    /// took them.
    ///
    /// # Errors
    /// If the vault cannot be read, or the ledger is damaged.
    pub fn missing_points(&self, disk: DiskId) -> Result<Vec<CycleNo>, VaultError> {
        for _ in 0..ROUNDS_MAX {
            let ledger = self.ledger(disk)?;
            let objects = settled_objects(self, disk, ledger.as_ref())?;
            let horizon = ledger.as_ref().map_or(0, |ledger| ledger.horizon.0);
            let kept = ledger.iter().flat_map(|ledger| &ledger.points);
            let kept = kept.filter(|point| point.fate == Fate::Kept).map(|point| point.cycle.0);
            let newest = objects.last().map_or(0, |cycle| cycle.0);
            let missing: Vec<CycleNo> = kept
                .chain(horizon + 1..=newest)
                .map(CycleNo)
                .filter(|cycle| objects.binary_search(cycle).is_err())
                .collect();
            // What was decided meanwhile explains what is gone.
            let revision = |ledger: &Option<Ledger>| ledger.as_ref().map(|ledger| ledger.revision);
            if missing.is_empty() || revision(&self.ledger(disk)?) == revision(&ledger) {
                return Ok(missing);
            }
        }
        Err(VaultError::Contended { disk })
    }
}

/// All objects among a disk's points. No list alone is believed where that could cost a point: a
/// list of a directory is not of one instant.
///
/// Beyond the horizon cycles have no gaps. A list may show the point of a cycle and not that of the
/// cycle before it, which came earlier; it is asked for by name. Up to the horizon, points of the ledger that a
/// list does not show are asked for by name.
pub(super) fn settled_objects(
    vault: &Vault,
    disk: DiskId,
    base: Option<&Ledger>,
) -> Result<Vec<CycleNo>, VaultError> {
    let mut objects = asked_for(vault, disk, vault.point_objects(disk)?, base)?;
    let horizon = base.map_or(CycleNo(0), |ledger| ledger.horizon);
    let beyond: Vec<u64> = objects.iter().map(|cycle| cycle.0).filter(|&c| c > horizon.0).collect();
    if let (Some(&first), Some(&last)) = (beyond.first(), beyond.last()) {
        let from = if base.is_some() { horizon.0 + 1 } else { first };
        for cycle in (from..last).map(CycleNo) {
            if let Err(at) = objects.binary_search(&cycle)
                && vault.has_point(disk, cycle, true)?
            {
                objects.insert(at, cycle);
            }
        }
    }
    Ok(objects)
}

impl Vault {
    /// What maintenance decided about a disk; `None` if it was never maintained.
    ///
    /// # Errors
    /// If the vault cannot be read, or the ledger is damaged.
    pub fn ledger(&self, disk: DiskId) -> Result<Option<Ledger>, VaultError> {
        for _ in 0..ROUNDS_MAX {
            let mut revisions =
                self.numbers_to_newest(&DiskFolder::Ledger.of(disk), |n| key(disk, n))?;
            if revisions.is_empty() {
                // That there is none decides what may be deleted: no single answer says so.
                let listed = self.listed_otherwise(&DiskFolder::Ledger.of(disk))?;
                revisions = listed.iter().filter_map(ObjectKey::number).collect();
                revisions.sort_unstable();
            }
            let Some(&revision) = revisions.last() else { return Ok(None) };
            let key = key(disk, revision);
            let ledger = match self.judged(false, || self.revision(&key)) {
                // Replaced since it was listed.
                Err(VaultError::NotFound { .. }) => continue,
                ledger => ledger?,
            };
            self.inner.decided.remember(&ledger);
            return Ok(Some(ledger));
        }
        Err(VaultError::Contended { disk })
    }

    /// Compares a point with what was decided about its cycle, as far as this process has read that: a point that is
    /// kept is the one with this identity. One that was put in the place of a retired one is nobody's, which the
    /// lists of points know.
    pub(crate) fn is_as_decided(
        &self,
        key: &ObjectKey,
        point: &Manifest,
    ) -> Result<(), VaultError> {
        match self.inner.decided.kept(point.disk, point.cycle) {
            Some(kept) if kept != point.point => Err(VaultError::Inconsistent {
                object: key.into(),
                reason: format!(
                    "it is point {}, and the ledger keeps point {kept} of this cycle: it was copied here from \
                     somewhere else. Nothing it says was believed, and nothing was changed",
                    point.point
                ),
            }),
            _ => Ok(()),
        }
    }

    fn revision(&self, key: &ObjectKey) -> Result<Ledger, VaultError> {
        let bytes = self.get(key, LEDGER_BYTES_MAX + TRAILER_BYTES)?;
        let ledger = Ledger::decode(self.verified(key, &bytes)?).within(key)?;
        self.is_at(key, ledger)
    }

    /// Puts the revision after `next.revision`, with what `next` says.
    ///
    /// # Errors
    /// If the vault cannot say. Then it may hold or not.
    pub(super) fn advance(&self, mut next: Ledger) -> Result<Advanced, VaultError> {
        next.revision += 1;
        next.written_unix_ns = now_unix_ns();
        next.writer = PointId::random().to_bytes();
        let (disk, revision) = (next.disk, next.revision);
        let key = key(disk, revision);
        let bytes = self.signed(&key, next.encode().within(&key)?)?;
        let bytes = bytes::Bytes::from(bytes);
        let mut put = self.put(&key, bytes.clone().into());
        if matches!(put, Err(VaultError::Full { .. })) {
            // Space comes back through the ledger, so it must have some: that of the revision before
            // the one that holds, which nobody reads any more.
            self.delete_revisions_before(disk, revision - 1)?;
            put = self.put(&key, bytes.clone().into());
        }
        if matches!(put, Err(VaultError::Full { .. })) && self.give_up_reserve() {
            put = self.put(&key, bytes.into());
        }
        if let Err(failed) = put {
            let exists = matches!(&failed, VaultError::Store { source, .. }
                if matches!(source, object_store::Error::AlreadyExists { .. }));
            // A put whose answer was lost may have been done, and sent again it finds itself.
            let there = match self.judged(false, || self.revision(&key)) {
                // Ours or another's, it was replaced and deleted since.
                Err(VaultError::NotFound { .. }) if exists => return Ok(Advanced::Overtaken),
                Err(VaultError::NotFound { .. }) => return Err(failed),
                there => there?,
            };
            if there != next {
                return Ok(Advanced::Lost);
            }
            self.settle(&key)?;
        }
        let revisions =
            self.numbers_to_newest(&DiskFolder::Ledger.of(disk), |n| self::key(disk, n))?;
        if revisions.last() != Some(&revision) {
            return Ok(Advanced::Overtaken);
        }
        // The one before stays: a list that is made just now may see neither this nor that.
        if let Err(e) = self.delete_revisions_before(disk, revision - 1) {
            tracing::debug!("{e}: deleted by the next maintenance");
        }
        Ok(Advanced::Holds)
    }

    fn delete_revisions_before(&self, disk: DiskId, revision: u64) -> Result<(), VaultError> {
        let revisions = self.numbers(&DiskFolder::Ledger.of(disk))?;
        let mut before = revisions.into_iter().filter(|&old| old < revision);
        before.try_for_each(|old| self.delete(&key(disk, old)))
    }

    /// Puts a revision without merges, and sees it hold. Before a point lays over an old one: entries
    /// that no list has had for long come back with it, and a merge that replaced them then must not.
    pub(crate) fn forget_merges(&self, disk: DiskId) -> Result<(), VaultError> {
        for _ in 0..ROUNDS_MAX {
            let base = self.ledger(disk)?.unwrap_or_else(|| blank(disk));
            if self.advance(Ledger { merges: vec![], ..base })? == Advanced::Holds {
                return Ok(());
            }
        }
        Err(VaultError::Contended { disk })
    }

    /// What the ledger says now, with one round trip if nothing was decided since `known` was read.
    fn ledger_since(
        &self,
        disk: DiskId,
        known: Option<Ledger>,
    ) -> Result<Option<Ledger>, VaultError> {
        let revision = known.as_ref().map_or(0, |ledger| ledger.revision);
        let (next, listed) = at_once(
            || self.has(&key(disk, revision + 1)),
            || self.numbers(&DiskFolder::Ledger.of(disk)),
        );
        let is_newest = !next? && listed?.last().is_none_or(|&newest| newest <= revision);
        if is_newest { Ok(known) } else { self.ledger(disk) }
    }

    /// A point that was just put, unless another writer's point of this cycle came and went while
    /// this writer slept; `known` is what the ledger said before it was put.
    pub(crate) fn unless_stale(
        &self,
        point: Manifest,
        known: Option<Ledger>,
    ) -> Result<Manifest, VaultError> {
        let ledger = self.ledger_since(point.disk, known)?;
        match ledger.and_then(|ledger| ledger.fate(point.cycle, point.point)) {
            None | Some(Some(Fate::Kept)) => Ok(point),
            Some(_) => Err(VaultError::LostRace(point.cycle)),
        }
    }
}

/// Points by number and identity.
type Points = Vec<(CycleNo, PointId)>;

/// Identities of kept points, as ledgers that were read say: what a ledger once said of a kept point's identity
/// stays so, however many revisions follow.
#[derive(Debug, Default)]
pub(crate) struct Decided(Mutex<HashMap<DiskId, (u64, Points)>>);

impl Decided {
    fn remember(&self, ledger: &Ledger) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(&ledger.disk).is_some_and(|(revision, _)| *revision >= ledger.revision) {
            return;
        }
        let kept = ledger.points.iter().filter(|point| point.fate == Fate::Kept);
        let kept = kept.map(|point| (point.cycle, point.point)).collect();
        known.insert(ledger.disk, (ledger.revision, kept));
    }

    fn kept(&self, disk: DiskId, cycle: CycleNo) -> Option<PointId> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = &known.get(&disk)?.1;
        kept.binary_search_by_key(&cycle, |(cycle, _)| *cycle).ok().map(|at| kept[at].1)
    }
}

/// The ledger before the first revision: it knows no points, so all there are exist.
pub(super) fn blank(disk: DiskId) -> Ledger {
    Ledger {
        disk,
        revision: 0,
        horizon: CycleNo(0),
        written_unix_ns: 0,
        writer: [0; 16],
        points: vec![],
        merges: vec![],
    }
}

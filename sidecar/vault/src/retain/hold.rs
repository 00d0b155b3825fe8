//! Pins and holds: points that must not be deleted.
//!
//! A hold is a small object with a name. Anyone who was killed finds its hold again by that name and
//! renews it. First the hold is put, then its taker looks whether the points are still there; that
//! order, and the maintainer's (first retire, then look for holds), is what makes it safe.

use backstay_types::{Classified, CycleNo, DiskId};

use super::ledger::asked_for;
use crate::error::VaultError;
use crate::format::hold::{HoldKind, HoldName, HoldRecord};
use crate::format::key::{DiskFolder, ObjectKey, Piece};
use crate::remote::Role;
use crate::store::{Vault, now_unix_ns};

/// Others that may renew the same hold at the same instant.
const ROUNDS_MAX: usize = 8;

/// What to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRequest {
    /// The hold's name. One that is there is renewed, or moved to these points.
    pub name: HoldName,
    /// What holds.
    pub kind: HoldKind,
    /// Who, for people.
    pub holder: String,
    /// Why, for people.
    pub reason: String,
    /// The first cycle whose point is held.
    pub first_cycle: CycleNo,
    /// The last one.
    pub last_cycle: CycleNo,
    /// When it ends unless it is renewed, nanoseconds since 1970; `None`: never.
    pub until_unix_ns: Option<u64>,
}

fn key(disk: DiskId, version: u64, name: &HoldName) -> ObjectKey {
    Piece::Hold(version, name.clone()).of(disk)
}

/// Those cycles that a hold covers.
pub(super) fn covered(cycles: &[CycleNo], holds: &[HoldRecord]) -> Vec<CycleNo> {
    let held = |cycle: &CycleNo| holds.iter().any(|hold| hold.covers(*cycle));
    cycles.iter().copied().filter(held).collect()
}

impl Vault {
    /// Holds points: until the hold ends or is released, none of them is deleted. Returns the hold
    /// and the cycles of the points it covers.
    ///
    /// # Errors
    /// [`VaultError::Retired`] if retention was faster, [`VaultError::NotFound`] if there is no such
    /// point, [`VaultError::HoldTaken`] if the name is somebody else's; or the vault cannot be
    /// written. Nothing is held then that was not before.
    pub fn hold(
        &self,
        disk: DiskId,
        request: &HoldRequest,
    ) -> Result<(HoldRecord, Vec<CycleNo>), VaultError> {
        for _ in 0..ROUNDS_MAX {
            let versions = self.versions_of(disk, &request.name)?;
            let before = match versions.last() {
                Some(&version) => match self.document(&key(disk, version, &request.name)) {
                    Err(VaultError::NotFound { .. }) => None,
                    // It holds nothing, and its name is no reason to refuse ours.
                    Err(VaultError::Forged { source, .. }) if source.is_nobodys() => None,
                    record => Some(record?),
                },
                None => None,
            };
            before.as_ref().map_or(Ok(()), |before| fits(before, request))?;
            // No version is ever used twice, also after the hold was released: a maintainer that
            // slept may still want to delete the one that had ended.
            let now = now_unix_ns();
            let record = HoldRecord {
                disk: Some(disk),
                name: request.name.clone(),
                version: versions.last().map_or(1, |version| version + 1).max(now),
                kind: request.kind,
                holder: request.holder.clone(),
                reason: request.reason.clone(),
                first_cycle: request.first_cycle,
                last_cycle: request.last_cycle,
                since_unix_ns: now,
                until_unix_ns: request.until_unix_ns,
            };
            let key_of = |version| key(disk, version, &request.name);
            match self.put_document(&key_of(record.version), &record) {
                Err(VaultError::Store {
                    source: object_store::Error::AlreadyExists { .. },
                    ..
                }) => continue,
                put => put?,
            }
            // Before it is looked at: a maintainer that retires the point later finds this by its name.
            self.mark(&record, disk, true)?;
            let points = self.covered_by(disk, &record, before.as_ref());
            if !points.as_ref().is_ok_and(|points| !points.is_empty()) {
                if before.is_none() {
                    self.mark(&record, disk, false)?;
                }
                self.let_go(&key_of(record.version))?;
                self.settle(&key_of(record.version))?;
            }
            let points = points?;
            if points.is_empty() {
                let first = request.first_cycle;
                let known = self.ledger(disk)?.is_some_and(|ledger| first <= ledger.horizon);
                return Err(match known && first.0 > 0 {
                    true => VaultError::Retired(first),
                    false => VaultError::NotFound {
                        object: format!("recovery point {first} of disk {disk}"),
                    },
                });
            }
            // Maintainers find it by a list.
            if before.is_none() && !self.is_listed(disk, record.version, &request.name)? {
                self.mark(&record, disk, false)?;
                self.let_go(&key_of(record.version))?;
                let reason = "it does not list a hold that was put a moment ago: retention would not heed it";
                return Err(VaultError::Unfit { url: self.url().into(), reason: reason.into() });
            }
            // The one before stays: a list that is made just now may see neither this nor that.
            for old in versions.into_iter().rev().skip(1) {
                self.let_go(&key_of(old))?;
            }
            return Ok((record, points));
        }
        Err(VaultError::Contended { disk })
    }

    /// Whether a list shows a hold, now or in a moment.
    fn is_listed(&self, disk: DiskId, version: u64, name: &HoldName) -> Result<bool, VaultError> {
        for n in 0.. {
            if self.is_local() || self.versions_of(disk, name)?.contains(&version) {
                return Ok(true);
            }
            if !self.again(n) {
                break;
            }
        }
        Ok(false)
    }

    /// Releases a hold; false if there was none.
    ///
    /// # Errors
    /// If the vault cannot be written, or a gateway does not let us: a source deletes nothing.
    pub fn release(&self, disk: DiskId, name: &HoldName) -> Result<bool, VaultError> {
        let versions = self.versions_of(disk, name)?;
        for &version in &versions {
            // First this: killed in between, the hold is still there, to be released again.
            match self.document::<HoldRecord>(&key(disk, version, name)) {
                Ok(record) => self.mark(&record, disk, false)?,
                Err(VaultError::NotFound { .. }) => {}
                // What it holds is not known: its name is looked for beside each point.
                Err(e) if e.is_damage() => drop(self.unmark_everywhere(disk, name)?),
                Err(e) => return Err(e),
            }
        }
        for &version in &versions {
            self.delete(&key(disk, version, name))?;
        }
        if let Some(&last) = versions.last() {
            // A pin that came back after a power loss would keep its point for ever.
            self.settle(&key(disk, last, name))?;
        }
        Ok(!versions.is_empty())
    }

    /// Deletes a version of a hold. A source deletes nothing at a gateway: what it holds ends by itself.
    fn let_go(&self, key: &ObjectKey) -> Result<(), VaultError> {
        match self.role()? {
            Some(Role::Source) => Ok(()),
            _ => self.delete(key),
        }
    }

    /// All holds on a disk, each in its newest version, by name.
    ///
    /// # Errors
    /// If the vault cannot be read, or a hold is damaged.
    pub fn holds(&self, disk: DiskId) -> Result<Vec<HoldRecord>, VaultError> {
        let mut holds = self.hold_versions(disk)?;
        holds.sort_by(|a, b| (&a.name, b.version).cmp(&(&b.name, a.version)));
        holds.dedup_by(|later, first| later.name == first.name);
        Ok(holds)
    }

    /// All versions of all holds: each of them holds. A damaged one is an error, for nobody knows
    /// what it holds.
    pub(crate) fn hold_versions(&self, disk: DiskId) -> Result<Vec<HoldRecord>, VaultError> {
        let mut holds = vec![];
        for key in self.listed_twice(&DiskFolder::Holds.of(disk))? {
            let record: HoldRecord = match self.listed_document(&key) {
                // Released or renewed since it was listed.
                Err(VaultError::NotFound { .. }) => continue,
                // Nobody who may has put it: it would keep retention from its work for ever.
                Err(e @ VaultError::Forged { source, .. }) if source.is_nobodys() => {
                    tracing::warn!("{e} It holds nothing");
                    continue;
                }
                record => record?,
            };
            holds.push(record);
        }
        Ok(holds)
    }

    /// Deletes the holds of a disk that are not among those that live.
    pub(super) fn delete_ended_holds(
        &self,
        disk: DiskId,
        all: &[HoldRecord],
        live: &[HoldRecord],
    ) -> Result<(), VaultError> {
        for hold in all.iter().filter(|hold| !live.contains(hold)) {
            if !live.iter().any(|living| living.name == hold.name) {
                self.mark(hold, disk, false)?;
            }
            self.delete(&key(disk, hold.version, &hold.name))?;
        }
        Ok(())
    }

    fn versions_of(&self, disk: DiskId, name: &HoldName) -> Result<Vec<u64>, VaultError> {
        let objects = self.listed(&DiskFolder::Holds.of(disk))?;
        let ours = |key: &ObjectKey| match key {
            ObjectKey::Disk(_, Piece::Hold(version, of)) if of == name => Some(*version),
            _ => None,
        };
        Ok(objects.iter().filter_map(|(key, _)| ours(key)).collect())
    }

    /// The points that a hold, which was put already, makes sure of: those that were not retired
    /// when it was there, and those that its version before held without a break.
    fn covered_by(
        &self,
        disk: DiskId,
        hold: &HoldRecord,
        before: Option<&HoldRecord>,
    ) -> Result<Vec<CycleNo>, VaultError> {
        use crate::format::ledger::Fate;
        let listed = self.point_objects(disk)?;
        let ledger = self.ledger(disk)?;
        let objects = asked_for(self, disk, listed, ledger.as_ref())?;
        // By the clock that both its times are of; one that was set back since proves nothing.
        let now = now_unix_ns();
        let unbroken = before.filter(|before| {
            before.until_unix_ns.is_none_or(|until| (before.since_unix_ns..until).contains(&now))
        });
        let sure = |cycle: &CycleNo| {
            let Some(ledger) = ledger.as_ref().filter(|ledger| *cycle <= ledger.horizon) else {
                return true;
            };
            match ledger.point(*cycle).map(|point| point.fate) {
                Some(Fate::Kept) => true,
                Some(Fate::Retired) => unbroken.is_some_and(|before| before.covers(*cycle)),
                None => false,
            }
        };
        Ok(objects.into_iter().filter(|c| hold.covers(*c)).filter(sure).collect())
    }
}

/// A name is renewed by its own kind only, and a pin stays where it is.
fn fits(before: &HoldRecord, request: &HoldRequest) -> Result<(), VaultError> {
    let moved =
        (before.first_cycle, before.last_cycle) != (request.first_cycle, request.last_cycle);
    if before.kind == request.kind && !(moved && request.kind == HoldKind::Pin) {
        return Ok(());
    }
    Err(VaultError::HoldTaken {
        name: before.name.to_string(),
        what: match before.first_cycle == before.last_cycle {
            true => format!("a {} of point {}", before.kind, before.first_cycle),
            false => {
                format!(
                    "a {} of points {} to {}",
                    before.kind, before.first_cycle, before.last_cycle
                )
            }
        },
    })
}

//! Verdicts of drills, beside the points they are about.
//!
//! They decide nothing: no reader, writer or maintainer asks for them. They are put once, and go with
//! their points.

use std::collections::BTreeSet;

use backstay_types::{Classified, CycleNo, DiskId};

use crate::error::{In, VaultError};
use crate::format::drill::DrillRecord;
use crate::format::key::{DiskFolder, ObjectKey, Piece};
use crate::store::Vault;

impl Vault {
    /// Puts a verdict on a point.
    ///
    /// # Errors
    /// If it does not fit its limits, or the vault cannot be written.
    pub fn put_drill(&self, verdict: &DrillRecord) -> Result<(), VaultError> {
        let (disk, cycle) = (verdict.disk, verdict.cycle);
        let key = Piece::Drill(cycle, verdict.drill).of(disk);
        verdict.check().within(&key)?;
        self.put_document(&key, verdict)
    }

    /// All verdicts on points of a disk, by cycle and then by time. One that cannot be read is left
    /// out: it says nothing.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn drills(&self, disk: DiskId) -> Result<Vec<DrillRecord>, VaultError> {
        let mut found = vec![];
        for (key, _) in self.listed(&DiskFolder::Drills.of(disk))? {
            let read = self.document::<DrillRecord>(&key);
            match read.and_then(|read| read.check().within(&key).map(|()| read)) {
                Ok(verdict) => found.push(verdict),
                // Its point went meanwhile.
                Err(VaultError::NotFound { .. }) => {}
                Err(e) if e.is_damage() => tracing::warn!("{e}; this verdict is not shown"),
                Err(e) => return Err(e),
            }
        }
        found.sort_by_key(|verdict| (verdict.cycle, verdict.ended_unix_ns));
        Ok(found)
    }

    /// Deletes verdicts on points that are gone: those up to `horizon` of cycles that are not in `there`.
    pub(crate) fn delete_drills(
        &self,
        disk: DiskId,
        horizon: CycleNo,
        there: &BTreeSet<CycleNo>,
    ) -> Result<(), VaultError> {
        for (key, _) in self.listed(&DiskFolder::Drills.of(disk))? {
            match key {
                ObjectKey::Disk(_, Piece::Drill(cycle, _))
                    if cycle <= horizon && !there.contains(&cycle) =>
                {
                    self.delete(&key)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

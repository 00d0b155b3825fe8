//! Verdicts of drills, beside the points they are about.
//!
//! They decide nothing: no reader, writer or maintainer asks for them. They are put once, and go with
//! their points.

use std::collections::BTreeSet;

use backstay_types::{CycleNo, DiskId};

use crate::error::{In, VaultError};
use crate::format::drill::DrillRecord;
use crate::store::Vault;

fn prefix(disk: DiskId) -> String {
    format!("disks/{disk}/drills")
}

/// The cycle in the name of a verdict.
fn cycle_of(name: &str) -> Option<CycleNo> {
    let (cycle, drill) = name.split_once('-')?;
    drill.parse::<uuid::Uuid>().ok()?;
    cycle.parse().ok().map(CycleNo)
}

impl Vault {
    /// Puts a verdict on a point.
    ///
    /// # Errors
    /// If it does not fit its limits, or the vault cannot be written.
    pub fn put_drill(&self, verdict: &DrillRecord) -> Result<(), VaultError> {
        let (disk, cycle) = (verdict.disk, verdict.cycle);
        let key = format!("{}/{:020}-{}", prefix(disk), cycle.0, verdict.drill);
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
        for (name, _) in self.listed(&prefix(disk))? {
            if cycle_of(&name).is_none() {
                continue;
            }
            let key = format!("{}/{name}", prefix(disk));
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
        for (name, _) in self.listed(&prefix(disk))? {
            let gone = |cycle: &CycleNo| *cycle <= horizon && !there.contains(cycle);
            if cycle_of(&name).filter(gone).is_some() {
                self.delete(&format!("{}/{name}", prefix(disk)))?;
            }
        }
        Ok(())
    }
}

//! Marks beside points that are held: `held/<cycle>-<number>`, numbered without gaps, asked for by name.
//!
//! Holds are found by lists, and a list may be no list, or one of an hour ago. So anyone who holds one point for longer than a read takes
//! puts a mark beside it as well, and puts another when it lets go. Before a point is deleted its marks are asked for, by name. A hold
//! that is marked and that no list shows is a contradiction: the point stays until a person says otherwise.
//!
//! Marks are only ever added, so two holders of one point do not take each other's away; they go with their point.

use std::collections::BTreeSet;

use backstay_types::{Class, Classified, CycleNo, DiskId};
use object_store::path::Path;

use super::held::holder;
use crate::error::VaultError;
use crate::format::hold::{HeldRecord, HoldKind, HoldName, HoldRecord};
use crate::format::key::{ObjectKey, Piece};
use crate::store::{Vault, now_unix_ns};

/// Others that may mark the same point at the same instant.
const ROUNDS_MAX: usize = 16;
/// Most marks of a point that are read.
const MARKS_MAX: u64 = 100_000;

/// The marks of a point.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// How many there are.
    pub count: u64,
    /// The holds that have not let go.
    pub holding: BTreeSet<HoldName>,
}

fn key(disk: DiskId, cycle: CycleNo, number: u64) -> ObjectKey {
    Piece::Held(cycle, number).of(disk)
}

/// The point that a hold marks. Those that move from point to point, or hold many for an hour, mark none.
fn marked(hold: &HoldRecord) -> Option<CycleNo> {
    let lasting = matches!(hold.kind, HoldKind::Pin | HoldKind::Mount | HoldKind::Failover);
    (lasting && hold.first_cycle == hold.last_cycle).then_some(hold.first_cycle)
}

impl Vault {
    /// The marks of a point.
    pub(super) fn marks(&self, disk: DiskId, cycle: CycleNo) -> Result<Marks, VaultError> {
        let mut marks = Marks::default();
        for number in 1..=MARKS_MAX {
            let key = key(disk, cycle, number);
            let record: HeldRecord = match self.document(&key) {
                // That there is no more is asked for in two ways before it is believed.
                Err(VaultError::NotFound { .. }) if !self.has(&key)? => return Ok(marks),
                Err(VaultError::NotFound { .. }) => self.listed_document(&key)?,
                // Nobody who may has put it.
                Err(VaultError::Forged { source, .. }) if source.is_nobodys() => {
                    marks.count = number;
                    continue;
                }
                record => record?,
            };
            marks.count = number;
            match record.holds {
                true => marks.holding.insert(record.name),
                false => marks.holding.remove(&record.name),
            };
        }
        let reason = format!("it has more than {MARKS_MAX} marks");
        Err(VaultError::Inconsistent { object: key(disk, cycle, 1).into(), reason })
    }

    /// Marks the point of a hold as held by it, or as not held by it any more.
    pub(super) fn mark(
        &self,
        hold: &HoldRecord,
        disk: DiskId,
        holds: bool,
    ) -> Result<(), VaultError> {
        let Some(cycle) = marked(hold) else { return Ok(()) };
        match self.mark_point(disk, cycle, &hold.name, holds) {
            // A gateway from before there were marks, or a source, which deletes nothing and marks nothing either.
            Err(e)
                if self.is_behind_gateway()
                    && matches!(e.class(), Class::Person | Class::Refused) =>
            {
                tracing::debug!("hold {}: {e}", hold.name);
                Ok(())
            }
            marked => marked,
        }
    }

    fn mark_point(
        &self,
        disk: DiskId,
        cycle: CycleNo,
        name: &HoldName,
        holds: bool,
    ) -> Result<(), VaultError> {
        for _ in 0..ROUNDS_MAX {
            let marks = self.marks(disk, cycle)?;
            if marks.holding.contains(name) == holds {
                return Ok(());
            }
            let record = HeldRecord {
                disk,
                cycle,
                number: marks.count + 1,
                name: name.clone(),
                holds,
                by: holder(),
                since_unix_ns: now_unix_ns(),
            };
            match self.put_document(&key(disk, cycle, record.number), &record) {
                Err(e) if e.is_taken() => {}
                put => return put,
            }
        }
        Err(VaultError::Contended { disk })
    }

    /// Takes the marks of a hold away from all points, wherever they are; whether there were any. For a hold that no list shows.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub fn unmark_everywhere(&self, disk: DiskId, name: &HoldName) -> Result<bool, VaultError> {
        let mut any = false;
        for cycle in self.point_objects(disk)? {
            if self.marks(disk, cycle)?.holding.contains(name) {
                self.mark_point(disk, cycle, name, false)?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Deletes the marks of a point that is deleted.
    pub(super) fn delete_marks(
        &self,
        disk: DiskId,
        cycle: CycleNo,
        marks: &Marks,
    ) -> Result<(), VaultError> {
        self.delete_all((1..=marks.count).map(|n| Path::from(&key(disk, cycle, n))))
    }
}

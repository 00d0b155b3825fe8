//! Group points under the rules: what belongs together stays or goes together.
//!
//! The rules choose among a group's points as they choose among a disk's, and a disk keeps what the
//! group points that stay name of it. All its disks see the same list and so come to the same choice,
//! though each may have points of its own between. A group point goes before the first of its members'
//! points does: there is none that cannot be restored.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use backstay_types::{CycleNo, DiskId};

use super::keep::{Candidate, Keep};
use crate::error::VaultError;
use crate::format::group::{GroupName, GroupPointNo};
use crate::store::Vault;

/// A disk's part of a group point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemberPoint {
    number: GroupPointNo,
    cut_unix_ns: u64,
    /// The disk's point.
    cycle: CycleNo,
    /// Whether a member's point is known to be damaged: this disk's or another's.
    damaged: bool,
}

/// A disk's parts of all group points, by group, in the order of their numbers.
pub(super) type Parts = BTreeMap<GroupName, Vec<MemberPoint>>;

/// Finds the parts of a disk.
pub(super) fn parts_of(vault: &Vault, disk: DiskId) -> Result<Parts, VaultError> {
    let mut parts = Parts::new();
    let mut damaged: BTreeMap<DiskId, BTreeSet<CycleNo>> = BTreeMap::new();
    for group in vault.groups()? {
        for number in vault.group_points(&group)? {
            let point = match vault.group_point(&group, number) {
                // Anyone who maintains another of its disks was faster.
                Err(VaultError::NotFound { .. }) => continue,
                point => point?,
            };
            let Some(ours) = point.members.iter().find(|member| member.disk == disk) else {
                continue;
            };
            let mut any_damaged = false;
            for member in &point.members {
                let known = match damaged.entry(member.disk) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(slot) => {
                        slot.insert(vault.damaged_points(member.disk)?.into_keys().collect())
                    }
                };
                any_damaged |= known.contains(&member.cycle);
            }
            let (cut_unix_ns, cycle) = (point.cut_unix_ns, ours.cycle);
            let part = MemberPoint { number, cut_unix_ns, cycle, damaged: any_damaged };
            parts.entry(group.clone()).or_default().push(part);
        }
    }
    Ok(parts)
}

/// The cycles of a disk's points that stay for their groups, beside those that stay for the disk.
///
/// Ages count from `from_unix_ns`, as for the disk's points. A group whose newest point does not even
/// stay for the disk makes no points any more: "last" means nothing there, or it would stay for ever.
pub(super) fn kept(
    parts: &Parts,
    keep: &Keep,
    stay: &BTreeSet<CycleNo>,
    from_unix_ns: u64,
) -> BTreeSet<CycleNo> {
    let mut kept = BTreeSet::new();
    for parts in parts.values() {
        let numbered = |part: &MemberPoint| Candidate {
            cycle: CycleNo(part.number.0),
            cut_unix_ns: part.cut_unix_ns,
            held: false,
            damaged: part.damaged,
        };
        let candidates: Vec<Candidate> = parts.iter().map(numbered).collect();
        let alive = parts.last().is_some_and(|newest| stay.contains(&newest.cycle));
        let chosen = keep.by_rules(&candidates, from_unix_ns, alive);
        let of_disk = parts.iter().filter(|part| chosen.contains(&CycleNo(part.number.0)));
        kept.extend(of_disk.map(|part| part.cycle));
    }
    kept
}

/// Deletes the group points that name one of these points of a disk, which are about to go.
pub(super) fn delete_naming(
    vault: &Vault,
    parts: &Parts,
    going: &BTreeSet<CycleNo>,
) -> Result<(), VaultError> {
    for (group, parts) in parts {
        for part in parts.iter().filter(|part| going.contains(&part.cycle)) {
            vault.delete_group_point(group, part.number)?;
        }
    }
    Ok(())
}

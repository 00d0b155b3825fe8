//! What is told of vaults: what the disks that are shipped there say of them.

use std::collections::BTreeMap;

use backstay_engine::health::ids;
use backstay_engine::status::DiskStatus;

use crate::Snapshot;
use crate::disks::{gauge, has};
use crate::families::{Sample, seconds};

/// A disk with one of these says that something is wrong with its vault.
const DOWN: [ids::CauseId; 8] = [
    ids::VAULT_GONE,
    ids::OTHER_VAULT,
    ids::VAULT_UNKNOWN,
    ids::STORE_REFUSED,
    ids::POINTS_VANISHED,
    ids::VAULT_DAMAGED,
    ids::UPKEEP_FAILED,
    ids::POINT_UNREACHABLE,
];

/// When a disk was last shipped to its vault, or its newest point was seen there; nanoseconds since 1970.
fn seen(status: &DiskStatus) -> Option<u64> {
    let record = &status.record;
    let shipped = record.last.as_ref().map(|last| last.committed_unix_ns);
    shipped.max(record.unchanged.map(|unchanged| unchanged.at_unix_ns))
}

/// Whether its vault is there and works, as far as a disk can tell.
fn says(status: &DiskStatus) -> Option<bool> {
    if DOWN.iter().any(|id| has(status, *id)) {
        return Some(false);
    }
    // A failed cycle may be the vault's fault or not; a late or missing point says that nobody looked.
    let looked = status.record.failure.is_none()
        && status.record.unreadable.is_none()
        && status.driver.is_some()
        && status.rpo_ns.is_some()
        && !has(status, ids::POINT_LATE);
    looked.then_some(true)
}

/// For each vault, what its disks say.
fn each<T>(
    of: &Snapshot,
    says: impl Fn(&DiskStatus) -> Option<T>,
    both: impl Fn(T, T) -> T,
) -> BTreeMap<String, Option<T>> {
    let mut all: BTreeMap<String, Option<T>> = BTreeMap::new();
    for status in of.disks().filter_map(|disk| disk.status.as_deref()) {
        let vault = all.entry(status.vault.clone()).or_default();
        *vault = match (vault.take(), says(status)) {
            (Some(one), Some(other)) => Some(both(one, other)),
            (one, other) => one.or(other),
        };
    }
    all
}

pub(crate) fn up(of: &Snapshot) -> Vec<Sample> {
    let vaults = each(of, says, |one, other| one && other).into_iter();
    vaults.map(|(url, up)| Sample::gauge(vec![url], up.map(|up| f64::from(u8::from(up))))).collect()
}

pub(crate) fn last_success(of: &Snapshot) -> Vec<Sample> {
    let vaults = each(of, seen, std::cmp::max).into_iter();
    vaults.map(|(url, at)| Sample::gauge(vec![url], at.map(seconds))).collect()
}

/// Not known when the vault is not what it was when they were counted.
pub(crate) fn points(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| {
        let points = status.record.retained?.points?;
        (says(status) != Some(false)).then_some(points as f64)
    })
}

pub(crate) fn retained(of: &Snapshot) -> Vec<Sample> {
    gauge(of, |status| status.record.retained.map(|retained| seconds(retained.at_unix_ns)))
}

//! Detects a disk without writes since its newest point. It needs no new point.
//!
//! The proof: the driver's base is the vault's newest point, by its random identity, and the driver knows
//! of no write since. The vault has that point, no newer point and no other writer. Nothing is read from
//! the disk.

use std::path::Path;

use backstay_front::control::ControlClient;
use backstay_host::clock::now_unix_ns;
use backstay_types::{CycleNo, PointId};
use backstay_vault::Vault;
use serde::{Deserialize, Serialize};

use super::find_disk;
use crate::error::CycleError;

/// That a disk was still as one of its points shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unchanged {
    /// The point's cycle.
    pub cycle: CycleNo,
    /// The point's identity.
    pub point: PointId,
    /// When, nanoseconds since 1970.
    pub at_unix_ns: u64,
}

/// Whether a disk is still as its newest point shows it; `None` if that is not certain, for whatever reason.
///
/// # Errors
/// If the driver does not answer, the vault cannot be read, or another writer took the disk over.
pub fn unchanged(socket: &Path, vault: &Vault) -> Result<Option<Unchanged>, CycleError> {
    // What the driver says is true of some later instant.
    let at_unix_ns = now_unix_ns();
    let status = ControlClient::connect(socket)?.status()?;
    let quiet = status.dirty_sectors == 0
        && status.resync.is_none()
        && status.lost_point_in_time.is_none()
        && status.open_cut.is_none()
        && status.lease.is_none()
        && status.warning.is_none();
    let Some(base) = status.base.filter(|_| quiet) else { return Ok(None) };
    let Some(found) = find_disk(vault, &status)? else { return Ok(None) };
    found.refuse_fenced()?;
    let same = found.newest.as_ref().is_some_and(|newest| {
        (newest.cycle, newest.point, newest.size) == (base.cycle, base.point, status.size)
    });
    let own = !found.adopted && found.from(vault)?.is_none();
    let proven = Unchanged { cycle: base.cycle, point: base.point, at_unix_ns };
    Ok((same && own).then_some(proven))
}

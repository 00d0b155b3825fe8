//! Whether a vault's points are the ones a disk's dirty set is counted from.

use backstay_format::PointId;
use backstay_format::control::DriverStatus;
use backstay_vault::{Manifest, Vault, VaultError};

/// A delta on the newest point is right if the point that the driver counts from is that point or
/// one before it: a commit whose release was lost leaves the driver one behind, with a dirty set that
/// is only larger.
pub(super) fn fits(
    vault: &Vault,
    status: &DriverStatus,
    newest: Option<&Manifest>,
) -> Result<bool, VaultError> {
    let (Some(base), Some(newest)) = (status.base, newest) else { return Ok(false) };
    if base.vault_disk != newest.disk || base.cycle > newest.cycle {
        return Ok(false);
    }
    let mut at: (_, PointId) = (newest.cycle, newest.point);
    let mut before = newest.predecessor;
    while at.0 > base.cycle {
        let Some(link) = before else { return Ok(false) };
        at = link;
        if at.0 > base.cycle {
            before = match vault.manifest(newest.disk, at.0) {
                Ok(point) if point.point == at.1 => point.predecessor,
                // Retention deleted it, and something that is no point lies in its place.
                Ok(_) => return Ok(false),
                Err(VaultError::NotFound { .. }) => return Ok(false),
                Err(e) => return Err(e),
            };
        }
    }
    Ok(at == (base.cycle, base.point))
}

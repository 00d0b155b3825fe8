//! Keeps the mounted point in the vault: a hold, as long as the point is needed.
//!
//! The hold outlives a stop of any kind by a week, since the overlay that lies over the point does, too. It
//! goes when the point is hydrated or forgotten.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use backstay_host::clock;
use backstay_types::{CycleNo, DiskId, DiskName};
use backstay_vault::retain::held::HOLDER_LASTS;
use backstay_vault::retain::{Held, HoldRequest, holder};
use backstay_vault::{HoldKind, Vault, VaultError, Vaults};

use super::record::MountedPoint;

/// How long to wait before it is tried again.
const AGAIN: Duration = Duration::from_secs(15);

pub(crate) struct Keeper {
    held: Arc<AtomicBool>,
    hold: Arc<Mutex<Option<Held>>>,
}

/// What to hold.
pub(crate) fn request(
    name: &str,
    local: &DiskName,
    cycle: CycleNo,
) -> Result<HoldRequest, VaultError> {
    let name = name
        .parse()
        .map_err(|source| VaultError::Damaged { object: "the name of a hold".into(), source })?;
    Ok(HoldRequest {
        name,
        kind: HoldKind::Mount,
        holder: holder(),
        reason: format!("mounted as {local}"),
        first_cycle: cycle,
        last_cycle: cycle,
        until_unix_ns: None,
    })
}

/// Takes the hold; `None` in a vault that cannot be written: anyone who has only a copy of the vault left
/// must be able to mount.
pub(crate) fn take(
    vault: &Vault,
    disk: DiskId,
    request: HoldRequest,
) -> Result<Option<Held>, VaultError> {
    match Held::take(vault, disk, request, HOLDER_LASTS) {
        Err(e @ (VaultError::Denied { .. } | VaultError::Full { .. })) => {
            tracing::warn!(
                "the point is not held ({e}): make sure that retention does not delete it meanwhile"
            );
            Ok(None)
        }
        held => held.map(Some),
    }
}

impl Keeper {
    /// Goes on holding what was taken, or takes the hold as soon as the vault lets it.
    pub fn start(
        vaults: Vaults,
        of: &MountedPoint,
        local: &DiskName,
        taken: Option<Option<Held>>,
    ) -> Self {
        let keeper = Self { held: Arc::default(), hold: Arc::default() };
        if let Some(taken) = taken {
            keeper.held.store(taken.is_some(), Ordering::Release);
            *keeper.hold.lock().unwrap_or_else(PoisonError::into_inner) = taken;
            return keeper;
        }
        let (held, hold) = (Arc::clone(&keeper.held), Arc::clone(&keeper.hold));
        let (of, local) = (of.clone(), local.clone());
        let begin = move || {
            loop {
                let taken = vaults
                    .open(&of.vault)
                    .and_then(|vault| take(&vault, of.disk, request(&of.hold, &local, of.cycle)?));
                match taken {
                    Ok(taken) => {
                        held.store(taken.is_some(), Ordering::Release);
                        *hold.lock().unwrap_or_else(PoisonError::into_inner) = taken;
                        return;
                    }
                    Err(e @ VaultError::Retired(_)) => {
                        tracing::error!("{e}; what is not local of it may be gone for ever");
                        return;
                    }
                    Err(e) => {
                        tracing::warn!("holding the point: {e}; tried again");
                        clock::sleep(AGAIN);
                    }
                }
            }
        };
        if let Err(e) = thread::Builder::new().name("keeper".into()).spawn(begin) {
            tracing::warn!("holding the point: {e}");
        }
        keeper
    }

    /// Whether the point is held.
    pub fn held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// The point is not needed any more.
    pub fn release(&self) {
        self.held.store(false, Ordering::Release);
        drop(self.hold.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The process ends; the hold stays for a week.
    pub fn leave(&self) {
        std::mem::forget(self.hold.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

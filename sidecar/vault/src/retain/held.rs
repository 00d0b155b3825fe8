//! Points that stay while a value lives: a hold that is renewed for as long as that takes.

use std::ops::RangeInclusive;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_types::{CycleNo, DiskId, PointId};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::hold::HoldRequest;
use crate::error::VaultError;
use crate::format::hold::{HoldKind, HoldName};
use crate::remote::Role;
use crate::store::{Vault, now_unix_ns};

/// How long a reader that was killed holds its points: it will be started again, under a new name.
pub const READER_LASTS: Duration = Duration::from_secs(3600);
/// How long a mount, replica, failover or resync that was killed holds its points: somebody has to
/// notice, and it finds its hold again by its name.
pub const HOLDER_LASTS: Duration = Duration::from_secs(7 * 86_400);

/// Points that stay while this lives. Dropped, they are released; killed, the hold ends by itself
/// unless it is taken again by its name.
#[derive(Debug)]
pub struct Held {
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
    points: Vec<CycleNo>,
}

impl Held {
    /// Takes a hold, or finds it again by its name, and renews it each time a quarter of `lasts` has
    /// passed. The request's end is not looked at.
    ///
    /// # Errors
    /// As [`Vault::hold`]; or a thread cannot be started.
    pub fn take(
        vault: &Vault,
        disk: DiskId,
        request: HoldRequest,
        lasts: Duration,
    ) -> Result<Self, VaultError> {
        let renewed = move || {
            let lasts = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX);
            let until_unix_ns = Some(now_unix_ns().saturating_add(lasts));
            HoldRequest { until_unix_ns, ..request.clone() }
        };
        let (record, points) = vault.hold(disk, &renewed())?;
        let (stop, stopped) = bounded::<()>(0);
        let vault = vault.clone();
        let renew = move || {
            while stopped.recv_timeout(lasts / 4) == Err(RecvTimeoutError::Timeout) {
                if let Err(e) = vault.hold(disk, &renewed()) {
                    tracing::warn!("renewing hold {}: {e}", record.name);
                }
            }
            // A source need not ask for what no gateway lets it do.
            let released = match vault.role() {
                Ok(Some(Role::Source)) => return,
                Ok(_) => vault.release(disk, &record.name),
                Err(e) => Err(e),
            };
            if let Err(e) = released {
                tracing::debug!("hold {} ends by itself: {e}", record.name);
            }
        };
        let renewer = thread::Builder::new().name("hold".into()).spawn(renew);
        let renewer = renewer
            .map_err(|source| VaultError::Target { what: "starting a thread".into(), source })?;
        Ok(Self { renewer: Some((stop, renewer)), points })
    }

    /// Holds the points of these cycles, ends counted, for somebody who reads them. In a vault that
    /// cannot be written, nothing is held and reading goes on: anyone who has only a copy of the vault
    /// left must be able to restore.
    ///
    /// # Errors
    /// If the points are gone, or the vault cannot be read.
    pub fn reading(
        vault: &Vault,
        disk: DiskId,
        cycles: RangeInclusive<CycleNo>,
        reason: &str,
    ) -> Result<Self, VaultError> {
        let name = format!("read-{}", PointId::random()).parse::<HoldName>();
        let name = name.map_err(|source| VaultError::Damaged {
            object: "the name of a hold".into(),
            source,
        })?;
        let request = HoldRequest {
            name,
            kind: HoldKind::Read,
            holder: holder(),
            reason: reason.into(),
            first_cycle: *cycles.start(),
            last_cycle: *cycles.end(),
            until_unix_ns: None,
        };
        match Self::take(vault, disk, request, READER_LASTS) {
            Err(e @ (VaultError::Denied { .. } | VaultError::Full { .. })) => {
                tracing::warn!("reading without holding the points: {e}");
                let mut points = vault.points(disk)?;
                points.retain(|cycle| cycles.contains(cycle));
                Ok(Self { renewer: None, points })
            }
            held => held,
        }
    }

    /// The cycles of the points that are held.
    #[must_use]
    pub fn points(&self) -> &[CycleNo] {
        &self.points
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((stop, renewer)) = self.renewer.take() {
            // The renewer sees its channel's end, releases and leaves.
            drop(stop);
            let _ = renewer.join();
        }
    }
}

/// Who this is, for people.
#[must_use]
pub fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "a host" } else { host.trim() };
    format!("process {} on {host}", std::process::id())
}

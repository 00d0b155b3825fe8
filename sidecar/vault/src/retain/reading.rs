//! A short-lived hold on what is being read, renewed for as long as that takes.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use backstay_format::{CycleNo, DiskId, PointId};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::hold::HoldRequest;
use crate::error::VaultError;
use crate::format::hold::{HoldKind, HoldName};
use crate::store::{Vault, now_unix_ns};

/// How long a reader that was killed holds its points.
const LASTS: Duration = Duration::from_secs(3600);

/// Points that stay while this lives.
#[derive(Debug)]
pub struct Reading {
    stop: Option<Sender<()>>,
    renewer: Option<JoinHandle<()>>,
}

impl Reading {
    /// Holds the points of these cycles, ends counted. In a vault that cannot be written, nothing is
    /// held and reading goes on: whoever has only a copy of the vault left must be able to restore.
    ///
    /// # Errors
    /// If the points are gone, or the vault cannot be read.
    pub fn of(
        vault: &Vault,
        disk: DiskId,
        cycles: (CycleNo, CycleNo),
        reason: &str,
    ) -> Result<Self, VaultError> {
        let id = PointId::random().to_string();
        let name: HoldName = format!("read-{id}").parse().map_err(|source| {
            VaultError::Damaged { object: "the name of a hold".into(), source }
        })?;
        let request = HoldRequest {
            name: name.clone(),
            kind: HoldKind::Read,
            holder: holder(),
            reason: reason.into(),
            first_cycle: cycles.0,
            last_cycle: cycles.1,
            until_unix_ns: None,
        };
        let renewed = move || HoldRequest {
            until_unix_ns: Some(now_unix_ns().saturating_add(LASTS.as_nanos() as u64)),
            ..request.clone()
        };
        match vault.hold(disk, &renewed()) {
            Ok(_) => {}
            Err(e @ (VaultError::Denied { .. } | VaultError::Full { .. })) => {
                tracing::warn!("reading without holding the points: {e}");
                return Ok(Self { stop: None, renewer: None });
            }
            Err(e) => return Err(e),
        }
        let (stop, stopped) = bounded::<()>(0);
        let vault = vault.clone();
        let renew = move || {
            while stopped.recv_timeout(LASTS / 4) == Err(RecvTimeoutError::Timeout) {
                if let Err(e) = vault.hold(disk, &renewed()) {
                    tracing::warn!("renewing the hold on the points that are read: {e}");
                }
            }
            if let Err(e) = vault.release(disk, &name) {
                tracing::debug!("hold {name} ends by itself: {e}");
            }
        };
        let renewer = thread::Builder::new().name("hold".into()).spawn(renew);
        let renewer = renewer
            .map_err(|source| VaultError::Target { what: "starting a thread".into(), source })?;
        Ok(Self { stop: Some(stop), renewer: Some(renewer) })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // The renewer sees its channel's end, releases and leaves.
        drop(self.stop.take());
        if let Some(renewer) = self.renewer.take() {
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

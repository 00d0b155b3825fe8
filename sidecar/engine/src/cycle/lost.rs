//! Detects early that a shipping cycle has lost its point in time.
//!
//! The driver reports the loss reliably at the seal. On a slow line that can be long after the change log
//! reached its limit. So this module asks the driver for its status meanwhile. It uses a separate
//! connection, because the cycle's connection handles one request at a time.

use std::path::Path;

use backstay_front::control::ControlClient;
use backstay_types::EpochNo;

use crate::error::CycleError;
use crate::pipeline::Watch;

/// Looks whether the point in time of a closed epoch is lost. A driver that does not answer now is no reason to end
/// anything: the seal asks it again.
pub(super) fn until_lost(socket: &Path, epoch: EpochNo) -> Watch<'_> {
    let mut client: Option<ControlClient> = None;
    Box::new(move || {
        let mut asked = client.take().or_else(|| ControlClient::connect(socket).ok())?;
        let status = asked.status().ok()?;
        client = Some(asked);
        let cut = status.open_cut.filter(|cut| cut.epoch == epoch)?;
        cut.lost.map(CycleError::Lost)
    })
}

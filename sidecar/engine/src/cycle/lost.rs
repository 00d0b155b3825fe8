//! Looking whether the point in time of a cycle is lost, while it ships.
//!
//! The driver says so for certain when the cycle seals its cut. On a slow line that is long after the change log
//! came to its limit, so it is asked for its status meanwhile, over a connection of its own: the cycle's is for
//! what the cycle does, one thing at a time.

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

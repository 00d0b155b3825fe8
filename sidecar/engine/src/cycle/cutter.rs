//! Who makes the point-in-time cut of a cycle, and when.

use backstay_format::control::{CutMode, CutReply, Request, Response};
use backstay_front::control::{ClientError, ControlClient};

use crate::error::CycleError;

/// Makes the point-in-time cut of a cycle, when the cycle has come so far.
pub trait Cutter {
    /// Waits until the cut is about to be made. Nobody waits for it yet: no application, no write.
    ///
    /// # Errors
    /// If there will be no cut; then the cycle fails.
    fn gather(&mut self, _driver: &mut ControlClient) -> Result<(), CycleError> {
        Ok(())
    }

    /// Makes the cut. What it does before and after is its own; when it returns, the driver must
    /// hold nobody any more.
    ///
    /// # Errors
    /// If there is no cut; then the cycle fails.
    fn cut(&mut self, driver: &mut ControlClient) -> Result<CutReply, CycleError>;
}

/// Cuts as soon as it is asked to.
#[derive(Debug, Clone, Copy)]
pub struct AtOnce;

impl Cutter for AtOnce {
    fn cut(&mut self, driver: &mut ControlClient) -> Result<CutReply, CycleError> {
        ask(driver, &Request::Cut { mode: CutMode::PointInTime })
    }
}

/// Asks the driver for a cut.
pub(crate) fn ask(driver: &mut ControlClient, request: &Request) -> Result<CutReply, CycleError> {
    match driver.ask(request)? {
        Response::Cut(cut) => Ok(*cut),
        _ => Err(ClientError::Confused.into()),
    }
}

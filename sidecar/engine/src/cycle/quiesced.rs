//! The point-in-time cut, made while hooks keep the application paused.

use backstay_format::control::CutReply;

use super::{Cutter, Run};
use crate::error::CycleError;

impl Run<'_> {
    /// Cuts between the pre commands and freezes of the disk's hooks and their thaw and post
    /// commands. The latter run while the cut is shipped.
    pub(super) fn quiesced_cut(&mut self, cutter: &mut dyn Cutter) -> Result<CutReply, CycleError> {
        // The application waits for its own disk's cut, not until all disks of a group have come so far.
        cutter.gather(&mut self.driver)?;
        let Some(hooks) = self.job.hooks else {
            return self.cut_by(|driver| cutter.cut(driver));
        };
        // Writing there is what makes the cut.
        let mut avoid = vec![self.driver.status()?.backing];
        avoid.extend(self.job.vault.local_dir().map(Into::into));
        let mut quiesced = hooks.quiesce(avoid, self.job.stop)?;
        // Nothing may be logged from here to the thaw: the log may lie on what is frozen.
        let cut = self.cut_by(|driver| cutter.cut(driver));
        let consistency = quiesced.cut_is_over(cut.is_ok());
        let cut = cut?;
        self.consistency = consistency?;
        self.quiesced = Some(quiesced);
        Ok(cut)
    }
}

//! `backstay guardian`: what the sidecar starts to quiesce applications for a cut.

use std::os::fd::AsFd;

use backstay_engine::hooks::guardian;
use clap::Args;

use crate::error::Result;

/// Quiesce applications for one cut; started by the sidecar (docs/reference/hooks.md)
#[derive(Args)]
pub struct Guardian {}

impl Guardian {
    /// Needs no configuration: it is told all by the sidecar, and must work when that one is broken.
    pub fn run(self) -> Result<()> {
        guardian::outlive_signals()?;
        let input = std::io::stdin().as_fd().try_clone_to_owned()?;
        Ok(guardian::run(input, std::io::stdout().lock())?)
    }
}

//! `backstay sidecar`: the service.

use backstay_sidecar::service::serve;
use clap::Args;

use crate::context::Context;

/// Run cycles for all disks served on this host, until told to stop
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay sidecar --verbose

Disks are found by themselves as they are mounted. The configuration is read again when its file
changes and on SIGHUP; one that makes no sense is reported, and the old one holds. Stops on SIGTERM and SIGINT: a cycle that runs
is given up, its sectors ship with the next.")]
pub struct Sidecar {}

impl Sidecar {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let stop = backstay_sidecar::service::stop_on_signals()?;
        Ok(serve(context.watch(), &context.roots, &stop)?)
    }
}

//! `backstay umount`: stop serving a disk.

use backstay_recovery::failover::rules::{NameKind, NameState, Verb};
use backstay_recovery::host::ending::stop;
use backstay_recovery::mount;
use backstay_types::DiskName;
use clap::Args;

use super::ending::Ending;
use crate::context::Context;
use crate::error::Result;

/// Stop serving a disk, cleanly
#[derive(Args)]
#[command(after_help = "\
A disk that is in use (by QEMU, a loop device or a file system, also in a container) is not stopped: the command \
waits for --wait, then names the users and changes nothing. To remove a loop device, run backstay detach.")]
pub struct Umount {
    /// The disk's name
    name: DiskName,
    /// Also remove a mounted recovery point from this host: the writes to it are lost. The vault keeps the point
    #[arg(long)]
    forget: bool,
    #[command(flatten)]
    how: Ending,
}

impl Umount {
    pub fn run(self, context: &Context) -> Result<()> {
        let name = &self.name;
        let verb = if self.forget { Verb::Forget } else { Verb::Umount };
        let paths = context.roots.disk(name);
        // What a kill left of a point that is forgotten already is removed, too.
        let is_left = self.forget
            && paths.state.exists()
            && NameState::look(&context.roots, name)?.what == NameKind::Nothing;
        if !is_left {
            context.may(name, verb)?;
        }
        let host = context.host();
        let end = || match self.how.force {
            true => host.abort(name),
            false => stop(name, host.driver_to_end(name)?, self.how.how()),
        };
        if !self.forget {
            return Ok(end()?);
        }
        if context.driver(name).is_ok()
            && mount::MountedPoint::load(name, &paths).map_or(true, |of| of.is_some())
        {
            end()?;
        }
        Ok(mount::forget(&context.config.vaults, name, &paths)?)
    }
}

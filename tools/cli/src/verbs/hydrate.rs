//! `backstay hydrate`: fetch all of a mounted recovery point.

use std::time::Duration;

use backstay_host::clock;
use backstay_recovery::mount::{Hydration, HydrationStatus, Mounted, MountedPoint};
use backstay_types::{ByteLen, DiskName};
use bytesize::ByteSize;
use clap::Args;

use super::progress::Progress;
use super::target::size;
use crate::context::Context;
use crate::error::{Context as _, Result, bail};

/// Fetch all of a mounted recovery point; after that its vault is not needed
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay hydrate db-test             wait until the whole disk is here
  backstay hydrate db-test --background --limit 20MiB
  backstay hydrate db-test --stop      stop; the next run continues from there

Reads by users of the disk come first. If this command is interrupted, hydration goes on.")]
pub struct Hydrate {
    /// The disk's name on this host
    name: DiskName,
    /// Download limit, in bytes per second
    #[arg(long, value_name = "SIZE", conflicts_with = "stop")]
    limit: Option<ByteSize>,
    /// Do not wait until hydration ends
    #[arg(long, conflicts_with = "stop")]
    background: bool,
    /// Stop hydration
    #[arg(long)]
    stop: bool,
}

impl Hydrate {
    pub fn run(self, context: &Context) -> Result<()> {
        let paths = context.roots.disk(&self.name);
        let Some(of) = MountedPoint::load(&self.name, &paths)? else {
            bail!("disk {} is no mounted recovery point of this host", self.name);
        };
        let limit_bytes = self.limit.map(|limit| ByteLen(limit.as_u64()));
        Hydration { wanted: !self.stop, limit_bytes }.save(&paths)?;
        if self.stop || self.background {
            return Ok(());
        }
        let bar = Progress::new(context);
        loop {
            // Its driver must run: nobody else hydrates.
            context.driver(&self.name).context("it goes on when the disk is mounted again")?;
            match Mounted::load(&paths) {
                Some(now) if now.hydration == HydrationStatus::Done => break,
                Some(now) => bar.show("hydrating", now.hydrated_bytes.0, of.size_bytes.0),
                None => {}
            }
            clock::sleep(Duration::from_millis(200));
        }
        bar.end();
        if !context.globals.quiet && !context.globals.json {
            println!(
                "{}: all of point {} ({}) is here; its vault is not needed any more",
                self.name,
                of.cycle,
                size(of.size_bytes.0)
            );
        }
        Ok(())
    }
}

//! `backstay resume`: what was wrong is mended.

use anyhow::{Context as _, bail};
use backstay_engine::record::Record;
use backstay_engine::requests::{Asked, ask};
use backstay_types::DiskName;
use clap::Args;

use crate::context::Context;

/// Go on with a disk whose health is critical: what was wrong is mended
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay resume db

After a failure that only a person can mend (access denied, another disk of the name, a newer writer)
the sidecar tries no more. See backstay status for what it was.")]
pub struct Resume {
    /// The disk's name
    name: DiskName,
}

impl Resume {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let state = context.roots.disk(&self.name).state;
        if !state.exists() {
            bail!("there is no disk {} in {}", self.name, context.roots.state.display());
        }
        let mut record = Record::load(&state);
        record.resume();
        record.save(&state).with_context(|| format!("disk {}", self.name))?;
        ask(&context.roots.state, &Asked::Look(self.name.clone()))
            .with_context(|| format!("disk {}", self.name))
    }
}

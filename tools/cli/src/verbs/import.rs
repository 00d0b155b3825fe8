//! `backstay import`: an image becomes a disk of a vault.

use std::path::PathBuf;

use backstay_engine::throttle::Throttle;
use backstay_recovery::image::{Format, Import as Job, import};
use backstay_types::DiskName;
use clap::Args;

use super::progress::Progress;
use super::stopping::until_signal;
use super::target::size;
use crate::context::Context;
use crate::error::{Context as _, Result};

/// Make a disk of a vault from an image or block device: its first recovery point
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay import /srv/old.qcow2 --name old --vault file:///mnt/backup/vault
  backstay import /dev/vg/db --name db
  backstay import guest.img --name guest --format raw

The image must not be in use; it is only read. The name must be free in the vault. If the command is killed, run it \
again. To go on protecting the image under that name:
  backstay protect IMAGE --name NAME
  backstay resync NAME --now --the-disk-is-right
The resync compares the image with the imported point and ships the differences.")]
pub struct Import {
    /// A raw or qcow2 image, or a block device
    image: PathBuf,
    /// The disk's name in the vault
    #[arg(long)]
    name: DiskName,
    /// The vault's URL [default: the disk's, from the configuration]
    #[arg(long, value_name = "URL", env = "BACKSTAY_VAULT")]
    vault: Option<String>,
    /// raw or qcow2 [default: detected from the first bytes]
    #[arg(long)]
    format: Option<Format>,
}

impl Import {
    pub fn run(self, context: &Context) -> Result<()> {
        let format = match self.format {
            Some(format) => format,
            None => Format::of(&self.image)
                .with_context(|| format!("looking at {}", self.image.display()))?,
        };
        let url = self.vault.as_deref().unwrap_or_else(|| context.config.vault_of(&self.name));
        let vault = context.config.vaults.open(url)?;
        let bar = Progress::new(context);
        let imported = until_signal(|stop| {
            import(&Job {
                image: &self.image,
                format,
                name: &self.name,
                vault: &vault,
                ship: &context.config.ship,
                throttle: &Throttle::new(context.config.throttle.clone(), context.config.zone()),
                progress: &|done, all| bar.show("importing", done, all),
                stop,
            })
        })?;
        bar.end();
        let point = imported
            .with_context(|| {
                format!("{} was not imported; no recovery point was made", self.image.display())
            })?
            .point;
        let stored: u64 = point.own_segments().map(|segment| segment.object.0).sum();
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": self.name, "disk": point.disk, "cycle": point.cycle, "point": point.point,
                "format": format.name(), "size_bytes": point.size, "stored_bytes": stored,
            }));
        }
        if !context.globals.quiet {
            println!(
                "{}: recovery point {} made of {} ({}, {}; {} stored)",
                self.name,
                point.cycle,
                self.image.display(),
                format.name(),
                size(point.size.0),
                size(stored)
            );
        }
        Ok(())
    }
}

//! `backstay restore`: get a recovery point back.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use backstay_types::DiskName;
use backstay_vault::read::{FileTarget, restore};
use backstay_vault::retain::Held;
use clap::Args;

use super::progress::Progress;
use super::target::{InVault, PointName, size};
use crate::context::Context;
use crate::exit::Refused;

/// Write a recovery point to a file or device
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay restore db --point latest --to /srv/db.img
  backstay restore db --point 17 --to /dev/sdb --force --vault file:///mnt/backup/vault

Needs nothing but the vault. What exists is overwritten only with --force; a device that is mounted
never is. Every block is checked before it is written.")]
pub struct Restore {
    /// The disk's name
    name: DiskName,
    /// Which point: a number, or latest
    #[arg(long)]
    point: PointName,
    /// A file, or a block device at least as large as the disk
    #[arg(long, value_name = "FILE|DEVICE")]
    to: PathBuf,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    vault: InVault,
}

impl Restore {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        vault.check_readable()?;
        let cycle = self.point.find(&vault, &disk)?;
        self.refuse_to_overwrite()?;
        let why = format!("restore to {}", self.to.display());
        let _held = Held::reading(&vault, disk.disk, (cycle, cycle), &why)?;
        let point = vault.manifest(disk.disk, cycle)?;
        let target = FileTarget::open(&self.to, point.size).map_err(|e| {
            match e.raw_os_error() {
                // O_EXCL on a device that is mounted or claimed.
                Some(16) => anyhow::Error::new(Refused(format!(
                    "{} is in use (mounted?); unmount it first. Nothing was written",
                    self.to.display()
                ))),
                _ => anyhow::Error::new(e).context(format!("opening {}", self.to.display())),
            }
        })?;
        let bar = Progress::new(context);
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let restored = restore(&vault, &point, &target, threads, &|done, all| {
            bar.show("restoring", done, all);
        });
        bar.end();
        restored.with_context(|| {
            format!(
                "{} does not hold recovery point {cycle} of disk {}; do not use it",
                self.to.display(),
                self.name
            )
        })?;
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": self.name, "cycle": cycle, "to": self.to, "size_bytes": point.size,
            }));
        }
        if !context.globals.quiet {
            println!(
                "{}: recovery point {cycle} restored to {} ({})",
                self.name,
                self.to.display(),
                size(point.size.0)
            );
        }
        Ok(())
    }

    fn refuse_to_overwrite(&self) -> Result<(), Refused> {
        if self.force || !holds_something(&self.to) {
            return Ok(());
        }
        Err(Refused(format!(
            "{} exists and would be overwritten; use --force if it may be. Nothing was written",
            self.to.display()
        )))
    }
}

fn holds_something(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device() || meta.len() > 0)
}

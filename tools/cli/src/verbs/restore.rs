//! `backstay restore`: get a recovery point back.

use std::path::PathBuf;

use backstay_front::backing::PART_EXTENSION;
use backstay_recovery::host::ours::refuse_ours;
use backstay_recovery::restore::{self, Goal, Occupied, RestoreError};
use backstay_types::{Classified, DiskName};
use backstay_vault::retain::Held;
use clap::Args;

use super::progress::Progress;
use super::stopping::until_signal;
use super::target::{InVault, PointName, size};
use crate::context::Context;
use crate::error::{Context as _, Error, Result};

/// Write a recovery point to a file or device
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay restore db --point latest --to /srv/db.img
  backstay restore db --point 17 --to /dev/sdb --force --vault s3://backups

Needs only the vault. Every block is checked before it is written. An existing target is overwritten only with \
--force, and never while it is in use. A file is first written as FILE.backstay-part and gets its name when it is \
complete; until then an existing file does not change. If the command is killed, run it again: it continues. Ctrl-C \
removes the partial file. A device is marked until it is complete, so that nobody takes a part of a point for a \
disk.")]
pub struct Restore {
    /// The disk's name
    name: DiskName,
    /// Which point: a number, latest, or the newest not after a time (2026-02-03T04:05:06Z)
    #[arg(long)]
    point: PointName,
    /// A file, or a block device at least as large as the disk
    #[arg(long, value_name = "FILE|DEVICE")]
    to: PathBuf,
    /// Overwrite existing data that is not in use
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    vault: InVault,
}

impl Restore {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        vault.check_readable()?;
        let cycle = self.point.find(&vault, &disk)?;
        let failed =
            |e: RestoreError| Error::from(e).context(format!("disk {}: cannot restore", self.name));
        refuse_ours(&context.roots, &self.name, &self.to)
            .with_context(|| format!("disk {}: cannot restore", self.name))?;
        let occupied = if self.force { Occupied::Overwrite } else { Occupied::Refuse };
        let goal = Goal::at(&self.to, occupied).map_err(|e| failed(e.into()))?;
        let why = format!("restore to {}", self.to.display());
        let _held = Held::reading(&vault, disk.disk, cycle..=cycle, &why)?;
        let point = vault.manifest(disk.disk, cycle)?;
        let bar = Progress::new(context);
        let restored = until_signal(|stop| {
            restore::Restore {
                vault: &vault,
                name: &self.name,
                point: &point,
                goal: &goal,
                threads: std::thread::available_parallelism().map_or(2, usize::from),
                progress: &|done, all| bar.show("restoring", done, all),
                stop,
            }
            .run()
        })?;
        bar.end();
        let restored = restored.map_err(|e| match e.is_refusal() {
            // It says itself that nothing was written.
            true => failed(e),
            false => failed(e).context(left_by(&goal)),
        })?;
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": self.name, "cycle": cycle, "to": self.to, "size_bytes": point.size,
                "resumed_bytes": restored.resumed,
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
}

/// What a restore that failed has left.
fn left_by(goal: &Goal) -> String {
    let part = goal.path().with_added_extension(PART_EXTENSION);
    match goal {
        Goal::Device { path } => format!(
            "{} may hold a part of a recovery point; if so, it is marked and attach and mount refuse it",
            path.display()
        ),
        Goal::File { path, replaces } => {
            let file = match replaces {
                true => format!("{} is as it was", path.display()),
                false => format!("{} was not made", path.display()),
            };
            match part.exists() {
                true => {
                    format!("{file}; run the same command again to go on with {}", part.display())
                }
                false => format!("{file}; nothing is left of the restore"),
            }
        }
    }
}

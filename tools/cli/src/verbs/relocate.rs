//! `backstay move`: move a disk to another backing.

use std::path::PathBuf;

use backstay_engine::protection::Protection;
use backstay_front::backing::copy::Step;
use backstay_front::offline::{Relocation, relocate};
use backstay_recovery::failover::refuse_to_serve;
use backstay_recovery::host::ours::refuse_ours;
use backstay_types::DiskName;
use clap::Args;

use super::mount::refuse_mounted_point;
use super::progress::Progress;
use super::target::size;
use crate::context::Context;
use crate::error::{Context as _, Result};

/// Move a disk that is not mounted to another file or device, without a resync
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay umount db
  backstay move db --to /fast/db.img
  backstay mount /fast/db.img --name db
  backstay move db --to /dev/vg/db --force --grow   use all of a larger device

The disk must have been stopped cleanly. Its data is copied, read back and compared; then the disk switches to the \
new backing in one step. Until then it stays on the old backing. If the command is killed, run it again. Nothing \
becomes dirty, and recovery points stay as they are. The old backing is not changed.")]
pub struct Move {
    /// The disk's name
    name: DiskName,
    /// The file or block device to move to
    #[arg(long, value_name = "FILE|DEVICE")]
    to: PathBuf,
    /// Its current backing [default: the one it was mounted from last]
    #[arg(long, value_name = "FILE|DEVICE")]
    from: Option<PathBuf>,
    /// Overwrite what the new file or device holds
    #[arg(long)]
    force: bool,
    /// Use all of a larger device: the disk grows at its next mount
    #[arg(long)]
    grow: bool,
}

impl Move {
    pub fn run(self, context: &Context) -> Result<()> {
        refuse_mounted_point(context, &self.name)?;
        refuse_to_serve(&context.roots.state, &self.name)?;
        refuse_ours(&context.roots, &self.name, &self.to)
            .with_context(|| format!("disk {}: cannot move", self.name))?;
        let order = Relocation {
            name: self.name.clone(),
            paths: context.roots.disk(&self.name),
            from: self.from.map(std::path::absolute).transpose()?,
            to: std::path::absolute(self.to)?,
            overwrite: self.force,
            grow: self.grow,
        };
        let bar = Progress::new(context);
        let moved = relocate(&order, &|step, done, all| {
            let doing = match step {
                Step::Copying => "copying",
                Step::Comparing => "comparing",
            };
            bar.show(doing, done, all);
        });
        bar.end();
        let moved = moved?;
        let told = Protection::load(&order.paths.state).and_then(|protection| {
            let Some(mut protection) = protection else { return Ok(()) };
            protection.backing = moved.to.canonicalize().unwrap_or_else(|_| moved.to.clone());
            protection.save(&order.paths.state)
        });
        told.with_context(|| {
            format!("disk {} was moved, but the record of its protection was not updated; run this again", self.name)
        })?;
        if context.globals.json {
            return context.print_json(&serde_json::json!({
                "name": self.name,
                "from": moved.from,
                "to": moved.to,
                "size_bytes": moved.size,
                "growing_to_bytes": moved.growing_to,
                "copied_bytes": moved.copied_bytes,
            }));
        }
        if !context.globals.quiet {
            println!(
                "disk {}: moved to {} ({}, {} of data copied)",
                self.name,
                moved.to.display(),
                size(moved.size.0),
                size(moved.copied_bytes)
            );
            if let Some(to) = moved.growing_to {
                println!("it grows to {} when it is mounted", size(to.0));
            }
            println!(
                "next: backstay mount {} --name {}; {} is not used any more",
                moved.to.display(),
                self.name,
                moved.from.display()
            );
        }
        Ok(())
    }
}

//! `backstay unpin`: let go of a pin, or of a hold whose holder is gone.

use backstay_types::{Classified, DiskName};
use backstay_vault::{HoldKind, HoldName};
use clap::Args;

use super::target::InVault;
use crate::context::Context;
use crate::error::{Result, bail, refused};

/// Unpin a recovery point; the retention rules apply to it again
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay unpin db before-upgrade
  backstay unpin db pin-17
  backstay unpin db replica-west --force   a hold whose holder is gone for good")]
pub struct Unpin {
    /// The disk's name
    name: DiskName,
    /// The pin's name, as backstay holds shows it
    pin: HoldName,
    /// Also end a hold of a mount, replica, failover, resync or read
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    vault: InVault,
}

impl Unpin {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        let holds = match vault.holds(disk.disk) {
            // One that cannot be read can still be let go of, by its name.
            Err(e) if e.is_damage() && self.force => {
                tracing::warn!("{e}");
                vec![]
            }
            holds => holds?,
        };
        let Some(hold) = holds.into_iter().find(|hold| hold.name == self.pin) else {
            let released = self.force
                && (vault.release(disk.disk, &self.pin)?
                    | vault.unmark_everywhere(disk.disk, &self.pin)?);
            if released {
                return Ok(());
            }
            bail!("disk {} has no pin {}; see backstay holds {}", self.name, self.pin, self.name);
        };
        if hold.kind != HoldKind::Pin && !self.force {
            return Err(refused(format!(
                "{} is a {} of {}: its points may be in use. Use --force if its holder is gone for \
                 good",
                self.pin, hold.kind, hold.holder
            )));
        }
        vault.release(disk.disk, &self.pin)?;
        if context.globals.json {
            return context.print_json(&hold);
        }
        if !context.globals.quiet {
            println!(
                "{}: {} no longer holds recovery point {}",
                self.name, self.pin, hold.last_cycle
            );
        }
        Ok(())
    }
}

//! `backstay pin`: a recovery point that must stay.

use backstay_types::DiskName;
use backstay_vault::retain::{HoldRequest, holder};
use backstay_vault::{HoldKind, HoldName};
use clap::Args;

use super::target::{InVault, PointName};
use crate::context::Context;
use crate::error::Result;

/// Keep a recovery point, regardless of the rules, until it is unpinned
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay pin db latest --name before-upgrade --reason \"new version\"
  backstay pin db 17

backstay holds lists the pins; backstay unpin removes one.")]
pub struct Pin {
    /// The disk's name
    name: DiskName,
    /// Which point: a number, latest, or the newest not after a time (2026-02-03T04:05:06Z)
    point: PointName,
    /// The pin's name [default: pin- and the point's number]
    #[arg(long = "name", value_name = "PIN")]
    pin: Option<HoldName>,
    /// Why; shown by backstay holds
    #[arg(long, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    vault: InVault,
}

impl Pin {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        let cycle = self.point.find(&vault, &disk)?;
        let pin = match self.pin {
            Some(pin) => pin,
            None => format!("pin-{cycle}").parse()?,
        };
        let request = HoldRequest {
            name: pin,
            kind: HoldKind::Pin,
            holder: holder(),
            reason: self.reason,
            first_cycle: cycle,
            last_cycle: cycle,
            until_unix_ns: None,
        };
        let (record, _) = vault.hold(disk.disk, &request)?;
        if context.globals.json {
            return context.print_json(&record);
        }
        if !context.globals.quiet {
            println!(
                "{}: recovery point {cycle} stays until backstay unpin {} {}",
                self.name, self.name, record.name
            );
        }
        Ok(())
    }
}

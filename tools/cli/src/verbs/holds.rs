//! `backstay holds`: what keeps recovery points from being deleted.

use backstay_types::DiskName;
use backstay_vault::HoldRecord;
use clap::Args;

use super::target::{InVault, time};
use crate::context::Context;
use crate::error::Result;

/// List pins and other holds of a disk: who keeps which recovery points, why, and until when
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay holds db
  backstay holds db --json

Mounts, replicas, failovers, resyncs, restores and verifications hold their points themselves. If such a holder is \
killed, its hold ends after some time.")]
pub struct Holds {
    /// The disk's name
    name: DiskName,
    #[command(flatten)]
    vault: InVault,
}

impl Holds {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = self.vault.find(context, &self.name)?;
        let holds = vault.holds(disk.disk)?;
        if context.globals.json {
            return context.print_json(&holds);
        }
        let now = backstay_host::clock::now_unix_ns();
        println!("{:24}  {:8}  {:>13}  {:28}  HOLDER, REASON", "NAME", "KIND", "POINTS", "UNTIL");
        for hold in holds {
            let line = format!(
                "{:24}  {:8}  {:>13}  {:28}  {}{}{}",
                hold.name.as_str(),
                hold.kind.to_string(),
                points(&hold),
                until(&hold, now),
                hold.holder,
                if hold.reason.is_empty() { "" } else { ": " },
                hold.reason
            );
            println!("{}", line.trim_end());
        }
        Ok(())
    }
}

fn points(hold: &HoldRecord) -> String {
    match hold.first_cycle == hold.last_cycle {
        true => hold.first_cycle.to_string(),
        false => format!("{}-{}", hold.first_cycle, hold.last_cycle),
    }
}

fn until(hold: &HoldRecord, now_unix_ns: u64) -> String {
    match hold.until_unix_ns {
        None => "unpinned".into(),
        Some(until) if until < now_unix_ns => format!("{} (over)", time(until)),
        Some(until) => time(until),
    }
}

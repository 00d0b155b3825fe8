//! `backstay failover status`.

use backstay_recovery::failover::FailoverRecord;
use backstay_types::DiskName;

use super::super::target::{time, word};
use crate::context::Context;
use crate::error::{Context as _, Result};

/// Shows the failovers of this host.
pub fn show(context: &Context, name: Option<&DiskName>) -> Result<()> {
    let mut records = match name {
        Some(name) => vec![record(context, name)?],
        None => FailoverRecord::all(&context.roots.state)?,
    };
    records.sort_by(|a, b| a.name.cmp(&b.name));
    if context.globals.json {
        return context.print_json(&records);
    }
    println!("{:16}  {:10}  {:16}  {:>6}  {:20}  DISK", "NAME", "KIND", "STATE", "POINT", "SINCE");
    for record in records {
        let point = record.point.map_or("-".into(), |point| point.cycle.to_string());
        println!(
            "{:16}  {:10}  {:16}  {point:>6}  {:20}  {} in {}",
            record.name.as_str(),
            word(&record.kind),
            record.state.explain(),
            time(record.since_unix_ns),
            record.disk_name,
            record.vault
        );
    }
    Ok(())
}

/// The failover of a name.
pub fn record(context: &Context, name: &DiskName) -> Result<FailoverRecord> {
    FailoverRecord::load(&context.roots.state, name)?.with_context(|| {
        format!("there is no failover of disk {name} on this host; see backstay failover status")
    })
}

//! A record without a disk, or a failback whose file or device is gone: its name is freed.

use backstay_recovery::failover::FailoverRecord;
use backstay_recovery::lazy;

use super::local;
use crate::context::Context;

/// Removes what is left here of a failover whose disk is gone. The recovery points stay where they are, and any host
/// can bring them up.
pub fn give_up(context: &Context, record: FailoverRecord) -> anyhow::Result<()> {
    let (name, paths) = (record.name.clone(), context.roots.disk(&record.name));
    if let Some(status) = local::driver(context, &name) {
        local::refuse_if_used(&name, &status)?;
        local::stop(context, &name)?;
    }
    let backing = record.backing.clone();
    if paths.state.join("mounted.unfinished").exists() {
        lazy::forget(&name, &paths)?;
    }
    local::remove_folder(&paths.runtime)?;
    local::remove_folder(&paths.state)?;
    record.give_up(&context.roots.state)?;
    if !context.globals.quiet {
        let gone = backing.map_or_else(String::new, |backing| format!(" ({})", backing.display()));
        println!(
            "{name}: given up, since its disk is gone from this host{gone}; the name is free, and the recovery points were kept"
        );
    }
    Ok(())
}

//! A record without a disk, or a failback whose file or device is gone: its name is freed.

use super::executor::Executor;
use super::{FailoverRecord, Result};
use crate::host::remove_folder;
use crate::mount;

/// Removes what is left here of a failover whose disk is gone. The recovery points stay where they are, and any host
/// can bring them up.
///
/// # Errors
/// If somebody uses what is left.
pub fn give_up(host: &dyn Executor, record: FailoverRecord) -> Result<()> {
    let (name, paths) = (record.name.clone(), host.roots().disk(&record.name));
    if let Some(status) = host.status(&name) {
        host.refuse_if_used(&name, &status)?;
        host.stop(&name)?;
    }
    let backing = record.backing.clone();
    if paths.state.join("mounted.unfinished").exists() {
        mount::forget(&host.config().vaults, &name, &paths)?;
    }
    remove_folder(&paths.runtime)?;
    remove_folder(&paths.state)?;
    record.give_up(&host.roots().state)?;
    let gone = backing.map_or_else(String::new, |backing| format!(" ({})", backing.display()));
    host.told().note(&format!(
        "{name}: given up, since its disk is gone from this host{gone}; the name is free, and the recovery points \
         were kept"
    ));
    Ok(())
}

//! The source's side: a handover is withdrawn.

use std::path::Path;

use backstay_engine::requests::Asked;

use super::executor::Executor;
use super::vault::{Withdrawn, withdraw};
use super::{FailoverError, FailoverRecord, Result, State, stopped, way_on};
use crate::host::Doing;

/// Withdraws the handover; the disk can be mounted again.
///
/// # Errors
/// If another host has taken it over.
pub fn take_back(host: &dyn Executor, mut record: FailoverRecord) -> Result<()> {
    let (root, name) = (&host.roots().state, record.name.clone());
    if record.state == State::Removing {
        let way_on = way_on(&name, record.kind, record.state);
        return Err(FailoverError::NotSafe(format!(
            "disk {name} is being given up here: {way_on}"
        )));
    }
    let disk = stopped::superblock(&host.roots().disk(&name))
        .map(|superblock| superblock.disk)
        .doing(|| {
            format!(
                "disk {name} has no state on this host any more, so it cannot be taken back: {}",
                way_on(&name, record.kind, State::HandedOver)
            )
        })?;
    record.enter(root, State::TakingBack)?;
    if let Some(status) = host.status(&name)
        && status.served.starts_with(host.roots().disk(&name).handover_point())
    {
        host.stop_after_cycle(&name)?;
    }
    let vault = host.config().vaults.open(&record.vault)?;
    match withdraw(&vault, record.disk, &stopped::writer(disk))? {
        Withdrawn::Done => {}
        Withdrawn::TooLate(term) => {
            record.enter(root, State::HandingOver)?;
            if record.point.is_some() {
                record.enter(root, State::HandedOver)?;
            }
            return Err(FailoverError::NotSafe(format!(
                "disk {name} cannot be taken back: it was failed over, term {} belongs to {}. To have it \
                 here again: backstay failback {name} --to BACKING. To give it up here: backstay unprotect \
                 {name} --keep-points",
                term.term, term.writer
            )));
        }
    }
    let backing = record.backing.clone();
    record.end(root)?;
    let _ = host.ask(&Asked::Look(name.clone()));
    let mount = match backing.as_deref().map(Path::display) {
        Some(backing) => format!("backstay mount {backing} --name {name}"),
        None => format!("backstay mount --name {name}"),
    };
    host.told().note(&format!("{name}: taken back; nothing was lost. To serve it again: {mount}"));
    Ok(())
}

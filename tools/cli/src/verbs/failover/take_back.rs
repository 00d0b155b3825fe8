//! The source's side: a handover is withdrawn.

use std::path::Path;

use anyhow::Context as _;
use backstay_engine::requests::{Asked, ask};
use backstay_recovery::failover::vault::{Withdrawn, withdraw};
use backstay_recovery::failover::{FailoverRecord, State, stopped, way_on};
use backstay_vault::Vault;

use super::local;
use crate::context::Context;
use crate::exit::Refused;

/// Withdraws the handover; the disk can be mounted again.
pub fn take_back(context: &Context, mut record: FailoverRecord) -> anyhow::Result<()> {
    let (root, name) = (&context.roots.state, record.name.clone());
    if record.state == State::Removing {
        let way_on = way_on(&name, record.kind, record.state);
        return Err(Refused(format!("disk {name} is being given up here: {way_on}")).into());
    }
    let disk = stopped::superblock(&context.roots.disk(&name))
        .map(|superblock| superblock.disk)
        .with_context(|| {
            format!(
                "disk {name} has no state on this host any more, so it cannot be taken back: {}",
                way_on(&name, record.kind, State::HandedOver)
            )
        })?;
    record.enter(root, State::TakingBack)?;
    if let Some(status) = local::driver(context, &name)
        && status.served.starts_with(context.roots.disk(&name).handover_point())
    {
        local::stop_after_cycle(context, &name)?;
    }
    let vault = Vault::open(&record.vault)?;
    match withdraw(&vault, record.disk, &stopped::writer(disk))? {
        Withdrawn::Done => {}
        Withdrawn::TooLate(term) => {
            record.enter(root, State::HandingOver)?;
            if record.point.is_some() {
                record.enter(root, State::HandedOver)?;
            }
            return Err(Refused(format!(
                "disk {name} cannot be taken back: it was failed over, term {} belongs to {}. To have it \
                 here again: backstay failback {name} --to BACKING. To give it up here: backstay unprotect \
                 {name} --keep-points",
                term.term, term.writer
            ))
            .into());
        }
    }
    let backing = record.backing.clone();
    record.end(root)?;
    let _ = ask(root, &Asked::Look(name.clone()));
    if !context.globals.quiet {
        let mount = match backing.as_deref().map(Path::display) {
            Some(backing) => format!("backstay mount {backing} --name {name}"),
            None => format!("backstay mount --name {name}"),
        };
        eprintln!("{name}: taken back; nothing was lost. To serve it again: {mount}");
    }
    Ok(())
}

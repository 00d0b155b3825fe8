//! The source's side: handing over, and taking back.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use backstay_driver::backing::record::BackingRecord;
use backstay_format::{DiskId, DiskName, Term};
use backstay_recovery::failover::vault::{Withdrawn, hand_over, withdraw};
use backstay_recovery::failover::{
    FailoverRecord, Kind, PointRef, State, now_unix_ns, step, stopped,
};
use backstay_sidecar::protection::Protection;
use backstay_sidecar::record::Record;
use backstay_sidecar::requests::{Asked, ask};
use backstay_vault::Vault;

use super::super::cycle::run_once;
use super::super::target::time;
use super::local;
use crate::context::Context;
use crate::exit::Refused;

/// Stops the disk, ships its last changes, and lays its term down.
pub fn handover(context: &Context, name: &DiskName) -> anyhow::Result<()> {
    let root = &context.roots.state;
    let mut record = match FailoverRecord::load(root, name)? {
        Some(record) if record.kind == Kind::Source => match record.state {
            State::HandedOver => return say(context, &record),
            State::HandingOver => record,
            _ => {
                bail!("disk {name} is being taken back: run backstay failover cancel {name} again")
            }
        },
        Some(record) if record.state == State::Committed => {
            let begun = begin(context, name)?;
            record.become_another(root, &begun)?;
            begun
        }
        Some(record) => {
            return Err(Refused(format!(
                "disk {name} is {} on this host; commit or cancel that first. Nothing was changed",
                record.state.explain()
            ))
            .into());
        }
        None => {
            let begun = begin(context, name)?;
            begun.begin(root)?;
            begun
        }
    };
    if let Some(point) = laid_down(context, &record)? {
        (record.point, record.after) = (Some(point), point.term);
        record.enter(root, State::HandedOver)?;
        return say(context, &record);
    }
    quiet(context, &record)?;
    // Whoever runs a cycle now finds a disk that nobody writes.
    let last = ship_last(context, &record);
    step();
    local::stop_after_cycle(context, name)?;
    last?;
    let (disk, base) = stopped::exactly_at(name, &context.roots.disk(name))?;
    let vault = Vault::open(&record.vault)?;
    let point = hand_over(&vault, name, base.vault_disk, &stopped::writer(disk), base.cycle)?;
    record.disk = base.vault_disk;
    (record.point, record.after) = (Some(point), point.term);
    record.enter(root, State::HandedOver)?;
    say(context, &record)
}

/// The point at which the term was laid down already, by a command that was killed before it could note that: no
/// other point may come after it.
fn laid_down(context: &Context, record: &FailoverRecord) -> anyhow::Result<Option<PointRef>> {
    let (name, paths) = (&record.name, context.roots.disk(&record.name));
    let Some(superblock) = stopped::superblock(&paths) else { return Ok(None) };
    let vault = Vault::open(&record.vault)?;
    let handover = vault.handover(record.disk)?;
    let Some(handover) = handover.filter(|h| h.writer == stopped::writer(superblock.disk)) else {
        return Ok(None);
    };
    local::stop_after_cycle(context, name)?;
    let (_, base) = stopped::exactly_at(name, &paths)?;
    if (base.cycle, base.point) != (handover.cycle, handover.point) {
        bail!(
            "disk {name} was handed over at recovery point {}, and counts from point {} now: cancel the handover \
             (backstay failover cancel {name}) and begin anew",
            handover.cycle,
            base.cycle
        );
    }
    Ok(Some(PointRef { cycle: base.cycle, point: base.point, term: handover.term }))
}

/// What is known before anything is changed; refuses a disk that is in use.
fn begin(context: &Context, name: &DiskName) -> anyhow::Result<FailoverRecord> {
    let paths = context.roots.disk(name);
    let superblock = stopped::superblock(&paths)
        .with_context(|| format!("there is no disk {name} in {}", context.roots.state.display()))?;
    let status = local::driver(context, name);
    if let Some(status) = &status {
        local::refuse_if_used(name, status)?;
    }
    let base = status.as_ref().and_then(|status| status.base).or(superblock.base);
    let Some(base) = base else {
        let message = format!(
            "disk {name} has no recovery point yet: there is nothing to hand over. Run backstay cycle {name} \
             first. Nothing was changed"
        );
        return Err(Refused(message).into());
    };
    let sidecar = Record::load(&paths.state);
    if sidecar.failure.as_ref().is_some_and(|failure| failure.fenced) {
        let message = format!(
            "disk {name} was failed over already: {}. Nothing was changed",
            sidecar.failure.map_or(String::new(), |failure| failure.message)
        );
        return Err(Refused(message).into());
    }
    // A vault that is gone, or a disk that was failed over, is found out while the disk is still served.
    let url = context.config.vault_of(name).to_owned();
    let newest = Vault::open(&url)?.newest_term(base.vault_disk)?;
    let newest = newest.with_context(|| format!("disk {name} has no term in {url}"))?;
    if newest.writer != stopped::writer(superblock.disk) {
        let message = format!(
            "disk {name} was failed over already: term {} belongs to {}. Nothing was changed",
            newest.term, newest.writer
        );
        return Err(Refused(message).into());
    }
    Ok(FailoverRecord {
        name: name.clone(),
        kind: Kind::Source,
        state: State::HandingOver,
        vault: url,
        disk: base.vault_disk,
        disk_name: name.clone(),
        point: None,
        after: Term(0),
        backing: backing(context, name),
        next: None,
        group: None,
        since_unix_ns: now_unix_ns(),
    })
}

/// The backing that a disk was served from; none of a mounted point.
pub fn backing(context: &Context, name: &DiskName) -> Option<PathBuf> {
    let state = context.roots.disk(name).state;
    if state.join("mounted").exists() {
        return None;
    }
    let seen = BackingRecord::load(&state).backing.map(|seen| seen.path);
    seen.or_else(|| Protection::load(&state).map(|protection| protection.backing))
}

/// Where the disk is served while its last changes are shipped: nobody knows the place, and others than
/// root cannot enter it.
fn private(context: &Context, name: &DiskName) -> PathBuf {
    context.roots.disk(name).runtime.join("handover")
}

/// Stops the disk as its users know it, and serves it where they cannot write.
fn quiet(context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
    let name = &record.name;
    let place = private(context, name);
    if let Some(status) = local::driver(context, name) {
        if status.served.starts_with(&place) {
            return Ok(());
        }
        local::refuse_if_used(name, &status)?;
        local::stop(context, name)?;
    }
    step();
    let at = place.display().to_string();
    let mut args = vec!["--quiet", "mount", "--name", name.as_str(), "--mount-point", &at];
    let backing = record.backing.as_ref().map(|backing| backing.display().to_string());
    args.extend(backing.as_deref());
    args.push("--handing-over");
    local::again(context, &args)?;
    Ok(())
}

/// The last cycle, unless nothing was written since the one before.
fn ship_last(context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
    let name = &record.name;
    loop {
        step();
        match run_once(context, name, Some(&record.vault)) {
            Ok(report) => {
                tracing::info!("disk {name}: last recovery point {}", report.cycle);
                return Ok(());
            }
            // The sidecar's own cycle runs; it may have begun before the disk was quiet.
            Err(e) if is_busy(&e) => std::thread::sleep(std::time::Duration::from_millis(200)),
            Err(e) => {
                return Err(e.context(format!(
                    "disk {name} was not handed over; run this again, or backstay failover cancel {name}"
                )));
            }
        }
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|e| e.downcast_ref::<backstay_sidecar::CycleError>().is_some_and(|e| e.is_busy()))
}

fn say(context: &Context, record: &FailoverRecord) -> anyhow::Result<()> {
    if context.globals.json {
        return context.print_json(record);
    }
    if !context.globals.quiet {
        let point = record.point.map_or("-".into(), |point: PointRef| point.cycle.to_string());
        eprintln!(
            "{}: handed over at recovery point {point} ({}). On the target: backstay failover planned {} \
             --vault {}",
            record.name,
            time(record.since_unix_ns),
            record.disk_name,
            record.vault
        );
    }
    Ok(())
}

/// Withdraws the handover; the disk can be mounted again.
pub fn take_back(context: &Context, mut record: FailoverRecord) -> anyhow::Result<()> {
    let (root, name) = (&context.roots.state, record.name.clone());
    let disk = stopped::superblock(&context.roots.disk(&name))
        .map(|superblock| superblock.disk)
        .with_context(|| format!("disk {name} has no state on this host any more"))?;
    record.enter(root, State::TakingBack)?;
    if let Some(status) = local::driver(context, &name)
        && status.served.starts_with(private(context, &name))
    {
        local::stop_after_cycle(context, &name)?;
    }
    let vault = Vault::open(&record.vault)?;
    match withdraw(&vault, record.disk, &writer_of(disk))? {
        Withdrawn::Done => {}
        Withdrawn::TooLate(term) => {
            record.enter(root, State::HandingOver)?;
            if record.point.is_some() {
                record.enter(root, State::HandedOver)?;
            }
            return Err(Refused(format!(
                "disk {name} cannot be taken back: it was failed over, term {} belongs to {}. To have it \
                 here again: backstay failback {name} --to BACKING",
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

fn writer_of(disk: DiskId) -> String {
    stopped::writer(disk)
}

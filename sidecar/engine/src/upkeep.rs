//! Upkeep of vaults after cycles: retention, merging, collection.
//!
//! One thread does this for all disks while their cycles run, which is safe at any time. Its uploads count
//! against the throttle. When the process ends, nothing waits for this thread: stopping it at any step is
//! as safe as a kill.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_types::{DiskId, DiskName};
use backstay_vault::retain::{Policy, Report, Time, maintain};
use backstay_vault::{Vault, VaultError, Vaults};
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::config::Config;
use crate::record::{Record, note_retained, note_upkeep};
use crate::rollback_guard;
use crate::scrub::Scrubbed;
use crate::throttle::Throttle;

/// From one upkeep of a disk to the next, at least.
const EVERY: Duration = Duration::from_secs(60);
/// The same where it failed: what was wrong may be mended.
const AGAIN: Duration = Duration::from_secs(10);
/// Disks that may wait for theirs; one more is told at its next cycle.
const WAITING_MAX: usize = 4096;

/// A disk that made a point.
struct Due {
    /// What vaults are opened with.
    vaults: Vaults,
    name: DiskName,
    /// Its state directory.
    state: PathBuf,
    url: String,
    policy: Policy,
}

/// What upkeep sends takes its turn here, with the disks' uploads.
static THROTTLE: OnceLock<Arc<Throttle>> = OnceLock::new();

/// How a disk is maintained.
#[must_use]
pub fn policy(config: &Config, name: &DiskName, thorough: bool) -> Policy {
    Policy {
        keep: config.keep_of(name).cloned(),
        thorough,
        merge: true,
        segment_bytes: config.ship.segment_size.as_u64(),
        zstd_level: config.ship.zstd_level,
    }
}

/// The throttle that upkeep shares with the disks, from now on. The first one counts.
pub fn share(throttle: &Arc<Throttle>) {
    let _ = THROTTLE.set(Arc::clone(throttle));
}

/// Tells that a disk made a point: its vault is looked after soon, at most once a minute. If that
/// fails, it is written down in the disk's state directory, for its health.
pub fn after_cycle(config: &Config, name: &DiskName, url: &str, state: &Path) {
    static LAST: Mutex<BTreeMap<DiskName, Instant>> = Mutex::new(BTreeMap::new());
    static WORKER: OnceLock<Option<Sender<Due>>> = OnceLock::new();
    // Behind a gateway retention is the gateway's: a source may not delete anything. What it has deleted is to be seen.
    if is_gateways(url) && !knows_damage(state) {
        return;
    }
    let Some(worker) = WORKER.get_or_init(start) else { return };
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let every = if Record::load(state).upkeep.is_some() { AGAIN } else { EVERY };
    if last.get(name).is_some_and(|at| clock::since(*at) < every) {
        return;
    }
    let policy = policy(config, name, false);
    let vaults = config.vaults.clone();
    let due = Due { vaults, name: name.clone(), state: state.into(), url: url.into(), policy };
    if worker.try_send(due).is_ok() {
        last.insert(name.clone(), clock::monotonic());
    }
}

/// Whether the vault's gateway does the maintenance.
fn is_gateways(url: &str) -> bool {
    url.starts_with("https://")
}

/// Whether points of a disk are known to be damaged.
fn knows_damage(state: &Path) -> bool {
    Scrubbed::load(state).is_some_and(|scrubbed| !scrubbed.damaged.is_empty())
}

/// Others retire points, too: what is said of those that are gone ends with them.
fn forget_gone(vault: &Vault, disk: DiskId, state: &Path) -> Result<(), VaultError> {
    if knows_damage(state) {
        let there = vault.points(disk)?;
        Scrubbed::note_gone(state, |cycle| !there.contains(&cycle));
    }
    Ok(())
}

fn start() -> Option<Sender<Due>> {
    let (worker, jobs) = bounded(WAITING_MAX);
    match thread::Builder::new().name("upkeep".into()).spawn(move || work(&jobs)) {
        Ok(_) => Some(worker),
        Err(e) => {
            tracing::error!("points are not thinned out and segments not merged: {e}");
            None
        }
    }
}

fn work(jobs: &Receiver<Due>) {
    // Finding a disk by its name reads every disk's record.
    let mut known: BTreeMap<(String, DiskName), DiskId> = BTreeMap::new();
    for Due { vaults, name, state, url, policy } in jobs {
        let key = (url, name);
        let done = vaults.open(&key.0).and_then(|vault| {
            if let Some(root) = state.parent() {
                rollback_guard::keyring(root, &vault)?;
            }
            // Its name here need not be its name there.
            let shipped = Record::load(&state).last.and_then(|last| last.disk);
            let disk = match shipped.as_ref().or(known.get(&key)) {
                Some(&disk) => disk,
                None => *known.entry(key.clone()).or_insert(vault.disk_named(&key.1)?.disk),
            };
            vault.check_name(&key.1, disk)?;
            let vault = match THROTTLE.get() {
                Some(throttle) => vault.paced(Arc::<Throttle>::clone(throttle)),
                None => vault,
            };
            let root = state.parent().unwrap_or(&state);
            forget_gone(&vault, disk, &state)?;
            if is_gateways(&key.0) {
                return Ok(None);
            }
            maintain(&vault, disk, &policy, &Time::look(root), &AtomicBool::new(false)).map(Some)
        });
        let done = match done {
            Ok(None) => continue,
            Ok(Some(report)) => Ok(report),
            Err(e) if is_gateways(&key.0) => {
                tracing::debug!("disk {}: which points are gone: {e}", key.1);
                continue;
            }
            Err(e) => Err(e),
        };
        note_upkeep(&state, done.as_ref().err());
        if let Ok(report) = &done {
            note_retained(&state, &report.retired);
        }
        tell(&key.1, &done);
    }
}

fn tell(name: &DiskName, done: &Result<Report, VaultError>) {
    match done {
        Ok(report) if report.retired.deleted + report.merged.replaced == 0 => {
            tracing::debug!("disk {name}: nothing to retire or merge");
        }
        Ok(Report { retired, merged, collected }) => tracing::info!(
            "disk {name}: {} recovery points retired, {} kept; {} segments merged into {}; {} \
             segments deleted ({} bytes)",
            retired.retired.len(),
            retired.kept,
            merged.replaced,
            merged.segments,
            collected.deleted,
            collected.deleted_bytes
        ),
        Err(e) => tracing::error!(
            "disk {name}: maintenance of its vault failed: {e}. Cycles go on; run backstay prune {name} to \
             see whether this lasts"
        ),
    }
}

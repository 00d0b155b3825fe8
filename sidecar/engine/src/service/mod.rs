//! The service: finds the disks that drivers serve on this host and runs their cycles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstay_driver::paths::Roots;
use backstay_format::DiskName;
use backstay_vault::Class;
use crossbeam_channel::{Receiver, bounded, select, tick};

use crate::config::Config;
use crate::cycle::{CycleJob, run};
use crate::error::CycleError;
use crate::group::service::Groups;
use crate::record::Record;
use crate::schedule::{Last, next};

/// How often new disks are looked for and the schedule is read.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A cycle that ended.
struct Ended {
    name: DiskName,
    began: Duration,
    result: Result<(), (Class, u32)>,
}

/// Runs cycles until `stop` gets a message; then ends the ones that run.
///
/// # Errors
/// If threads cannot be started.
pub fn serve(config: &Config, roots: &Roots, stop: &Receiver<()>) -> std::io::Result<()> {
    let clock = Instant::now();
    let stopping = Arc::new(AtomicBool::new(false));
    let (ended, endings) = bounded::<Ended>(config.slots.max(1));
    let ticks = tick(LOOK_EVERY);
    let mut history: BTreeMap<DiskName, Last> = BTreeMap::new();
    let mut running: BTreeMap<DiskName, thread::JoinHandle<()>> = BTreeMap::new();
    let groups = Groups::start(config, roots, &stopping);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        select! {
            recv(ticks) -> _ => {}
            recv(endings) -> end => if let Ok(end) = end {
                if let Some(thread) = running.remove(&end.name) {
                    let _ = thread.join();
                }
                let now = clock.elapsed();
                let last = match end.result {
                    Ok(()) => Last::Done { began: end.began, ended: now },
                    Err((class, failures)) => Last::Failed { ended: now, failures, class },
                };
                history.insert(end.name, last);
            },
            recv(stop) -> _ => break,
        }
        for name in roots.disks_with_socket() {
            if groups.take(&name) {
                continue;
            }
            let now = clock.elapsed();
            let mut last = history.get(&name).copied().unwrap_or(Last::None);
            if matches!(last, Last::Failed { class: Class::PersonMustAct, .. })
                && Record::load(&roots.disk(&name).state).failures == 0
            {
                // Somebody mended it and ran a cycle by hand.
                last = Last::None;
            }
            let due = next(last, config.interval_of(&name), now).is_some_and(|at| at <= now);
            if !due || running.contains_key(&name) || running.len() >= config.slots.max(1) {
                continue;
            }
            let (config, roots, ended) = (config.clone(), roots.clone(), ended.clone());
            let (stopping, disk) = (Arc::clone(&stopping), name.clone());
            let thread = thread::Builder::new().name("cycle".into()).spawn(move || {
                let result = one_cycle_or_panic(&config, &roots, &disk, &stopping);
                let _ = ended.send(Ended { name: disk, began: now, result });
            })?;
            running.insert(name, thread);
        }
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stopping.store(true, Ordering::Relaxed);
    drop(endings);
    groups.join();
    for (name, thread) in running {
        if thread.join().is_err() {
            tracing::error!("disk {name}: a cycle panicked");
        }
    }
    Ok(())
}

/// A cycle that panics must not take its disk out of the schedule for ever. The driver folds back
/// when the connection ends, so it is as safe as any other failure.
fn one_cycle_or_panic(
    config: &Config,
    roots: &Roots,
    name: &DiskName,
    stop: &AtomicBool,
) -> Result<(), (Class, u32)> {
    let cycle = || one_cycle(config, roots, name, stop);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(cycle)).unwrap_or_else(|_| {
        let paths = roots.disk(name);
        let mut record = Record::load(&paths.state);
        let broken = Err(CycleError::Broken("a thread panicked"));
        record.note(&broken, config.vault_of(name), &paths.state);
        tracing::error!("disk {name}: a cycle panicked");
        Err((Class::Recoverable, record.failures))
    })
}

/// Runs a cycle and remembers how it went.
fn one_cycle(
    config: &Config,
    roots: &Roots,
    name: &DiskName,
    stop: &AtomicBool,
) -> Result<(), (Class, u32)> {
    let paths = roots.disk(name);
    let (socket, url) = (paths.control_socket(), config.vault_of(name));
    let mut record = Record::load(&paths.state);
    let result = record.open_vault(url).map_err(CycleError::from).and_then(|vault| {
        let job = CycleJob {
            socket: &socket,
            vault: &vault,
            ship: &config.ship,
            progress: &|_, _, _| (),
            stop,
        };
        run(&job)
    });
    match &result {
        // Neither is the disk's trouble: it was unmounted, or we were told to stop.
        Err(CycleError::Stopped) => return Ok(()),
        Err(CycleError::Driver(backstay_driver::control::ClientError::NotRunning { .. })) => {
            return Ok(());
        }
        Err(e) if e.is_busy() => return Ok(()),
        _ => record.note(&result, url, &paths.state),
    }
    match result {
        Ok(report) => {
            tracing::info!(
                "disk {name}: recovery point {} ({} bytes moved, {} stored, {:?})",
                report.cycle,
                report.moved,
                report.stored,
                report.duration
            );
            Ok(())
        }
        Err(e) => {
            tracing::error!("disk {name}: {e}");
            Err((e.class(), record.failures))
        }
    }
}

/// A channel that gets a message on SIGTERM and SIGINT.
///
/// # Errors
/// If the signals cannot be waited for.
pub fn stop_on_signals() -> std::io::Result<Receiver<()>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let (stop, stopped) = bounded(1);
    thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            let _ = stop.try_send(());
        }
    })?;
    Ok(stopped)
}

//! The service: finds the disks that drivers serve on this host, and runs their cycles.
//!
//! One thread watches the disks and decides what runs (see [`crate::schedule`]). Each cycle runs on its
//! own thread. The phase of a disk, its next due time and its last failure are in the disk's record,
//! where `backstay status` reads them.

pub mod alive;
mod ask;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstay_format::control::DriverStatus;
use backstay_front::control::Silence;
use backstay_front::paths::Roots;
use backstay_host::clock::trusted::{self, Doubt};
use backstay_host::clock::{self, now_unix_ns};
use backstay_host::stamp::{self, Stamp};
use backstay_types::{Class, Classified, DiskName};
use crossbeam_channel::{Receiver, Sender, bounded, select, tick, unbounded};

use crate::config::Config;
use crate::cycle::resync;
use crate::cycle::turn::Turn;
use crate::group::Current;
use crate::group::service::{Groups, With};
use crate::hooks;
use crate::jobs::JobBook;
use crate::key_health::{Care, DisksOf};
use crate::phase::Event;
use crate::protection::{Protection, is_only_looked_at};
use crate::record::Record;
use crate::reload::ConfigWatch;
use crate::requests::{Asked, take};
use crate::schedule::{Outcome, Schedule, Settings, Slots, Work};
use crate::scrub::{self, Scrubbed, Scrubs};
use crate::throttle::Throttle;
use crate::upkeep;
use crate::windows::{self, may_begin};
pub use alive::is_running;
use ask::Drivers;
use worker::{Cycle, Ended};

/// Delay before the next cycle of a disk that a person has resumed. Without it, a disk whose record
/// cannot be written would be resumed in a busy loop.
const RESUME_DELAY: Duration = Duration::from_secs(2);
/// How often the service looks for new disks and due cycles.
const TICK: Duration = Duration::from_millis(500);

/// Why the service did not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Another sidecar runs.
    #[error("another sidecar is at work for {0}: one is enough for a host")]
    Running(std::path::PathBuf),
    /// A system call failed.
    #[error("the sidecar: {0}")]
    Io(#[from] std::io::Error),
}

impl Classified for ServiceError {
    fn class(&self) -> Class {
        match self {
            Self::Running(_) => Class::Refused,
            Self::Io(e) => e.class(),
        }
    }
}

/// Runs cycles until `stop` gets a message, then stops the running cycles. Follows changes of the
/// configuration. A running cycle keeps its settings, except for the throttle.
///
/// # Errors
/// If another sidecar runs, or threads cannot be started.
pub fn serve(
    mut watch: ConfigWatch,
    roots: &Roots,
    stop: &Receiver<()>,
) -> Result<(), ServiceError> {
    let _lock = alive::only_one(roots)?;
    let mut pulse = alive::Pulse::new(roots);
    pulse.beat();
    watch.look_on_hangup()?;
    let config = Arc::clone(watch.config());
    let throttle = Arc::new(Throttle::new(config.throttle.clone(), config.zone()));
    upkeep::share(&throttle);
    let (ended, endings) = unbounded::<Ended>();
    let jobs = JobBook::below(&roots.state);
    jobs.tidy();
    let mut service = Service {
        roots,
        schedule: Schedule::new(slots(&config)),
        config,
        throttle,
        clock: clock::monotonic(),
        stopping: Arc::default(),
        ended,
        running: BTreeMap::new(),
        asked: BTreeMap::new(),
        shown: BTreeMap::new(),
        ending: BTreeSet::new(),
        groups: None,
        jobs,
        key_checks: Care::default(),
        doubt: None,
        drivers: Drivers::default(),
        turn: 0,
        troubled: BTreeSet::new(),
        undated: BTreeSet::new(),
        scrubs: Scrubs::default(),
        credentials: None,
    };
    service.groups = Some(Arc::new(Groups::start(With {
        config: &Current::new(Arc::clone(&service.config)),
        roots,
        throttle: &service.throttle,
        stop: &service.stopping,
    })));
    let mending = mend_hooks(roots)?;
    let ticks = tick(TICK);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        select! {
            recv(ticks) -> _ => {
                pulse.beat();
                if let Some(new) = watch.look() {
                    service.take_config(&new);
                }
                service.find_disks_and_requests();
                service.check_credentials();
                service.check_keys()?;
                service.check_clock();
                service.start_scrub()?;
            }
            recv(endings) -> end => if let Ok(end) = end {
                service.note_end(end);
            },
            recv(stop) -> _ => break,
        }
        service.record_due_times();
        service.start_all()?;
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    service.stop();
    let _ = mending.join();
    Ok(())
}

/// Thaws applications that a killed hook guardian has left frozen. Runs on its own thread, because post
/// commands may be slow.
fn mend_hooks(roots: &Roots) -> std::io::Result<thread::JoinHandle<()>> {
    let roots = roots.clone();
    thread::Builder::new().name("mend".into()).spawn(move || {
        for name in roots.disks_with_socket() {
            if let Some(did) = hooks::mend(&roots.disk(&name).runtime) {
                tracing::warn!("disk {name}: {did}");
            }
        }
    })
}

fn slots(config: &Config) -> Slots {
    Slots { all: config.slots, per_device: config.slots_per_device }
}

struct Service<'a> {
    roots: &'a Roots,
    /// The configuration, merged with the settings given to `backstay protect`.
    config: Arc<Config>,
    throttle: Arc<Throttle>,
    schedule: Schedule,
    /// The zero of the schedule's instants.
    clock: Instant,
    stopping: Arc<AtomicBool>,
    ended: Sender<Ended>,
    running: BTreeMap<DiskName, thread::JoinHandle<()>>,
    /// Disks with a requested cycle that has not started.
    asked: BTreeMap<DiskName, Work>,
    /// The event last written to the record of each waiting disk.
    shown: BTreeMap<DiskName, Event>,
    /// Disks whose protection is being ended.
    ending: BTreeSet<DiskName>,
    /// A group cuts and ships its disks itself while it makes rounds.
    groups: Option<Arc<Groups>>,
    jobs: JobBook,
    key_checks: Care,
    /// Why the last check did not trust the clock.
    doubt: Option<Doubt>,
    drivers: Drivers,
    /// Counts ticks, so that every disk has its turn in [`Self::check_one_disk`].
    turn: usize,
    /// Disks whose next due time must be written to the record.
    undated: BTreeSet<DiskName>,
    /// Disks whose driver has a problem that was logged.
    troubled: BTreeSet<DiskName>,
    scrubs: Scrubs,
    /// The state of the credentials file at the last check.
    credentials: Option<Stamp>,
}

impl Service<'_> {
    /// Checks that the keys of encrypted vaults can be found.
    fn check_keys(&mut self) -> std::io::Result<()> {
        let mut disks = DisksOf::new();
        for name in self.roots.disks_with_socket().iter().filter(|name| self.schedule.has(name)) {
            let of = disks.entry(self.config.vault_of(name).into()).or_default();
            of.push(self.roots.disk(name).state);
        }
        self.key_checks.look(&self.config.vaults, disks, self.config.encryption.stale())
    }

    /// Checks the clock for a jump. The result is stored, so that other commands see the jump too.
    fn check_clock(&mut self) {
        let doubt = trusted::look(&self.roots.state).doubt;
        match &doubt {
            Some(doubt) if self.doubt.is_none() => tracing::error!(
                "{doubt}: no recovery point is retired until the clock agrees again or a person confirms that it \
                 is right (backstay prune NAME --accept-clock)"
            ),
            None if self.doubt.is_some() => {
                tracing::warn!("the clock of this host is trusted again")
            }
            _ => {}
        }
        self.doubt = doubt;
    }

    /// Starts a scrub if one is due.
    fn start_scrub(&mut self) -> std::io::Result<()> {
        if self.scrubs.is_running() {
            return Ok(());
        }
        let Some(due) = self.due_scrub() else { return Ok(()) };
        self.scrubs.begin(due, &self.jobs, &self.stopping)
    }

    fn due_scrub(&self) -> Option<scrub::Due> {
        let names = self.roots.disks_with_socket();
        names.into_iter().filter(|name| self.schedule.has(name)).find_map(|name| {
            let every = self.config.scrub_of(&name);
            let (state, url) = (self.roots.disk(&name).state, self.config.vault_of(&name));
            // Points behind a gateway are scrubbed on the gateway's host.
            let here = !url.starts_with("https://");
            let scrubbed = Scrubbed::load(&state).unwrap_or_default();
            if !here || scrubbed.due(every).is_none_or(|due| due > now_unix_ns()) {
                return None;
            }
            Some(scrub::Due {
                vaults: self.config.vaults.clone(),
                url: url.into(),
                disk: Record::load(&state).last?.disk?,
                backing: self.driver(&name)?.backing,
                limit: self.config.scrub_limit.limit().map(NonZeroU64::get),
                state,
                name,
            })
        })
    }

    /// Retries at once what a store refused, when the credentials have changed.
    fn check_credentials(&mut self) {
        let file = self.config.store.credentials_file.as_deref();
        let now = file.and_then(stamp::of);
        if std::mem::replace(&mut self.credentials, now) != now {
            self.wake_refused();
        }
    }

    /// Makes disks due at once whose store refused a request: the cause may be fixed.
    fn wake_refused(&mut self) {
        let now = clock::since(self.clock);
        for name in &self.roots.disks_with_socket() {
            let failure = Record::load(&self.roots.disk(name).state).failure;
            if failure.is_some_and(|failure| failure.person_must_act && failure.tried_again) {
                self.schedule.wake(name, now);
            }
        }
    }

    fn take_config(&mut self, new: &Arc<Config>) {
        self.key_checks.soon();
        self.wake_refused();
        self.throttle.set(new.throttle.clone(), new.zone());
        self.schedule.set_slots(slots(new));
        let mut config = Config::clone(new);
        config.add_protections(self.roots, &self.roots.disks_with_socket());
        self.config = Arc::new(config);
        if let Some(groups) = &self.groups {
            groups.follow(&self.config);
        }
        for name in self.roots.disks_with_socket() {
            if let Some(device) = self.schedule.device(&name) {
                let settings = self.settings(&name, device);
                self.schedule.put(&name, settings, Work::Delta, None);
            }
        }
    }

    /// Finds disks that came or went, and takes requests from commands.
    fn find_disks_and_requests(&mut self) {
        let names = self.roots.disks_with_socket();
        let new: Vec<_> = names
            .iter()
            .filter(|name| !self.schedule.has(name) && !self.ending.contains(*name))
            .cloned()
            .collect();
        if !new.is_empty() {
            let mut config = Config::clone(&self.config);
            config.add_protections(self.roots, &new);
            self.config = Arc::new(config);
            if let Some(groups) = &self.groups {
                groups.follow(&self.config);
            }
            new.iter().for_each(|name| self.add(name));
        }
        self.check_one_disk(&names);
        let ending = &self.ending;
        self.schedule.keep(|name| names.binary_search(name).is_ok() && !ending.contains(name));
        for asked in take(&self.roots.state) {
            let now = clock::since(self.clock);
            match asked {
                Asked::Cycle(name) => {
                    self.schedule.needs(&name, Work::OnDemand, false);
                    self.schedule.wake(&name, now);
                    self.asked.insert(name, Work::OnDemand);
                }
                Asked::Look(name) => {
                    if is_ending(&self.roots.disk(&name).state) {
                        self.ending.insert(name);
                        continue;
                    }
                    self.ending.remove(&name);
                    if let Some((work, begun)) = self.find_work(&name) {
                        self.schedule.needs(&name, work, begun);
                    }
                    if Record::load(&self.roots.disk(&name).state).failures == 0 {
                        self.schedule.wake(&name, now);
                    }
                }
            }
        }
    }

    /// Adds a disk whose driver answers. Its record decides when it is due, so that a restarted sidecar
    /// does not run the cycles of all disks at once.
    fn add(&mut self, name: &DiskName) {
        let paths = self.roots.disk(name);
        if is_only_looked_at(&paths.state) {
            return;
        }
        let Some(status) = self.driver(name) else { return };
        if is_ending(&paths.state) {
            return;
        }
        let device = fs::metadata(&status.backing).map_or(0, |meta| meta.dev());
        let settings = self.settings(name, device);
        let record = Record::load(&paths.state);
        let now = clock::since(self.clock);
        let due = match (&record.failure, &record.last) {
            (Some(failure), _) if failure.is_final() => None,
            (Some(failure), _) => {
                Some(self.instant(failure.at_unix_ns) + settings.retry.wait(record.failures))
            }
            (None, Some(last)) => Some(self.instant(last.cut_unix_ns) + settings.interval),
            (None, None) => Some(now),
        };
        let (work, begun) = work_of(&status, &record, self.roots, name);
        self.schedule.put(name, settings, work, due);
        self.schedule.needs(name, work, begun);
    }

    /// Converts a wall-clock time to an instant of the schedule. Times before the start become the start.
    fn instant(&self, unix_ns: u64) -> Duration {
        let ago = now_unix_ns().saturating_sub(unix_ns);
        clock::since(self.clock).saturating_sub(Duration::from_nanos(ago))
    }

    fn settings(&self, name: &DiskName, device: u64) -> Settings {
        Settings {
            device,
            interval: self.config.interval_of(name),
            retry: self.config.retry_of(name).clone(),
        }
    }

    fn driver(&self, name: &DiskName) -> Option<DriverStatus> {
        self.drivers.ask(name, &self.roots.disk(name))
    }

    /// Checks one disk per tick. Logs problems of its driver, which may be unable to write its own log.
    fn check_one_disk(&mut self, names: &[DiskName]) {
        self.turn += 1;
        let Some(name) = names.get(self.turn % names.len().max(1)) else { return };
        let paths = self.roots.disk(name);
        let status = self.driver(name);
        // A person may have run the resync that waits for its window.
        if let Some(status) = status.as_ref().filter(|_| self.waits_for_resync(name)) {
            let record = Record::load(&paths.state);
            let (work, begun) = work_of(status, &record, self.roots, name);
            self.schedule.needs(name, work, begun);
        }
        // A person resumed the disk: by running a cycle or resync, or by fixing the cause.
        if status.is_some() && self.is_stopped(name) && !Record::load(&paths.state).is_stopped() {
            if let Some((work, begun)) = self.find_work(name) {
                self.schedule.needs(name, work, begun);
            }
            self.schedule.wake(name, clock::since(self.clock) + RESUME_DELAY);
        }
        let trouble = match status {
            Some(status) => status
                .untracked
                .map(|untracked| format!("changes are not tracked: {}", untracked.error)),
            None => Silence::of(&paths).map(|silence| silence.to_string()),
        };
        match trouble {
            Some(trouble) if self.troubled.insert(name.clone()) => {
                tracing::error!("disk {name}: {trouble}");
            }
            Some(_) => {}
            None if self.troubled.remove(name) => {
                tracing::warn!("disk {name}: the problem reported before is over");
            }
            None => {}
        }
    }

    /// Whether the schedule retries nothing until a person acts.
    fn is_stopped(&self, name: &DiskName) -> bool {
        self.schedule.due(name).is_none() && !self.running.contains_key(name)
    }

    fn waits_for_resync(&self, name: &DiskName) -> bool {
        self.schedule.work(name) == Some(Work::Resync) && !self.running.contains_key(name)
    }

    /// What a disk's next cycle is for; `None` if its driver does not answer.
    fn find_work(&self, name: &DiskName) -> Option<(Work, bool)> {
        let status = self.driver(name)?;
        if let Some(&work) = self.asked.get(name) {
            return Some((work, false));
        }
        let record = Record::load(&self.roots.disk(name).state);
        Some(work_of(&status, &record, self.roots, name))
    }

    /// Starts every cycle that may begin, and records which disks wait.
    fn start_all(&mut self) -> std::io::Result<()> {
        let (now, config, roots) =
            (clock::since(self.clock), &Arc::clone(&self.config), self.roots);
        let groups = self.groups.clone();
        let grouped = |name: &DiskName| groups.as_ref().is_some_and(|groups| groups.take(name));
        loop {
            // A person waits for an on-demand cycle, so it does not wait for the group's next round.
            let free = |name: &DiskName, work| {
                (work == Work::OnDemand || !grouped(name)) && may_start(config, roots, name, work)
            };
            let started = self.schedule.start(now, free);
            let Some((name, work)) = started else { break };
            // The disk may need another kind of cycle by now.
            match self.find_work(&name) {
                Some((found, _)) if found == work => self.start(name, work)?,
                Some((found, begun)) => {
                    self.schedule.put_back(&name);
                    self.schedule.needs(&name, found, begun);
                }
                None => self.schedule.ended(&name, now, Outcome::Passed),
            }
        }
        for (name, work) in self.schedule.waiting(now) {
            if work != Work::OnDemand && grouped(name) {
                self.shown.remove(name);
                continue;
            }
            let event = match work {
                Work::Resync if !may_start(config, roots, name, work) => Event::Held,
                work => Event::Queued(work),
            };
            // Most waiting disks waited at the last tick too: write only changes.
            if self.shown.get(name) != Some(&event) {
                let state = roots.disk(name).state;
                // A person runs a cycle of this disk, and that cycle updates the record.
                let Ok(_turn) = Turn::take(&state, name, Duration::ZERO) else { continue };
                let mut record = Record::load(&state);
                end_killed(&mut record);
                record.happened(event);
                record.show(&state);
                self.shown.insert(name.clone(), event);
            }
        }
        Ok(())
    }

    fn start(&mut self, name: DiskName, work: Work) -> std::io::Result<()> {
        self.asked.remove(&name);
        self.shown.remove(&name);
        let state = self.roots.disk(&name).state;
        let Ok(turn) = Turn::take(&state, &name, Duration::ZERO) else {
            // A person runs a cycle of this disk, which may be all that is needed.
            self.schedule.ended(&name, clock::since(self.clock), Outcome::Passed);
            return Ok(());
        };
        let mut record = Record::load(&state);
        end_killed(&mut record);
        record.happened(Event::Queued(work));
        record.happened(Event::Began(work));
        record.show(&state);
        let cycle = Cycle {
            config: Arc::clone(&self.config),
            throttle: Arc::clone(&self.throttle),
            roots: self.roots.clone(),
            jobs: self.jobs.clone(),
            name: name.clone(),
            work,
            stop: Arc::clone(&self.stopping),
            ended: self.ended.clone(),
            turn: Some(turn),
        };
        let thread = thread::Builder::new().name("cycle".into()).spawn(move || cycle.run())?;
        self.running.insert(name, thread);
        Ok(())
    }

    fn note_end(&mut self, end: Ended) {
        if let Some(thread) = self.running.remove(&end.name) {
            let _ = thread.join();
        }
        self.schedule.ended(&end.name, clock::since(self.clock), end.outcome);
        if end.outcome != Outcome::Done
            && let Some((work, begun)) = self.find_work(&end.name)
        {
            self.schedule.needs(&end.name, work, begun);
        }
        // A cycle was requested while this one ran.
        if let Some(&work) = self.asked.get(&end.name) {
            self.schedule.needs(&end.name, work, false);
            self.schedule.wake(&end.name, clock::since(self.clock));
        }
        self.undated.insert(end.name);
    }

    /// Records the next due time of disks whose cycle has ended.
    fn record_due_times(&mut self) {
        let (schedule, roots, began) = (&self.schedule, self.roots, self.clock);
        self.undated.retain(|name| {
            let state = roots.disk(name).state;
            let Ok(_turn) = Turn::take(&state, name, Duration::ZERO) else { return state.exists() };
            let mut record = Record::load(&state);
            record.next_unix_ns = schedule.due(name).map(|due| {
                let wait = due.saturating_sub(clock::since(began));
                now_unix_ns() + wait.as_nanos() as u64
            });
            record.show(&state);
            false
        });
    }

    fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(groups) = self.groups.and_then(Arc::into_inner) {
            groups.join();
        }
        for (name, thread) in self.running {
            if thread.join().is_err() {
                tracing::error!("disk {name}: a cycle panicked");
            }
        }
    }
}

/// Corrects the phase that a killed process has left. The caller holds the disk's turn, so no cycle runs.
fn end_killed(record: &mut Record) {
    if record.phase.is_running() {
        record.happened(Event::Ended { has_points: record.last.is_some() });
    }
}

/// Whether a disk's protection is being ended. An unreadable file counts as no: the cycles then fail and
/// report it.
fn is_ending(state: &std::path::Path) -> bool {
    matches!(Protection::load(state), Ok(Some(protection)) if protection.ending)
}

/// What a disk's next cycle is for, and whether it continues work that was begun.
fn work_of(status: &DriverStatus, record: &Record, roots: &Roots, name: &DiskName) -> (Work, bool) {
    let state = roots.disk(name).state;
    let resyncs = status.resync.is_some() || status.lost_point_in_time.is_some();
    if status.base.is_none() && record.last.is_none() {
        (Work::Initial, record.failures > 0)
    } else if resyncs || resync::Request::load(&state).is_some() {
        (Work::Resync, resync::has_progress(&state))
    } else {
        (Work::Delta, false)
    }
}

/// Whether the disk's windows allow a cycle to begin now.
fn may_start(config: &Config, roots: &Roots, name: &DiskName, work: Work) -> bool {
    if work == Work::OnDemand {
        return true;
    }
    let (zone, now) = (config.zone(), windows::now());
    if may_begin(config.blackout_of(name), &zone, now).is_err() {
        return false;
    }
    let window = config.resync_window_of(name);
    work != Work::Resync
        || window.is_empty()
        || window.is_inside(now, &zone.time_zone())
        || resync::Request::load(&roots.disk(name).state).is_some_and(|asked| asked.now)
}

/// A channel that gets a message on SIGTERM and SIGINT.
///
/// # Errors
/// If the signal handlers cannot be installed.
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

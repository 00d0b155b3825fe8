//! Decides which disk's cycle runs next, with many disks and few slots.
//!
//! The schedule does no I/O and reads no clock. The caller passes the time, and whether a window is open.
//!
//! - A disk is *due* one interval after its last cycle began. It also rests for half the duration of that
//!   cycle, so that one disk cannot keep a slow vault busy all the time. An interval of zero means back
//!   to back, without a rest.
//! - The first delta is due when the initial copy ends.
//! - After a failure, the disk is due when its retry delay is over, or never if a person must act.
//! - Among due disks, on-demand cycles run first, then initial copies, resyncs and deltas. Among equals,
//!   work that was begun earlier runs first, then the disk that was due first.
//! - A running cycle occupies one slot of the sidecar and one slot of its backing device.

mod retry;

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_types::DiskName;
use serde::{Deserialize, Serialize};

pub use retry::Retry;

/// What a cycle is for, in order of priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// A person requested the cycle and waits for it.
    OnDemand,
    /// The disk has no recovery point yet.
    Initial,
    /// The disk must be compared, or its last cycle lost its point in time.
    Resync,
    /// Ships the changes.
    Delta,
}

/// The settings of a disk that the schedule needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's number of the device that holds the backing.
    pub device: u64,
    /// Time from one cut to the next.
    pub interval: Duration,
    /// Delays after failures.
    pub retry: Retry,
}

/// How many cycles may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// On the whole host, which has a single sidecar.
    pub all: usize,
    /// On each backing device.
    pub per_device: usize,
}

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A recovery point was committed.
    Done,
    /// It failed.
    Failed {
        /// Whether a retry may succeed.
        may_pass: bool,
        /// Failures since the last success, including this one.
        failures: u32,
    },
    /// It did not run, and nothing is wrong: another process runs the disk's cycle, or the sidecar stops.
    Passed,
}

#[derive(Debug)]
struct Disk {
    settings: Settings,
    /// What the next cycle is for.
    work: Work,
    /// The next cycle continues work that was begun.
    begun: bool,
    /// When the next cycle is due. `None`: not until a person acts.
    due: Option<Duration>,
    /// The running cycle, and when it began.
    running: Option<(Work, Duration)>,
}

/// The disks of a sidecar. Instants are durations since a fixed start that the caller chooses.
#[derive(Debug)]
pub struct Schedule {
    slots: Slots,
    disks: BTreeMap<DiskName, Disk>,
}

impl Schedule {
    /// A schedule without disks.
    #[must_use]
    pub fn new(slots: Slots) -> Self {
        Self { slots, disks: BTreeMap::new() }
    }

    /// Changes the number of slots. Running cycles continue.
    pub fn set_slots(&mut self, slots: Slots) {
        self.slots = slots;
    }

    /// Adds a disk that is due at `due` (`None`: not until a person acts). A disk that is already there
    /// only gets the new settings; if its interval became shorter, it is due earlier by the difference.
    pub fn put(&mut self, name: &DiskName, settings: Settings, work: Work, due: Option<Duration>) {
        match self.disks.get_mut(name) {
            None => {
                let disk = Disk { settings, work, begun: false, due, running: None };
                self.disks.insert(name.clone(), disk);
            }
            Some(disk) => {
                let earlier = disk.settings.interval.saturating_sub(settings.interval);
                disk.due = disk.due.map(|at| at.saturating_sub(earlier));
                disk.settings = settings;
            }
        }
    }

    /// Whether a disk is in the schedule.
    #[must_use]
    pub fn has(&self, name: &DiskName) -> bool {
        self.disks.contains_key(name)
    }

    /// The device that holds a disk's backing.
    #[must_use]
    pub fn device(&self, name: &DiskName) -> Option<u64> {
        Some(self.disks.get(name)?.settings.device)
    }

    /// Removes disks that are gone. A disk with a running cycle stays until the cycle ends.
    pub fn keep(&mut self, there: impl Fn(&DiskName) -> bool) {
        self.disks.retain(|name, disk| disk.running.is_some() || there(name));
    }

    /// Sets what a disk's next cycle is for, and whether it continues work that was begun.
    pub fn needs(&mut self, name: &DiskName, work: Work, begun: bool) {
        if let Some(disk) = self.disks.get_mut(name) {
            (disk.work, disk.begun) = (work, begun);
        }
    }

    /// Makes a disk due at `now`, unless it is due earlier.
    pub fn wake(&mut self, name: &DiskName, now: Duration) {
        if let Some(disk) = self.disks.get_mut(name) {
            disk.due = Some(disk.due.map_or(now, |due| due.min(now)));
        }
    }

    /// When a disk is due. `None` if a person must act first, or if the disk is not in the schedule.
    #[must_use]
    pub fn due(&self, name: &DiskName) -> Option<Duration> {
        self.disks.get(name)?.due
    }

    /// What a disk's next cycle is for.
    #[must_use]
    pub fn work(&self, name: &DiskName) -> Option<Work> {
        Some(self.disks.get(name)?.work)
    }

    /// Disks with a running cycle.
    pub fn running(&self) -> impl Iterator<Item = &DiskName> {
        self.disks.iter().filter(|(_, disk)| disk.running.is_some()).map(|(name, _)| name)
    }

    /// Disks that are due and not running, in the order in which they run.
    pub fn waiting(&self, now: Duration) -> Vec<(&DiskName, Work)> {
        let mut due: Vec<_> = self
            .disks
            .iter()
            .filter(|(_, disk)| disk.running.is_none() && disk.due.is_some_and(|at| at <= now))
            .collect();
        due.sort_by_key(|(name, disk)| (disk.work, !disk.begun, disk.due, *name));
        due.into_iter().map(|(name, disk)| (name, disk.work)).collect()
    }

    /// Takes slots for the next cycle, if one can start. `may` tells whether a disk's windows allow it.
    pub fn start(
        &mut self,
        now: Duration,
        may: impl Fn(&DiskName, Work) -> bool,
    ) -> Option<(DiskName, Work)> {
        let devices: Vec<u64> = self
            .disks
            .values()
            .filter(|disk| disk.running.is_some())
            .map(|disk| disk.settings.device)
            .collect();
        if devices.len() >= self.slots.all.max(1) {
            return None;
        }
        let free = |name: &DiskName| {
            let device = self.disks[name].settings.device;
            let taken = devices.iter().filter(|&&other| other == device).count();
            taken < self.slots.per_device.max(1)
        };
        let (name, work) =
            self.waiting(now).into_iter().find(|(name, work)| free(name) && may(name, *work))?;
        let name = name.clone();
        if let Some(disk) = self.disks.get_mut(&name) {
            disk.running = Some((work, now));
        }
        Some((name, work))
    }

    /// Undoes [`Self::start`] for a cycle that did not run. The disk stays due.
    pub fn put_back(&mut self, name: &DiskName) {
        if let Some(disk) = self.disks.get_mut(name) {
            disk.running = None;
        }
    }

    /// Frees the slots of a cycle, and decides when the disk is due next.
    pub fn ended(&mut self, name: &DiskName, now: Duration, outcome: Outcome) {
        let Some(disk) = self.disks.get_mut(name) else { return };
        let Some((work, began)) = disk.running.take() else { return };
        let interval = disk.settings.interval;
        disk.due = match outcome {
            Outcome::Done if work == Work::Initial || interval.is_zero() => Some(now),
            Outcome::Done => Some((began + interval).max(now + now.saturating_sub(began) / 2)),
            Outcome::Passed => {
                Some(now + interval.clamp(Duration::from_secs(1), Duration::from_secs(10)))
            }
            Outcome::Failed { may_pass: false, .. } => None,
            Outcome::Failed { may_pass: true, failures } => {
                Some(now + disk.settings.retry.wait(failures))
            }
        };
        if outcome == Outcome::Done {
            (disk.work, disk.begun) = (Work::Delta, false);
        }
    }
}

#[cfg(test)]
mod tests;

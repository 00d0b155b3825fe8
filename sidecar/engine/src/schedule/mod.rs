//! What runs next: many disks, few slots, one clock that tests can make up.
//!
//! Pure: it knows instants, not clocks; what the time is, and whether a window is open, it is told.
//!
//! - A disk is *due* one interval after its last cycle began, and not before half of that cycle's time
//!   has passed since it ended, so that a slow vault is not kept busy by one disk alone; an
//!   interval of zero means back to back. The first delta is due as soon as the initial copy ended.
//!   After a failure it is due when the retry says, or never if a person must act.
//! - Of those that are due, on-demand cycles go first, then initial copies, then resyncs, then deltas
//!   among equals those whose work was begun before, then who waited longest.
//! - A cycle takes a slot of the sidecar and one of its backing device, and keeps it to its end.

mod retry;

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_types::DiskName;
use serde::{Deserialize, Serialize};

pub use retry::Retry;

/// What a cycle is for; the first goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Somebody waits for it.
    OnDemand,
    /// The disk has no recovery point yet.
    Initial,
    /// It has to be compared, or lost its point in time.
    Resync,
    /// What changed.
    Delta,
}

/// What the schedule is told of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The device its backing is on, as the kernel numbers it.
    pub device: u64,
    /// From one cut to the next.
    pub interval: Duration,
    /// After failures.
    pub retry: Retry,
}

/// How many cycles at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// Of the sidecar, which is also the host: there is one sidecar a host.
    pub all: usize,
    /// Of each backing device.
    pub per_device: usize,
}

/// How a cycle ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A recovery point was committed.
    Done,
    /// It failed so many times in a row.
    Failed {
        /// Whether trying again may help.
        may_pass: bool,
        /// Failures since the last success, this one counted.
        failures: u32,
    },
    /// It did not run, and nothing is wrong: someone else is at it, or it was told to stop.
    Passed,
}

#[derive(Debug)]
struct Disk {
    settings: Settings,
    /// What its next cycle is for.
    work: Work,
    /// Its next cycle goes on with work that was begun before.
    begun: bool,
    /// When it is due; never, until a person acts, if not set.
    due: Option<Duration>,
    running: Option<(Work, Duration)>,
}

/// All disks of a sidecar. Instants count from any fixed one.
#[derive(Debug)]
pub struct Schedule {
    slots: Slots,
    disks: BTreeMap<DiskName, Disk>,
}

impl Schedule {
    /// Without disks.
    #[must_use]
    pub fn new(slots: Slots) -> Self {
        Self { slots, disks: BTreeMap::new() }
    }

    /// Changes the slots; cycles that run go on.
    pub fn set_slots(&mut self, slots: Slots) {
        self.slots = slots;
    }

    /// Adds a disk, due at `due`, or not until a person acts; one that is there gets new settings and keeps its place, but is due
    /// earlier if its interval became shorter.
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

    /// Whether a disk is in it.
    #[must_use]
    pub fn has(&self, name: &DiskName) -> bool {
        self.disks.contains_key(name)
    }

    /// The device a disk's backing is on.
    #[must_use]
    pub fn device(&self, name: &DiskName) -> Option<u64> {
        Some(self.disks.get(name)?.settings.device)
    }

    /// Forgets disks that are gone; one whose cycle runs stays until that ended.
    pub fn keep(&mut self, there: impl Fn(&DiskName) -> bool) {
        self.disks.retain(|name, disk| disk.running.is_some() || there(name));
    }

    /// Says what a disk's next cycle is for, and whether it goes on with work begun before.
    pub fn needs(&mut self, name: &DiskName, work: Work, begun: bool) {
        if let Some(disk) = self.disks.get_mut(name) {
            (disk.work, disk.begun) = (work, begun);
        }
    }

    /// Makes a disk due at once: somebody asks for it, or mended what was wrong.
    pub fn wake(&mut self, name: &DiskName, now: Duration) {
        if let Some(disk) = self.disks.get_mut(name) {
            disk.due = Some(disk.due.map_or(now, |due| due.min(now)));
        }
    }

    /// When a disk is due; `None` if a person must act first, or it is not in the schedule.
    #[must_use]
    pub fn due(&self, name: &DiskName) -> Option<Duration> {
        self.disks.get(name)?.due
    }

    /// What a disk's next cycle is for.
    #[must_use]
    pub fn work(&self, name: &DiskName) -> Option<Work> {
        Some(self.disks.get(name)?.work)
    }

    /// Disks whose cycles run.
    pub fn running(&self) -> impl Iterator<Item = &DiskName> {
        self.disks.iter().filter(|(_, disk)| disk.running.is_some()).map(|(name, _)| name)
    }

    /// Disks that are due and not running, in the order in which they will run.
    pub fn waiting(&self, now: Duration) -> Vec<(&DiskName, Work)> {
        let mut due: Vec<_> = self
            .disks
            .iter()
            .filter(|(_, disk)| disk.running.is_none() && disk.due.is_some_and(|at| at <= now))
            .collect();
        due.sort_by_key(|(name, disk)| (disk.work, !disk.begun, disk.due, *name));
        due.into_iter().map(|(name, disk)| (name, disk.work)).collect()
    }

    /// Takes the slots for the cycle that runs next, if one may: `may` says whether a disk's windows
    /// let it.
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

    /// Undoes a start: nothing ran. The disk stays due.
    pub fn put_back(&mut self, name: &DiskName) {
        if let Some(disk) = self.disks.get_mut(name) {
            disk.running = None;
        }
    }

    /// Gives the slots back.
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

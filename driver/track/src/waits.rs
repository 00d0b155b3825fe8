//! Measures how long the guest's oldest request has been waiting for the backing.
//!
//! A backing that hangs (a failed disk, NFS without its server, a frozen file system) does not even return
//! an error. So each request stores its start time in its own slot, and the status reports the oldest.

use std::time::{Duration, Instant};

use backstay_format::control::IoWait;
use backstay_host::clock;

use crate::sync::atomic::{AtomicU64, Ordering};

/// The kind of a guest's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read = 0,
    Write = 1,
    Flush = 2,
}

/// Number of requests that are measured at the same time, one per thread of the driver. Further requests
/// are served without being measured.
const SLOTS: usize = 32;
/// Shorter waits are not reported.
const TOLD_AFTER: Duration = Duration::from_secs(1);

/// The requests at the backing.
pub(crate) struct Waits {
    began: Instant,
    /// 0, or the nanoseconds from `began`, and in the lowest two bits what was asked for.
    slots: [AtomicU64; SLOTS],
}

impl Default for Waits {
    fn default() -> Self {
        Self { began: clock::monotonic(), slots: Default::default() }
    }
}

impl Waits {
    /// Runs a request that waits for the backing, and measures it.
    pub fn during<T>(&self, access: Access, work: impl FnOnce() -> T) -> T {
        let now = (clock::since(self.began).as_nanos() as u64).max(4) & !3 | access as u64;
        let free = |slot: &&AtomicU64| {
            slot.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        };
        let slot = self.slots.iter().find(free);
        let done = work();
        if let Some(slot) = slot {
            slot.store(0, Ordering::Relaxed);
        }
        done
    }

    /// The request that has waited longest, if it has waited long enough to report.
    pub fn oldest(&self, now_unix_ns: u64) -> Option<IoWait> {
        let slots = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let oldest = slots.filter(|&slot| slot != 0).min()?;
        let waits = clock::since(self.began).saturating_sub(Duration::from_nanos(oldest & !3));
        (waits >= TOLD_AFTER).then(|| IoWait {
            what: ["read", "write", "flush", "write"][(oldest & 3) as usize].into(),
            since_unix_ns: now_unix_ns.saturating_sub(waits.as_nanos() as u64),
        })
    }
}

//! Counters of a disk, and the errors of its backing.

use std::io;

use backstay_format::control::{Counters, IoTrouble};

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::waits::{Access, Waits};

/// Sums since the start.
#[derive(Default)]
pub(crate) struct Sums {
    pub reads: AtomicU64,
    pub read_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub flushes: AtomicU64,
    pub discards: AtomicU64,
    pub discarded_bytes: AtomicU64,
    io_errors: AtomicU64,
    failed: Failed,
    pub waits: Waits,
    pub preserved_sectors: AtomicU64,
    pub cuts: AtomicU64,
    pub cut_held_ns_last: AtomicU64,
    pub cut_held_ns_max: AtomicU64,
    pub intent_commits: AtomicU64,
}

/// Errors of the backing, by kind of request. Only changed on a failure.
#[derive(Default)]
struct Failed {
    sums: [AtomicU64; 3],
    /// The last one: its number in the upper half, what was asked for in the lower.
    last: AtomicU64,
    last_unix_ns: AtomicU64,
}

impl Sums {
    pub fn note_failure(&self, access: Access, error: &io::Error, now_unix_ns: u64) {
        self.io_errors.fetch_add(1, Ordering::Relaxed);
        self.failed.sums[access as usize].fetch_add(1, Ordering::Relaxed);
        let errno = error.raw_os_error().unwrap_or(libc::EIO) as u64;
        self.failed.last.store(errno << 32 | access as u64, Ordering::Relaxed);
        self.failed.last_unix_ns.store(now_unix_ns, Ordering::Relaxed);
    }

    /// The errors of the backing, if there were any.
    pub fn io_trouble(&self) -> Option<IoTrouble> {
        let at_unix_ns = self.failed.last_unix_ns.load(Ordering::Relaxed);
        let last = self.failed.last.load(Ordering::Relaxed);
        let sum = |access: Access| self.failed.sums[access as usize].load(Ordering::Relaxed);
        let what = ["read", "write", "flush"].get(last as u32 as usize)?;
        (at_unix_ns != 0).then(|| IoTrouble {
            what: (*what).into(),
            errno: (last >> 32) as i32,
            at_unix_ns,
            reads: sum(Access::Read),
            writes: sum(Access::Write),
            flushes: sum(Access::Flush),
        })
    }

    /// The counters for the status.
    pub fn counters(&self) -> Counters {
        let get = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Counters {
            reads: get(&self.reads),
            read_bytes: get(&self.read_bytes),
            writes: get(&self.writes),
            written_bytes: get(&self.written_bytes),
            flushes: get(&self.flushes),
            discards: get(&self.discards),
            discarded_bytes: get(&self.discarded_bytes),
            io_errors: get(&self.io_errors),
            intent_commits: get(&self.intent_commits),
            preserved_sectors: get(&self.preserved_sectors),
            cuts: get(&self.cuts),
            cut_held_ns_last: get(&self.cut_held_ns_last),
            cut_held_ns_max: get(&self.cut_held_ns_max),
        }
    }
}

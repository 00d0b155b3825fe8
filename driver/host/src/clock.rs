//! The clocks. Nobody else asks the system for the time or sleeps.
//!
//! The wall clock may jump in either direction at any time. Use it for what people read and for what
//! leaves this host; measure durations with [`monotonic`]. Whether it may decide about history says
//! [`trusted`].

pub mod trusted;

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock, in nanoseconds since 1970 (UTC). Zero if the clock is before 1970.
#[must_use]
pub fn now_unix_ns() -> u64 {
    now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// The wall clock.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The monotonic clock: it never jumps, and stands still while the host is suspended.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// How long ago a reading of the monotonic clock was.
#[must_use]
pub fn since(then: Instant) -> Duration {
    monotonic().saturating_duration_since(then)
}

/// Waits. For what can be waited for as an event, wait for the event instead.
#[allow(clippy::disallowed_methods, reason = "the one place that sleeps")]
pub fn sleep(duration: Duration) {
    thread::sleep(duration);
}

/// Nanoseconds since this boot, suspended time included (CLOCK_BOOTTIME). Compare two readings only
/// together with the boot they were taken in ([`boot_id`]).
#[must_use]
pub fn since_boot_ns() -> u64 {
    let clock = nix::time::ClockId::CLOCK_BOOTTIME;
    nix::time::clock_gettime(clock).map_or(0, |at| Duration::from(at).as_nanos() as u64)
}

/// The identity of this boot of the kernel, as the kernel writes it; empty if it cannot be read.
#[must_use]
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance() {
        assert!(now_unix_ns() > 1_700_000_000_000_000_000);
        let (boot, instant) = (since_boot_ns(), monotonic());
        sleep(Duration::from_millis(2));
        assert!(since_boot_ns() > boot && monotonic() > instant);
        assert_eq!(boot_id().len(), 36);
    }
}

//! When the next cycle of a disk runs: a pure function, tried by tests over made-up histories.

use std::time::Duration;

use backstay_vault::Class;

/// How the last cycle of a disk went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// There was none since the service started.
    None,
    /// It was committed. Times count from any fixed instant.
    Done {
        /// When it began.
        began: Duration,
        /// When it ended.
        ended: Duration,
    },
    /// It failed.
    Failed {
        /// When it ended.
        ended: Duration,
        /// Failures since the last success, this one counted.
        failures: u32,
        /// What can be done about it.
        class: Class,
    },
}

/// When the next cycle runs; `None` if a person must act first.
///
/// After a success: one interval after the last one began, and not before half of its time has
/// passed since it ended, so that a slow vault is not kept busy by one disk alone; an interval of
/// zero means back to back. After a failure: 1, 2, 4, 8, 10 minutes, then every 30.
#[must_use]
pub fn next(last: Last, interval: Duration, now: Duration) -> Option<Duration> {
    match last {
        Last::None => Some(now),
        Last::Done { ended, .. } if interval.is_zero() => Some(ended),
        Last::Done { began, ended } => {
            Some((began + interval).max(ended + ended.saturating_sub(began) / 2))
        }
        Last::Failed { class: Class::PersonMustAct, .. } => None,
        Last::Failed { ended, failures, class: Class::Recoverable } => {
            let minutes = match failures {
                0 | 1 => 1,
                2 => 2,
                3 => 4,
                4 => 8,
                5 => 10,
                _ => 30,
            };
            Some(ended + Duration::from_secs(60 * minutes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn after_success() {
        let done = |began, ended| Last::Done { began: s(began), ended: s(ended) };
        assert_eq!(next(Last::None, s(60), s(7)), Some(s(7)));
        assert_eq!(next(done(100, 110), s(60), s(110)), Some(s(160)));
        assert_eq!(next(done(100, 200), s(60), s(200)), Some(s(250)), "half of its time");
        assert_eq!(next(done(100, 200), s(0), s(200)), Some(s(200)), "back to back");
    }

    #[test]
    fn after_failures() {
        let failed = |failures, class| Last::Failed { ended: s(0), failures, class };
        let waits: Vec<_> = (1..8)
            .filter_map(|n| next(failed(n, Class::Recoverable), s(5), s(0)))
            .map(|t| t.as_secs() / 60)
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 30, 30]);
        assert_eq!(next(failed(1, Class::PersonMustAct), s(5), s(0)), None);
    }
}

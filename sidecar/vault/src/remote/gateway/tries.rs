//! When a request to a gateway is tried again: after a pause that doubles, with jitter, and not for ever.

use std::time::{Duration, Instant};

use backstay_host::clock;

use crate::remote::settings::StoreSettings;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(15);

/// The tries of one request.
pub(super) struct Tries {
    began: Instant,
    left: usize,
    pause: Duration,
    settings_retry: Duration,
    /// Bytes that were still to be moved when we were told to wait, least of all times.
    waiting_for: Option<u64>,
}

impl Tries {
    pub fn new(settings: &StoreSettings) -> Self {
        Self {
            began: clock::monotonic(),
            left: settings.retries,
            pause: FIRST,
            settings_retry: settings.retry_timeout,
            waiting_for: None,
        }
    }

    /// After a failure: how long to pause before another try; `None`: no more.
    pub fn failed(&mut self) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = self.pause.mul_f64(jitter());
        self.pause = (self.pause * 2).min(LONGEST);
        (clock::since(self.began) + pause < self.settings_retry).then_some(pause)
    }

    /// After "wait, so many bytes are on their way": that is no failure as long as they become fewer.
    pub fn waits(&mut self, bytes: u64) -> Option<Duration> {
        if self.waiting_for.is_none_or(|least| bytes < least) {
            self.waiting_for = Some(bytes);
            self.began = clock::monotonic();
        }
        (clock::since(self.began) < self.settings_retry).then_some(FIRST * 2)
    }
}

/// Between a half and one and a half.
fn jitter() -> f64 {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    0.5 + f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends() {
        let settings = StoreSettings {
            retries: 4,
            retry_timeout: Duration::from_secs(1000),
            ..StoreSettings::default()
        };
        let mut tries = Tries::new(&settings);
        let pauses: Vec<_> = std::iter::from_fn(|| tries.failed()).collect();
        assert_eq!(pauses.len(), 4);
        assert!(pauses.iter().all(|pause| *pause < LONGEST * 2), "{pauses:?}");
        let settings = StoreSettings { retry_timeout: Duration::ZERO, ..StoreSettings::default() };
        assert_eq!(Tries::new(&settings).failed(), None);
    }

    #[test]
    fn waiting_lasts_as_long_as_something_moves() {
        let settings = StoreSettings { retry_timeout: Duration::ZERO, ..StoreSettings::default() };
        let mut tries = Tries::new(&settings);
        // No time at all: only progress counts.
        tries.waits(10);
        assert_eq!(tries.waiting_for, Some(10));
        let began = tries.began;
        assert!(tries.waits(10).is_none() && tries.began == began);
        tries.waits(9);
        assert_eq!(tries.waiting_for, Some(9));
    }
}

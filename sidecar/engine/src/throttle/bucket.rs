//! How much may go at an instant: a token bucket, as a pure function of time.
//!
//! It fills at the limit and holds 0.4 seconds of it, so over any 10 seconds at most 4 % more than the
//! limit goes; and as long as anyone who waits comes back within that time (a busy machine, a vault that
//! stalls), not less either. Numbers are whole (billionths of a byte), so nothing is lost to rounding.

use std::time::Duration;

use super::Rate;

/// Steps a second in which a limit is let through.
const STEPS_PER_SECOND: u64 = 40;
/// The largest step, in bytes: even on a fast line a change of the limit is felt at once.
const STEP_BYTES_MAX: u64 = 1 << 20;
/// Of a limit, what may be saved up: two fifths of a second's.
const SAVED: (u64, u64) = (2, 5);
/// Billionths of a byte in a byte.
const UNIT: u128 = 1_000_000_000;

/// What a bucket says to who wants to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// That many bytes may go now.
    Go(u64),
    /// Ask again after this time.
    Wait(Duration),
}

/// A token bucket. Times count from any fixed instant and never go back.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: Rate,
    /// Billionths of bytes that may go.
    level: u128,
    /// When it was filled last.
    at: Duration,
}

impl Bucket {
    /// An empty bucket.
    #[must_use]
    pub fn new(rate: Rate, now: Duration) -> Self {
        Self { rate, level: 0, at: now }
    }

    /// The limit.
    #[must_use]
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Sets the limit. What was saved up stays, as far as there is room for it.
    pub fn set_rate(&mut self, rate: Rate, now: Duration) {
        self.fill(now);
        if self.rate == Rate::NONE {
            self.level = 0;
        }
        self.rate = rate;
        self.level = self.level.min(self.most());
    }

    /// Whether some of `want` bytes (at least 1) may go.
    pub fn ask(&mut self, want: u64, now: Duration) -> Answer {
        let Some(limit) = self.rate.limit() else { return Answer::Go(want) };
        self.fill(now);
        let step = want.min(self.step());
        let cost = u128::from(step) * UNIT;
        match cost.checked_sub(self.level).filter(|missing| *missing > 0) {
            None => {
                self.level -= cost;
                Answer::Go(step)
            }
            Some(missing) => {
                // Units a nanosecond are bytes a second.
                let nanos = missing.div_ceil(u128::from(limit.get()));
                Answer::Wait(Duration::from_nanos(nanos.try_into().unwrap_or(u64::MAX)))
            }
        }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_nanos();
        self.at = self.at.max(now);
        if let Some(limit) = self.rate.limit() {
            let filled = passed.saturating_mul(u128::from(limit.get()));
            self.level = self.level.saturating_add(filled).min(self.most());
        }
    }

    /// Bytes of one step.
    fn step(&self) -> u64 {
        let limit = self.rate.limit().map_or(0, std::num::NonZeroU64::get);
        (limit / STEPS_PER_SECOND).clamp(1, STEP_BYTES_MAX)
    }

    /// The most it holds: always a step, or nobody would ever go.
    fn most(&self) -> u128 {
        let limit = self.rate.limit().map_or(0, std::num::NonZeroU64::get);
        let saved = u128::from(limit) * u128::from(SAVED.0) * UNIT / u128::from(SAVED.1);
        saved.max(u128::from(self.step()) * UNIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends as much as it may from `from` on for `time`, waking up late by what `late` says; when
    /// each step went.
    fn send(
        bucket: &mut Bucket,
        from: Duration,
        time: Duration,
        mut late: impl FnMut() -> Duration,
    ) -> Vec<(Duration, u64)> {
        let mut now = from;
        let mut sent = vec![];
        while now < from + time {
            match bucket.ask(u64::MAX, now) {
                Answer::Go(bytes) => sent.push((now, bytes)),
                Answer::Wait(wait) => now += wait + late(),
            }
        }
        sent
    }

    /// The most and the least that went within any `width` that begins with a step.
    fn extremes(sent: &[(Duration, u64)], width: Duration, end: Duration) -> (u64, u64) {
        let (mut most, mut least, mut within, mut to) = (0, u64::MAX, 0, 0);
        for (at, bytes) in sent.iter().take_while(|(at, _)| *at + width <= end) {
            while let Some((_, next)) = sent.get(to).filter(|(then, _)| *then < *at + width) {
                within += next;
                to += 1;
            }
            (most, least) = (most.max(within), least.min(within));
            within -= bytes;
        }
        (most, least)
    }

    const TEN: Duration = Duration::from_secs(10);

    #[test]
    fn any_ten_seconds_are_within_five_percent() {
        let mut rng = fastrand::Rng::with_seed(5);
        for rate in [1 << 10, 100_000, 1 << 20, 10 << 20, 1 << 30] {
            let mut bucket = Bucket::new(Rate::bytes_per_second(rate), Duration::ZERO);
            // First idle, so that all is saved up that can be; then a thread that sleeps too long.
            let from = Duration::from_secs(60);
            let late = || Duration::from_millis(rng.u64(0..350));
            let sent = send(&mut bucket, from, Duration::from_secs(22), late);
            let (most, least) = extremes(&sent, TEN, from + Duration::from_secs(22));
            let tens = rate as f64 * 10.0;
            assert!(most as f64 <= tens * 1.05, "{rate}: {most}");
            assert!(least as f64 >= tens * 0.95, "{rate}: {least}");
        }
    }

    #[test]
    fn a_change_holds_at_once() {
        let at = Duration::from_secs;
        let mut bucket = Bucket::new(Rate::bytes_per_second(1 << 30), at(0));
        // What a second at the old limit had saved is not sent at the new one.
        bucket.set_rate(Rate::bytes_per_second(1 << 20), at(1));
        let sent: u64 = send(&mut bucket, at(1), TEN, || Duration::ZERO).iter().map(|s| s.1).sum();
        assert!(sent as f64 <= 10.5 * f64::from(1 << 20), "{sent}");
        // A tiny limit still lets something through.
        bucket.set_rate(Rate::bytes_per_second(1), at(11));
        let sent = send(&mut bucket, at(11), TEN, || Duration::ZERO);
        assert!((9..=11).contains(&sent.len()) && sent.iter().all(|s| s.1 == 1), "{sent:?}");
        bucket.set_rate(Rate::NONE, at(30));
        assert_eq!(bucket.ask(1 << 40, at(30)), Answer::Go(1 << 40));
        // Nothing was saved up while there was no limit.
        bucket.set_rate(Rate::bytes_per_second(1000), at(99));
        assert!(matches!(bucket.ask(1, at(99)), Answer::Wait(_)));
    }

    proptest! {
        /// Whatever is asked when: never more than the limit and what may be saved up.
        #[test]
        fn never_too_much(
            rate in 1u64..1 << 34,
            asked in prop::collection::vec((1u64..1 << 24, 0u64..1 << 28), 1..200),
        ) {
            let mut bucket = Bucket::new(Rate::bytes_per_second(rate), Duration::ZERO);
            let (mut now, mut sent) = (Duration::ZERO, 0u128);
            for (want, nanos) in asked {
                now += Duration::from_nanos(nanos);
                match bucket.ask(want, now) {
                    Answer::Go(bytes) => {
                        prop_assert!(bytes > 0 && bytes <= want);
                        sent += u128::from(bytes);
                    }
                    Answer::Wait(wait) => {
                        prop_assert!(!wait.is_zero());
                        // Who comes back then, goes.
                        let mut later = bucket.clone();
                        let came = matches!(later.ask(want, now + wait), Answer::Go(_));
                        prop_assert!(came);
                    }
                }
            }
            prop_assert!(sent * UNIT <= now.as_nanos() * u128::from(rate));
        }
    }
}

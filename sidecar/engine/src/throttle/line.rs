//! Threads that take turns at the bucket.
//!
//! Who wants to send joins the end of a line. The first in it sleeps until the bucket lets a step
//! through, takes it and leaves; the next is woken. So those who send at the same time get the same
//! share, whatever disk they send for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_vault::Pace;

use super::bucket::{Answer, Bucket};
use super::{Rate, ThrottleSettings};
use crate::windows::{self, Zone};

/// How often the timetable is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest sleep: who waits is to notice that it should stop.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// The throttle of a sidecar. All its uploads go through one.
#[derive(Debug)]
pub struct Throttle {
    line: Mutex<Line>,
    moved: Condvar,
    began: Instant,
}

#[derive(Debug)]
struct Line {
    bucket: Bucket,
    settings: ThrottleSettings,
    zone: Zone,
    /// When the timetable is looked at again.
    look_at: Duration,
    /// Those who wait, by their tickets.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

impl Throttle {
    /// A throttle of these settings, its timetable in a zone.
    #[must_use]
    pub fn new(settings: ThrottleSettings, zone: Zone) -> Self {
        let bucket = Bucket::new(settings.limit_at(windows::now(), &zone), Duration::ZERO);
        Self {
            line: Mutex::new(Line {
                bucket,
                settings,
                zone,
                look_at: LOOK_EVERY,
                waiting: VecDeque::new(),
                next_ticket: 0,
            }),
            moved: Condvar::new(),
            began: clock::monotonic(),
        }
    }

    /// No limit.
    #[must_use]
    pub fn none() -> Self {
        Self::new(ThrottleSettings::default(), Zone::default())
    }

    /// New settings, from now on, also for those who wait already.
    pub fn set(&self, settings: ThrottleSettings, zone: Zone) {
        let now = clock::since(self.began);
        let mut line = self.line();
        (line.settings, line.zone) = (settings, zone);
        line.look(now);
        drop(line);
        self.moved.notify_all();
    }

    /// The limit that holds now.
    #[must_use]
    pub fn limit(&self) -> Rate {
        let now = clock::since(self.began);
        let mut line = self.line();
        line.look(now);
        line.bucket.rate()
    }

    /// Waits until some of `want` bytes (at least 1) may go; how many. `None` if `go_on` says no, which is
    /// asked every tenth of a second.
    pub fn take(&self, want: u64, go_on: &dyn Fn() -> bool) -> Option<u64> {
        let mut line = self.line();
        let ticket = line.next_ticket;
        line.next_ticket += 1;
        line.waiting.push_back(ticket);
        let some = loop {
            if !go_on() {
                break None;
            }
            let now = clock::since(self.began);
            if now >= line.look_at {
                line.look(now);
            }
            let sleep = if line.waiting.front() != Some(&ticket) {
                SLEEP_MAX
            } else {
                match line.bucket.ask(want.max(1), now) {
                    Answer::Go(bytes) => break Some(bytes),
                    Answer::Wait(wait) => wait.min(SLEEP_MAX),
                }
            };
            let woken = self.moved.wait_timeout(line, sleep);
            line = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        line.waiting.retain(|waiting| *waiting != ticket);
        drop(line);
        self.moved.notify_all();
        some
    }

    /// The throttle as the pace of one upload, which ends when `go_on` says no.
    pub fn pace<'a>(&'a self, go_on: &'a (dyn Fn() -> bool + Sync)) -> impl Pace + 'a {
        Paced { throttle: self, go_on }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// Looks at the timetable.
    fn look(&mut self, now: Duration) {
        self.look_at = now + LOOK_EVERY;
        let rate = self.settings.limit_at(windows::now(), &self.zone);
        if rate != self.bucket.rate() {
            match rate.limit() {
                Some(_) => tracing::info!("throttle: {rate} from now on"),
                None => tracing::info!("throttle: no limit from now on"),
            }
            self.bucket.set_rate(rate, now);
        }
    }
}

/// As the pace of uploads that nobody stops.
impl Pace for Throttle {
    fn let_through(&self, want: u64) -> Option<u64> {
        self.take(want, &|| true)
    }
}

struct Paced<'a> {
    throttle: &'a Throttle,
    go_on: &'a (dyn Fn() -> bool + Sync),
}

impl Pace for Paced<'_> {
    fn let_through(&self, want: u64) -> Option<u64> {
        self.throttle.take(want, self.go_on)
    }
}

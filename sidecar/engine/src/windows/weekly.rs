//! Which instants lie in windows of the week.
//!
//! A window begins at the first instant at which the clock on the wall reaches its time, and ends at
//! the last instant at which that clock passes its end. Where the clock jumps forward over a time,
//! the jump is the instant; where a time comes twice, a window begins with the first and ends with
//! the second. So windows that follow each other on the clock leave no gap between them, a window
//! is never interrupted, and one that lies in a jump as a whole is empty.

use std::ops::Range;

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp, ToSpan};

/// One window of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The day on which it begins.
    pub day: Weekday,
    /// When it begins, by the clock on the wall.
    pub begin: Time,
    /// How long it is on, by the clock on the wall; from 1 to 10,080 (a week).
    pub minutes: u32,
}

/// Windows of the week; none by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeeklyWindows {
    windows: Vec<Window>,
}

/// Days around now, beyond a window's length, in which one that is on may have begun: where the zone
/// moves by a day, today is another one.
const DAYS_AROUND: i64 = 2;
/// Days after now in which the next change is found: two weeks, for a week's window may be empty.
const DAYS_ON: i64 = 16;

impl WeeklyWindows {
    /// Windows of the week.
    #[must_use]
    pub fn new(windows: Vec<Window>) -> Self {
        Self { windows }
    }

    /// Every day but from 8:00 to 18:00: when a resync runs, unless told otherwise.
    #[must_use]
    pub fn outside_business_hours() -> Self {
        let begin = Time::constant(18, 0, 0, 0);
        let days = Weekday::Monday.cycle_forward().take(7);
        Self::new(days.map(|day| Window { day, begin, minutes: 14 * 60 }).collect())
    }

    /// Them, one by one.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Whether one is on.
    #[must_use]
    pub fn is_inside(&self, now: Timestamp, zone: &TimeZone) -> bool {
        self.spans(now, zone, DAYS_AROUND).iter().any(|span| span.contains(&now))
    }

    /// When the answer of [`Self::is_inside`] changes next: never if there are no windows, or if
    /// they add up to always.
    #[must_use]
    pub fn next_change(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut spans = self.spans(now, zone, DAYS_ON);
        spans.sort_by_key(|span| span.start);
        let inside = spans.iter().any(|span| span.contains(&now));
        if !inside {
            return spans.iter().map(|span| span.start).find(|start| *start > now);
        }
        // What follows without a gap belongs to it.
        let mut end = now;
        for span in &spans {
            if span.start <= end {
                end = end.max(span.end);
            }
        }
        let horizon = now.saturating_add(SignedDuration::from_hours(24 * 8)).unwrap_or(now);
        (end < horizon).then_some(end)
    }

    /// All windows that may be on, or begin within some days from now, as instants, without the empty
    /// ones.
    fn spans(&self, now: Timestamp, zone: &TimeZone, days_on: i64) -> Vec<Range<Timestamp>> {
        let today = zone.to_datetime(now).date();
        let mut spans = vec![];
        for window in &self.windows {
            let days_back = i64::from(window.minutes / (24 * 60)) + DAYS_AROUND;
            let days =
                (-days_back..=days_on).filter_map(|days| today.checked_add(days.days()).ok());
            for day in days.filter(|day| day.weekday() == window.day) {
                let begin = day.to_datetime(window.begin);
                let Ok(end) = begin.checked_add(Span::new().minutes(window.minutes)) else {
                    continue;
                };
                let span = instant(begin, zone, Of::First)..instant(end, zone, Of::Second);
                if span.start < span.end {
                    spans.push(span);
                }
            }
        }
        spans
    }
}

/// Which instant is meant when the clock shows a time twice.
#[derive(Clone, Copy)]
enum Of {
    First,
    Second,
}

/// When the clock on the wall reaches a time.
fn instant(at: DateTime, zone: &TimeZone, of: Of) -> Timestamp {
    let ambiguous = zone.to_ambiguous_timestamp(at);
    let with = |offset: jiff::tz::Offset| {
        // Out of range only at the ends of time, where saturating is as good.
        offset.to_timestamp(at).unwrap_or(if at.year() > 0 {
            Timestamp::MAX
        } else {
            Timestamp::MIN
        })
    };
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { offset } => with(offset),
        AmbiguousOffset::Fold { before, after } => match of {
            Of::First => with(before),
            Of::Second => with(after),
        },
        // Before the jump by the later offset, after it by the earlier one.
        AmbiguousOffset::Gap { before, after } => jump(at, zone, with(after), with(before)),
    }
}

/// The first second between two instants at which the clock shows a time or a later one. It only goes
/// forward between them, so halving finds it.
fn jump(at: DateTime, zone: &TimeZone, before: Timestamp, after: Timestamp) -> Timestamp {
    let (mut low, mut high) = (before.as_second(), after.as_second());
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        match Timestamp::from_second(middle) {
            Ok(instant) if zone.to_datetime(instant) < at => low = middle,
            _ => high = middle,
        }
    }
    Timestamp::from_second(high).unwrap_or(after)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub fn some_windows() -> impl Strategy<Value = WeeklyWindows> {
        let window = (0usize..7, 0i8..24, 0i8..60, prop_oneof![1u32..=240, 1u32..=10_080])
            .prop_map(|(day, hour, minute, minutes)| Window {
                day: Weekday::Monday.cycle_forward().nth(day).unwrap(),
                begin: Time::constant(hour, minute, 0, 0),
                minutes,
            });
        prop::collection::vec(window, 0..5).prop_map(WeeklyWindows::new)
    }

    fn windows(text: &str) -> WeeklyWindows {
        text.parse().unwrap()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// Asserts that a window is on exactly from one instant to another.
    #[track_caller]
    fn is_on(windows: &WeeklyWindows, zone: &TimeZone, from: &str, to: &str) {
        let (from, to) = (at(from), at(to));
        let second = SignedDuration::from_secs(1);
        let inside = |instant| windows.is_inside(instant, zone);
        assert!(!inside(from - second) && inside(from), "begins at {from}");
        assert!(inside(to - second) && !inside(to), "ends at {to}");
        assert_eq!(windows.next_change(from - second, zone), Some(from));
        assert_eq!(windows.next_change(from, zone), Some(to));
    }

    #[test]
    fn over_the_weeks_end_and_over_days() {
        // 2026-11-23 is a Monday.
        let utc = TimeZone::UTC;
        is_on(&windows("Sunday;22:00;6h"), &utc, "2026-11-22T22:00Z", "2026-11-23T04:00Z");
        is_on(&windows("Tuesday;8:00;1d7h"), &utc, "2026-11-24T08:00Z", "2026-11-25T15:00Z");
        is_on(&windows("Saturday;12:00;6d"), &utc, "2026-11-21T12:00Z", "2026-11-27T12:00Z");
        // One after the other, and one over the other, are one.
        let days = windows("Monday;0:00;1d | Tuesday;0:00;1d | Tuesday;20:00;8h");
        is_on(&days, &utc, "2026-11-23T00:00Z", "2026-11-25T04:00Z");
        // The year's end is nothing special: 2026-12-31 is a Thursday.
        is_on(&windows("Thursday;20:00;8h"), &utc, "2026-12-31T20:00Z", "2027-01-01T04:00Z");
    }

    #[test]
    fn always_and_never_do_not_change() {
        let now = at("2026-11-23T10:00Z");
        let berlin = zone("Europe/Berlin");
        assert!(!windows("").is_inside(now, &berlin));
        assert_eq!(windows("").next_change(now, &berlin), None);
        let always = windows("Wednesday;5:00;7d");
        assert!(always.is_inside(now, &berlin));
        assert_eq!(always.next_change(now, &berlin), None);
        let halves = windows("Monday;0:00;4d | Friday;0:00;3d");
        assert_eq!(halves.next_change(now, &berlin), None);
    }

    /// 2026-03-29 (a Sunday) 2:00 → 3:00 in Berlin, which is 1:00 UTC.
    #[test]
    fn the_clock_is_set_forward() {
        let berlin = zone("Europe/Berlin");
        let on = |text, from, to| is_on(&windows(text), &berlin, from, to);
        on("Sunday;2:30;2h", "2026-03-29T01:00Z", "2026-03-29T02:30Z");
        on("Sunday;1:30;1h", "2026-03-29T00:30Z", "2026-03-29T01:00Z");
        on("Sunday;0:00;1d", "2026-03-28T23:00Z", "2026-03-29T22:00Z");
        on("Sunday;7:00;7h", "2026-03-29T05:00Z", "2026-03-29T12:00Z");
        // As a whole in the gap: not that week.
        let short = windows("Sunday;2:15;30m");
        assert_eq!(
            short.next_change(at("2026-03-28T12:00Z"), &berlin),
            Some(at("2026-04-05T00:15Z"))
        );
    }

    /// 2026-10-25 (a Sunday) 3:00 → 2:00 in Berlin, which is 1:00 UTC.
    #[test]
    fn the_clock_is_set_back() {
        let berlin = zone("Europe/Berlin");
        let on = |text, from, to| is_on(&windows(text), &berlin, from, to);
        on("Sunday;2:30;1h", "2026-10-25T00:30Z", "2026-10-25T02:30Z");
        on("Sunday;1:00;1h30m", "2026-10-24T23:00Z", "2026-10-25T01:30Z");
        on("Sunday;0:00;1d", "2026-10-24T22:00Z", "2026-10-25T23:00Z");
        on("Sunday;0:00;2h | Sunday;2:00;1h", "2026-10-24T22:00Z", "2026-10-25T02:00Z");
        on("Sunday;7:00;7h", "2026-10-25T06:00Z", "2026-10-25T13:00Z");
    }

    /// Samoa had no 2011-12-30 at all, which would have been a Friday; Lord Howe moves by half an hour.
    #[test]
    fn zones_with_days_and_half_hours_left_out() {
        let apia = zone("Pacific/Apia");
        let friday = windows("Friday;7:00;7h");
        assert_eq!(
            friday.next_change(at("2011-12-28T00:00Z"), &apia),
            Some(at("2012-01-05T17:00Z")),
            "the one of the day left out does not happen"
        );
        is_on(&windows("Thursday;12:00;1d"), &apia, "2011-12-29T22:00Z", "2011-12-30T10:00Z");
        let howe = zone("Australia/Lord_Howe");
        is_on(&windows("Sunday;2:15;1h"), &howe, "2026-10-03T15:30Z", "2026-10-03T16:15Z");
    }

    #[test]
    fn business_hours() {
        let windows = WeeklyWindows::outside_business_hours();
        is_on(&windows, &TimeZone::UTC, "2026-11-21T18:00Z", "2026-11-22T08:00Z");
        assert_eq!(windows.to_string().split(" | ").count(), 7);
    }

    fn some_zone() -> impl Strategy<Value = TimeZone> {
        prop::sample::select(vec![
            "UTC",
            "Europe/Berlin",
            "America/New_York",
            "America/St_Johns",
            "Australia/Lord_Howe",
            "Pacific/Apia",
            "Asia/Kathmandu",
            "Africa/Casablanca",
        ])
        .prop_map(zone)
    }

    /// The same by looking at the clock of each instant, where no change of the clock is near.
    fn by_the_clock(windows: &WeeklyWindows, now: Timestamp, zone: &TimeZone) -> bool {
        let clock = zone.to_datetime(now);
        let minute_of_week = |day: Weekday, time: Time| {
            i64::from(day.to_monday_zero_offset()) * 1440
                + i64::from(time.hour()) * 60
                + i64::from(time.minute())
        };
        let now = minute_of_week(clock.date().weekday(), clock.time());
        windows.windows().iter().any(|window| {
            let since = (now - minute_of_week(window.day, window.begin)).rem_euclid(10_080);
            since < i64::from(window.minutes)
        })
    }

    fn steady(now: Timestamp, zone: &TimeZone) -> bool {
        let day = SignedDuration::from_hours(24);
        let offset = |at: Timestamp| zone.to_offset(at);
        (-9..=2).all(|days| offset(now) == offset(now + day * days))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn inside_is_what_the_clock_shows(
            windows in some_windows(),
            zone in some_zone(),
            second in 1_300_000_000i64..2_000_000_000,
        ) {
            let now = Timestamp::from_second(second).unwrap();
            if steady(now, &zone) {
                let shown = by_the_clock(&windows, now, &zone);
                prop_assert_eq!(windows.is_inside(now, &zone), shown);
            }
        }

        /// Nothing changes before the next change, and there it does; also across changes of the
        /// clock.
        #[test]
        fn the_next_change_is_the_next(
            windows in some_windows(),
            zone in some_zone(),
            second in 1_300_000_000i64..2_000_000_000,
            samples in prop::collection::vec(0.0f64..1.0, 8),
        ) {
            let now = Timestamp::from_second(second).unwrap();
            let inside = windows.is_inside(now, &zone);
            let next = windows.next_change(now, &zone);
            if let Some(next) = next {
                prop_assert!(next > now);
                prop_assert_eq!(windows.is_inside(next, &zone), !inside);
            } else {
                prop_assert!(windows.is_empty() || inside);
            }
            let end = next.map_or(second + 8 * 86_400, Timestamp::as_second);
            for sample in samples {
                let between = second + ((end - second) as f64 * sample) as i64;
                let between = Timestamp::from_second(between.min(end - 1)).unwrap();
                prop_assert_eq!(windows.is_inside(between, &zone), inside, "at {}", between);
            }
        }
    }
}

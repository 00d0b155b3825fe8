//! The limit, and the timetable that overrides it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Rate;
use crate::windows::{WeeklyWindows, Zone};

/// The `[throttle]` section of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleSettings {
    /// The limit when no entry of the timetable is on.
    pub limit: Rate,
    /// Limits at times; the first entry that is on counts.
    pub timetable: Vec<Timed>,
}

/// A limit at times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timed {
    /// When it holds.
    pub when: WeeklyWindows,
    /// The limit then.
    pub limit: Rate,
}

impl ThrottleSettings {
    /// The limit at an instant.
    #[must_use]
    pub fn limit_at(&self, now: Timestamp, zone: &Zone) -> Rate {
        if self.timetable.is_empty() {
            return self.limit;
        }
        let time_zone = zone.time_zone();
        let on = |timed: &&Timed| timed.when.is_inside(now, &time_zone);
        self.timetable.iter().find(on).map_or(self.limit, |timed| timed.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_that_is_on_counts() {
        let settings: ThrottleSettings = toml::from_str(
            "limit = \"50MiB/s\"\n\
             [[timetable]]\nwhen = \"Monday;8:00;2h\"\nlimit = \"1MiB/s\"\n\
             [[timetable]]\nwhen = \"Monday;8:00;10h | Tuesday;8:00;10h\"\nlimit = \"5MiB/s\"\n\
             [[timetable]]\nwhen = \"Sunday;0:00;1d\"\nlimit = \"0\"\n",
        )
        .unwrap();
        let berlin = "Europe/Berlin".parse().unwrap();
        let mib = |mib: u64| Rate::bytes_per_second(mib << 20);
        for (at, limit) in [
            ("2026-11-23T06:59:59Z", mib(50)),
            ("2026-11-23T07:00:00Z", mib(1)),
            ("2026-11-23T09:00:00Z", mib(5)),
            ("2026-11-23T17:00:00Z", mib(50)),
            ("2026-11-24T07:00:00Z", mib(5)),
            ("2026-11-22T12:00:00Z", Rate::NONE),
        ] {
            assert_eq!(settings.limit_at(at.parse().unwrap(), &berlin), limit, "{at}");
        }
        let again: ThrottleSettings = toml::from_str(&toml::to_string(&settings).unwrap()).unwrap();
        assert_eq!(again, settings);
    }
}

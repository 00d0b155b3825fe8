//! Windows of the week: when a blackout is on, when a limit holds, when a resync may run.
//!
//! They are written `Monday;7:00;7h | Tuesday;8:00;1d7h` and speak of the clock on the wall in
//! a time zone. What that means when the clock is set is in `docs/reference/throttle.md` and in [`weekly`].

pub mod syntax;
pub mod weekly;
pub mod zone;

use backstay_host::clock;
use jiff::Timestamp;

pub use syntax::WindowError;
pub use weekly::WeeklyWindows;
pub use zone::Zone;

/// A blackout window is on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a blackout window is on{}", until(.at.as_ref(), .zone))]
pub struct Until {
    /// When it ends; never, if the windows add up to always.
    pub at: Option<Timestamp>,
    /// Whose clock it follows.
    pub zone: Zone,
}

fn until(at: Option<&Timestamp>, zone: &Zone) -> String {
    match at {
        None => " and never ends: the windows add up to the whole week".into(),
        Some(at) => {
            let local = at.to_zoned(zone.time_zone());
            format!(" until {}", local.strftime("%A, %Y-%m-%d %H:%M %Z"))
        }
    }
}

/// The time that windows are compared with: the wall clock.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::try_from(clock::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether a cycle may begin by itself.
///
/// # Errors
/// Until when not.
pub fn may_begin(blackout: &WeeklyWindows, zone: &Zone, now: Timestamp) -> Result<(), Until> {
    let time_zone = zone.time_zone();
    if !blackout.is_inside(now, &time_zone) {
        return Ok(());
    }
    Err(Until { at: blackout.next_change(now, &time_zone), zone: zone.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blackout_says_when_it_ends() {
        let windows: WeeklyWindows = "Monday;7:00;7h".parse().unwrap();
        let zone: Zone = "Europe/Berlin".parse().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        // 2026-11-23 is a Monday; Berlin is one hour ahead in winter.
        assert_eq!(may_begin(&windows, &zone, at("2026-11-23T05:59:59Z")), Ok(()));
        let until = may_begin(&windows, &zone, at("2026-11-23T06:00:00Z")).unwrap_err();
        assert_eq!(until.at, Some(at("2026-11-23T13:00:00Z")));
        assert_eq!(until.to_string(), "a blackout window is on until Monday, 2026-11-23 14:00 CET");
        assert_eq!(may_begin(&windows, &zone, at("2026-11-23T13:00:00Z")), Ok(()));
        let always: WeeklyWindows = "Sunday;0:00;7d".parse().unwrap();
        let until = may_begin(&always, &zone, at("2026-11-23T13:00:00Z")).unwrap_err();
        assert!(until.at.is_none() && until.to_string().contains("never ends"), "{until}");
    }
}

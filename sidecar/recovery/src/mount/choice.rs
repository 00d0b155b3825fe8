//! Which point of a disk is meant.

use std::fmt;
use std::str::FromStr;

use backstay_types::{CycleNo, DiskId};
use backstay_vault::{Manifest, Vault};
use jiff::Timestamp;

use super::MountError;

/// A recovery point as people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointChoice {
    /// The newest.
    Latest,
    /// By its cycle.
    Cycle(CycleNo),
    /// The newest whose cut is not after this instant, nanoseconds since 1970.
    Until(u64),
}

/// From the beginning of a second to its last nanosecond.
const SECOND_REST_NS: u64 = 999_999_999;

impl FromStr for PointChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        if let Ok(number) = text.parse() {
            return Ok(Self::Cycle(CycleNo(number)));
        }
        let wrong = || {
            format!(
                "{text:?} is not a recovery point: use a number, latest, or a time as 2026-02-03T04:05:06Z"
            )
        };
        let at: Timestamp = text.parse().map_err(|_| wrong())?;
        // A time to the second means all of that second, as the tables of points show it.
        let rest = if text.contains('.') { 0 } else { SECOND_REST_NS };
        u64::try_from(at.as_nanosecond()).map(|ns| Self::Until(ns + rest)).map_err(|_| wrong())
    }
}

impl fmt::Display for PointChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Latest => f.write_str("latest"),
            Self::Cycle(cycle) => write!(f, "{cycle}"),
            Self::Until(unix_ns) => match Timestamp::from_nanosecond(shown_ns(*unix_ns).into()) {
                Ok(at) => write!(f, "{at}"),
                Err(_) => write!(f, "{unix_ns} ns"),
            },
        }
    }
}

/// The whole second, where all of it is meant.
fn shown_ns(unix_ns: u64) -> u64 {
    match unix_ns % (SECOND_REST_NS + 1) {
        SECOND_REST_NS => unix_ns - SECOND_REST_NS,
        _ => unix_ns,
    }
}

/// Finds a point. Who needs it for longer holds it before reading it again.
///
/// # Errors
/// If there is none, or the vault cannot be read.
pub fn choose(vault: &Vault, disk: DiskId, choice: PointChoice) -> Result<Manifest, MountError> {
    let points = vault.points(disk)?;
    let none = |what: String| {
        let disk = vault.disk(disk)?.name;
        Err(MountError::NoPoint(format!(
            "disk {disk} has no recovery point {what} in {}; it has {}",
            vault.url(),
            match (points.first(), points.last()) {
                (Some(first), Some(last)) => {
                    format!("{} from {first} to {last}: see backstay points", points.len())
                }
                _ => "none".into(),
            }
        )))
    };
    match choice {
        PointChoice::Latest => match points.last() {
            Some(&cycle) => {
                vault.refuse_damaged(disk, cycle)?;
                Ok(vault.manifest(disk, cycle)?)
            }
            None => none("yet".into()),
        },
        PointChoice::Cycle(cycle) if points.contains(&cycle) => Ok(vault.manifest(disk, cycle)?),
        PointChoice::Cycle(cycle) => none(cycle.to_string()),
        PointChoice::Until(unix_ns) => match vault.newest_until(disk, &points, unix_ns)? {
            Some(point) => {
                vault.refuse_damaged(disk, point.cycle)?;
                Ok(point)
            }
            None => none(format!("that is not after {choice}")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_name_points_in_three_ways() {
        let parse = |text: &str| text.parse::<PointChoice>();
        assert_eq!(parse("latest"), Ok(PointChoice::Latest));
        assert_eq!(parse("17"), Ok(PointChoice::Cycle(CycleNo(17))));
        let at = parse("1970-01-01T01:00:01+01:00").unwrap();
        assert_eq!(at, PointChoice::Until(1_999_999_999), "all of that second");
        assert_eq!(parse(&at.to_string()), Ok(at));
        assert_eq!(parse("1970-01-01T00:00:01.5Z"), Ok(PointChoice::Until(1_500_000_000)));
        assert!(parse("newest").unwrap_err().contains("a time as"));
        assert!(parse("1960-01-01T00:00:00Z").is_err());
    }
}

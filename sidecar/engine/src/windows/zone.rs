//! The time zone that windows follow.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use jiff::tz::TimeZone;

/// A time zone: the host's own, or one by its IANA name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    named: Option<TimeZone>,
}

impl Zone {
    /// Its rules. The host's zone is looked up each time, so that it follows when the host's is set.
    #[must_use]
    pub fn time_zone(&self) -> TimeZone {
        self.named.clone().unwrap_or_else(|| {
            let set = std::env::var_os("TZ").is_some();
            // The library would remember for minutes what it found.
            if set { TimeZone::system() } else { of_link(Path::new(LOCALTIME)) }
        })
    }
}

/// Where a host says what its zone is.
const LOCALTIME: &str = "/etc/localtime";

/// The zone that a link into the database names, or that a file describes.
fn of_link(path: &Path) -> TimeZone {
    let target = std::fs::read_link(path).unwrap_or_default();
    let name = target.to_str().and_then(|target| target.split_once("zoneinfo/"));
    if let Some(zone) = name.and_then(|(_, name)| TimeZone::get(name).ok()) {
        return zone;
    }
    let file = std::fs::read(path).ok().and_then(|bytes| TimeZone::tzif("", &bytes).ok());
    file.unwrap_or_else(TimeZone::system)
}

/// A name that is no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a time zone: use a name of the IANA database as in Europe/Berlin, or leave it out for \
     the host's own"
)]
pub struct NoSuchZone(String);

impl FromStr for Zone {
    type Err = NoSuchZone;
    fn from_str(name: &str) -> Result<Self, NoSuchZone> {
        match TimeZone::get(name) {
            Ok(zone) => Ok(Self { named: Some(zone) }),
            Err(_) => Err(NoSuchZone(name.into())),
        }
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = self.time_zone();
        f.write_str(zone.iana_name().unwrap_or("the host's"))
    }
}

/// Reads and writes a type in documents as the text people write.
macro_rules! serde_as_text {
    ($type:ty, $expecting:literal) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                from.deserialize_str(Text)
            }
        }
    };
}
pub(crate) use serde_as_text;

serde_as_text!(Zone, "a time zone, as in \"Europe/Berlin\"");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_moves_is_followed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("localtime");
        for name in ["Europe/Berlin", "America/New_York", "Asia/Tokyo"] {
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(format!("../usr/share/zoneinfo/{name}"), &link).unwrap();
            assert_eq!(of_link(&link).iana_name(), Some(name));
        }
        // A file instead of a link; and nothing there.
        std::fs::remove_file(&link).unwrap();
        let utc = Path::new("/usr/share/zoneinfo/Etc/UTC");
        if utc.exists() {
            std::fs::copy(utc, &link).unwrap();
            let now = jiff::Timestamp::UNIX_EPOCH;
            assert_eq!(of_link(&link).to_offset(now).seconds(), 0);
        }
    }

    #[test]
    fn zones_go_by_their_names() {
        let zone: Zone = "Europe/Berlin".parse().unwrap();
        assert_eq!(zone.to_string(), "Europe/Berlin");
        assert_ne!(zone, Zone::default());
        let error = "Europe/Berlim".parse::<Zone>().unwrap_err();
        assert!(error.to_string().contains("Europe/Berlim"), "{error}");
        assert!("".parse::<Zone>().is_err() && "../../etc/passwd".parse::<Zone>().is_err());
    }
}

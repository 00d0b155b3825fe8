//! The time zone that windows follow.

use std::fmt;
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
        self.named.clone().unwrap_or_else(TimeZone::system)
    }
}

/// A name that is no time zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no time zone: use a name of the IANA database as in Europe/Berlin, or leave it out for \
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
    fn zones_go_by_their_names() {
        let zone: Zone = "Europe/Berlin".parse().unwrap();
        assert_eq!(zone.to_string(), "Europe/Berlin");
        assert_ne!(zone, Zone::default());
        let error = "Europe/Berlim".parse::<Zone>().unwrap_err();
        assert!(error.to_string().contains("Europe/Berlim"), "{error}");
        assert!("".parse::<Zone>().is_err() && "../../etc/passwd".parse::<Zone>().is_err());
    }
}

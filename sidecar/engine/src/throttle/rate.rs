//! Bytes a second, as people write them.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use bytesize::ByteSize;

use crate::windows::zone::serde_as_text;

/// A limit in bytes a second, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate(Option<NonZeroU64>);

impl Rate {
    /// No limit.
    pub const NONE: Self = Self(None);

    /// That many bytes a second; 0 for no limit.
    #[must_use]
    pub const fn bytes_per_second(bytes: u64) -> Self {
        Self(NonZeroU64::new(bytes))
    }

    /// Bytes a second, if there is a limit.
    #[must_use]
    pub fn limit(self) -> Option<NonZeroU64> {
        self.0
    }
}

/// A text that is no rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rate: write bytes a second as in 10MiB/s, 500kB/s, or 0 for no limit")]
pub struct NotARate(String);

impl FromStr for Rate {
    type Err = NotARate;
    fn from_str(text: &str) -> Result<Self, NotARate> {
        let bad = || NotARate(text.into());
        let size = text.strip_suffix("/s").unwrap_or(text);
        // ByteSize reads "-1" and the like as it pleases; a rate begins with a digit.
        if !size.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(bad());
        }
        let bytes = size.parse::<ByteSize>().map_err(|_| bad())?.as_u64();
        // What rounds to nothing was not meant to be no limit.
        if bytes == 0 && size.contains(|c: char| ('1'..='9').contains(&c)) {
            return Err(bad());
        }
        Ok(Self::bytes_per_second(bytes))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("0"),
            // Whole units only: a rate that is printed is the one that is read again.
            Some(bytes) => {
                let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
                match units.iter().find(|(unit, _)| bytes.get() % unit == 0) {
                    Some((unit, name)) => write!(f, "{}{name}/s", bytes.get() / unit),
                    None => write!(f, "{bytes}B/s"),
                }
            }
        }
    }
}

serde_as_text!(Rate, "bytes a second, as in \"10MiB/s\"");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn people_write_rates_as_they_like() {
        for (text, bytes) in [
            ("1MiB/s", 1 << 20),
            ("10MiB", 10 << 20),
            ("500kB/s", 500_000),
            ("1.5 MiB/s", 3 << 19),
            ("1048576", 1 << 20),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Rate::bytes_per_second(bytes)), "{text}");
        }
        for text in ["", "/s", "fast", "10MiB/min", "-1", "10 Mbit/s", "1MiB/s/s", "0.1B"] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.to_string().contains("10MiB/s"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(bytes: u64) {
            let rate = Rate::bytes_per_second(bytes);
            prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        }
        #[test]
        fn any_text_is_a_rate_or_an_error(text in "[0-9.kMGiB/s -]{0,12}") {
            let _ = text.parse::<Rate>();
        }
    }
}

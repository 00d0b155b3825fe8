//! After a failure: how long to wait (R-22).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The waits after the first, second, … failure in a row; the last one repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Retry(#[serde(with = "durations")] Vec<Duration>);

impl Default for Retry {
    /// 1, 2, 4, 8, 10 minutes, then every 30.
    fn default() -> Self {
        Self([1, 2, 4, 8, 10, 30].map(|minutes| Duration::from_secs(60 * minutes)).into())
    }
}

impl Retry {
    /// How long to wait after so many failures in a row.
    #[must_use]
    pub fn wait(&self, failures: u32) -> Duration {
        let at = (failures.max(1) as usize - 1).min(self.0.len().saturating_sub(1));
        self.0.get(at).copied().unwrap_or(Duration::from_secs(60))
    }
}

/// Durations as people write them, in a list that is not empty.
mod durations {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Wait(#[serde(with = "humantime_serde")] Duration);

    pub fn serialize<S: Serializer>(waits: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(waits.iter().map(|&wait| Wait(wait)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        let waits = Vec::<Wait>::deserialize(from)?;
        if waits.is_empty() {
            return Err(D::Error::custom("at least one wait is needed"));
        }
        Ok(waits.into_iter().map(|Wait(wait)| wait).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_of_r_22() {
        let retry = Retry::default();
        let minutes: Vec<_> = (1..9).map(|n| retry.wait(n).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 10, 30, 30, 30]);
    }

    #[test]
    fn as_people_write_it() {
        let retry: Retry = serde_json::from_str(r#"["5s", "1m"]"#).unwrap();
        assert_eq!((retry.wait(1).as_secs(), retry.wait(7).as_secs()), (5, 60));
        assert_eq!(serde_json::to_string(&retry).unwrap(), r#"["5s","1m"]"#);
        assert!(serde_json::from_str::<Retry>("[]").is_err());
    }
}

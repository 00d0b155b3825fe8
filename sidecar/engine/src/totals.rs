//! Sums over all cycles of a disk since this host made its first one. They are part of the disk's record,
//! so that they survive a restart of the sidecar and count every cycle exactly once.

use std::time::Duration;

use backstay_types::{Class, Classified};
use serde::{Deserialize, Serialize};

use crate::cycle::CycleReport;

/// Upper bounds of the buckets in which durations of cycles are counted, in seconds; above the last one is another.
pub const DURATION_BOUNDS: [f64; 12] =
    [0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0];

/// Sums over cycles. They only grow, unless the disk's record is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Cycles that made a point.
    pub cycles: u64,
    /// Bytes the guest wrote in them.
    pub written_bytes: u64,
    /// Bytes of sectors that moved.
    pub moved_bytes: u64,
    /// Bytes put into the vault.
    pub stored_bytes: u64,
    /// How long they took, in nanoseconds.
    pub duration_ns: u64,
    /// How many took how long: one number for each of [`DURATION_BOUNDS`], and one above.
    pub durations: Vec<u64>,
    /// Cycles that failed, by what is to be done.
    pub failed: Failed,
}

/// Cycles that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failed {
    /// Tried again by itself.
    pub recoverable: u64,
    /// Tried again by itself, and a person should act.
    pub person_should_act: u64,
    /// Not tried again until a person acts.
    pub person_must_act: u64,
}

impl Totals {
    /// Counts a cycle that made a point.
    pub(crate) fn count(&mut self, report: &CycleReport) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.cycles, 1);
        add(&mut self.written_bytes, report.written.0);
        add(&mut self.moved_bytes, report.moved.0);
        add(&mut self.stored_bytes, report.stored.0);
        add(&mut self.duration_ns, u64::try_from(report.duration.as_nanos()).unwrap_or(u64::MAX));
        self.durations.resize(DURATION_BOUNDS.len() + 1, 0);
        add(&mut self.durations[bucket(report.duration)], 1);
    }

    /// Counts a cycle that failed.
    pub(crate) fn count_failed(&mut self, error: &impl Classified) {
        let count = match (error.may_pass(), error.class()) {
            (true, Class::Person) => &mut self.failed.person_should_act,
            (true, _) => &mut self.failed.recoverable,
            (false, _) => &mut self.failed.person_must_act,
        };
        *count = count.saturating_add(1);
    }
}

/// Where a duration is counted.
fn bucket(duration: Duration) -> usize {
    DURATION_BOUNDS.partition_point(|bound| *bound < duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::shipped;

    #[test]
    fn each_duration_has_its_bucket() {
        let mut totals = Totals::default();
        for seconds in [0.0, 0.1, 0.11, 86_400.0, 1e9] {
            totals.count(&CycleReport { duration: Duration::from_secs_f64(seconds), ..shipped() });
        }
        assert_eq!(totals.durations, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((totals.cycles, totals.moved_bytes), (5, 40));
        totals.count_failed(&backstay_vault::VaultError::LostRace(backstay_types::CycleNo(1)));
        assert_eq!(totals.failed, Failed { recoverable: 1, ..Failed::default() });
    }
}

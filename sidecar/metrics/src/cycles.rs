//! What is told of cycles: the sums in a disk's record.

use backstay_engine::totals::{DURATION_BOUNDS, Totals};

use crate::Snapshot;
use crate::families::{Sample, Value, seconds};

/// The sums of each disk whose record can be read.
fn totals(of: &Snapshot) -> impl Iterator<Item = (String, &Totals)> {
    of.disks().filter_map(|disk| {
        let record = &disk.status.as_deref()?.record;
        record.unreadable.is_none().then(|| (disk.name.to_string(), &record.totals))
    })
}

pub(crate) fn counter(of: &Snapshot, read: impl Fn(&Totals) -> u64) -> Vec<Sample> {
    totals(of).map(|(disk, totals)| Sample::count(vec![disk], read(totals))).collect()
}

pub(crate) fn failures(of: &Snapshot) -> Vec<Sample> {
    let all = totals(of).flat_map(|(disk, totals)| {
        let failed = totals.failed;
        [
            ("recoverable", failed.recoverable),
            ("person-should-act", failed.person_should_act),
            ("person-must-act", failed.person_must_act),
        ]
        .map(|(class, count)| Sample::count(vec![disk.clone(), class.into()], count))
    });
    all.collect()
}

pub(crate) fn durations(of: &Snapshot) -> Vec<Sample> {
    let all = totals(of).map(|(disk, totals)| {
        // A record of somebody else may have more or fewer numbers than there are buckets.
        let bounds = DURATION_BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = totals.durations.iter().copied().chain(std::iter::repeat(0));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().fold(0u64, |sum, (_, more)| sum.saturating_add(*more));
        let value = Value::Histogram(seconds(totals.duration_ns), count, buckets);
        Sample { labels: vec![disk], value }
    });
    all.collect()
}

//! All metrics: name, kind, labels, what they mean, and how they are read from status.

use crate::{Snapshot, cycles, disks, vaults};

/// A metric, with all its label sets.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its name, without `backstay_`, its unit and what its kind appends.
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// Its base unit: `bytes`, `seconds`, or nothing.
    pub unit: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it means.
    pub help: &'static str,
    /// Reads it.
    pub read: fn(&Snapshot) -> Vec<Sample>,
}

/// Kinds of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up and down; NaN if it is not known.
    Gauge,
    /// Only grows; not there if it is not known.
    Counter,
    /// Always 1; its labels say something.
    Info,
    /// How many were how large.
    Histogram,
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Values of the labels, in the order of [`Family::labels`].
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

/// The value of a sample.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a gauge or an info.
    Number(f64),
    /// Of a counter.
    Count(u64),
    /// Of a histogram: sum, count, and the upper bound and number of each bucket.
    Histogram(f64, u64, Vec<(f64, u64)>),
}

impl Sample {
    /// Of a gauge; NaN if it is not known.
    pub(crate) fn gauge(labels: Vec<String>, value: Option<f64>) -> Self {
        Self { labels, value: Value::Number(value.unwrap_or(f64::NAN)) }
    }

    /// Of a counter.
    pub(crate) fn count(labels: Vec<String>, value: u64) -> Self {
        Self { labels, value: Value::Count(value) }
    }

    /// One of the host, without labels.
    pub(crate) fn of_host(value: Option<f64>) -> Vec<Self> {
        vec![Self::gauge(vec![], value)]
    }
}

/// Nanoseconds in seconds.
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A gauge that is 1 for the word that holds, and 0 for all others, of each subject.
pub(crate) fn one_hot<'a>(
    subject: &[&str],
    words: impl IntoIterator<Item = &'a str>,
    holds: &str,
) -> Vec<Sample> {
    let labels = |word: &str| {
        subject.iter().map(|part| (*part).to_owned()).chain([word.to_owned()]).collect()
    };
    let sample = |word: &str| Sample::gauge(labels(word), Some(f64::from(u8::from(word == holds))));
    words.into_iter().map(sample).collect()
}

macro_rules! family {
    ($kind:ident $name:literal $unit:literal $labels:expr, $help:literal, $read:expr) => {
        Family {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            labels: &$labels,
            help: $help,
            read: $read,
        }
    };
}

/// All of them.
pub const FAMILIES: &[Family] = &[
    family!(Gauge "metrics_timestamp" "seconds" [],
        "When these metrics were read, as a Unix time. Shows a textfile that is no longer written.",
        |of| Sample::of_host(Some(seconds(of.at_unix_ns)))),
    family!(Info "build" "" ["version"], "The program.",
        |of| vec![Sample::gauge(vec![of.version.into()], Some(1.0))]),
    family!(Gauge "sidecar_state" "" ["state"],
        "State of the sidecar: 1 for its state.", disks::sidecar),
    family!(Gauge "configuration_valid" "" [],
        "Whether the configuration file is valid; if not, earlier settings stay in force, or commands fail.",
        |of| Sample::of_host(Some(f64::from(u8::from(of.config_valid))))),
    family!(Gauge "disks" "" [], "Disks of this host.",
        |of| Sample::of_host(of.disks.as_ref().map(|disks| disks.len() as f64))),
    family!(Info "disk" "" ["disk", "policy", "vault"],
        "A disk, the policy it follows and the vault of its points.", disks::info),
    family!(Info "disk_group" "" ["disk", "group"], "A group that a disk is in.", disks::groups),
    family!(Gauge "disk_health" "" ["disk", "health"],
        "Health of a disk: 1 for its level.", disks::health),
    family!(Gauge "disk_cause" "" ["disk", "cause"],
        "1 if this is wrong with a disk: the ids of the table of causes in operations.md.", disks::causes),
    family!(Gauge "disk_state" "" ["disk", "state"],
        "Where a disk is in its replication: 1 for the state that holds. none: no driver serves it, or it is a replica \
         or a mounted point.", disks::state),
    family!(Gauge "disk_size" "bytes" ["disk"], "Size of a disk.", disks::size),
    family!(Gauge "newest_point_timestamp" "seconds" ["disk"],
        "Up to when all writes are in the newest recovery point that is committed and verified, as a Unix time.",
        disks::newest_point),
    family!(Gauge "rpo" "seconds" ["disk"],
        "Age of the newest recovery point that is committed and verified; of a replica, of the point it holds.",
        disks::rpo),
    family!(Gauge "rpo_target" "seconds" ["disk"], "From one recovery point to the next, as its settings say.",
        disks::rpo_target),
    family!(Gauge "points" "" ["disk"],
        "Recovery points in the vault when retention last succeeded; NaN without `keep`, and behind a gateway.", vaults::points),
    family!(Gauge "retention_last_success_timestamp" "seconds" ["disk"],
        "When this host last deleted the recovery points that go by the rules, as a Unix time; NaN behind a gateway.",
        vaults::retained),
    family!(Gauge "drill_last_timestamp" "seconds" ["disk"],
        "When a recovery point was last tried on this host, as a Unix time.", disks::drill_at),
    family!(Gauge "drill_last_passed" "" ["disk"], "Whether the last drill passed.", disks::drill_passed),
    family!(Gauge "drill_last_duration" "seconds" ["disk"], "How long the last drill took.",
        disks::drill_duration),
    family!(Gauge "dirty" "bytes" ["disk"], "What the next cycle ships.", disks::dirty),
    family!(Gauge "preserved_log" "bytes" ["disk"], "Old blocks that are preserved for a cycle.",
        |of| disks::gauge(of, |status| status.change_log.map(|log| log.0.0 as f64))),
    family!(Gauge "preserved_log_limit" "bytes" ["disk"], "The most of them; then the cycle loses its point in time.",
        |of| disks::gauge(of, |status| status.change_log.map(|log| log.1.0 as f64))),
    family!(Gauge "driver_up" "" ["disk"], "Whether the driver answers.", disks::driver_up),
    family!(Gauge "driver_start_timestamp" "seconds" ["disk"],
        "When the driver started, as a Unix time; its counters begin at zero then.", disks::driver_started),
    family!(Counter "driver_written" "bytes" ["disk"], "Written by the users of a disk since its driver started.",
        |of| disks::counter(of, |driver| driver.written_bytes)),
    family!(Counter "driver_read" "bytes" ["disk"], "Read by the users of a disk since its driver started.",
        |of| disks::counter(of, |driver| driver.read_bytes)),
    family!(Counter "driver_io_errors" "" ["disk"],
        "Requests of the users of a disk that failed since its driver started.",
        |of| disks::counter(of, |driver| driver.io_errors)),
    family!(Counter "cycles" "" ["disk"], "Cycles that made a recovery point.",
        |of| cycles::counter(of, |totals| totals.cycles)),
    family!(Counter "cycle_failures" "" ["disk", "class"],
        "Cycles that failed: recoverable and person-should-act are retried automatically.", cycles::failures),
    family!(Histogram "cycle_duration" "seconds" ["disk"], "How long cycles took that made a recovery point.",
        cycles::durations),
    family!(Counter "cycle_written" "bytes" ["disk"],
        "Written by the users of a disk in the time that cycles shipped.",
        |of| cycles::counter(of, |totals| totals.written_bytes)),
    family!(Counter "shipped" "bytes" ["disk"], "Read from a disk and shipped by cycles, before compression.",
        |of| cycles::counter(of, |totals| totals.moved_bytes)),
    family!(Counter "uploaded" "bytes" ["disk"], "Put into the vault by cycles.",
        |of| cycles::counter(of, |totals| totals.stored_bytes)),
    family!(Gauge "vault_up" "" ["vault"],
        "1: a disk was shipped there, or found unchanged, no longer ago than its interval asks for. 0: a disk of it says that \
         the vault is missing, refused, damaged or another. NaN: nobody has looked.", vaults::up),
    family!(Gauge "vault_last_success_timestamp" "seconds" ["vault"],
        "When a disk was last shipped there or found unchanged, as a Unix time.", vaults::last_success),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_prometheus_asks() {
        let mut names = std::collections::BTreeSet::new();
        for family in FAMILIES {
            let name = family.name;
            assert!(names.insert(name), "{name} is there twice");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
            assert!(["", "bytes", "seconds"].contains(&family.unit), "{name}");
            for suffix in ["_total", "_info", "_bytes", "_seconds"] {
                assert!(!name.ends_with(suffix), "{name}: its kind or unit appends {suffix}");
            }
            assert!(!family.help.contains('\n') && family.help.ends_with(['.', '?']), "{name}");
            let known = [
                "cause", "class", "disk", "group", "health", "policy", "state", "vault", "version",
            ];
            assert!(family.labels.iter().all(|label| known.contains(label)), "{name}");
        }
    }
}

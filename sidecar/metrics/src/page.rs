//! docs/reference/metrics.md: the table of metrics, made from their list.

use crate::families::{FAMILIES, Family, Kind};

/// The name under which a metric is found in Prometheus.
#[must_use]
pub fn full_name(family: &Family) -> String {
    let unit = match family.unit {
        "" => String::new(),
        unit => format!("_{unit}"),
    };
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    format!("backstay_{}{unit}{suffix}", family.name)
}

/// The rows of the table.
#[must_use]
pub fn rows() -> Vec<String> {
    let row = |family: &Family| {
        let kind = format!("{:?}", family.kind).to_lowercase();
        let labels: Vec<String> = family.labels.iter().map(|name| format!("`{name}`")).collect();
        format!("| `{}` | {kind} | {} | {} |", full_name(family), labels.join(", "), family.help)
    };
    FAMILIES.iter().map(row).collect()
}

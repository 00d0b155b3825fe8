//! Metrics as text: OpenMetrics, or Prometheus' older format.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::Snapshot;
use crate::families::{FAMILIES, Family, Kind, Sample, Value};

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4: what the textfile collector reads.
    Prometheus,
}

impl Format {
    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics of a snapshot.
#[must_use]
pub fn text(of: &Snapshot, format: Format) -> String {
    let mut registry = Registry::with_prefix("backstay");
    registry.register_collector(Box::new(All(of.clone())));
    let mut out = String::new();
    let written = match format {
        Format::OpenMetrics => text::encode(&mut out, &registry),
        Format::Prometheus => prometheus_text::encode(&mut out, &registry),
    };
    // Writing to a string does not fail; half of the metrics would be taken for all of them.
    written.map_or_else(|_| String::new(), |()| out)
}

#[derive(Debug)]
struct All(Snapshot);

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        for family in FAMILIES {
            write(&mut encoder, family, &(family.read)(&self.0))?;
        }
        Ok(())
    }
}

fn write(
    encoder: &mut DescriptorEncoder,
    family: &Family,
    samples: &[Sample],
) -> Result<(), std::fmt::Error> {
    let unit = match family.unit {
        "bytes" => Some(Unit::Bytes),
        "seconds" => Some(Unit::Seconds),
        _ => None,
    };
    let kind = match family.kind {
        Kind::Gauge => MetricType::Gauge,
        Kind::Counter => MetricType::Counter,
        Kind::Info => MetricType::Info,
        Kind::Histogram => MetricType::Histogram,
    };
    // Its full stop is added.
    let help = family.help.trim_end_matches('.');
    let mut metric = encoder.encode_descriptor(family.name, help, unit.as_ref(), kind)?;
    for sample in samples {
        let names = family.labels.iter().copied();
        let labels: Vec<(&str, &str)> =
            names.zip(sample.labels.iter().map(String::as_str)).collect();
        match (&sample.value, family.kind) {
            (_, Kind::Info) => metric.encode_info(&labels)?,
            (Value::Number(value), _) if labels.is_empty() => metric.encode_gauge(value)?,
            (Value::Number(value), _) => metric.encode_family(&labels)?.encode_gauge(value)?,
            (Value::Count(value), _) => {
                metric
                    .encode_family(&labels)?
                    .encode_counter::<Vec<(&str, &str)>, _, u64>(value, None)?;
            }
            (Value::Histogram(sum, count, buckets), _) => {
                let mut metric = metric.encode_family(&labels)?;
                metric.encode_histogram::<Vec<(&str, &str)>>(*sum, *count, buckets, None)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use backstay_engine::service::alive::Sidecar;

    use super::*;
    use crate::Disk;

    fn blind() -> Snapshot {
        Snapshot {
            at_unix_ns: 1_500_000_000,
            version: "a\"b\\c\nd",
            sidecar: Sidecar::Unknown { reason: "no rights".into() },
            config_valid: false,
            disks: None,
        }
    }

    #[test]
    fn what_is_not_known_is_never_well() {
        let text = |of: &Snapshot| super::text(of, Format::OpenMetrics);
        let all = text(&blind());
        for line in [
            "backstay_metrics_timestamp_seconds 1.5",
            "backstay_sidecar_state{state=\"unknown\"} 1.0",
            "backstay_sidecar_state{state=\"runs\"} 0.0",
            "backstay_configuration_valid 0.0",
            "backstay_disks NaN",
        ] {
            assert!(all.lines().any(|of| of == line), "{line} is not in\n{all}");
        }
        let name: backstay_types::DiskName = "d".parse().unwrap();
        let all = text(&Snapshot { disks: Some(vec![Disk { name, status: None }]), ..blind() });
        let of_disk: Vec<&str> = all.lines().filter(|line| line.contains("disk=\"d\"")).collect();
        for line in &of_disk {
            let known = line.ends_with(" NaN") || line.ends_with(" 0.0");
            let unknown = line.contains("=\"unknown\"} 1.0");
            let one_hot = line.contains("_health{") || line.contains("_state{");
            assert!(unknown || known && (one_hot || line.ends_with(" NaN")), "{line}");
        }
        assert!(of_disk.iter().any(|line| line.starts_with("backstay_driver_up")), "{all}");
    }

    #[test]
    fn labels_are_escaped() {
        for format in [Format::OpenMetrics, Format::Prometheus] {
            let all = super::text(&blind(), format);
            let line = r#"backstay_build_info{version="a\"b\\c\nd"} 1"#;
            assert!(all.lines().any(|of| of == line), "{line} is not in\n{all}");
        }
    }
}

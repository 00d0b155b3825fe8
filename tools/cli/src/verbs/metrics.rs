//! `backstay metrics`: status as numbers, once.

use std::path::PathBuf;

use backstay_metrics::text::{Format, text};
use backstay_metrics::textfile;
use clap::{Args, ValueEnum};

use crate::context::Context;
use crate::error::{Context as _, Result};
use crate::metering::snapshot;

/// Print the metrics of this host once
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay metrics
  backstay metrics --textfile /var/lib/prometheus/node-exporter/backstay.prom

No sidecar is needed. A running sidecar serves the same metrics at http://127.0.0.1:9751/metrics, unless the \
configuration says otherwise. docs/reference/metrics.md lists them.")]
pub struct Metrics {
    /// The format
    #[arg(long, value_enum, default_value_t = Written::Openmetrics)]
    format: Written,
    /// Replace this file instead of printing, in the format of the node exporter
    #[arg(long, value_name = "FILE", conflicts_with = "format")]
    textfile: Option<PathBuf>,
}

/// How metrics are printed.
#[derive(Clone, Copy, ValueEnum)]
enum Written {
    /// OpenMetrics 1.0
    Openmetrics,
    /// The text format of Prometheus before that
    Prometheus,
}

impl Metrics {
    pub fn run(self, context: &Context) -> Result<()> {
        let now = snapshot(context, true);
        if let Some(path) = &self.textfile {
            return textfile::write(path, &now).with_context(|| {
                format!("cannot write the metrics to {}; the file is as before", path.display())
            });
        }
        print!(
            "{}",
            text(
                &now,
                match self.format {
                    Written::Openmetrics => Format::OpenMetrics,
                    Written::Prometheus => Format::Prometheus,
                }
            )
        );
        Ok(())
    }
}

//! What the gateway did, in numbers, as Prometheus reads them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:literal,)+) => {
        /// Numbers that only grow, but for those that say how many there are now.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: AtomicU64,)+
        }

        impl Counters {
            /// As text, a line each.
            #[must_use]
            pub fn text(&self) -> String {
                let mut text = String::new();
                $(line(
                    &mut text,
                    stringify!($name),
                    $kind,
                    concat!($($doc),+).trim(),
                    self.$name.load(Ordering::Relaxed),
                );)+
                text
            }
        }
    };
}

counters! {
    /// Connections that are open.
    connections: "gauge",
    /// Connections that were let in.
    connections_total: "counter",
    /// Connections that were not let in: no certificate, one that is not believed, or too many.
    connections_refused_total: "counter",
    /// Requests.
    requests_total: "counter",
    /// Requests that the certificate gave no right to.
    refused_total: "counter",
    /// Requests that were told to come more slowly.
    throttled_total: "counter",
    /// Segments and points that were not what they should be.
    wrong_total: "counter",
    /// Bytes received as segments.
    received_bytes_total: "counter",
    /// Bytes sent.
    sent_bytes_total: "counter",
    /// Segments that were kept.
    segments_total: "counter",
    /// Recovery points that were put.
    points_total: "counter",
    /// Rounds of retention that were run.
    retention_total: "counter",
    /// Rounds of retention that failed.
    retention_failed_total: "counter",
}

/// One number.
pub fn line(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "# HELP backstay_gateway_{name} {help}\n# TYPE backstay_gateway_{name} {kind}\n\
         backstay_gateway_{name} {value}"
    );
}

/// Adds to a counter.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Counts something as long as it lives.
pub struct Now<'a>(&'a AtomicU64);

impl<'a> Now<'a> {
    /// One more.
    pub fn more(counter: &'a AtomicU64) -> Self {
        add(counter, 1);
        Self(counter)
    }
}

impl Drop for Now<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

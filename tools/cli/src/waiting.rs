//! Tells who runs a command that it waits for the vault's store: the client tries again by itself, and says so
//! only where nobody looks.
//!
//! What the client's own messages hold (addresses that are signed, a proxy's password) is never shown.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// A command that took no longer than this says nothing.
const AFTER: Duration = Duration::from_secs(2);
/// From one message to the next.
const EVERY: Duration = Duration::from_secs(10);

struct Waiting {
    began: Instant,
    said: Mutex<Option<Instant>>,
}

/// Hears when the client of an object store tries again.
pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let waiting = Waiting { began: clock::monotonic(), said: Mutex::new(None) };
    waiting.with_filter(Targets::new().with_target("object_store::client::retry", Level::INFO))
}

impl<S: Subscriber> Layer<S> for Waiting {
    fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if clock::since(self.began) < AFTER || said.is_some_and(|at| clock::since(at) < EVERY) {
            return;
        }
        *said = Some(clock::monotonic());
        let waited = Duration::from_secs(clock::since(self.began).as_secs());
        eprintln!(
            "backstay: the vault's store does not answer as it should; trying again (it began {} ago; --vault-wait \
             says how long)",
            humantime::format_duration(waited)
        );
    }
}

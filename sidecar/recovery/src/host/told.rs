//! Who hears how far work on this host is.

/// Hears what a person may want to see. The library prints nothing itself.
pub trait Listener: Sync {
    /// What was done, and what to do next.
    fn note(&self, line: &str);
    /// What a person must hear, whatever else is left out.
    fn warn(&self, line: &str);
    /// How far work is, in bytes.
    fn progress(&self, what: &'static str, done: u64, all: u64);
    /// That work is over.
    fn progress_ends(&self);
}

/// Nobody hears it.
pub struct Silent;

impl Listener for Silent {
    fn note(&self, line: &str) {
        tracing::info!("{line}");
    }
    fn warn(&self, line: &str) {
        tracing::warn!("{line}");
    }
    fn progress(&self, _: &'static str, _: u64, _: u64) {}
    fn progress_ends(&self) {}
}

//! Progress bars over anything that may take longer than a second.

use std::sync::Mutex;

use backstay_recovery::host::Listener;
use indicatif::{ProgressBar, ProgressStyle};

use crate::context::Context;

/// A bar on a terminal, nothing elsewhere.
pub struct Progress {
    bar: ProgressBar,
    message: Mutex<&'static str>,
}

impl Progress {
    pub fn new(context: &Context) -> Self {
        let bar =
            if context.shows_progress() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = "{msg:10} {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, message: Mutex::new("") }
    }

    pub fn show(&self, message: &'static str, done_bytes: u64, all_bytes: u64) {
        if self.bar.is_hidden() {
            return;
        }
        if let Ok(mut shown) = self.message.lock()
            && *shown != message
        {
            *shown = message;
            self.bar.set_message(message);
        }
        self.bar.set_length(all_bytes);
        self.bar.set_position(done_bytes);
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Shows what the library tells.
pub struct Shown {
    bar: Progress,
    quiet: bool,
}

impl Shown {
    pub fn new(context: &Context) -> Self {
        Self { bar: Progress::new(context), quiet: context.globals.quiet }
    }
}

impl Listener for Shown {
    fn note(&self, line: &str) {
        if !self.quiet {
            eprintln!("{line}");
        }
    }

    fn warn(&self, line: &str) {
        eprintln!("backstay: {line}");
    }

    fn progress(&self, what: &'static str, done: u64, all: u64) {
        self.bar.show(what, done, all);
    }

    fn progress_ends(&self) {
        self.bar.end();
    }
}

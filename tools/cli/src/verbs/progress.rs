//! Progress bars over anything that may take longer than a second.

use std::sync::Mutex;

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

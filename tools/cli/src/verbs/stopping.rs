//! Work that a person may end: by Ctrl-C, or a service manager by SIGTERM.

use std::sync::atomic::{AtomicBool, Ordering};

use backstay_engine::service::stop_on_signals;
use crossbeam_channel::{bounded, select};

use crate::error::Result;

/// Does something that ends early once `stop` is set, which a signal does.
///
/// # Errors
/// If signals cannot be waited for. Nothing was done then.
pub fn until_signal<T>(work: impl FnOnce(&AtomicBool) -> T) -> Result<T> {
    let stopped = stop_on_signals()?;
    let stop = AtomicBool::new(false);
    let (done, over) = bounded::<()>(0);
    Ok(std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            // It counts at once: what is nearly done must still be stopped.
            select! {
                recv(stopped) -> _ => stop.store(true, Ordering::Relaxed),
                recv(over) -> _ => {}
            }
        });
        let result = work(stop);
        drop(done);
        result
    }))
}

//! Work that a person may end: by Ctrl-C, or a service manager by SIGTERM.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use backstay_engine::service::stop_on_signals;

/// How soon a signal counts.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Does something that ends early once `stop` is set, which a signal does.
///
/// # Errors
/// If signals cannot be waited for. Nothing was done then.
pub fn until_signal<T>(work: impl FnOnce(&AtomicBool) -> T) -> anyhow::Result<T> {
    let stopped = stop_on_signals()?;
    let stop = AtomicBool::new(false);
    let (done, over) = channel::<()>();
    Ok(std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            while over.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                if stopped.try_recv().is_ok() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        });
        let result = work(stop);
        drop(done);
        result
    }))
}

//! Metrics of this host: what `backstay status` says, for [`backstay_metrics`]. Beside the sidecar they are served
//! and written to a file.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_engine::service::alive;
use backstay_host::clock;
use backstay_metrics::serve::serve;
use backstay_metrics::{Disk, Snapshot, textfile};
use backstay_types::DiskName;

use crate::context::Context;
use crate::health::{Shown, for_each_at_once, look};

/// How often the sidecar's thread looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the file is written.
const WRITE_EVERY: Duration = Duration::from_secs(15);
/// How often an address that could not be had is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(30);

/// What status says of this host now.
pub fn snapshot(context: &Context, config_valid: bool) -> Snapshot {
    let seen = |name: &DiskName| Disk {
        name: name.clone(),
        status: look(context, name).ok().map(|Shown { disk, .. }| Box::new(disk)),
    };
    let disks = crate::verbs::status::all(context).ok();
    Snapshot {
        at_unix_ns: clock::now_unix_ns(),
        version: env!("CARGO_PKG_VERSION"),
        sidecar: alive::sidecar(&context.roots),
        config_valid,
        disks: disks.map(|names| for_each_at_once(&names, seen)),
    }
}

/// The same, with the configuration as it is when somebody asks.
struct Meter {
    context: Mutex<Context>,
}

impl Meter {
    fn look(&self) -> Snapshot {
        let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
        // One that makes no sense changes nothing, as for the sidecar, and is told.
        let valid = match Config::load(context.globals.config.as_deref()) {
            Ok(config) => {
                context.config = config;
                true
            }
            Err(_) => false,
        };
        let disks = context.disks();
        let roots = context.roots.clone();
        context.config.add_protections(&roots, &disks);
        snapshot(&context, valid)
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        textfile::write(path, &self.look())
    }
}

/// Tells metrics beside the sidecar until `stop` is set; then writes the file a last time, which says that no
/// sidecar runs. Whatever goes wrong is a warning: the sidecar goes on.
pub fn meter(context: Context, stop: &AtomicBool) {
    let meter = Arc::new(Meter { context: Mutex::new(context) });
    let config =
        || meter.context.lock().unwrap_or_else(PoisonError::into_inner).config.metrics.clone();
    let listen = config().listen.0;
    let (mut serving, mut warned, mut failing) = (listen.is_none(), false, false);
    let (mut tried, mut written) = (None, None);
    let due =
        |last: Option<std::time::Instant>, every| last.is_none_or(|at| clock::since(at) >= every);
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        if let Some(at) = listen.filter(|_| !serving && !stopping && due(tried, LISTEN_AGAIN)) {
            tried = Some(clock::monotonic());
            let of = Arc::clone(&meter);
            match serve(at, Arc::new(move || of.look())) {
                Ok(at) => {
                    serving = true;
                    tracing::info!("metrics are at http://{at}/metrics");
                }
                Err(e) if !warned => {
                    warned = true;
                    tracing::warn!(
                        "cannot serve metrics at {at}: {e}; will retry. Set another address, or \"off\", with listen \
                         in [metrics]. Replication is not affected"
                    );
                }
                Err(_) => {}
            }
        }
        if let Some(path) = config().textfile
            && (stopping || due(written, WRITE_EVERY))
        {
            written = Some(clock::monotonic());
            let done = meter.write(&path);
            if let Err(e) = &done
                && !failing
            {
                tracing::warn!("cannot write metrics to {}: {e}; will retry", path.display());
            }
            failing = done.is_err();
        }
        if stopping {
            return;
        }
        clock::sleep(LOOK_EVERY);
    }
}

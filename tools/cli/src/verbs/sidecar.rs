//! `backstay sidecar`: the service.

use std::sync::atomic::{AtomicBool, Ordering};

use backstay_engine::service::{is_running, serve};
use clap::Args;

use crate::context::Context;
use crate::drilling::drills;
use crate::error::Result;
use crate::metering::meter;

/// Make recovery points of all disks served on this host, until stopped
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay sidecar --verbose

The sidecar finds disks when they are mounted. It reads the configuration again when the file changes and on SIGHUP. \
If the file has a mistake, the sidecar reports it and keeps the old settings. SIGTERM and SIGINT stop the sidecar: a \
running cycle is abandoned, and its sectors ship with the next one.")]
pub struct Sidecar {}

impl Sidecar {
    pub fn run(self, context: &Context) -> Result<()> {
        let stop = backstay_engine::service::stop_on_signals()?;
        // Another sidecar makes the drills, too; this one is about to be refused.
        let alone = !is_running(&context.roots);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            if alone {
                let drills =
                    || drills(context.watch(), context.config_file(), &context.roots, &ended);
                std::thread::Builder::new().name("drills".into()).spawn_scoped(scope, drills)?;
                let of = context.of_service();
                let meter = || meter(of, &ended);
                std::thread::Builder::new().name("meter".into()).spawn_scoped(scope, meter)?;
            }
            let served = serve(context.watch(), &context.roots, &stop);
            ended.store(true, Ordering::Relaxed);
            Ok(served?)
        })
    }
}

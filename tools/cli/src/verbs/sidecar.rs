//! `backstay sidecar`: the service.

use std::sync::atomic::{AtomicBool, Ordering};

use backstay_engine::service::{is_running, serve};
use clap::Args;

use crate::context::Context;
use crate::drilling::drills;
use crate::metering::meter;

/// Run cycles for all disks served on this host, until told to stop
#[derive(Args)]
#[command(after_help = "\
Example:
  backstay sidecar --verbose

Disks are found by themselves as they are mounted. The configuration is read again when its file
changes and on SIGHUP; one that makes no sense is reported, and the old one holds. Stops on SIGTERM and SIGINT: a cycle that runs
is given up, its sectors ship with the next.")]
pub struct Sidecar {}

impl Sidecar {
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
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

//! Drills on a schedule: one at a time, each a process of its own (`backstay drill NAME`).
//!
//! Beside the sidecar, at the lowest priority, so that nothing a drill does can hurt the shipping; or by
//! `backstay drill --due`, where the sidecar may not mount.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_engine::config::Config;
use backstay_engine::drills::{Drilled, due};
use backstay_engine::record::Record;
use backstay_engine::reload::ConfigWatch;
use backstay_engine::windows::{self, may_begin};
use backstay_front::paths::Roots;
use backstay_host::clock::{self, now_unix_ns};
use backstay_recovery::drill::records;
use backstay_types::DiskName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long one rests that could not be made, in nanoseconds.
const REST_NS: u64 = 60 * 1_000_000_000;

/// Runs drills that are due until told to stop; then the one that runs is told to clean up.
pub fn drills(
    mut watch: ConfigWatch,
    config_file: Option<PathBuf>,
    roots: &Roots,
    stop: &AtomicBool,
) {
    if let Err(e) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        // In its unit it is not allowed to mount: the timer's unit is.
        tracing::info!("drills are left to backstay drill --due: /dev/fuse: {e}");
        return;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(e) => return tracing::warn!("no drills are made: where this program is: {e}"),
    };
    let mut running: Option<(DiskName, Child)> = None;
    // Those that could not even say how they failed are not begun again at once.
    let mut rest: BTreeMap<DiskName, u64> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        clock::sleep(LOOK_EVERY);
        watch.look();
        if let Some((name, child)) = &mut running {
            match child.try_wait() {
                Ok(None) => continue,
                Ok(Some(status)) if status.success() => {}
                ended => {
                    tracing::warn!("drill of disk {name}: {ended:?}; see backstay jobs {name}");
                    rest.insert(name.clone(), now_unix_ns() + REST_NS);
                }
            }
            running = None;
        }
        let mut config = Config::clone(watch.config());
        config.add_protections(roots, &roots.disks_with_socket());
        rest.retain(|_, until| *until > now_unix_ns());
        let Some(name) = next(&config, roots, |name| rest.contains_key(name)) else { continue };
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(&program);
        if let Some(file) = &config_file {
            command.arg("--config").arg(file);
        }
        command.arg("--state-dir").arg(&roots.state).arg("--runtime-dir").arg(&roots.runtime);
        command.args(["--quiet", "drill", name.as_str()]);
        tracing::info!("disk {name}: a drill begins");
        match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => running = Some((name, child)),
            Err(e) => {
                tracing::warn!("drill of disk {name}: {e}");
                rest.insert(name, now_unix_ns() + REST_NS);
            }
        }
    }
    if let Some((_, mut child)) = running {
        let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        let _ = child.wait();
    }
}

/// The disk whose drill is due longest, of those that may begin now: disks of this host that have points, and
/// those that the configuration names.
pub fn next(
    config: &Config,
    roots: &Roots,
    leave_out: impl Fn(&DiskName) -> bool,
) -> Option<DiskName> {
    let now = now_unix_ns();
    let here = roots.disks_with_socket().into_iter().filter(|name| {
        let record = Record::load(&roots.disk(name).state);
        record.last.is_some()
    });
    let named = config.disk.iter().filter(|(_, disk)| disk.drill.is_some()).map(|(name, _)| name);
    let mut names: Vec<DiskName> = here.chain(named.cloned()).collect();
    names.sort();
    names.dedup();
    let (zone, at) = (config.zone(), windows::now());
    names
        .into_iter()
        .filter_map(|name| {
            let due = due(config.drill_of(&name)?, Drilled::load(&records(roots, &name)).as_ref());
            let begins = may_begin(config.blackout_of(&name), &zone, at).is_ok();
            (due <= now && begins && !leave_out(&name)).then_some((due, name))
        })
        .min()
        .map(|(_, name)| name)
}

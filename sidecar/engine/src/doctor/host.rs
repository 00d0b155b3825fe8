//! What all disks of a host need.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use backstay_front::paths::Roots;
use backstay_host::{fuse_connection, loop_device};
use backstay_types::DiskName;
use io_uring::IoUring;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::system::{self, System};
use super::{Finding, HOST};
use crate::health::Level;
use crate::health::host::{SIDECAR_ADVICE, of_sidecar, of_state};
use crate::prerequisites::Checked::{self, Bad, Good, Odd};
use crate::prerequisites::{clock, existing, fuse, kernel, looked, rights, room, size};
use crate::service::alive::{self, Sidecar};

/// Bits of a process's capabilities, from linux/capability.h.
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;
/// Memory that a driver locks, more or less: its program, stacks and buffers.
const LOCKED: u64 = 64 << 20;
/// Least room for sockets and bitmaps.
const ROOM_MIN: u64 = 64 << 20;

/// Looks at the host.
#[must_use]
pub fn host(roots: &Roots, names: &[DiskName]) -> Vec<Finding> {
    let system = System::default();
    let capabilities = capabilities();
    [
        ("version", Good(version())),
        looked("rights", rights()),
        looked("kernel", kernel()),
        looked("/dev/fuse", fuse()),
        ("loop devices", loops()),
        ("dead disks", dead_disks()),
        ("io_uring", uring()),
        ("programs", programs()),
        looked("runtime directory", runtime(&roots.runtime)),
        looked("state directory", state(&roots.state)),
        ("folders", folders(roots)),
        ("locked memory", locked_memory(capabilities)),
        ("I/O flusher", flusher(capabilities)),
        looked("clock", clock()),
        ("sidecar", sidecar(roots, names)),
        ("service units", system.units()),
        ("mount helper", system.helpers()),
    ]
    .into_iter()
    .chain(system.fstab().into_iter().map(|found| ("fstab", found)))
    .map(|found| Finding::new(HOST, found))
    .collect()
}

fn folders(roots: &Roots) -> Checked {
    match roots.check() {
        Ok(()) => Good("nobody else can change what is in them".into()),
        Err(e) => Bad(e.to_string()),
    }
}

fn version() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    format!("backstay {} ({})", env!("CARGO_PKG_VERSION"), program.display())
}

/// Capabilities in force, as the kernel tells them.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default()
}

fn has(capabilities: u64, bit: u32) -> bool {
    capabilities >> bit & 1 == 1
}

fn loops() -> Checked {
    let path = "/dev/loop-control";
    let dead = loop_device::without_mount().unwrap_or_default();
    if !dead.is_empty() {
        let dead: Vec<String> = dead.iter().map(|device| device.display().to_string()).collect();
        return Odd(format!(
            "{} are over disks that are not served any more, and answer only errors: unmount what is mounted from \
             them, then: losetup -d {}",
            dead.join(", "),
            dead.join(" ")
        ));
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Good(format!("{path} can be opened")),
        Err(e) => Bad(format!("{path}: {e}; load the module: modprobe loop")),
    }
}

/// Disks that nobody serves and that somebody waits for.
fn dead_disks() -> Checked {
    match fuse_connection::abandoned() {
        Ok(None) => Odd("requests of FUSE file systems wait, and it cannot be seen from here whether anybody serves them; \
             run doctor on the host itself"
            .into()),
        Ok(Some(none)) if none.is_empty() => {
            Good("no request waits for a process that is gone".into())
        }
        Ok(Some(abandoned)) => {
            let switches = fuse_connection::CONNECTIONS;
            let end = abandoned.iter().map(|n| format!("echo 1 > {switches}/{n}/abort"));
            Bad(format!(
                "requests wait for a driver that is gone (killed with its container?), and every sync of this host \
                 waits with them. End that: {} (if the file is missing, first: mount -t fusectl none {switches})",
                end.collect::<Vec<_>>().join("; ")
            ))
        }
        Err(e) => Odd(format!("cannot see whether requests wait for a process that is gone: {e}")),
    }
}

fn uring() -> Checked {
    match IoUring::new(2) {
        Ok(_) => Good("works".into()),
        Err(e) => {
            let switch = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let why = match switch.as_deref().map(str::trim) {
                Ok("0") => "a container's or service's system call filter may forbid it",
                Ok(_) => "sysctl kernel.io_uring_disabled=0 allows it",
                Err(_) => "the kernel was built without it",
            };
            Bad(format!("{e}; disks are read with it: {why}"))
        }
    }
}

fn programs() -> Checked {
    let missing: Vec<&str> =
        ["losetup", "mount", "umount"].into_iter().filter(|p| !system::on_path(p)).collect();
    match missing.is_empty() {
        true => Good("losetup, mount, umount".into()),
        false => Bad(format!("missing: {}; install the package mount", missing.join(", "))),
    }
}

fn runtime(dir: &Path) -> Result<Checked, nix::errno::Errno> {
    let at = dir.display();
    let free = room(dir)?;
    Ok(if statfs(existing(dir))?.filesystem_type() != TMPFS_MAGIC {
        Bad(format!(
            "{at} is not on tmpfs, so no disk can be served: after a power loss old bitmaps would be taken for current. \
             Use --runtime-dir or runtime_dir"
        ))
    } else if free < ROOM_MIN {
        Odd(format!("{} free in {at}: disks whose bitmap finds no room are resynced", size(free)))
    } else {
        Good(format!("{at}, tmpfs, {} free", size(free)))
    })
}

fn state(dir: &Path) -> Result<Checked, nix::errno::Errno> {
    let at = dir.display();
    let free = room(dir)?;
    let mode = fs::metadata(dir).map(|data| data.permissions().mode() & 0o077).unwrap_or_default();
    Ok(if let Some(cause) = of_state(dir) {
        let found = format!("{}; {}", cause.reason, cause.advice.unwrap_or_default());
        if cause.level == Level::Critical { Bad(found) } else { Odd(found) }
    } else if mode != 0 {
        Odd(format!("{at} can be looked into by others than root: chmod 0700 {at}"))
    } else {
        Good(format!("{at}, {} free", size(free)))
    })
}

fn locked_memory(capabilities: u64) -> Checked {
    if has(capabilities, CAP_IPC_LOCK) {
        return Good("without limit (CAP_IPC_LOCK)".into());
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) if limit >= LOCKED => Good(format!("up to {}", size(limit))),
        Ok((limit, _)) => Odd(format!(
            "at most {}: a driver may hang when memory runs short; ulimit -l unlimited, or CAP_IPC_LOCK",
            size(limit)
        )),
        Err(e) => Odd(e.to_string()),
    }
}

fn flusher(capabilities: u64) -> Checked {
    if has(capabilities, CAP_SYS_RESOURCE) {
        Good("drivers can be (CAP_SYS_RESOURCE)".into())
    } else {
        Odd("without CAP_SYS_RESOURCE a driver cannot be one: it may hang when memory runs short. A \
             container can be given it"
            .into())
    }
}

fn sidecar(roots: &Roots, names: &[DiskName]) -> Checked {
    match alive::sidecar(roots) {
        Sidecar::Runs { pid } => Good(format!("runs as process {pid}")),
        Sidecar::NotRunning { .. } if names.is_empty() => {
            Good("does not run; there are no disks".into())
        }
        found => {
            let cause = of_sidecar(&found).map(|cause| cause.reason + "; " + SIDECAR_ADVICE);
            Odd(cause.unwrap_or_default())
        }
    }
}

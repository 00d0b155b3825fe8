//! A command that tries what a test failover brought up, with nobody to talk to.

use backstay_engine::hooks::withhold;
use backstay_host::child::program;
use backstay_recovery::failover::ServedDisk;

use crate::error::{Context as _, Result, bail};

/// A network, mounts, process numbers and shared memory of its own; all that it started ends with it.
const APART: [&str; 7] =
    ["--net", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"];

/// In there the loopback is down at first, and many programs want it.
const INSIDE: &str = "ip link set lo up && exec /bin/sh -c \"$0\"";

/// Runs a command line apart from the host's network; it must succeed. The disk has a loop device.
pub fn run(place: &ServedDisk, line: &str) -> Result<()> {
    let name = &place.name;
    let ended = withhold(&mut program("unshare"))
        .args(APART)
        .args(["/bin/sh", "-c", INSIDE, line])
        .env("BACKSTAY_DISK", name.as_str())
        .env("BACKSTAY_DEVICE", place.device.as_deref().unwrap_or_default())
        .env("BACKSTAY_SERVED", &place.served)
        .status()
        .context("unshare could not be started (package util-linux)")?;
    if !ended.success() {
        bail!(
            "disk {name}: {line:?}: {ended}; the test stays up, to be looked at: backstay failover cleanup {name} \
             removes it"
        );
    }
    Ok(())
}

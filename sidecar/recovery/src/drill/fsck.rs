//! Are a disk's file systems whole, and do they mount?
//!
//! Each is mounted first, so that the kernel replays its journal into the overlay as it would after a
//! power loss, and unmounted; then its checker must find nothing to mend. File systems are looked
//! for in partitions, or on the disk as a whole.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use backstay_host::clock;
use backstay_host::own_dir::own_dir;

use super::{DrillError, Verdict};
use crate::run::{run_to_us, tool};

/// How long attaching and looking may take.
const LOOK_MAX: Duration = Duration::from_secs(60);

/// A file system whose checker we know.
struct Known {
    name: &'static str,
    options: &'static str,
    checker: &'static [&'static str],
    /// Two of them with one identity must not be mounted on one host.
    one_a_host: bool,
}

const KNOWN: [Known; 3] = [
    Known {
        name: "ext4",
        options: "nosuid,nodev,noexec",
        checker: &["e2fsck", "-f", "-n"],
        one_a_host: false,
    },
    Known {
        name: "xfs",
        options: "nosuid,nodev,noexec,nouuid",
        checker: &["xfs_repair", "-n"],
        one_a_host: false,
    },
    Known {
        name: "btrfs",
        options: "nosuid,nodev,noexec",
        checker: &["btrfs", "check", "--readonly"],
        one_a_host: true,
    },
];

/// A loop device; detached when dropped.
pub(super) struct Loop(pub String);

impl Loop {
    /// Attaches a part of a file, or all of it.
    pub fn attach(
        file: &Path,
        part: Option<(u64, u64)>,
        stop: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, DrillError> {
        let file = file.to_string_lossy();
        let mut args: Vec<String> = ["--find", "--show"].map(String::from).into();
        if let Some((start, len)) = part {
            args.extend([format!("--offset={start}"), format!("--sizelimit={len}")]);
        }
        let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
        args.push(&file);
        tool("losetup", &args, LOOK_MAX, stop).map(Self).map_err(DrillError::Io)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(e) = tool("losetup", &["-d", &self.0], LOOK_MAX, &|| false) {
            tracing::warn!("{e}");
        }
    }
}

/// A mounted file system; unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let at = self.0.to_string_lossy();
        if let Err(e) = tool("umount", &[&at], LOOK_MAX, &|| false) {
            tracing::warn!("{e}; it goes when its last user does");
            let _ = tool("umount", &["-l", &at], LOOK_MAX, &|| false);
        }
    }
}

/// Checks all file systems of a served disk.
pub(super) fn check(
    served: &Path,
    work: &Path,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Verdict, DrillError> {
    let deadline = clock::monotonic() + timeout;
    let parts = partitions(served, stop);
    let mut found = vec![];
    let (mut passed, mut checked) = (true, 0);
    let places: Vec<(String, Option<(u64, u64)>)> = match parts.is_empty() {
        true => vec![("the whole disk".into(), None)],
        false => parts.into_iter().map(|(n, at)| (format!("partition {n}"), Some(at))).collect(),
    };
    for (place, part) in places {
        let device = Loop::attach(served, part, stop)?;
        let kind = probe(&device.0, "TYPE", stop);
        let kind = if kind == "ext2" || kind == "ext3" { "ext4".to_owned() } else { kind };
        let Some(known) = KNOWN.iter().find(|known| known.name == kind) else {
            let kind = if kind.is_empty() { "nothing that is known" } else { &kind };
            found.push(format!("{place}: {kind}, not checked"));
            continue;
        };
        checked += 1;
        let left = deadline.saturating_duration_since(clock::monotonic());
        match one(known, &device.0, work, left, stop)? {
            Ok(said) => found.push(format!("{kind} on {place}: {said}")),
            Err(why) => {
                passed = false;
                found.push(format!("{kind} on {place}: {why}"));
            }
        }
    }
    if checked == 0 {
        passed = false;
        found.push("no file system was found that can be checked (ext2-4, xfs, btrfs)".into());
    }
    Ok(Verdict { passed, message: found.join("; ") })
}

/// Mounts and checks one; `Err` inside says what is wrong with it.
fn one(
    known: &Known,
    device: &str,
    work: &Path,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Result<String, String>, DrillError> {
    let deadline = clock::monotonic() + timeout;
    let mut said = "mounts";
    if known.one_a_host && has_a_twin(device, stop) {
        said = "not mounted, as its twin is on this host";
    } else {
        let at: PathBuf = work.join("fs");
        own_dir(&at).map_err(|e| DrillError::Io(e.into()))?;
        let at_text = at.to_string_lossy();
        let args = ["-t", known.name, "-o", known.options, device, &at_text];
        match tool("mount", &args, timeout, stop) {
            Ok(_) => drop(Mounted(&at)),
            Err(_) if stop() => return Err(DrillError::Stopped),
            Err(e) => return Ok(Err(format!("it does not mount: {e}"))),
        }
    }
    let (program, args) = known.checker.split_first().unwrap_or((&"true", &[]));
    let mut command = Command::new(program);
    command.args(args).arg(device);
    let left = deadline.saturating_duration_since(clock::monotonic());
    let (ended, output) = run_to_us(command, left, stop)
        .map_err(|e| DrillError::Tool(format!("{program} could not be started: {e}")))?;
    if stop() {
        return Err(DrillError::Stopped);
    }
    match ended.is_success() {
        true => Ok(Ok(format!("{said}, clean"))),
        false => Ok(Err(format!("{program}: {}: {output}", ended.words(left)))),
    }
}

/// What `blkid` sees on a device; empty if it sees nothing.
fn probe(device: &str, tag: &str, stop: &(dyn Fn() -> bool + Sync)) -> String {
    let args = ["--probe", "--output", "value", "--match-tag", tag, device];
    tool("blkid", &args, LOOK_MAX, stop).unwrap_or_default()
}

/// Whether another block device of this host holds a file system of the same identity.
fn has_a_twin(device: &str, stop: &(dyn Fn() -> bool + Sync)) -> bool {
    let uuid = probe(device, "UUID", stop);
    // Not from its cache, which remembers devices that are gone.
    let token = format!("UUID={uuid}");
    let args = ["--cache-file", "/dev/null", "--output", "device", "--match-token", &token];
    let all = tool("blkid", &args, LOOK_MAX, stop);
    all.unwrap_or_default().lines().any(|other| other != device)
}

/// Partitions with their first byte and length; none if there is no table.
fn partitions(served: &Path, stop: &(dyn Fn() -> bool + Sync)) -> Vec<(u32, (u64, u64))> {
    let file = served.to_string_lossy();
    let args = ["--raw", "--noheadings", "--output", "NR,START,SECTORS", &file];
    let table = tool("partx", &args, LOOK_MAX, stop).unwrap_or_default();
    let parse = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse::<u64>);
        let (n, start, len) = (fields.next()?.ok()?, fields.next()?.ok()?, fields.next()?.ok()?);
        // An extended partition is a box of a sector or two for others.
        (len > 2).then_some((n as u32, (start.checked_mul(512)?, len.checked_mul(512)?)))
    };
    table.lines().filter_map(parse).collect()
}

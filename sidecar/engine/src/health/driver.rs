//! What the driver of a disk says, and whether there is one.

use std::path::Path;

use backstay_format::control::{DriverStatus, IoTrouble, Noted};
use backstay_front::backing::record::BackingRecord;
use backstay_front::control::{Died, Silence};
use backstay_host::doing::doing;
use backstay_host::mounts;

use super::{Cause, Facts, ids};

/// How long a backing may take to answer before it is told, in nanoseconds: 10 s. Slow disks take seconds.
const HANGS_AFTER_NS: u64 = 10 * 1_000_000_000;
/// How long errors that a guest got are told after the last of them, in nanoseconds: a day.
const IO_TROUBLE_NS: u64 = 24 * 3600 * 1_000_000_000;

pub(super) fn causes(facts: &Facts<'_>) -> Vec<Cause> {
    let name = facts.name;
    let Some(driver) = facts.driver else {
        if let Some(silence) = Silence::of(facts.paths) {
            let cause = Cause::critical(ids::DRIVER_SILENT, silence.to_string());
            return vec![cause.advise(silence.advice()).since(silence.since_unix_ns)];
        }
        if let Some(died) = Died::of(facts.paths) {
            return vec![of_died(facts, &died)];
        }
        let known = BackingRecord::load(&facts.paths.state).is_ok_and(|of| of.backing.is_some());
        let backing = if known { "" } else { "BACKING " };
        let advice = format!("serve it: backstay attach {backing}--name {name}");
        return vec![Cause::warning(ids::NOT_SERVED, "no driver serves the disk").advise(advice)];
    };
    let untracked = untracked(facts, driver);
    // It says the same.
    let warning = driver.warning.as_ref().filter(|_| untracked.is_none()).map(|warning| {
        Cause::warning(ids::DRIVER_WARNING, warning).advise(format!(
            "it is compared in its resync window, or now by: backstay resync {name} --now"
        ))
    });
    let io = driver.io_trouble.as_ref().and_then(|trouble| io_trouble(facts, driver, trouble));
    let hangs = hangs(facts, driver);
    untracked.into_iter().chain(warning).chain(io).chain(hangs).collect()
}

/// A driver that did not end in order.
fn of_died(facts: &Facts<'_>, died: &Died) -> Cause {
    let name = facts.name;
    let mut reason = "the driver died without a clean stop: users of the disk get I/O errors, and what they had not synced \
                      may be lost"
        .to_owned();
    let mut first = String::new();
    if !died.devices.is_empty() {
        let hanging: Vec<String> = died.devices.iter().map(|device| hangs_on(device)).collect();
        reason.push_str(&format!("; still there of it: {}", hanging.join(", ")));
        first = "end its users, unmount what is mounted from it (umount -l), then ".into();
    }
    let advice = format!(
        "{first}serve it again: backstay attach --name {name}; or only take away what is left: backstay detach {name} \
         --force"
    );
    Cause::critical(ids::DRIVER_DIED, reason).advise(advice).since(died.since_unix_ns)
}

/// A dead device, and where it or a partition of it is mounted.
fn hangs_on(device: &str) -> String {
    let table = mounts::read().unwrap_or_default();
    let is_of = |source: &Path| {
        let rest = source.to_str().and_then(|source| source.strip_prefix(device));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    let at: Vec<String> = table
        .iter()
        .filter(|mount| is_of(&mount.source))
        .map(|mount| mount.at.display().to_string())
        .collect();
    match at.is_empty() {
        true => device.into(),
        false => format!("{device} (mounted on {})", at.join(", ")),
    }
}

/// A backing that answers nothing.
fn hangs(facts: &Facts<'_>, driver: &DriverStatus) -> Option<Cause> {
    let wait = driver.io_waits.as_ref()?;
    let waits_ns = facts.now_unix_ns.saturating_sub(wait.since_unix_ns);
    (waits_ns >= HANGS_AFTER_NS).then(|| {
        let (name, pid, backing) = (facts.name, driver.pid, driver.backing.display());
        let reason = format!(
            "users of the disk wait for its backing {backing}: a {} has not been answered for {} s (driver: process {pid}; {})",
            wait.what,
            waits_ns / 1_000_000_000,
            doing(pid)
        );
        let advice = format!(
            "mend the disk or the server of {backing} (see dmesg, and /proc/{pid}/task/*/stack): the disk then goes on \
             by itself. Until then every sync of this host may wait for it. \"backstay umount {name} --force\" has the \
             kernel end the disk within seconds; its users get I/O errors"
        );
        Cause::critical(ids::BACKING_HANGS, reason).advise(advice).since(wait.since_unix_ns)
    })
}

/// Changes go on that nobody notes.
fn untracked(facts: &Facts<'_>, driver: &DriverStatus) -> Option<Cause> {
    let untracked = driver.untracked.as_ref()?;
    let state = facts.paths.state.display();
    let reason = format!("changes of the disk are not tracked: {}", untracked.error);
    let after = match untracked.noted {
        Noted::State => "",
        Noted::Backing => " (the backing was marked: it is compared also after a reboot)",
        Noted::Nowhere => " (after a reboot, too)",
    };
    let advice = format!(
        "its users are not affected. Mend the file system of {state} (see dmesg): the next cycle \
         then compares the whole disk{after}"
    );
    Some(Cause::critical(ids::NOT_TRACKED, reason).advise(advice).since(untracked.since_unix_ns))
}

/// What its users could not read or write.
fn io_trouble(facts: &Facts<'_>, driver: &DriverStatus, trouble: &IoTrouble) -> Option<Cause> {
    let recent = facts.now_unix_ns.saturating_sub(trouble.at_unix_ns) < IO_TROUBLE_NS;
    let error = std::io::Error::from_raw_os_error(trouble.errno);
    let IoTrouble { reads, writes, flushes, what, .. } = trouble;
    let reason = format!(
        "users of the disk got errors from its backing: {reads} reads, {writes} writes and {flushes} \
         flushes failed since it was mounted; the last one was a {what}: {error}"
    );
    let backing = driver.backing.display();
    let advice = match trouble.errno {
        nix::libc::ENOSPC | nix::libc::EDQUOT => {
            format!(
                "make room in the file system of {backing}, then check the file system on the disk"
            )
        }
        _ => format!("see dmesg for errors of {backing}, and check the file system on the disk"),
    };
    recent
        .then(|| Cause::warning(ids::GUEST_ERRORS, reason).advise(advice).since(trouble.at_unix_ns))
}

//! What the driver of a disk says, and whether there is one.

use backstay_format::control::{DriverStatus, IoTrouble, Noted};
use backstay_front::backing::record::BackingRecord;
use backstay_front::control::Silence;
use backstay_host::doing::doing;

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
        "its users go on undisturbed. Mend the file system of {state} (see dmesg): the next cycle \
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

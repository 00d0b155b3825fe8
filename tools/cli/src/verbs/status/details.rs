//! Everything about one disk.

use std::time::Duration;

use backstay_engine::health::{Cause, Level};
use backstay_engine::service::alive::Sidecar;
use backstay_recovery::failover::FailoverRecord;
use backstay_recovery::mount::HydrationStatus;
use backstay_recovery::replica::status::ReplicaStatus;
use backstay_types::Term;

use super::level;
use crate::health::{Point, Shown, term_of};
use crate::table::wrapped;
use crate::verbs::target::{size, time, word};

/// Before the text of a line, below what it is about.
const INDENT: &str = "              ";

/// Lines that are not longer than the screen is wide.
struct Lines {
    text: String,
    width: usize,
}

impl Lines {
    fn line(&mut self, line: impl AsRef<str>) {
        self.text += line.as_ref();
        self.text.push('\n');
    }

    /// What a line is about, and its text.
    fn say(&mut self, what: &str, text: &str) {
        let room = self.width.saturating_sub(INDENT.len()).max(20);
        for (n, part) in wrapped(text, "", room).iter().enumerate() {
            match n {
                0 => self.line(format!("  {what:10}  {part}")),
                _ => self.line(format!("{INDENT}{part}")),
            }
        }
    }
}

macro_rules! say {
    ($out:expr, $what:literal, $($text:tt)*) => { $out.say($what, &format!($($text)*)) };
}

/// Everything about one disk.
pub fn details(shown: &Shown, width: usize) -> String {
    let mut out = Lines { text: String::new(), width };
    disk(&mut out, shown);
    shown.failover.iter().for_each(|record| failover(&mut out, record));
    // A failback starts the process again for each look: the disk's health says how far it is.
    let of_failback = shown.failover.is_some();
    shown.replica.iter().for_each(|of| replica(&mut out, of, of_failback));
    shown.mounted_point.iter().for_each(|of| point(&mut out, of));
    out.text
}

fn sidecar(sidecar: &Sidecar) -> String {
    match sidecar {
        Sidecar::Runs { pid } => format!("runs as process {pid}"),
        Sidecar::Silent { stopped: true, .. } => "stopped by a signal".into(),
        Sidecar::Silent { .. } => "hangs".into(),
        Sidecar::NotRunning { .. } => "does not run".into(),
        Sidecar::Unknown { reason } => format!("unknown: {reason}"),
    }
}

fn failover(out: &mut Lines, record: &FailoverRecord) {
    let point = record.point.map_or(String::new(), |point| format!(" at point {}", point.cycle));
    let term = match term_of(record) {
        Term(0) => String::new(),
        term => format!(", term {term}"),
    };
    let group = record
        .group
        .as_ref()
        .map_or(String::new(), |of| format!(", of point {} of group {}", of.number, of.group));
    say!(
        out,
        "failover",
        "{}, {}{point}{group}{term}, since {}",
        word(&record.kind),
        record.state.explain(),
        time(record.since_unix_ns)
    );
}

fn replica(out: &mut Lines, replica: &ReplicaStatus, of_failback: bool) {
    let running = match (replica.running, of_failback) {
        (true, _) => "following",
        (false, true) => "of a failback",
        (false, false) => "not running",
    };
    say!(
        out,
        "replica",
        "{running}, {}, on {}, of {}",
        replica.explained,
        replica.target.display(),
        replica.vault
    );
    if let Some(rpo) = replica.rpo_ns {
        let age = Duration::from_secs(Duration::from_nanos(rpo).as_secs());
        say!(out, "RPO now", "{}", humantime::format_duration(age));
    }
    let newest = replica.shown.as_ref().and_then(|shown| shown.newest);
    if let (Some(newest), Some(at)) = (newest, replica.at)
        && newest.cycle != at
    {
        say!(out, "behind", "at point {at}; the newest is {}", newest.cycle);
    }
    let doing = replica.shown.as_ref().and_then(|shown| shown.doing.as_ref());
    if let (true, Some(work)) = (replica.running, doing) {
        say!(out, "doing", "{} {} of {}", work.what, size(work.done), size(work.all));
    }
}

fn disk(out: &mut Lines, shown: &Shown) {
    let status = &shown.disk;
    let policy = status.policy.as_ref().map_or_else(String::new, |p| format!(", policy {p}"));
    let groups: Vec<&str> = status.groups.iter().map(|group| group.as_str()).collect();
    let groups = match groups.as_slice() {
        [] => String::new(),
        names => format!(", group {}", names.join(", ")),
    };
    let (name, headline, health) = (&status.name, &shown.headline, level(status.health.level));
    out.line(format!("{name}: {headline}, {health}{policy}{groups}"));
    if let Some(reason) = &status.health.reason {
        say!(out, "reason", "{reason}");
    }
    if let Some(since) = status.health.since_unix_ns {
        say!(out, "since", "{}", time(since));
    }
    if let Some(at) = status.health.next_retry_unix_ns {
        say!(out, "next try", "{}", time(at));
    }
    if let Some(advice) = &status.health.advice {
        say!(out, "to do", "{advice}");
    }
    for (place, cause) in status.health.causes.iter().enumerate().skip(1) {
        more(out, cause, &status.health.causes[..place]);
    }
    if let Some(next) = status.next_unix_ns.filter(|_| status.health.level == Level::Ok) {
        say!(out, "next cycle", "{}", time(next));
    }
    if let Some(blackout) = &status.blackout {
        say!(out, "blackout", "{blackout}");
    }
    if status.limit.limit().is_some() {
        say!(out, "limit", "{} for all disks together", status.limit);
    }
    let last = status.record.last.as_ref().filter(|_| shown.replica.is_none());
    if last.is_some() && status.rpo_ns.is_none() {
        say!(out, "RPO now", "unknown: see above what is wrong with its newest point");
    }
    if let (Some(last), Some(rpo)) = (last, status.rpo_ns) {
        let age = Duration::from_secs(Duration::from_nanos(rpo).as_secs());
        say!(out, "RPO now", "{}", humantime::format_duration(age));
        say!(
            out,
            "last cycle",
            "point {} cut {}, {} moved, {} stored, {:.1} s",
            last.cycle,
            time(last.cut_unix_ns),
            size(last.moved.0),
            size(last.stored.0),
            last.duration.as_secs_f64()
        );
    }
    if let Some(dirty) = status.dirty {
        say!(out, "dirty", "{}", size(dirty.0));
    }
    if let Some(churn) = status.churn_per_second {
        let folding = status.folding_ratio.map_or_else(|| "-".into(), |r| format!("{r:.2}"));
        say!(out, "churn", "{}/s, folding {folding}", size(churn as u64));
    }
    if let Some((used, limit)) = status.change_log {
        say!(out, "change log", "{} of {}", size(used.0), size(limit.0));
    }
    if let Some(drill) = &status.drill {
        if let Some(verdict) = &drill.verdict {
            say!(
                out,
                "last drill",
                "point {} {} {}, {}: {}",
                verdict.cycle,
                word(&verdict.check),
                if verdict.passed { "passed" } else { "FAILED" },
                time(verdict.ended_unix_ns),
                verdict.message.lines().next().unwrap_or_default()
            );
        }
        if let Some(error) = &drill.error {
            say!(out, "no drill", "{}: {error}", time(drill.tried_unix_ns));
        }
    }
    if shown.replica.is_none() {
        match status.vault_id {
            Some(id) => say!(out, "vault", "{} ({id})", status.vault),
            None => say!(out, "vault", "{} (nothing shipped yet)", status.vault),
        }
    }
    if !status.only_looked_at && shown.replica.is_none() {
        say!(out, "interval", "{}", humantime::format_duration(status.interval));
        say!(out, "sidecar", "{}", sidecar(&status.sidecar));
    }
    if let Some(driver) = &status.driver {
        say!(
            out,
            "served",
            "{} ({}, {}, pid {})",
            driver.served.display(),
            size(driver.size.0),
            driver.engine,
            driver.pid
        );
    }
}

/// A cause that is not the headline. One that only repeats what another one before it says, as a cycle that fails
/// for a fault which is a cause of its own, is named and not told a second time.
fn more(out: &mut Lines, cause: &Cause, told: &[Cause]) {
    let repeats = |other: &Cause| {
        cause.reason.contains(&other.reason) || other.reason.contains(&cause.reason)
    };
    match told.iter().any(repeats) {
        true => say!(out, "also", "{}, for the same reason", cause.id),
        false => say!(out, "also", "{}", cause.reason),
    }
    if let Some(advice) = &cause.advice {
        say!(out, "", "{advice}");
    }
}

fn point(out: &mut Lines, point: &Point) {
    let Point { of, now } = point;
    say!(
        out,
        "mounted",
        "point {} of disk {}, cut {}, from {}",
        of.cycle,
        of.disk_name,
        time(of.cut_unix_ns),
        of.vault
    );
    let Some(now) = now else { return };
    say!(
        out,
        "local",
        "{} of {}, and {} of {} in the cache",
        size(now.local_bytes.0),
        size(of.size_bytes.0),
        size(now.cache_bytes.0),
        size(now.cache_limit_bytes.0)
    );
    match &now.hydration {
        HydrationStatus::NotWanted => {}
        HydrationStatus::Running => {
            say!(out, "hydration", "{} of {}", size(now.hydrated_bytes.0), size(of.size_bytes.0));
        }
        HydrationStatus::Waiting { reason } => say!(out, "hydration", "waits: {reason}"),
        HydrationStatus::Done => say!(out, "hydration", "done: the vault is not needed any more"),
    }
    if now.hydration != HydrationStatus::Done {
        match &now.vault_trouble {
            None if now.held => say!(out, "vault", "reachable; holds the point"),
            None => say!(out, "vault", "reachable; the point is not held"),
            Some(why) => say!(out, "vault", "NOT REACHABLE: {why}"),
        }
    }
}

//! `backstay points`: what can be restored.

use std::time::{SystemTime, UNIX_EPOCH};

use backstay_types::{Classified, CycleNo, DiskId, DiskName};
use backstay_vault::{
    Consistency, CycleKind, DrillRecord, HoldName, HoldRecord, Line, Manifest, Vault, VaultError,
};
use clap::Args;
use serde::Serialize;

use super::target::{InVault, past, size, time, word};
use crate::context::Context;
use crate::error::{Result, damage};

/// List the recovery points of a disk
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay points db
  backstay points db --last 10
  backstay points db --since 6h          also a time: 2026-02-03T04:05:06Z
  backstay points db --vault file:///mnt/backup/vault --json

All points are listed, even if one is damaged; then the exit code is 4.")]
pub struct Points {
    /// The disk's name
    name: DiskName,
    /// Only the newest N
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// Only those cut since a time (2026-02-03T04:05:06Z) or within a period (6h)
    #[arg(long, value_name = "TIME", value_parser = past)]
    since: Option<SystemTime>,
    #[command(flatten)]
    vault: InVault,
}

/// A point, or what can be said of one that cannot be read.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Point(Box<Listed>),
    Damaged { cycle: CycleNo, damaged: String },
}

/// A point, for programs.
#[derive(Serialize)]
struct Listed {
    cycle: CycleNo,
    point: backstay_types::PointId,
    kind: CycleKind,
    consistency: Consistency,
    cut_unix_ns: u64,
    committed_unix_ns: u64,
    size_bytes: u64,
    moved_bytes: u64,
    stored_bytes: u64,
    segments: usize,
    term: u64,
    /// It belongs to a history that was left at a failover.
    left: bool,
    /// Why it is known to be damaged, if it is.
    damaged: Option<String>,
    /// Names of pins and other holds that keep it.
    held_by: Vec<HoldName>,
    /// What drills have proven of it: the last verdict of each kind of check.
    proven: Vec<&'static str>,
    /// All verdicts on it, by time.
    drills: Vec<DrillRecord>,
}

impl Listed {
    fn of(point: &Manifest, holds: &[HoldRecord], drills: &[DrillRecord], line: &Line) -> Self {
        let about = |drill: &&DrillRecord| (drill.cycle, drill.point) == (point.cycle, point.point);
        let drills: Vec<DrillRecord> = drills.iter().filter(about).cloned().collect();
        let holds = holds.iter().filter(|hold| hold.covers(point.cycle));
        Self {
            cycle: point.cycle,
            point: point.point,
            kind: point.kind,
            consistency: point.consistency,
            cut_unix_ns: point.cut_unix_ns,
            committed_unix_ns: point.committed_unix_ns,
            size_bytes: point.size.0,
            moved_bytes: point.moved_sectors * 512,
            stored_bytes: point.own_segments().map(|segment| segment.object.0).sum(),
            segments: point.segments.len(),
            term: point.term.0,
            left: !line.has(point),
            damaged: None,
            proven: last_of_each(&drills)
                .filter(|drill| drill.passed)
                .map(|drill| drill.check.proves())
                .collect(),
            drills,
            held_by: holds.map(|hold| hold.name.clone()).collect(),
        }
    }
}

impl Points {
    pub fn run(self, context: &Context) -> Result<()> {
        let (vault, disk) = match self.vault.open(context, &self.name) {
            // A disk of this host that was never shipped has no points; that is an answer.
            Err(VaultError::NotFound { .. } | VaultError::NoVault { .. })
                if context.globals.json && context.has_disk(&self.name)? =>
            {
                return context.print_json(&Vec::<Entry>::new());
            }
            opened => self.vault.tell(context, &self.name, opened?)?,
        };
        let entries = self.entries(&vault, disk.disk)?;
        match context.globals.json {
            true => context.print_json(&entries)?,
            false => print(&entries),
        }
        let is_damaged = |entry: &&Entry| matches!(entry, Entry::Damaged { .. });
        match entries.iter().filter(is_damaged).count() {
            0 => Ok(()),
            bad => Err(damage(format!(
                "disk {}: {bad} of {} recovery points cannot be read: they are damaged; see backstay verify {}",
                self.name,
                entries.len(),
                self.name
            ))),
        }
    }

    /// The points that were asked for, oldest first.
    fn entries(&self, vault: &Vault, disk: DiskId) -> Result<Vec<Entry>> {
        let since_unix_ns = self.since.map_or(0, |since| {
            since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
        });
        let (holds, line) = (vault.holds(disk)?, vault.line(disk)?);
        let drills = vault.drills(disk)?;
        let mut damaged = vault.damaged_points(disk)?;
        let mut cycles = vault.points(disk)?;
        if let Some(last) = self.last {
            cycles.drain(..cycles.len().saturating_sub(last));
        }
        let mut entries = vec![];
        for cycle in cycles {
            match vault.manifest(disk, cycle) {
                Ok(point) if point.cut_unix_ns < since_unix_ns => {}
                Ok(point) => {
                    let listed = Listed {
                        damaged: damaged.remove(&cycle),
                        ..Listed::of(&point, &holds, &drills, &line)
                    };
                    entries.push(Entry::Point(Box::new(listed)));
                }
                // Retention deleted it since it was listed.
                Err(VaultError::NotFound { .. }) => {}
                Err(e) if e.is_damage() => {
                    entries.push(Entry::Damaged { cycle, damaged: e.to_string() });
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(entries)
    }
}

fn print(entries: &[Entry]) {
    println!(
        "{:>6}  {:20}  {:8}  {:11}  {:>10}  {:>10}  {:24}  HELD BY",
        "POINT", "CUT", "KIND", "CONSISTENCY", "MOVED", "STORED", "PROVEN"
    );
    for entry in entries {
        let point = match entry {
            Entry::Point(point) => point,
            Entry::Damaged { cycle, damaged } => {
                println!("{:>6}  DAMAGED: {damaged}", cycle.0);
                continue;
            }
        };
        let held_by: Vec<&str> = point.held_by.iter().map(HoldName::as_str).collect();
        let held_by = held_by.join(" ");
        let notes = [
            point.damaged.as_ref().map(|_| "DAMAGED"),
            point.left.then_some("left at a failover"),
            Some(&*held_by).filter(|names| !names.is_empty()),
        ];
        let notes: Vec<&str> = notes.into_iter().flatten().collect();
        let line = format!(
            "{:>6}  {:20}  {:8}  {:11}  {:>10}  {:>10}  {:24}  {}",
            point.cycle.0,
            time(point.cut_unix_ns),
            word(&point.kind),
            word(&point.consistency),
            size(point.moved_bytes),
            size(point.stored_bytes),
            proven(&point.drills),
            notes.join("; ")
        );
        println!("{}", line.trim_end());
    }
}

/// The last verdict of each kind of check; they are sorted by time.
fn last_of_each(drills: &[DrillRecord]) -> impl Iterator<Item = &DrillRecord> {
    let later = |n: usize| drills[n + 1..].iter().map(|drill| drill.check);
    drills
        .iter()
        .enumerate()
        .filter(move |(n, drill)| later(*n).all(|c| c != drill.check))
        .map(|(_, d)| d)
}

/// What drills say of a point, in short: `mounts 02-03`, `boots FAILED`.
fn proven(drills: &[DrillRecord]) -> String {
    let words = last_of_each(drills).map(|drill| {
        let day: String = time(drill.ended_unix_ns).chars().skip(5).take(5).collect();
        match drill.passed {
            true => format!("{} {day}", drill.check.proves()),
            false => format!("{} FAILED", drill.check.proves()),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

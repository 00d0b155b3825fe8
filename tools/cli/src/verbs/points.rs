//! `backstay points`: what can be restored.

use backstay_types::{CycleNo, DiskName};
use backstay_vault::{
    Consistency, CycleKind, DrillRecord, HoldName, HoldRecord, Line, Manifest, VaultError,
};
use clap::Args;
use serde::Serialize;

use super::target::{InVault, size, time, word};
use crate::context::Context;

/// List the recovery points of a disk
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay points db
  backstay points db --vault file:///mnt/backup/vault --json")]
pub struct Points {
    /// The disk's name
    name: DiskName,
    #[command(flatten)]
    vault: InVault,
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
    pub fn run(self, context: &Context) -> anyhow::Result<()> {
        let (vault, disk) = match self.vault.find(context, &self.name) {
            // A vault or disk that was never shipped to has no points; that is an answer.
            Err(e) if context.globals.json && not_there(&e) => {
                return context.print_json(&Vec::<Listed>::new());
            }
            found => found?,
        };
        let mut points = vec![];
        let (holds, line) = (vault.holds(disk.disk)?, vault.line(disk.disk)?);
        let drills = vault.drills(disk.disk)?;
        let mut damaged = vault.damaged_points(disk.disk)?;
        for cycle in vault.points(disk.disk)? {
            match vault.manifest(disk.disk, cycle) {
                Ok(point) => points.push(Listed {
                    damaged: damaged.remove(&cycle),
                    ..Listed::of(&point, &holds, &drills, &line)
                }),
                // Retention deleted it since it was listed.
                Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if context.globals.json {
            return context.print_json(&points);
        }
        println!(
            "{:>6}  {:20}  {:8}  {:11}  {:>10}  {:>10}  {:24}  HELD BY",
            "POINT", "CUT", "KIND", "CONSISTENCY", "MOVED", "STORED", "PROVEN"
        );
        for point in points {
            let held_by: Vec<&str> = point.held_by.iter().map(HoldName::as_str).collect();
            let damaged = if point.damaged.is_some() { "DAMAGED; " } else { "" };
            let left = if point.left { "left at a failover; " } else { "" };
            let line = format!(
                "{:>6}  {:20}  {:8}  {:11}  {:>10}  {:>10}  {:24}  {damaged}{left}{}",
                point.cycle.0,
                time(point.cut_unix_ns),
                word(&point.kind),
                word(&point.consistency),
                size(point.moved_bytes),
                size(point.stored_bytes),
                proven(&point.drills),
                held_by.join(" ")
            );
            println!("{}", line.trim_end());
        }
        Ok(())
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

fn not_there(error: &anyhow::Error) -> bool {
    use backstay_vault::VaultError as E;
    matches!(error.downcast_ref(), Some(E::NotFound { .. } | E::NoVault { .. }))
}

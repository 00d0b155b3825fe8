//! Recovers a machine after a crash and looks for lost writes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use backstay_format::control::{CutMode, FoundState};

use super::rebuild::Crash;
use super::recorder::{Recorder, Sabotage};
use super::state::{Machine, Step};
use super::workload::{Image, Mark, Run, SIZE, open};
use backstay_types::{ByteLen, SECTOR_BYTES};

/// What recovery made of a crash.
pub struct Recovered {
    /// What it said it found.
    pub found: FoundState,
    /// Whether it takes every sector for dirty.
    pub whole_disk: bool,
    /// The sectors it takes for dirty.
    pub dirty: BTreeSet<u64>,
    /// The size it has.
    pub size: ByteLen,
    /// The recording of the recovery itself, to crash it again.
    pub recorder: Recorder,
    /// Steps in that recording until the disk was open.
    pub steps: usize,
}

/// Opens the disk of a machine that went down.
///
/// # Errors
/// If it cannot be opened.
pub fn recover(machine: Machine) -> Result<Recovered, String> {
    recover_with(machine, false)
}

/// The same, of a machine whose backing has no place for a mark.
///
/// # Errors
/// If it cannot be opened.
pub fn recover_with(machine: Machine, no_mark: bool) -> Result<Recovered, String> {
    let recorder = Recorder::new(machine, SIZE, Sabotage::None);
    recorder.faults().no_mark = no_mark;
    let disk = open(&recorder).map_err(|e| format!("the disk cannot be opened: {e}"))?;
    let steps = recorder.recording().log.len();
    let info = disk.cut(CutMode::Fuzzy).map_err(|e| format!("no cut after recovery: {e}"))?;
    let dirty = sectors_set(&recorder, &info.dirty);
    let whole_disk = info.whole_disk.is_some();
    Ok(Recovered { found: disk.found(), whole_disk, dirty, size: disk.size(), recorder, steps })
}

/// The sectors set in a bitmap of a recorded machine.
pub fn sectors_set(recorder: &Recorder, bits: &Path) -> BTreeSet<u64> {
    let name = bits.to_string_lossy().into_owned();
    let mut sectors = BTreeSet::new();
    for (&word, &bits) in &recorder.recording().now.bits[&name].words {
        sectors.extend((0..64).filter(|i| bits & (1 << i) != 0).map(|i| word * 64 + i));
    }
    sectors
}

/// Checks what must hold after a crash in step `at` of a run.
///
/// # Errors
/// The invariant that was broken, and where.
pub fn check(
    run: &Run,
    log: &[Step],
    at: usize,
    crash: Crash,
    machine: &Machine,
    got: &Recovered,
) -> Result<(), String> {
    let marks: Vec<&Mark> = run.marks_before(log, at).collect();
    check_no_lost_write(&marks, machine, got)?;
    check_flushed(run, &marks, machine)?;
    check_size(&marks, got)?;
    if run.died {
        // Then a comparison may be asked for too often, and a write may never be lost.
        return Ok(());
    }
    if crash == Crash::Kill {
        check_exact(run, &marks, got)?;
    }
    if got.found == FoundState::Damaged {
        return Err("an undamaged state was taken for damaged".into());
    }
    if got.whole_disk && marks.iter().any(|mark| matches!(mark, Mark::Released(_))) {
        return Err("everything is dirty although nothing was damaged".into());
    }
    Ok(())
}

/// The sectors that a disk has more, the old last one counted in: it may have been partial.
fn grown(from: ByteLen, to: ByteLen) -> Range<u64> {
    if from == to { 0..0 } else { from.0 / SECTOR_BYTES..to.0.div_ceil(SECTOR_BYTES) }
}

/// A size that the guest was told is never lost; one it was not told may be there.
fn check_size(marks: &[&Mark], got: &Recovered) -> Result<(), String> {
    let (mut least, mut most) = (SIZE, SIZE);
    for mark in marks {
        match mark {
            Mark::Growing(_, to) => most = *to,
            Mark::Grown(size) => (least, most) = (*size, *size),
            _ => {}
        }
    }
    if got.size == least || got.size == most {
        return Ok(());
    }
    Err(format!("the disk has {} bytes; it must have {least} or {most}", got.size))
}

/// I1: dirty ⊇ every sector that differs from the last committed point.
fn check_no_lost_write(marks: &[&Mark], machine: &Machine, got: &Recovered) -> Result<(), String> {
    if got.whole_disk {
        return Ok(());
    }
    let committed = marks.iter().rev().find_map(|mark| match mark {
        Mark::Committed(image, _, size) => Some((image, *size)),
        _ => None,
    });
    let Some((image, size)) = committed else {
        return Err("I1: nothing was ever committed, yet not everything is dirty".into());
    };
    // What the disk has more than the point is new to the vault, whatever it holds (I7).
    let new = grown(size, got.size);
    if let Some(sector) = new.clone().find(|sector| !got.dirty.contains(sector)) {
        return Err(format!(
            "I1: the disk grew from {size} bytes to {}, and the new sector {sector} is not dirty \
             ({:?})",
            got.size, got.found
        ));
    }
    let sectors: BTreeSet<u64> = image.keys().chain(machine.backing.keys()).copied().collect();
    match sectors.into_iter().find(|s| differs(image, machine, *s) && !got.dirty.contains(s)) {
        Some(sector) => Err(format!(
            "I1: sector {sector} differs from the last committed point and is not dirty ({:?})",
            got.found
        )),
        None => Ok(()),
    }
}

fn differs(image: &Image, machine: &Machine, sector: u64) -> bool {
    image.get(&sector) != machine.backing.get(&sector)
}

/// I3: what was flushed is there, or something newer.
fn check_flushed(run: &Run, marks: &[&Mark], machine: &Machine) -> Result<(), String> {
    let Some(flushed) = marks.iter().rev().find_map(|mark| match mark {
        Mark::Flushed(op) => Some(*op),
        _ => None,
    }) else {
        return Ok(());
    };
    for (sector, history) in &run.history {
        let first = history.iter().rposition(|(op, _)| *op <= flushed).unwrap_or(0);
        let there = machine.backing.get(sector).cloned().unwrap_or_default();
        let before_any = history[0].0 > flushed && there.is_empty();
        if !before_any && !history[first..].iter().any(|(_, content)| *content == there) {
            return Err(format!("I3: sector {sector} lost content that was flushed"));
        }
    }
    Ok(())
}

/// Same boot: nothing is dirty that was not written since the cut of the point it is counted from.
fn check_exact(run: &Run, marks: &[&Mark], got: &Recovered) -> Result<(), String> {
    let since = marks.iter().rev().find_map(|mark| match mark {
        Mark::Released(op) => Some(*op),
        _ => None,
    });
    let Some(since) = since.filter(|_| !got.whole_disk) else { return Ok(()) };
    // What the disk has grown by since that cut is dirty without having been written.
    let mut before = marks.iter().rev().skip_while(|mark| !matches!(mark, Mark::Released(_)));
    let new = before.find_map(|mark| match mark {
        Mark::Committed(_, _, size) => Some(grown(*size, got.size)),
        _ => None,
    });
    let new = new.unwrap_or_default();
    let written = |sector: &u64| {
        new.contains(sector)
            || run.history.get(sector).is_some_and(|h| h.last().is_some_and(|(op, _)| *op > since))
    };
    match got.dirty.iter().find(|sector| !written(sector)) {
        Some(sector) => Err(format!("sector {sector} is dirty but was not written since the cut")),
        None => Ok(()),
    }
}

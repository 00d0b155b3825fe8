//! What a crash after any step can leave.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::state::{ATOM_BYTES, Machine, Step};

/// A way to go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is gone; what it wrote stays in the kernel's memory, the bits in tmpfs.
    Kill,
    /// The machine is gone: memory, tmpfs, and of unsynced writes any part.
    PowerLoss,
}

/// The machine after a crash in the middle of step `at` of a log: all steps before were done, that
/// one perhaps, perhaps in part.
pub fn after(start: &Machine, log: &[Step], at: usize, crash: Crash, rng: &mut Rng) -> Machine {
    match crash {
        Crash::Kill => {
            let mut machine = start.clone();
            log[..at].iter().for_each(|step| machine.apply(step));
            if let Some(step) = log.get(at) {
                apply_in_part(&mut machine, step, rng);
            }
            machine
        }
        Crash::PowerLoss => power_loss(start, &log[..(at + 1).min(log.len())], rng),
    }
}

/// A system call that a kill interrupted did a part of its work: from its start, or nothing.
fn apply_in_part(machine: &mut Machine, step: &Step, rng: &mut Rng) {
    match step {
        Step::Write(file, at, data) => {
            let atoms = rng.usize(0..=data.len().div_ceil(ATOM_BYTES));
            machine.write(*file, *at, &data[..data.len().min(atoms * ATOM_BYTES)]);
        }
        Step::Backing(sector, data) => {
            let atoms = rng.usize(0..=data.len().div_ceil(ATOM_BYTES));
            machine.write_backing(*sector, &data[..data.len().min(atoms * ATOM_BYTES)]);
        }
        step if rng.bool() => machine.apply(step),
        _ => {}
    }
}

/// Everything that was synced, and of the rest any subset, torn at 512 bytes.
fn power_loss(start: &Machine, log: &[Step], rng: &mut Rng) -> Machine {
    let mut machine = start.clone();
    machine.bits.clear();
    machine.boot += 1;
    // Steps that were done but are not durable yet, by the step's place in the log.
    let mut pending: BTreeMap<usize, &Step> = BTreeMap::new();
    // What a sync step covered; the last step may not have done its work.
    for (i, step) in log.iter().enumerate() {
        let last = i + 1 == log.len();
        let mut settle = |machine: &mut Machine, covers: &dyn Fn(usize, &Step) -> bool| {
            let covered: Vec<usize> =
                pending.iter().filter(|(at, step)| covers(**at, step)).map(|(at, _)| *at).collect();
            for at in covered {
                if let Some(step) = pending.remove(&at) {
                    machine.apply(step);
                }
            }
        };
        match step {
            Step::SyncFile(_)
            | Step::SyncWrite(_)
            | Step::SyncNames
            | Step::SyncBacking
            | Step::SyncMark
                if last && rng.bool() => {}
            Step::SyncFile(file) => {
                settle(&mut machine, &|_, step| matches!(step, Step::Write(of, ..) if of == file))
            }
            Step::SyncWrite(write) => settle(&mut machine, &|at, _| at == *write),
            Step::SyncNames => {
                settle(&mut machine, &|_, step| matches!(step, Step::Link(..) | Step::Unlink(_)))
            }
            Step::SyncBacking => {
                settle(&mut machine, &|_, step| {
                    matches!(step, Step::Backing(..) | Step::Extend(_))
                });
            }
            Step::SyncMark => settle(&mut machine, &|_, step| matches!(step, Step::Mark(_))),
            Step::Link(..)
            | Step::Unlink(_)
            | Step::Mark(_)
            | Step::Write(..)
            | Step::Backing(..)
            | Step::Extend(_) => {
                pending.insert(i, step);
            }
            Step::NewBits(..) | Step::Or(..) | Step::DropBits(_) | Step::Remember(_) => {}
        }
    }
    // How much of the rest made it: sometimes nearly all, sometimes nearly nothing.
    let percent = *rng.choice(&[0, 5, 50, 95, 100]).unwrap_or(&50);
    let mut lucky = || rng.u32(0..100) < percent;
    for step in pending.into_values() {
        match step {
            Step::Write(file, at, data) => {
                for (i, atom) in data.chunks(ATOM_BYTES).enumerate() {
                    if lucky() {
                        machine.write(*file, at + (i * ATOM_BYTES) as u64, atom);
                    }
                }
            }
            Step::Backing(sector, data) => {
                for (i, atom) in data.chunks(ATOM_BYTES).enumerate() {
                    if lucky() {
                        machine.write_backing(sector + i as u64, atom);
                    }
                }
            }
            // A name may come back with the content that was synced to the file before.
            Step::Link(name, file) if lucky() => {
                machine.files.entry(*file).or_default();
                machine.names.insert(name.clone(), *file);
            }
            Step::Unlink(_) | Step::Extend(_) | Step::Mark(_) if lucky() => machine.apply(step),
            _ => {}
        }
    }
    machine
}

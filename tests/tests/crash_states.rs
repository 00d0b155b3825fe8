//! I1 and I3 over thousands of crash states: every prefix of a recorded run, by kill and by power
//! loss, any subset of unsynced writes, torn at 512 bytes; and crashes in the middle of recovery.

use backstay_tests::crash::check::{Recovered, check, recover, recover_with};
use backstay_tests::crash::rebuild::{Crash, after, after as after_crash};
use backstay_tests::crash::recorder::Sabotage;
use backstay_tests::crash::workload::{self, Death, Run};
use fastrand::Rng;

/// Crash states of the short form; `BACKSTAY_TEST_LONG` has ten times as many.
const STATES: usize = 12_000;
const STATES_PER_RUN: usize = 60;
const OPERATIONS: usize = 120;

struct Tally {
    states: usize,
    exact: usize,
    twice: usize,
}

/// Crashes a run in many places; the first broken invariant ends it.
fn crash_often(run: &Run, rng: &mut Rng, tally: &mut Tally) -> Result<(), String> {
    let (start, log) = {
        let recording = run.recorder.recording();
        (recording.start.clone(), recording.log.clone())
    };
    for _ in 0..STATES_PER_RUN {
        let at = rng.usize(0..=log.len());
        let crash = if rng.bool() { Crash::Kill } else { Crash::PowerLoss };
        let here = |e: String| format!("step {at} of {}, {crash:?}: {e}", log.len());
        let machine = after(&start, &log, at, crash, rng);
        let got = recover(machine.clone()).map_err(here)?;
        check(run, &log, at, crash, &machine, &got).map_err(here)?;
        tally.states += 1;
        tally.exact += usize::from(!got.whole_disk);
        if rng.u32(0..4) == 0 {
            let again = |e: String| here(format!("and again in recovery: {e}"));
            crash_recovery(run, &log, at, crash, &machine, &got, rng).map_err(again)?;
            tally.states += 1;
            tally.twice += 1;
        }
    }
    Ok(())
}

fn crash_recovery(
    run: &Run,
    log: &[backstay_tests::crash::state::Step],
    at: usize,
    first: Crash,
    machine: &backstay_tests::crash::state::Machine,
    got: &Recovered,
    rng: &mut Rng,
) -> Result<(), String> {
    let recovery = got.recorder.recording().log[..got.steps].to_vec();
    let crash = if rng.bool() { Crash::Kill } else { Crash::PowerLoss };
    let down = after(machine, &recovery, rng.usize(0..=recovery.len()), crash, rng);
    let got = recover(down.clone())?;
    let worst = if crash == Crash::Kill { first } else { crash };
    check(run, log, at, worst, &down, &got)
}

/// Runs workloads until there are `states` crash states or one breaks an invariant.
fn search(seed: u64, states: usize, sabotage: Sabotage) -> (Tally, Result<(), String>) {
    let mut rng = Rng::with_seed(seed);
    let mut tally = Tally { states: 0, exact: 0, twice: 0 };
    while tally.states < states {
        let run_seed = rng.u64(..);
        let run = workload::run(run_seed, OPERATIONS, sabotage);
        if let Err(e) = crash_often(&run, &mut rng, &mut tally) {
            return (tally, Err(format!("seed {seed:#x}, run {run_seed:#x}: {e}")));
        }
    }
    (tally, Ok(()))
}

#[test]
fn no_crash_loses_a_write() {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let seed = if long { Rng::new().u64(..) } else { 0xBAC5_7A11 };
    let states = if long { STATES * 10 } else { STATES };
    let (tally, result) = search(seed, states, Sabotage::None);
    println!(
        "{} crash states ({} in recovery), {} with an exact or region dirty set, seed {seed:#x}",
        tally.states, tally.twice, tally.exact
    );
    result.unwrap();
    assert!(tally.exact * 2 > tally.states, "a disk that is always all dirty proves nothing");
}

/// Runs workloads whose state directory dies at every one of its changes in turn, and goes down at
/// every step of the rest; the first broken invariant ends it.
fn die_everywhere(
    seed: u64,
    runs: usize,
    sabotage: Sabotage,
    no_mark: bool,
) -> Result<usize, String> {
    let mut rng = Rng::with_seed(seed);
    let mut states = 0;
    for _ in 0..runs {
        let run_seed = rng.u64(..);
        // A whole life first, to know how many changes there are.
        let count = 1 << 40;
        let death = Death { after: Some(count), no_mark };
        let whole = workload::run_until(run_seed, OPERATIONS, sabotage, death);
        let changes = count - whole.recorder.faults().dead_after.unwrap_or(count);
        for after in 0..changes {
            let death = Death { after: Some(after), no_mark };
            let run = workload::run_until(run_seed, OPERATIONS, sabotage, death);
            let (start, log) = {
                let recording = run.recorder.recording();
                (recording.start.clone(), recording.log.clone())
            };
            // Mostly at the end: what the guest did with a dead state directory.
            for _ in 0..6 {
                let at = log.len() - rng.usize(0..=log.len().min(60));
                let crash = if rng.u32(0..4) == 0 { Crash::Kill } else { Crash::PowerLoss };
                let here = |e: String| {
                    format!("run {run_seed:#x}, dead after {after}, step {at}, {crash:?}: {e}")
                };
                let machine = after_crash(&start, &log, at, crash, &mut rng);
                let got = recover_with(machine.clone(), no_mark).map_err(here)?;
                check(&run, &log, at, crash, &machine, &got).map_err(here)?;
                states += 1;
            }
        }
    }
    Ok(states)
}

/// I1 when the state directory's own disk dies and the guest goes on: at every change that the driver
/// makes to it, with and without a place for a mark on the backing.
#[test]
fn a_dead_state_directory_loses_no_write() {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    for no_mark in [false, true] {
        let runs = if long { 60 } else { 1 };
        let states = die_everywhere(0xDEAD, runs, Sabotage::None, no_mark).unwrap();
        println!("{states} crash states with a dead state directory, no mark: {no_mark}");
        assert!(states > 200, "{states}");
    }
}

/// The test must see a driver that does not mark the backing, or does not wait until that is durable.
#[test]
fn a_driver_without_a_second_witness_is_found() {
    for sabotage in [Sabotage::MarkNotChanged, Sabotage::MarkNotSynced] {
        let found = die_everywhere(0xDEAD, 20, sabotage, false).expect_err("this driver is broken");
        println!("{sabotage:?}: {found}");
        assert!(found.contains("I1"), "{found}");
    }
}

/// The test must see a driver that does not keep its promises.
#[test]
fn broken_drivers_are_found() {
    // A backing that is not flushed also breaks I1: the vault then has what the disk lost.
    for (sabotage, says) in [
        (Sabotage::IntentsNotSynced, "I1"),
        (Sabotage::IntentsNotWritten, "I1"),
        (Sabotage::BitsNotShared, "I1"),
        (Sabotage::BackingNotSynced, "I"),
        (Sabotage::ExtensionNotSynced, "never shrinks"),
    ] {
        let (tally, result) = search(7, STATES, sabotage);
        let found = result.expect_err("this driver is broken");
        println!("{sabotage:?}: found after {} states: {found}", tally.states);
        assert!(found.contains(says), "{sabotage:?}: {found}");
    }
    // A superblock that is not synced may lose more than one kind of promise.
    let (_, result) = search(7, STATES, Sabotage::SuperblockNotSynced);
    result.expect_err("this driver is broken");
}

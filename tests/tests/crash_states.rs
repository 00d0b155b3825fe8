//! I1 and I3 over thousands of crash states: every prefix of a recorded run, by kill and by power
//! loss, any subset of unsynced writes, torn at 512 bytes; and crashes in the middle of recovery.

use backstay_tests::crash::check::{Recovered, check, recover};
use backstay_tests::crash::rebuild::{Crash, after};
use backstay_tests::crash::recorder::Sabotage;
use backstay_tests::crash::workload::{self, Run};
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

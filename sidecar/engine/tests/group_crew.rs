//! The crew against mates of any behaviour: it says that all were held at one instant only if they
//! were, and never waits longer than its limits.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstay_engine::group::crew::{Answer, Command, Crew, Seat};
use proptest::prelude::*;

const HOLD: Duration = Duration::from_millis(60);
const READY: Duration = Duration::from_millis(60);

/// How a mate behaves at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Does,
    /// Does it late, by so many milliseconds.
    Late(u64),
    Fails,
    Silent,
    Gone,
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        8 => Just(Deed::Does),
        2 => (1u64..100).prop_map(Deed::Late),
        1 => Just(Deed::Fails),
        1 => Just(Deed::Silent),
        1 => Just(Deed::Gone),
    ]
}

/// When a mate was held, in microseconds of the test's clock.
#[derive(Default)]
struct Held {
    from: AtomicU64,
    until: AtomicU64,
}

/// A mate with a real hold: it ends when told to, when its time is over, or with its orders.
fn mate(seat: Seat, deeds: [Deed; 4], clock: Instant, held: Arc<Held>) -> thread::JoinHandle<()> {
    let now = move || clock.elapsed().as_micros() as u64 + 1;
    thread::spawn(move || {
        let act = |deed: Deed, answer: Answer| match deed {
            Deed::Does => {
                seat.answer(answer);
                true
            }
            Deed::Late(ms) => {
                thread::park_timeout(Duration::from_millis(ms));
                seat.answer(answer);
                true
            }
            Deed::Fails => {
                seat.answer(Answer::Failed("told to".into()));
                false
            }
            Deed::Silent => true,
            Deed::Gone => false,
        };
        if !act(deeds[0], Answer::Here) {
            return;
        }
        if seat.commands.recv() != Ok(Command::Quiesce) || !act(deeds[3], Answer::Ready) {
            return;
        }
        let Ok(Command::Cut(hold)) = seat.commands.recv() else { return };
        held.from.store(now(), Ordering::SeqCst);
        if !act(deeds[1], Answer::Cut) {
            held.until.store(now(), Ordering::SeqCst);
            return;
        }
        let told = seat.commands.recv_timeout(hold);
        held.until.store(now(), Ordering::SeqCst);
        let in_force = told == Ok(Command::Thaw);
        act(deeds[2], Answer::Thawed { in_force, held: hold });
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_counts_was_held_at_one_instant(
        mates in prop::collection::vec(prop::array::uniform4(deed()), 1..5),
    ) {
        let clock = Instant::now();
        let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
        let all: Vec<(Arc<Held>, _)> = mates
            .iter()
            .enumerate()
            .map(|(n, &deeds)| {
                let held = Arc::new(Held::default());
                let seat = crew.enlist(format!("mate {n}"));
                (Arc::clone(&held), mate(seat, deeds, clock, held))
            })
            .collect();
        let began = Instant::now();
        let frozen = crew.here(READY).and_then(|()| {
            crew.quiesce();
            crew.ready(READY)?;
            crew.cut(HOLD)
        });
        let waited = began.elapsed();
        // The answer to a thaw is waited for longer, but nobody is held then.
        let valid = frozen.is_ok()
            && !mates.iter().any(|deeds| matches!(deeds[2], Deed::Silent | Deed::Gone))
            && crew.thaw().is_ok();
        drop(crew);
        let mut spans = vec![];
        for (held, thread) in all {
            thread.join().unwrap();
            spans.push((held.from.load(Ordering::SeqCst), held.until.load(Ordering::SeqCst)));
        }
        prop_assert!(waited < READY * 2 + HOLD + Duration::from_millis(500), "{waited:?}");
        if valid {
            let last_cut = spans.iter().map(|span| span.0).max().unwrap();
            let first_thaw = spans.iter().map(|span| span.1).min().unwrap();
            prop_assert!(spans.iter().all(|span| span.0 > 0), "one was never cut: {spans:?}");
            prop_assert!(last_cut <= first_thaw, "held at no common instant: {spans:?}");
        }
        let fine = |deeds: &[Deed; 4]| deeds.iter().all(|deed| *deed == Deed::Does);
        if mates.iter().any(|deeds| matches!(deeds[0], Deed::Fails | Deed::Silent | Deed::Gone)) {
            prop_assert!(!valid, "one was not even ready");
        }
        // On a busy machine a hold of 60 ms may expire; but the crew must be able to succeed.
        if mates.iter().all(fine) && mates.len() == 1 {
            prop_assert!(valid || waited > HOLD / 2);
        }
    }
}

#[test]
fn a_mate_that_ships_while_another_thaws_is_in_order() {
    let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
    let (quick, slow) = (crew.enlist("quick"), crew.enlist("slow"));
    let thawed = Answer::Thawed { in_force: true, held: HOLD };
    for answer in [Answer::Here, Answer::Ready, Answer::Cut, thawed.clone(), Answer::Done(vec![])] {
        quick.answer(answer);
    }
    for answer in [Answer::Here, Answer::Ready, Answer::Cut, thawed] {
        slow.answer(answer);
    }
    crew.here(READY).unwrap();
    crew.ready(READY).unwrap();
    crew.cut(HOLD).unwrap();
    crew.thaw().unwrap();
    slow.answer(Answer::Done(vec![]));
    assert_eq!(crew.done(READY).unwrap(), []);
}

#[test]
fn answers_out_of_order_and_a_stop_end_a_round() {
    let mut crew = Crew::new(Arc::new(AtomicBool::new(false)));
    let hasty = crew.enlist("hasty");
    hasty.answer(Answer::Cut);
    let wrong = crew.ready(READY).unwrap_err().to_string();
    assert!(wrong.contains("hasty") && wrong.contains("get ready"), "{wrong}");
    let stop = Arc::new(AtomicBool::new(true));
    let mut crew = Crew::new(Arc::clone(&stop));
    let _seat = crew.enlist("anyone");
    assert_eq!(crew.ready(Duration::from_secs(600)).unwrap_err().to_string(), "stopped");
}

//! I5: terms, handovers, and points that lay over an older one after a failover: anyone who comes when,
//! one writer wins, and no point loses anything.

mod common;

use std::sync::Arc;

use backstay_types::{CycleNo, Term};
use backstay_vault::read::verify_points;
use backstay_vault::{
    Base, Claim, CycleKind, Manifest, Pass, PointMeta, TermFrom, Vault, VaultError, verify_cycle,
};
use common::history::{History, copy, room, run, stepped};
use common::{At, meta, set, ship};

const SIZE: u64 = 1 << 20;
const SOURCE: &str = "test";
const TARGET: &str = "source target";

/// A disk with points that were merged and thinned out, so that a ledger with merges is there.
fn prepared(vault: &Vault) -> History {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut history = History::new(vault, SIZE, 3);
    for _ in 0..14 {
        history.cycle(vault, &mut rng).unwrap();
    }
    run(vault, history.disk, "last 12").unwrap();
    assert!(!vault.ledger(history.disk).unwrap().unwrap().merges.is_empty(), "nothing was merged");
    history
}

fn claim(vault: &Vault, history: &History, cycle: u64, writer: &str) -> Claim {
    try_claim(vault, history, cycle, writer).unwrap()
}

fn try_claim(
    vault: &Vault,
    history: &History,
    cycle: u64,
    writer: &str,
) -> Result<Claim, VaultError> {
    let point = vault.manifest(history.disk, CycleNo(cycle))?;
    Ok(Claim {
        after: vault.newest_term(history.disk)?.unwrap().term,
        writer: writer.into(),
        from: TermFrom { cycle: point.cycle, point: point.point, term: point.term },
    })
}

/// The first point of a term, over the one it goes on from; tried again if another was faster.
fn first_point(
    vault: &Vault,
    history: &mut History,
    term: Term,
    from: &TermFrom,
) -> Result<Manifest, VaultError> {
    let base = vault.manifest(history.disk, from.cycle)?;
    history.now = history.images[&from.cycle.0].to_vec();
    let runs = history.churn(&mut fastrand::Rng::with_seed(term.0));
    loop {
        vault.hold_from(history.disk, term, from)?;
        let newest = history.newest(vault)?.unwrap();
        let cycle = newest.cycle.next();
        let segments = ship(vault, history.disk, cycle, &history.now, &runs)?;
        let pass = Pass { must_move: set(&runs), segments };
        let verified = verify_cycle(vault, history.disk, history.size, cycle, vec![pass])?;
        let meta = PointMeta { term, base: Base::Older(base.clone()), ..meta(Some(&newest)) };
        match vault.commit(verified, meta) {
            Err(VaultError::LostRace(_)) => continue,
            done => {
                let point = done?;
                history.images.insert(point.cycle.0, Arc::new(history.now.clone()));
                vault.release_from(history.disk, term)?;
                return Ok(point);
            }
        }
    }
}

fn fail_over(vault: &Vault, history: &mut History, cycle: u64) -> Result<Manifest, VaultError> {
    let claim = try_claim(vault, history, cycle, TARGET)?;
    vault.hold_from(history.disk, claim.after.next(), &claim.from)?;
    let term = vault.take_term(history.disk, &claim)?;
    first_point(vault, history, term.term, &claim.from)
}

fn next(vault: &Vault, history: &mut History, term: Term) -> Result<Manifest, VaultError> {
    let before = history.newest(vault)?.unwrap();
    let runs = history.churn(&mut fastrand::Rng::with_seed(before.cycle.0));
    let cycle = before.cycle.next();
    let segments = ship(vault, history.disk, cycle, &history.now, &runs)?;
    let pass = Pass { must_move: set(&runs), segments };
    let verified = verify_cycle(vault, history.disk, history.size, cycle, vec![pass])?;
    let point = vault.commit(verified, PointMeta { term, ..meta(Some(&before)) })?;
    history.images.insert(point.cycle.0, Arc::new(history.now.clone()));
    Ok(point)
}

#[test]
fn a_failover_goes_on_from_an_older_point_and_both_histories_stay() {
    let (_dir, vault) = room();
    let mut history = prepared(&vault);
    let point = fail_over(&vault, &mut history, 9).unwrap();
    assert_eq!((point.cycle, point.term, point.kind), (CycleNo(15), Term(2), CycleKind::Delta));
    assert_eq!(point.predecessor.map(|(cycle, _)| cycle), Some(CycleNo(9)));
    history.check(&vault, "after the failover");
    verify_points(&vault, history.disk, &[CycleNo(14), CycleNo(15)], 2, &|_, _| {}).unwrap();
    let line = vault.line(history.disk).unwrap();
    let on = |cycle| line.has(&vault.manifest(history.disk, CycleNo(cycle)).unwrap());
    assert!(on(8) && on(9) && !on(10) && !on(14) && on(15));
    assert!(vault.holds(history.disk).unwrap().is_empty(), "its hold was released");
    for _ in 0..12 {
        next(&vault, &mut history, Term(2)).unwrap();
        run(&vault, history.disk, "last 6").unwrap();
        history.check(&vault, "while life goes on");
    }
    // The old source can do nothing any more.
    let lost = next(&vault, &mut history.clone(), Term(1)).unwrap_err();
    assert!(matches!(lost, VaultError::Fenced { newest: Term(2), .. }), "{lost}");
}

#[test]
fn a_term_goes_on_from_the_point_it_names_and_no_other() {
    let (_dir, vault) = room();
    let mut history = prepared(&vault);
    let claim = claim(&vault, &history, 9, TARGET);
    vault.take_term(history.disk, &claim).unwrap();
    // A delta of the newest point, or of another old one.
    assert!(next(&vault, &mut history.clone(), Term(2)).is_err());
    let other = vault.manifest(history.disk, CycleNo(8)).unwrap();
    let other = TermFrom { cycle: other.cycle, point: other.point, term: other.term };
    assert!(first_point(&vault, &mut history.clone(), Term(2), &other).is_err());
    first_point(&vault, &mut history, Term(2), &claim.from).unwrap();
    // Later points follow the newest.
    assert!(first_point(&vault, &mut history.clone(), Term(2), &claim.from).is_err());
    next(&vault, &mut history, Term(2)).unwrap();
    history.check(&vault, "at the end");
}

#[test]
fn of_two_who_take_the_term_one_wins() {
    let (_dir, vault) = room();
    let history = prepared(&vault);
    for round in 0..20 {
        let claims = ["a", "b"].map(|writer| claim(&vault, &history, 14, writer));
        let both: Vec<_> = std::thread::scope(|scope| {
            let (vault, disk) = (&vault, history.disk);
            let take = |claim| scope.spawn(move || vault.take_term(disk, claim));
            let both: Vec<_> = claims.iter().map(take).collect();
            both.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        let won: Vec<_> = both.iter().filter_map(|taken| taken.as_ref().ok()).collect();
        assert_eq!(won.len(), 1, "round {round}: {both:?}");
        // The winner may ask again, the loser cannot win any more.
        for claim in &claims {
            let again = vault.take_term(history.disk, claim);
            assert_eq!(again.is_ok(), claim.writer == won[0].writer);
        }
    }
}

#[test]
fn taking_a_term_can_be_killed_anywhere_and_done_again() {
    let (dir, vault) = room();
    let history = prepared(&vault);
    for die in [At::DieBefore as fn(u64) -> At, At::DieAfter] {
        let mut at = 0;
        loop {
            let place = tempfile::tempdir().unwrap();
            copy(dir.path(), place.path());
            let (vault, steps) = stepped(place.path(), die(at));
            let claim = claim(&vault, &history, 9, TARGET);
            let done = vault.take_term(history.disk, &claim);
            if steps.counted().1 <= at {
                done.unwrap();
                break;
            }
            let (vault, _) = stepped(place.path(), At::Nothing);
            assert_eq!(vault.take_term(history.disk, &claim).unwrap().writer, TARGET);
            assert_eq!(vault.newest_term(history.disk).unwrap().unwrap().term, Term(2));
            at += 1;
        }
        assert!(at > 0);
    }
}

/// The old source is committing; at each of its steps the target takes the term and commits. Also
/// between its look at the terms and its put.
#[test]
fn a_source_that_is_failed_over_while_it_commits_never_gets_between() {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let (mut at, mut was_first, mut lost) = (0, 0, 0);
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (told, shared) = std::sync::mpsc::channel();
        let (mut theirs, path) = (history.clone(), place.path().to_owned());
        let meanwhile = move || {
            let (vault, _) = stepped(&path, At::Nothing);
            let point = fail_over(&vault, &mut theirs, 9).unwrap();
            told.send((theirs, point)).unwrap();
        };
        let (vault, steps) = stepped(place.path(), At::Meanwhile(at, Box::new(meanwhile)));
        let mut ours = history.clone();
        let done = next(&vault, &mut ours, Term(1));
        if steps.counted().0 <= at {
            done.unwrap();
            break;
        }
        let what = format!("failed over at step {at}");
        let (mut history, first) = shared.recv().unwrap();
        match done {
            // Its point was there before the target's first.
            Ok(point) => {
                assert!(point.cycle < first.cycle, "{what}");
                history.images.insert(point.cycle.0, ours.images[&point.cycle.0].clone());
                assert!(!vault.line(history.disk).unwrap().has(&point), "{what}");
                was_first += 1;
            }
            Err(VaultError::Fenced { .. } | VaultError::LostRace(_)) => lost += 1,
            Err(e) => panic!("{what}: {e}"),
        }
        // It comes back, and is told.
        let again = next(&vault, &mut history.clone(), Term(1)).unwrap_err();
        assert!(matches!(again, VaultError::Fenced { newest: Term(2), .. }), "{what}: {again}");
        history.check(&vault, &what);
        next(&vault, &mut history, Term(2)).unwrap();
        run(&vault, history.disk, "last 3").unwrap();
        history.check(&vault, &what);
        at += 1;
    }
    assert!(was_first > 0 && lost > 10, "{was_first} were first, {lost} lost");
}

/// At each step of a failover, from the hold to its first point, somebody else does something.
fn at_each_step(other: impl Fn(&Vault, &mut History) + Clone + Send + 'static) {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (told, shared) = std::sync::mpsc::channel();
        let (mut theirs, path, act) = (history.clone(), place.path().to_owned(), other.clone());
        let meanwhile = move || {
            let (vault, _) = stepped(&path, At::Nothing);
            act(&vault, &mut theirs);
            told.send(theirs).unwrap();
        };
        let (vault, steps) = stepped(place.path(), At::Meanwhile(at, Box::new(meanwhile)));
        let mut ours = history.clone();
        let done = fail_over(&vault, &mut ours, 5);
        if steps.counted().0 <= at {
            done.unwrap();
            break;
        }
        let what = format!("something else at step {at}");
        let theirs = shared.recv().unwrap();
        for (cycle, image) in theirs.images {
            ours.images.entry(cycle).or_insert(image);
        }
        let (vault, _) = stepped(place.path(), At::Nothing);
        match done {
            Ok(_) => {
                ours.check(&vault, &what);
                for _ in 0..3 {
                    next(&vault, &mut ours, Term(2)).unwrap();
                    run(&vault, ours.disk, "last 2").unwrap();
                    ours.check(&vault, &what);
                }
            }
            // Retention was faster than the hold: nothing was begun.
            Err(VaultError::Retired(_) | VaultError::NotFound { .. }) => {
                assert_eq!(vault.newest_term(ours.disk).unwrap().unwrap().term, Term(1), "{what}");
                ours.check(&vault, &what);
            }
            Err(e) => panic!("{what}: {e}"),
        }
        at += 1;
    }
    assert!(at > 40, "only {at} steps: this test does not test what it should");
}

#[test]
fn maintenance_at_each_step_of_a_failover_costs_nothing() {
    at_each_step(|vault, history| {
        run(vault, history.disk, "last 2").unwrap();
    });
}

#[test]
fn a_late_point_of_the_old_source_and_maintenance_at_each_step_of_a_failover() {
    at_each_step(|vault, history| {
        // It is refused once the term is taken.
        match next(vault, history, Term(1)) {
            Ok(_) | Err(VaultError::Fenced { .. }) => {}
            Err(e) => panic!("{e}"),
        }
        run(vault, history.disk, "last 3").unwrap();
    });
}

/// The maintainer sleeps at each of its steps while a failover goes on from an old point, whose list has
/// entries that were merged away long ago.
#[test]
fn a_failover_at_each_step_of_maintenance_loses_nothing() {
    let (dir, vault) = room();
    let history = prepared(&vault);
    let mut at = 0;
    loop {
        let place = tempfile::tempdir().unwrap();
        copy(dir.path(), place.path());
        let (told, shared) = std::sync::mpsc::channel();
        let (mut theirs, path) = (history.clone(), place.path().to_owned());
        let meanwhile = move || {
            let (vault, _) = stepped(&path, At::Nothing);
            if fail_over(&vault, &mut theirs, 4).is_ok() {
                next(&vault, &mut theirs, Term(2)).unwrap();
            }
            told.send(theirs).unwrap();
        };
        let (vault, steps) = stepped(place.path(), At::Meanwhile(at, Box::new(meanwhile)));
        let what = format!("failed over at step {at}");
        let done = run(&vault, history.disk, "last 4");
        if steps.counted().0 <= at {
            done.unwrap();
            break;
        }
        match done {
            Ok(_) | Err(VaultError::Contended { .. } | VaultError::NotFound { .. }) => {}
            Err(e) => panic!("{what}: {e}"),
        }
        let mut history = shared.recv().unwrap();
        let (vault, _) = stepped(place.path(), At::Nothing);
        history.check(&vault, &what);
        let term = vault.newest_term(history.disk).unwrap().unwrap().term;
        for _ in 0..2 {
            next(&vault, &mut history, term).unwrap();
            run(&vault, history.disk, "last 2").unwrap();
            history.check(&vault, &what);
        }
        at += 1;
    }
    assert!(at > 40, "only {at} steps: this test does not test what it should");
}

#[test]
fn a_handover_holds_as_long_as_its_term() {
    let (_dir, vault) = room();
    let history = prepared(&vault);
    let disk = history.disk;
    let newest = history.newest(&vault).unwrap().unwrap();
    let at = TermFrom { term: Term(1), cycle: newest.cycle, point: newest.point };
    assert_eq!(vault.handover(disk).unwrap(), None);
    let handover = vault.hand_over(disk, SOURCE, at).unwrap();
    assert_eq!(vault.hand_over(disk, SOURCE, at).unwrap(), handover, "again");
    assert_eq!(vault.handover(disk).unwrap(), Some(handover));
    let elsewhere = TermFrom { cycle: CycleNo(13), ..at };
    assert!(vault.hand_over(disk, SOURCE, elsewhere).is_err());
    // Withdrawn by the source: it takes the next term. The target is too late.
    let back = claim(&vault, &history, 14, SOURCE);
    let target = claim(&vault, &history, 14, TARGET);
    vault.take_term(disk, &back).unwrap();
    assert_eq!(vault.handover(disk).unwrap(), None);
    assert!(matches!(vault.take_term(disk, &target), Err(VaultError::Fenced { .. })));
    assert!(matches!(vault.hand_over(disk, SOURCE, at), Err(VaultError::Fenced { .. })));
}

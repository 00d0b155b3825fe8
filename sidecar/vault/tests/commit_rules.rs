//! I5 and I7: what may become a recovery point, and who may make it one.

mod common;

use std::sync::Arc;

use backstay_types::{Classified, CycleNo, SectorRange, Term};
use backstay_vault::format::key::DiskFolder;
use backstay_vault::{Bounds, CycleKind, Pass, VaultError, Vaults, verify_cycle};
use common::{Lab, content, meta, set};
use futures::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

const SIZE: u64 = 1 << 20;

fn lab() -> (Lab, Vec<u8>) {
    (Lab::new(SIZE), content(&mut fastrand::Rng::with_seed(1), SIZE))
}

#[test]
fn a_missing_sector_is_named() {
    let (lab, now) = lab();
    let without = [SectorRange::new(0, 700), SectorRange::new(701, 2048)];
    let segments = lab.ship(1, &now, &without);
    let pass = Pass { must_move: set(&[lab.whole()]), segments };
    let missed = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).unwrap_err();
    match missed {
        VaultError::Missed { range, .. } => assert_eq!(range, SectorRange::new(700, 701)),
        other => panic!("{other}"),
    }
    assert_eq!(lab.vault.points(lab.disk).unwrap(), []);
}

#[test]
fn a_sector_too_much_is_named() {
    let (lab, now) = lab();
    let segments = lab.ship(1, &now, &[SectorRange::new(0, 100)]);
    let pass = Pass { must_move: set(&[SectorRange::new(0, 99)]), segments };
    let missed = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).unwrap_err();
    assert!(
        matches!(missed, VaultError::Missed { range, .. } if range == SectorRange::new(99, 100))
    );
}

#[test]
fn a_segment_that_is_gone_cannot_be_committed() {
    let (lab, now) = lab();
    let segments = lab.ship(1, &now, &[lab.whole()]);
    lab.vault.remove_segments(lab.disk, &segments);
    let pass = Pass { must_move: set(&[lab.whole()]), segments };
    let gone = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).unwrap_err();
    assert!(matches!(gone, VaultError::Lost { .. }), "{gone}");
}

/// Anyone who reads a sector by bounds that are too narrow gets an older one.
#[test]
fn bounds_that_are_too_narrow_are_not_committed() {
    const MIB: u64 = 2048;
    let mut lab = Lab::new(4 << 20);
    let now = content(&mut fastrand::Rng::with_seed(2), 4 << 20);
    let segments = lab.ship(1, &now, &[SectorRange::new(MIB, 2 * MIB + 1)]);
    let reach = |segment: &backstay_vault::SegmentRef| segment.bounds.span().unwrap();
    assert!(segments.iter().all(|segment| segment.bounds != Bounds::UNKNOWN));
    assert_eq!(segments.iter().map(|s| reach(s).start.0).min(), Some(MIB));
    assert_eq!(segments.iter().map(|s| reach(s).end.0).max(), Some(3 * MIB));
    // The disk may have grown by the time they are read.
    lab.size.0 *= 1 << 20;
    let verify = |bounds| {
        let mut segments = segments.clone();
        let last = segments.iter_mut().max_by_key(|s| reach(s).end).unwrap();
        last.bounds = bounds;
        let must_move = set(&[SectorRange::new(MIB, 2 * MIB + 1)]);
        let pass = Pass { must_move, segments };
        verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass])
    };
    verify(Bounds::UNKNOWN).unwrap();
    verify(Bounds::around(SectorRange::new(0, 1 << 40))).unwrap();
    for narrow in [(0, 2 * MIB), (2 * MIB + 1 - 2048, 2 * MIB), (3 * MIB, 9 * MIB)] {
        match verify(Bounds::around(SectorRange::new(narrow.0, narrow.1))).unwrap_err() {
            e @ VaultError::OutOfBounds { .. } => assert!(e.is_damage(), "{e}"),
            other => panic!("{other}"),
        }
    }
    assert_eq!(lab.vault.points(lab.disk).unwrap(), []);
}

/// Two writers ship the same cycle; exactly one of them commits it.
#[test]
fn two_writers_race_for_one_point() {
    let (lab, now) = lab();
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    for round in 0..20 {
        let before = lab.vault.manifest(lab.disk, CycleNo(1 + round)).unwrap();
        let results: Vec<_> = std::thread::scope(|scope| {
            let write = || lab.cycle(Some(&before), &now, &[SectorRange::new(round, round + 8)]);
            let both = [scope.spawn(write), scope.spawn(write)];
            both.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!((won.len(), lost.len()), (1, 1));
        for error in lost {
            assert!(matches!(error, Err(VaultError::LostRace(_))), "{error:?}");
        }
        let there = lab.vault.manifest(lab.disk, CycleNo(2 + round)).unwrap();
        assert_eq!(Some(&there), won[0].as_ref().ok());
    }
    assert_eq!(lab.vault.manifest(lab.disk, CycleNo(1)).unwrap(), first);
}

/// A point of a whole disk that is not a whole disk could never be restored.
#[test]
fn a_first_point_holds_the_whole_disk() {
    let (lab, now) = lab();
    let half = [SectorRange::new(0, 1024)];
    let refused = lab.cycle(None, &now, &half);
    assert!(refused.is_err(), "half a disk became a recovery point");
    assert_eq!(lab.vault.points(lab.disk).unwrap(), []);
}

#[test]
fn a_resync_that_is_not_whole_is_refused() {
    let (lab, now) = lab();
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let runs = [SectorRange::new(5, 50)];
    let segments = lab.ship(2, &now, &runs);
    let pass = Pass { must_move: set(&runs), segments };
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(2), vec![pass]).unwrap();
    let mut resync = meta(Some(&first));
    resync.kind = CycleKind::Resync;
    // It starts from nothing, so it must hold everything; or it builds on the point before.
    if lab.vault.commit(verified, resync).is_ok() {
        assert!(lab.restored(CycleNo(2)).unwrap() == now);
    }
}

/// The wall clock may step back between two cuts; the points stay good.
#[test]
fn a_clock_that_steps_back_does_not_damage_the_chain() {
    let (lab, now) = lab();
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let segments = lab.ship(2, &now, &[SectorRange::new(0, 8)]);
    let pass = Pass { must_move: set(&[SectorRange::new(0, 8)]), segments };
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(2), vec![pass]).unwrap();
    let mut earlier = meta(Some(&first));
    earlier.cut_unix_ns = first.cut_unix_ns - 1;
    lab.vault.commit(verified, earlier).unwrap();
    backstay_vault::read::verify_point(&lab.vault, lab.disk, CycleNo(2), 1, &|_, _| {}).unwrap();
}

#[test]
fn segments_of_another_cycle_are_refused() {
    let (lab, now) = lab();
    let segments = lab.ship(7, &now, &[lab.whole()]);
    let pass = Pass { must_move: set(&[lab.whole()]), segments };
    assert!(verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).is_err());
}

#[test]
fn a_term_nobody_was_given_cannot_commit() {
    let (lab, now) = lab();
    let segments = lab.ship(1, &now, &[lab.whole()]);
    let pass = Pass { must_move: set(&[lab.whole()]), segments };
    let verified = verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(1), vec![pass]).unwrap();
    let mut future = meta(None);
    future.term = Term(9);
    assert!(lab.vault.commit(verified, future).is_err());
}

/// Over a line of 50 ms each request that waits for another costs as much as 600 KB of data.
#[test]
fn a_commit_asks_little_of_the_store() {
    const LARGE: u64 = 8 << 20;
    let vault = Vaults::default().on_store("memory", Arc::new(InMemory::new())).unwrap();
    let lab = Lab::with(tempfile::tempdir().unwrap(), vault, LARGE);
    let now = content(&mut fastrand::Rng::with_seed(3), LARGE);
    let mut before = None;
    for cycle in 1..=2 {
        let segments = lab.ship(cycle, &now, &[lab.whole()]);
        let put = segments.len() as u64;
        assert!(put > 1, "one segment alone would show nothing");
        let pass = Pass { must_move: set(&[lab.whole()]), segments };
        let asked = lab.vault.requests();
        let verified =
            verify_cycle(&lab.vault, lab.disk, lab.size, CycleNo(cycle), vec![pass]).unwrap();
        assert_eq!(lab.vault.requests() - asked, put, "one for each index");
        let asked = lab.vault.requests();
        before = Some(lab.vault.commit(verified, meta(before.as_ref())).unwrap());
        // The term and the one after it, the ledger twice (a list, what follows it, and, because there is none, a second
        // list), the point, and that it is what was put: this store gives no digest.
        assert_eq!(lab.vault.requests() - asked, 9);
    }
}

/// What is shorter or longer than its manifest says is told with both lengths, whatever a store answers to a
/// range that is not there.
#[test]
fn a_segment_of_another_length_is_told() {
    let store = Arc::new(InMemory::new());
    let vault =
        Vaults::default().on_store("memory", Arc::clone(&store) as Arc<dyn ObjectStore>).unwrap();
    let lab = Lab::with(tempfile::tempdir().unwrap(), vault, SIZE);
    let now = content(&mut fastrand::Rng::with_seed(4), SIZE);
    let segments = lab.ship(1, &now, &[lab.whole()]);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let of_first = Path::from(&DiskFolder::Segments.of(lab.disk));
    let key = runtime.block_on(async {
        let mut all = store.list(Some(&of_first));
        let mut keys = vec![];
        while let Some(meta) = all.next().await {
            keys.push(meta.unwrap().location);
        }
        keys.into_iter().min().unwrap()
    });
    let whole = runtime.block_on(async { store.get(&key).await.unwrap().bytes().await.unwrap() });
    for bytes in [
        whole.slice(..0),
        whole.slice(..9),
        whole.slice(..whole.len() - 1),
        [&whole[..], b"x"].concat().into(),
    ] {
        let len = bytes.len();
        runtime.block_on(store.put(&key, bytes.into())).unwrap();
        // Another handle does not know how long its end is.
        let other = Vaults::default()
            .on_store("memory", Arc::clone(&store) as Arc<dyn ObjectStore>)
            .unwrap();
        for vault in [&lab.vault, &other] {
            let pass = Pass { must_move: set(&[lab.whole()]), segments: segments.clone() };
            let wrong = verify_cycle(vault, lab.disk, lab.size, CycleNo(1), vec![pass]);
            let wrong = wrong.unwrap_err().to_string();
            let told = format!("{len} bytes, its manifest says {}", whole.len());
            assert!(wrong.contains(&told), "{wrong}");
        }
    }
}

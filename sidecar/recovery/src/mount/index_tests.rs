use std::collections::BTreeMap;

use backstay_types::{ByteLen, CycleNo, DiskId, Term};
use backstay_vault::{Bounds, Consistency, CycleKind, SegmentRef};

use super::*;

fn point(segments: u32, id: u8) -> Manifest {
    let segment = |number| SegmentRef {
        cycle: CycleNo(1),
        attempt: 1,
        number,
        object: ByteLen(4_000_000),
        data_sectors: 8_000,
        zero_sectors: 192,
        bounds: Bounds::UNKNOWN,
        index_digest: [number as u8 + 1; 32],
    };
    Manifest {
        disk: DiskId::from_bytes([7; 16]),
        size: ByteLen(1 << 40),
        point: PointId::from_bytes([id; 16]),
        cycle: CycleNo(1),
        term: Term(1),
        predecessor: None,
        kind: CycleKind::Initial,
        consistency: Consistency::Crash,
        cut_unix_ns: 0,
        committed_unix_ns: 0,
        written: ByteLen(0),
        moved_sectors: 0,
        moved_digest: [0; 32],
        segments: (0..segments).map(segment).collect(),
    }
}

fn index(rng: &mut fastrand::Rng, extents: usize) -> Index {
    let mut starts = BTreeMap::new();
    let mut at = 0;
    for _ in 0..extents {
        at += rng.u64(1..50);
        let len = rng.u64(1..40);
        let place =
            rng.bool().then(|| Place { frame: rng.u32(0..300), offset: 512, crc: rng.u32(..) });
        starts.insert(rng.u64(..), Extent { range: SectorRange::new(at, at + len), place });
        at += len;
    }
    let frame = |n: u64| FrameEntry {
        offset: n * 1000,
        stored_len: 1000,
        raw_len: 4096,
        stored_crc: n as u32,
        codec: if n.is_multiple_of(2) { Codec::Raw } else { Codec::Zstd },
    };
    // In any order.
    let extents = starts.into_values().collect();
    Index { frames: (0..300).map(frame).collect(), extents, ..Index::default() }
}

#[test]
fn what_was_put_is_found_again_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (point, mut rng) = (point(3, 1), fastrand::Rng::with_seed(8));
    let store = IndexStore::open(dir.path(), &point).unwrap();
    let indexes: Vec<Index> = [1, 170, 2000].map(|n| index(&mut rng, n)).into();
    for (n, index) in indexes.iter().enumerate() {
        store.put(n, point.segments[n].index_digest, index.clone()).unwrap();
    }
    for store in [store, IndexStore::open(dir.path(), &point).unwrap()] {
        assert_eq!(store.loaded(), 3);
        for (n, index) in indexes.iter().enumerate() {
            for _ in 0..200 {
                let start = rng.u64(0..100_000);
                let run = SectorRange::new(start, start + rng.u64(1..5000));
                let mut expected: Vec<Extent> = index.extents.clone();
                expected.retain(|extent| !extent.range.intersect(run).is_empty());
                expected.sort_by_key(|extent| extent.range.start);
                assert_eq!(store.extents(n, run).unwrap(), expected);
            }
            for frame in [0, 169, 170, 299] {
                assert_eq!(store.frame(n, frame).unwrap(), index.frames[frame as usize]);
            }
            assert!(store.frame(n, 300).is_err());
        }
    }
    // Of another point nothing is believed.
    let other = IndexStore::open(dir.path(), &super::tests::point(3, 2)).unwrap();
    assert_eq!((other.loaded(), other.missing()), (0, vec![2, 1, 0]));
}

#[test]
fn damage_is_seen_where_it_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let (point, mut rng) = (point(2, 1), fastrand::Rng::with_seed(9));
    let store = IndexStore::open(dir.path(), &point).unwrap();
    for n in 0..2 {
        store.put(n, point.segments[n].index_digest, index(&mut rng, 400)).unwrap();
    }
    let whole = SectorRange::new(0, 1 << 30);
    let pages = std::fs::read(dir.path().join("index.pages")).unwrap();
    for _ in 0..300 {
        let mut bad = pages.clone();
        // Of the second segment's pages; a page may also be another one, or never have arrived.
        let half = bad.len() / 2;
        match rng.u8(0..3) {
            0 => bad[rng.usize(half..pages.len())] ^= 1 << rng.u8(0..8),
            1 => bad[half..].fill(0),
            _ => bad.copy_within(..half, half),
        }
        std::fs::write(dir.path().join("index.pages"), &bad).unwrap();
        let store = IndexStore::open(dir.path(), &point).unwrap();
        let all_frames = || (0..300).all(|frame| store.frame(1, frame).is_ok());
        assert!(store.extents(1, whole).is_err() || !all_frames());
        assert_eq!(store.extents(0, whole).unwrap().len(), 400);
    }
    // Any bytes in the table: never a panic, never an entry with a wrong checksum.
    let toc = std::fs::read(dir.path().join("index.toc")).unwrap();
    std::fs::write(dir.path().join("index.pages"), &pages).unwrap();
    for at in TOC_HEAD..toc.len() {
        let mut bad = toc.clone();
        bad[at] ^= 0x10;
        std::fs::write(dir.path().join("index.toc"), &bad).unwrap();
        assert!(IndexStore::open(dir.path(), &point).unwrap().loaded() < 2, "byte {at}");
    }
}

#[test]
fn only_segments_that_may_reach_a_run_are_missed_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut point, mut rng) = (point(4, 1), fastrand::Rng::with_seed(10));
    // 0: the disk's first GiB, 1: its second, 2: nobody knows, 3: both.
    let gib = |from: u64, to: u64| Bounds::around(SectorRange::new(from << 21, to << 21));
    for (segment, bounds) in
        point.segments.iter_mut().zip([gib(0, 1), gib(1, 2), Bounds::UNKNOWN, gib(0, 2)])
    {
        segment.bounds = bounds;
    }
    let store = IndexStore::open(dir.path(), &point).unwrap();
    let near = |sector: u64| store.missing_near(SectorRange::new(sector, sector + 1));
    assert_eq!(near(0), [3, 2, 0]);
    assert_eq!(near((1 << 21) - 1), [3, 2, 0]);
    assert_eq!(near(1 << 21), [3, 2, 1]);
    assert_eq!(near(1 << 30), [2]);
    store.put(2, point.segments[2].index_digest, index(&mut rng, 4)).unwrap();
    assert_eq!(near(0), [3, 0]);
    assert_eq!((store.missing(), near(1 << 30)), (vec![3, 1, 0], vec![]));
}

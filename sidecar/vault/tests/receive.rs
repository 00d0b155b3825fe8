//! The receiver's side of I6 and I7: what a gateway takes for a recovery point, and what it does not.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use backstay_types::{CycleNo, PointId, SectorRange, Term};
use backstay_vault::admission::{NotTaken, Rules, check_point, check_segment};
use backstay_vault::format::segment::SegmentId;
use backstay_vault::{CycleKind, Manifest};
use common::{Lab, content, set};

const SIZE: u64 = 1 << 20;
const NOW: u64 = 4_000_000_000_000_000_000;
const SKEW: u64 = 300_000_000_000;

/// A disk with one point, and the next as its writer would put it.
fn lab() -> (Lab, Manifest, Manifest) {
    let lab = Lab::new(SIZE);
    let mut random = fastrand::Rng::with_seed(1);
    let mut now = content(&mut random, SIZE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let moved = [SectorRange::new(8, 24)];
    random.fill(&mut now[8 * 512..24 * 512]);
    let own = lab.ship(2, &now, &moved);
    let set = set(&moved);
    let next = Manifest {
        cycle: CycleNo(2),
        point: PointId::random(),
        predecessor: Some((first.cycle, first.point)),
        kind: CycleKind::Delta,
        moved_sectors: set.count(),
        moved_digest: set.digest(),
        segments: first.segments.iter().copied().chain(own).collect(),
        ..first.clone()
    };
    (lab, first, next)
}

fn check(lab: &Lab, point: &Manifest) -> Result<(), NotTaken> {
    let rules = Rules { now_unix_ns: NOW, skew_ns: SKEW, content: true };
    check_point(&lab.vault, (lab.disk, point.cycle), &point.encode(), rules).map(drop)
}

#[test]
fn the_next_point_is_taken() {
    let (lab, _, next) = lab();
    check(&lab, &next).unwrap();
}

#[test]
fn what_is_not_the_next_point_is_not() {
    let (lab, first, good) = lab();
    let wrong = |what: &str, change: &dyn Fn(&mut Manifest)| {
        let mut point = good.clone();
        change(&mut point);
        match check(&lab, &point) {
            Err(NotTaken::Wrong(_) | NotTaken::Late(_) | NotTaken::Vault(_)) => {}
            Ok(()) => panic!("taken: {what}"),
        }
    };
    wrong("a gap", &|p| p.cycle = CycleNo(3));
    wrong("the point before, again", &|p| *p = first.clone());
    wrong("another term", &|p| p.term = Term(2));
    wrong("not after the newest", &|p| p.predecessor = Some((CycleNo(1), PointId::random())));
    wrong("after nothing", &|p| p.predecessor = None);
    wrong("dated back", &|p| p.cut_unix_ns = first.cut_unix_ns - 1);
    wrong("dated ahead", &|p| p.cut_unix_ns = NOW + SKEW + 1);
    wrong("committed ahead", &|p| p.committed_unix_ns = NOW + SKEW + 1);
    wrong("a sector less moved", &|p| p.moved_sectors -= 1);
    wrong("others moved", &|p| p.moved_digest = [0; 32]);
    wrong("its own segments not there", &|p| p.segments.last_mut().unwrap().attempt ^= 1);
    wrong("of another length", &|p| p.segments.last_mut().unwrap().object.0 += 1);
    wrong("another index", &|p| p.segments.last_mut().unwrap().index_digest[0] ^= 1);
    wrong("one twice", &|p| p.segments.push(*p.segments.last().unwrap()));
    wrong("the older list cut", &|p| _ = p.segments.remove(0));
    wrong("the older list changed", &|p| p.segments[0].attempt ^= 1);
    wrong("its own first", &|p| p.segments.reverse());
    wrong("a smaller disk", &|p| p.size.0 -= 512);
    wrong("a disk that grew and shipped nothing new", &|p| p.size.0 += 4096);
    wrong("an initial point that is a part", &|p| p.kind = CycleKind::Initial);
    wrong("another disk", &|p| p.disk = backstay_types::DiskId::random());
}

/// Every byte of a segment is looked at, without its point.
#[test]
fn a_segment_with_any_bit_flipped_is_not_kept() {
    let (lab, _, next) = lab();
    let own = next.segments.last().unwrap();
    let id =
        SegmentId { disk: lab.disk, cycle: own.cycle, attempt: own.attempt, number: own.number };
    let suffix = format!("-{:016x}-{}", own.attempt, own.number);
    let path = lab.objects().into_iter().find(|path| path.to_string_lossy().ends_with(&suffix));
    let file = OpenOptions::new().read(true).write(true).open(path.unwrap()).unwrap();
    let len = own.object.0;
    check_segment(&lab.vault, &file, len, id).unwrap();
    for at in 0..len {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        // What is digested of an index is what it holds, not how zstd wrote it.
        let seen = check_segment(&lab.vault, &file, len, id).is_err();
        file.write_all_at(&byte, at).unwrap();
        let index = len - 128 - at.min(len - 128);
        assert!(seen || (1..=64).contains(&index), "byte {at} of {len}");
    }
    for (len, id) in [
        (len - 1, id),
        (100, id),
        (len, SegmentId { number: id.number + 1, ..id }),
        (len, SegmentId { cycle: CycleNo(3), ..id }),
        (len, SegmentId { attempt: id.attempt ^ 1, ..id }),
    ] {
        assert!(check_segment(&lab.vault, &file, len, id).is_err());
    }
}

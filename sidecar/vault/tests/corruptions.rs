//! Ten thousand corruptions of a vault's objects, checksums made right included: none is reported whole, none is
//! restored as other bytes. The short form has fewer; `BACKSTAY_TEST_LONG` has all, `BACKSTAY_SEED` sets the seed.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use backstay_types::{ByteLen, CycleNo, DiskId, PointId, Term};
use backstay_vault::read::verify_points;
use backstay_vault::{Bounds, Consistency, CycleKind, Manifest, Vault};
use common::history::{History, stepped};

const SIZE: u64 = 256 << 10;
const POINTS: u64 = 4;

fn trials() -> usize {
    if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 10_000 } else { 1_500 }
}

/// What a corruption does to a vault without keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// It must be found.
    Found,
    /// It changes what a point says of itself and nothing that it holds, which nobody without a key can prove:
    /// bytes must be right all the same.
    Told,
}

struct Site {
    vault: Vault,
    history: History,
    /// Points and segments of both disks, as they were: path and bytes.
    points: Vec<(PathBuf, Vec<u8>)>,
    segments: Vec<(PathBuf, Vec<u8>)>,
    foreign_points: Vec<Vec<u8>>,
    foreign_segments: Vec<Vec<u8>>,
}

fn read(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    all.sort();
    all
}

fn site(dir: &Path, rng: &mut fastrand::Rng) -> Site {
    let (writer, _) = stepped(dir, common::At::Nothing);
    let (mut history, mut other) =
        (History::new(&writer, SIZE, rng.u64(..)), History::new(&writer, SIZE, rng.u64(..)));
    for _ in 0..POINTS {
        history.cycle(&writer, rng).unwrap();
        other.cycle(&writer, rng).unwrap();
    }
    // One that has put nothing, and so remembers nothing of what was put.
    let (vault, _) = stepped(dir, common::At::Nothing);
    let of = |history: &History, kind: &str| read(&history.folder(dir).join(kind));
    let bytes = |all: Vec<(PathBuf, Vec<u8>)>| all.into_iter().map(|(_, bytes)| bytes).collect();
    Site {
        points: of(&history, "points"),
        segments: of(&history, "segments"),
        foreign_points: bytes(of(&other, "points")),
        foreign_segments: bytes(of(&other, "segments")),
        vault,
        history,
    }
}

/// Changes the bytes of an object without knowing what they mean.
fn mangle(rng: &mut fastrand::Rng, bytes: &[u8]) -> (&'static str, Option<Vec<u8>>) {
    let mut new = bytes.to_vec();
    let at = rng.usize(..bytes.len());
    let what = match rng.u8(..6) {
        0 => {
            new[at] ^= 1 << rng.u8(..8);
            "a bit flipped"
        }
        1 => {
            new.truncate(at);
            "cut short"
        }
        2 => {
            new.extend((0..=rng.usize(..64)).map(|_| rng.u8(..)));
            "longer"
        }
        3 => {
            let end = (at + 1 + rng.usize(..512)).min(new.len());
            new[at..end].fill(0);
            "zeroes"
        }
        4 => {
            let end = (at + 1 + rng.usize(..64)).min(new.len());
            new[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..));
            "noise"
        }
        _ => return ("gone", None),
    };
    (what, Some(new))
}

/// A point that says something else, with a checksum that is right.
fn retold(rng: &mut fastrand::Rng, point: &Manifest) -> (&'static str, Effect, Vec<u8>) {
    use Effect::{Found, Told};
    let mut new = point.clone();
    let last = new.segments.len() - 1;
    let at = rng.usize(..=last);
    let one = &mut new.segments[at];
    let (what, effect) = match rng.u8(..24) {
        0 => {
            new.disk = DiskId::random();
            ("disk", Found)
        }
        1 => {
            new.size = ByteLen(SIZE * 2);
            ("size, larger", Found)
        }
        2 => {
            new.size = ByteLen(SIZE / 2);
            ("size, smaller", Found)
        }
        3 => {
            new.point = PointId::random();
            ("identity", Told)
        }
        4 => {
            new.cycle = CycleNo(point.cycle.0 + 1);
            ("cycle", Found)
        }
        5 => {
            new.term = Term(point.term.0 + 1);
            ("term", Told)
        }
        6 => {
            new.predecessor = Some((CycleNo(1), PointId::random()));
            ("predecessor", Told)
        }
        7 => {
            new.kind = CycleKind::Resync;
            ("kind", Told)
        }
        8 => {
            new.consistency = Consistency::Crash;
            new.cut_unix_ns += 7;
            ("cut", Told)
        }
        9 => {
            new.committed_unix_ns += 7;
            ("commit", Told)
        }
        10 => {
            new.written = ByteLen(point.written.0 + 512);
            ("written", Told)
        }
        11 => {
            new.moved_sectors += 1;
            ("moved", Told)
        }
        12 => {
            new.moved_digest[0] ^= 1;
            ("digest of what moved", Told)
        }
        13 => {
            new.segments.remove(at);
            ("a segment less", Found)
        }
        14 => {
            let twice = new.segments[at];
            new.segments.push(twice);
            ("a segment twice", Found)
        }
        15 => {
            new.segments.swap(at, last);
            ("order", Found)
        }
        16 => {
            new.segments.reverse();
            ("reversed", Found)
        }
        17 => {
            one.data_sectors += 1;
            ("data sectors", Found)
        }
        18 => {
            one.zero_sectors += 1;
            ("zero sectors", Found)
        }
        19 => {
            one.index_digest[3] ^= 4;
            ("digest of an index", Found)
        }
        20 => {
            one.object = ByteLen(one.object.0 + 1);
            ("length", Found)
        }
        21 => {
            one.attempt ^= 1;
            ("attempt", Found)
        }
        22 => {
            one.number += 1;
            ("number", Found)
        }
        _ => {
            one.bounds = Bounds::UNKNOWN;
            ("bounds", Told)
        }
    };
    let bytes = new.encode();
    // The same after all: a list of one, reversed.
    (what, if new == *point { Told } else { effect }, bytes)
}

impl Site {
    /// Does one thing to one object; what, what must come of it, and which object of which cycle is another now.
    fn corrupt(&self, rng: &mut fastrand::Rng) -> (String, Effect, Vec<&(PathBuf, Vec<u8>)>) {
        let is_point = rng.bool();
        let (all, foreign, kind) = match is_point {
            true => (&self.points, &self.foreign_points, "point"),
            false => (&self.segments, &self.foreign_segments, "segment"),
        };
        let (at, from) = (rng.usize(..all.len()), rng.usize(..all.len()));
        let (path, bytes) = &all[at];
        let write = |path: &Path, bytes: &[u8]| {
            let _ = fs::remove_file(path);
            fs::write(path, bytes).unwrap();
        };
        let mut touched = vec![&all[at]];
        let (what, effect) = match rng.u8(..10) {
            0..4 => {
                let (what, new) = mangle(rng, bytes);
                let same = new.as_ref() == Some(bytes);
                match &new {
                    Some(new) => write(path, new),
                    None => fs::remove_file(path).unwrap(),
                }
                (what, if same { Effect::Told } else { Effect::Found })
            }
            4 => {
                write(path, &all[from].1);
                ("another one's bytes", if from == at { Effect::Told } else { Effect::Found })
            }
            5 => {
                write(path, &foreign[rng.usize(..foreign.len())]);
                ("another disk's bytes", Effect::Found)
            }
            6 => {
                write(path, &all[from].1);
                write(&all[from].0, bytes);
                touched.push(&all[from]);
                ("changed places", if from == at { Effect::Told } else { Effect::Found })
            }
            _ => {
                let (path, bytes) = &self.points[at % self.points.len()];
                touched = vec![&self.points[at % self.points.len()]];
                let (what, effect, new) = retold(rng, &Manifest::decode(bytes).unwrap());
                write(path, &new);
                return (format!("point: {what}"), effect, touched);
            }
        };
        (format!("{kind}: {what}"), effect, touched)
    }
}

#[test]
fn no_corruption_is_called_whole_or_restored_as_other_bytes() {
    let seed = std::env::var("BACKSTAY_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed} (BACKSTAY_SEED)");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let site = site(dir.path(), &mut rng);
    let cycles: Vec<CycleNo> = (1..=POINTS).map(CycleNo).collect();
    let mut wrong: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..trials() {
        let (what, effect, touched) = site.corrupt(&mut rng);
        let whole = verify_points(&site.vault, site.history.disk, &cycles, 1, &|_, _| {}).is_ok();
        if whole && effect == Effect::Found {
            *wrong.entry(format!("{what}: reported whole")).or_default() += 1;
        }
        for &cycle in &cycles {
            // What verify calls damaged need not be restored; if it is, then rightly.
            let restored = site.history.restored(&site.vault, cycle);
            if restored.is_ok_and(|bytes| bytes != **site.history.images.get(&cycle.0).unwrap()) {
                *wrong.entry(format!("{what}: restored as other bytes")).or_default() += 1;
            }
        }
        for (path, bytes) in touched {
            let _ = fs::remove_file(path);
            fs::write(path, bytes).unwrap();
        }
    }
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
}

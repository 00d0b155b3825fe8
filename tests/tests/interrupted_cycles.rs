//! Cycles that are interrupted, two and three in a row, in every way and every order: replication goes on
//! by itself, and the point that is made then is the disk.

use std::collections::BTreeMap;

use backstay_engine::cycle::{Flow, flow};
use backstay_format::control::CutMode;
use backstay_format::superblock::Base;
use backstay_tests::crash::check::sectors_set;
use backstay_tests::crash::recorder::{Recorder, Sabotage};
use backstay_tests::crash::state::Machine;
use backstay_tests::crash::workload::{Image, SIZE, identity, open};
use backstay_track::ProtectedDisk;
use backstay_types::{ByteOffset, CycleNo, DiskId, EpochNo, PointId, Term};
use backstay_vault::{Consistency, CycleKind, Manifest};

type Disk = ProtectedDisk<Recorder, Recorder>;

/// How a cycle ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// As it should.
    Done,
    /// The sidecar is killed after the cut.
    KilledAfterCut,
    /// It fails after the cut: the vault cannot take the segments.
    FailedAfterCut,
    /// The sidecar is killed after it has announced its point.
    KilledAfterAnnounce,
    /// The vault refuses the point.
    PutRefused,
    /// The point is there, the answer is lost.
    AnswerLost,
    /// The answer is lost, and the point comes into the vault only during the next cycle.
    PutLate,
    /// The sidecar is killed after the point is there.
    KilledAfterPut,
    /// The driver is killed after the point is there.
    DriverKilledAfterPut,
    /// The machine goes down after the point is there.
    RebootAfterPut,
    /// The state directory cannot be written at the release.
    ReleaseFails,
    /// The driver is killed after the release.
    DriverKilledAfterRelease,
}

const FATES: [Fate; 12] = [
    Fate::Done,
    Fate::KilledAfterCut,
    Fate::FailedAfterCut,
    Fate::KilledAfterAnnounce,
    Fate::PutRefused,
    Fate::AnswerLost,
    Fate::PutLate,
    Fate::KilledAfterPut,
    Fate::DriverKilledAfterPut,
    Fate::RebootAfterPut,
    Fate::ReleaseFails,
    Fate::DriverKilledAfterRelease,
];

/// A point on its way into the vault.
#[derive(Clone)]
struct Put {
    cycle: u64,
    point: PointId,
    image: Image,
}

struct World {
    recorder: Recorder,
    disk: Disk,
    /// Points by their number: the first one put stays.
    vault: BTreeMap<u64, (PointId, Image)>,
    late: Option<Put>,
    written: u64,
}

impl World {
    fn new() -> Self {
        let recorder = Recorder::new(Machine::default(), SIZE, Sabotage::None);
        let disk = open(&recorder).unwrap();
        Self { recorder, disk, vault: BTreeMap::new(), late: None, written: 0 }
    }

    /// Writes a new sector, one that is hot, and one in a region of its own.
    fn write(&mut self) {
        self.written += 1;
        for sector in [self.written, 1, 640 * self.written] {
            let data = [self.written as u8; 512];
            self.disk.write(ByteOffset(sector * 512), &data).expect("the guest's write");
        }
    }

    fn put(&mut self, put: Put) -> bool {
        if self.vault.contains_key(&put.cycle) {
            return false;
        }
        self.vault.insert(put.cycle, (put.point, put.image));
        true
    }

    fn image(&self) -> Image {
        self.recorder.recording().now.backing.clone()
    }

    /// One cycle; an error is one that no retry mends.
    fn cycle(&mut self, fate: Fate) -> Result<(), String> {
        let status = self.disk.status(&identity());
        let newest =
            self.vault.last_key_value().map(|(cycle, (point, _))| manifest(*cycle, *point));
        let flow = flow(&status, newest.as_ref(), false, None, false).map_err(|e| e.to_string())?;
        if flow != Flow::Delta {
            self.disk.cut(CutMode::Fuzzy).expect("fuzzy cut");
            self.write();
        }
        let cut = self.disk.cut(CutMode::PointInTime).expect("cut");
        let now = self.image();
        let mut image = match (flow, self.vault.last_key_value()) {
            (Flow::Delta, Some((_, (_, image)))) => image.clone(),
            _ => now.clone(),
        };
        for sector in sectors_set(&self.recorder, &cut.dirty) {
            match now.get(&sector) {
                Some(bytes) => image.insert(sector, bytes.clone()),
                None => image.remove(&sector),
            };
        }
        // I1: the delta makes the newest point the disk of the cut.
        if image != now {
            return Err(format!("the point would not be the disk ({flow:?})"));
        }
        self.write();
        match fate {
            Fate::KilledAfterCut => return self.sidecar_gone(),
            Fate::FailedAfterCut => return self.folded_back(cut.epoch),
            _ => {}
        }
        self.disk.seal(cut.epoch).expect("seal");
        let number = newest.map_or(1, |point| point.cycle.0 + 1);
        let (cycle, point) = (CycleNo(number), PointId::random());
        let base = Base { vault_disk: DiskId::from_bytes([1; 16]), cycle, point };
        self.disk.announce(base).expect("announce");
        if fate == Fate::KilledAfterAnnounce {
            return self.sidecar_gone();
        }
        // What another cycle had on the way arrives first: this point is then refused.
        if let Some(late) = self.late.take() {
            self.put(late);
        }
        let put = Put { cycle: number, point, image };
        match fate {
            Fate::PutRefused => return self.folded_back(cut.epoch),
            Fate::PutLate => {
                self.late = Some(put);
                return self.folded_back(cut.epoch);
            }
            _ => {}
        }
        if !self.put(put) {
            return self.folded_back(cut.epoch);
        }
        match fate {
            Fate::AnswerLost => return self.folded_back(cut.epoch),
            Fate::KilledAfterPut => return self.sidecar_gone(),
            Fate::DriverKilledAfterPut => return self.restart(),
            Fate::RebootAfterPut => {
                self.recorder.reboot();
                return self.restart();
            }
            Fate::ReleaseFails => {
                self.recorder.faults().files = vec!["super"];
                self.disk.release(cut.epoch, base).expect_err("it cannot be written");
                self.recorder.faults().files.clear();
                return self.sidecar_gone();
            }
            _ => {}
        }
        self.disk.release(cut.epoch, base).expect("release");
        if fate == Fate::DriverKilledAfterRelease {
            return self.restart();
        }
        Ok(())
    }

    fn sidecar_gone(&mut self) -> Result<(), String> {
        self.disk.fold_back_open().map_err(|e| e.to_string())
    }

    fn folded_back(&mut self, epoch: EpochNo) -> Result<(), String> {
        self.disk.fold_back(epoch).map_err(|e| e.to_string())
    }

    fn restart(&mut self) -> Result<(), String> {
        self.disk = open(&self.recorder).map_err(|e| e.to_string())?;
        Ok(())
    }
}

fn manifest(cycle: u64, point: PointId) -> Manifest {
    Manifest {
        disk: DiskId::from_bytes([1; 16]),
        size: SIZE,
        point,
        cycle: CycleNo(cycle),
        term: Term(1),
        predecessor: None,
        kind: CycleKind::Delta,
        consistency: Consistency::Crash,
        cut_unix_ns: 0,
        committed_unix_ns: 0,
        written: SIZE,
        moved_sectors: 0,
        moved_digest: [0; 32],
        segments: vec![],
    }
}

fn run(fates: &[Fate]) {
    let mut world = World::new();
    let mut step = |fate: Fate| {
        world.write();
        world.cycle(fate).unwrap_or_else(|e| panic!("{fates:?}, at {fate:?}: {e}"));
    };
    step(Fate::Done);
    fates.iter().for_each(|fate| step(*fate));
    // One of these may still meet a point that came late.
    step(Fate::Done);
    step(Fate::Done);
    let status = world.disk.status(&identity());
    let newest = world.vault.last_key_value().map(|(cycle, (point, _))| (CycleNo(*cycle), *point));
    assert_eq!(status.base.map(|base| (base.cycle, base.point)), newest, "{fates:?}");
    assert_eq!((status.announced, status.announced_before), (None, vec![]), "{fates:?}");
}

#[test]
fn every_pair_of_interruptions_is_survived() {
    for first in FATES {
        for second in FATES {
            run(&[first, second]);
        }
    }
}

#[test]
fn every_triple_of_interruptions_is_survived() {
    for first in FATES {
        for second in FATES {
            for third in FATES {
                run(&[first, second, third]);
            }
        }
    }
}

/// A vault that refuses every point for ever: the proofs are bounded, and the newest of them are kept.
#[test]
fn refused_for_ever_is_bounded() {
    let mut world = World::new();
    world.write();
    world.cycle(Fate::Done).unwrap();
    for _ in 0..200 {
        world.cycle(Fate::PutRefused).unwrap();
    }
    world.cycle(Fate::AnswerLost).unwrap();
    world.cycle(Fate::PutRefused).unwrap();
    world.cycle(Fate::Done).unwrap();
}

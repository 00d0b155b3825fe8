//! A seeded guest with cycles, restarts and clean stops, and the oracle of what must be true.

use std::collections::BTreeMap;

use backstay_format::control::CutMode;
use backstay_format::superblock::{Base, Geometry};
use backstay_track::{Identity, OpenOptions, ProtectedDisk, TrackError};
use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, EpochNo, PointId, SECTOR_BYTES};
use fastrand::Rng;

use super::recorder::{Recorder, Sabotage};
use super::state::{Machine, Step};

/// Small regions, so that a small disk has more than one block of intents.
pub const REGION_SHIFT: u8 = Geometry::REGION_SHIFT_MIN;
/// 5,000 regions: two blocks of the intent map. The last sector is partial.
pub const SIZE: ByteLen = ByteLen(5_000 * 64 * SECTOR_BYTES - 100);

/// Sectors that are not zero.
pub type Image = BTreeMap<u64, Vec<u8>>;

/// A point in a log that the oracle knows about.
#[derive(Debug, Clone)]
pub enum Mark {
    /// Every change up to this operation was flushed, and that was answered.
    Flushed(usize),
    /// The vault committed a point: the disk as it was at the cut, after this operation.
    Committed(Image, usize, ByteLen),
    /// The driver was told so, and answered.
    Released(usize),
    /// The disk is about to grow from this size to that one.
    Growing(ByteLen, ByteLen),
    /// It has, and the guest was told so: this is its size.
    Grown(ByteLen),
    /// The state directory died at some time before.
    Dead,
}

/// A recorded run and what is known of it.
pub struct Run {
    /// The machine and its log.
    pub recorder: Recorder,
    /// What the marks in the log mean.
    pub marks: Vec<Mark>,
    /// For each sector every content it had, with the operation that gave it.
    pub history: BTreeMap<u64, Vec<(usize, Vec<u8>)>>,
    /// The state directory died before the end.
    pub died: bool,
}

type Disk = ProtectedDisk<Recorder, Recorder>;

/// Who serves these disks: nobody.
pub fn identity() -> Identity {
    Identity {
        name: "crash".parse().expect("a name"),
        backing: "/backing".into(),
        served: "/served".into(),
        served_on: 0,
        engine: "recorder".into(),
    }
}

/// Opens the disk of a recorded machine.
pub fn open(recorder: &Recorder) -> Result<Disk, backstay_track::TrackError> {
    let options = OpenOptions { region_shift: REGION_SHIFT, ..OpenOptions::default() };
    ProtectedDisk::open(recorder.clone(), recorder.clone(), options)
}

struct Guest {
    run: Run,
    disk: Disk,
    rng: Rng,
    op: usize,
    cycle: u64,
    /// The open cycle: its epoch, the disk at its cut, the operation before it, its size.
    cut: Option<(EpochNo, Image, usize, ByteLen)>,
    shipped_once: bool,
    hot: Vec<u64>,
    /// The state directory is known to be dead.
    dead: bool,
    /// No driver serves the disk any more: it would not come up again.
    ended: bool,
}

/// Runs a workload of so many operations.
pub fn run(seed: u64, operations: usize, sabotage: Sabotage) -> Run {
    run_until(seed, operations, sabotage, Death::default())
}

/// How a state directory dies.
#[derive(Debug, Clone, Copy, Default)]
pub struct Death {
    /// After so many changes of its files, counted from the start of a new disk; never, if not given.
    pub after: Option<u64>,
    /// The backing has no place for a mark.
    pub no_mark: bool,
}

/// Runs a workload whose state directory dies while the guest goes on.
pub fn run_until(seed: u64, operations: usize, sabotage: Sabotage, death: Death) -> Run {
    let recorder = Recorder::new(Machine::default(), SIZE, sabotage);
    recorder.faults().no_mark = death.no_mark;
    let disk = open(&recorder).expect("a new disk opens");
    let mut rng = Rng::with_seed(seed);
    let hot = (0..6).map(|_| rng.u64(0..SIZE.0 / SECTOR_BYTES)).collect();
    let run = Run { recorder, marks: vec![], history: BTreeMap::new(), died: false };
    run.recorder.faults().dead_after = death.after;
    let (op, cycle, cut, shipped_once) = (0, 0, None, false);
    let (dead, ended) = (false, false);
    let mut guest = Guest { run, disk, rng, op, cycle, cut, shipped_once, hot, dead, ended };
    for _ in 0..operations {
        if !guest.ended {
            guest.step();
        }
    }
    guest.run.died = guest.run.recorder.is_dead();
    guest.run
}

impl Guest {
    fn step(&mut self) {
        self.op += 1;
        match self.rng.u32(0..100) {
            0..58 => self.write(),
            58..62 => self.discard(),
            62..64 => self.grow(),
            64..74 => {
                self.disk.flush().expect("flush");
                self.mark(Mark::Flushed(self.op));
            }
            74..94 => self.cycle().unwrap_or_default(),
            94..96 => {
                let folded = self.disk.fold_back_open();
                self.done(folded, "fold back").map(|()| self.cut = None).unwrap_or_default();
            }
            96..98 => self.restart(false),
            _ => self.restart(true),
        }
    }

    /// What an operation gave. It may fail only if the state directory is dead; the guest's own never
    /// may.
    fn done<T>(&mut self, result: Result<T, TrackError>, what: &str) -> Option<T> {
        if self.run.recorder.is_dead() && !self.dead {
            self.dead = true;
            self.mark(Mark::Dead);
        }
        if self.dead {
            return result.ok();
        }
        Some(result.unwrap_or_else(|e| panic!("{what}: {e}")))
    }

    fn mark(&mut self, mark: Mark) {
        self.run.recorder.mark(self.run.marks.len());
        self.run.marks.push(mark);
    }

    fn place(&mut self, max_sectors: u64) -> (ByteOffset, u64) {
        let near = if self.rng.bool() {
            self.hot[self.rng.usize(0..self.hot.len())]
        } else {
            self.rng.u64(0..self.disk.size().0 / SECTOR_BYTES)
        };
        let mut offset = near * SECTOR_BYTES;
        let mut len = self.rng.u64(1..=max_sectors) * SECTOR_BYTES;
        if self.rng.u32(0..5) == 0 {
            offset += self.rng.u64(0..SECTOR_BYTES);
            len = self.rng.u64(1..=len);
        }
        let size = self.disk.size().0;
        let offset = offset.min(size - 1);
        (ByteOffset(offset), len.min(size - offset))
    }

    fn write(&mut self) {
        let (offset, len) = self.place(24);
        let data: Vec<u8> = (0..len)
            .map(|i| (self.op as u8).wrapping_mul(31) ^ (i / SECTOR_BYTES) as u8 | 1)
            .collect();
        self.disk.write(offset, &data).expect("write");
        self.remember(offset, len);
    }

    fn discard(&mut self) {
        let (offset, len) = self.place(200);
        self.disk.discard(offset, ByteLen(len)).expect("discard");
        self.remember(offset, len);
    }

    /// Grows the disk, past a block of the intent map now and then; sometimes what is not there yet
    /// stays hot.
    fn grow(&mut self) {
        let from = self.disk.size();
        if from.0 > 3 * SIZE.0 {
            return;
        }
        // Mostly by a little: each new sector is one more that every check looks at.
        let most = if self.rng.u32(0..4) == 0 { SIZE.0 / 2 } else { 1 << 20 };
        let to = ByteLen(from.0 + self.rng.u64(1..most));
        if self.rng.u32(0..3) == 0 {
            let folded = self.disk.fold_back_open();
            if self.done(folded, "fold back").is_some() {
                self.cut = None;
            }
        }
        if self.cut.is_some() {
            self.disk.grow(Some(to)).expect_err("a cycle is open");
            return;
        }
        self.mark(Mark::Growing(from, to));
        let grown = self.disk.grow(Some(to));
        if self.done(grown, "grow").is_none() {
            return;
        }
        self.mark(Mark::Grown(to));
        let new = self.rng.u64(from.0 / SECTOR_BYTES..to.0.div_ceil(SECTOR_BYTES));
        self.hot.push(new);
    }

    /// Notes the content of every sector an operation touched.
    fn remember(&mut self, offset: ByteOffset, len: u64) {
        let recording = self.run.recorder.recording();
        for sector in offset.0 / SECTOR_BYTES..(offset.0 + len).div_ceil(SECTOR_BYTES) {
            let content = recording.now.backing.get(&sector).cloned().unwrap_or_default();
            self.run.history.entry(sector).or_default().push((self.op, content));
        }
    }

    /// Goes one step further with a cycle; `None` if the state directory was in the way.
    fn cycle(&mut self) -> Option<()> {
        match self.cut.take() {
            None => self.begin_cycle(),
            Some((epoch, image, cut_op, size)) => self.end_cycle(epoch, image, cut_op, size),
        }
    }

    fn begin_cycle(&mut self) -> Option<()> {
        if self.disk.status(&identity()).resync.is_some() || self.rng.u32(0..6) == 0 {
            let cut = self.disk.cut(CutMode::Fuzzy);
            self.done(cut, "fuzzy cut")?;
            if self.rng.bool() {
                self.op += 1;
                self.write();
            }
        }
        // As a group cuts: some of it ahead, and held. What was made ahead may be left unused.
        if self.rng.u32(0..3) == 0 {
            let prepared = self.disk.prepare_cut();
            self.done(prepared, "prepare")?;
            if self.rng.bool() {
                self.op += 1;
                self.write();
            }
            if self.rng.u32(0..4) == 0 {
                let folded = self.disk.fold_back_open();
                return self.done(folded, "the sidecar is gone");
            }
        }
        let held = self.rng.bool();
        let info = if held {
            self.disk.cut_and_hold().map(|(info, hold)| {
                hold.thaw();
                info
            })
        } else {
            self.disk.cut(CutMode::PointInTime)
        };
        let info = self.done(info, "cut")?;
        let image = self.run.recorder.recording().now.backing.clone();
        self.cut = Some((info.epoch, image, self.op, self.disk.size()));
        Some(())
    }

    fn end_cycle(
        &mut self,
        epoch: EpochNo,
        image: Image,
        cut_op: usize,
        size: ByteLen,
    ) -> Option<()> {
        match self.rng.u32(0..10) {
            0 => {
                let folded = self.disk.fold_back(epoch);
                self.done(folded, "fold back")
            }
            1..4 => {
                // Goes on a while; sometimes past the seal.
                if self.rng.bool() {
                    let sealed = self.disk.seal(epoch);
                    self.done(sealed, "seal")?;
                }
                self.cut = Some((epoch, image, cut_op, size));
                Some(())
            }
            _ => {
                let sealed = self.disk.seal(epoch);
                let sealed = self.done(sealed, "seal")?;
                if self.dead && sealed.lost.is_some() {
                    return None;
                }
                assert_eq!(sealed.lost, None);
                let base = Base {
                    vault_disk: DiskId::from_bytes([1; 16]),
                    cycle: CycleNo(self.cycle + 1),
                    point: PointId::from_bytes([self.cycle as u8 + 1; 16]),
                };
                let announced = self.disk.announce(base);
                self.done(announced, "announce")?;
                self.cycle += 1;
                self.mark(Mark::Committed(image, cut_op, size));
                // A sidecar that dies between commit and release is folded back.
                if self.rng.u32(0..8) == 0 {
                    let folded = self.disk.fold_back_open();
                    return self.done(folded, "fold back");
                }
                let released = self.disk.release(epoch, base);
                self.done(released, "release")?;
                self.shipped_once = true;
                self.mark(Mark::Released(cut_op));
                Some(())
            }
        }
    }

    /// Stops, cleanly or not, and starts again in the same boot.
    fn restart(&mut self, clean: bool) {
        // With a dead state directory it would not come up again.
        if self.dead || self.run.recorder.is_dead() {
            return;
        }
        if clean {
            let closed = self.disk.close();
            if self.done(closed, "close").is_none() {
                self.ended = true;
                return;
            }
        }
        let opened = open(&self.run.recorder);
        match self.done(opened, "open again") {
            Some(disk) => (self.disk, self.cut) = (disk, None),
            None => self.ended = true,
        }
    }
}

impl Run {
    /// Marks passed before step `at` of the log.
    pub fn marks_before(&self, log: &[Step], at: usize) -> impl DoubleEndedIterator<Item = &Mark> {
        log[..at.min(log.len())].iter().filter_map(|step| match step {
            Step::Remember(mark) => Some(&self.marks[*mark]),
            _ => None,
        })
    }
}

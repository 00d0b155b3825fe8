//! A sidecar that follows the protocol step by step, and the oracle of what it must ship.

use backstay_format::control::CutMode;
use backstay_format::control::CutReply;
use backstay_format::preserved::{HEADER_BYTES, RECORD_BYTES, Record};
use backstay_format::superblock::Base;
use backstay_track::ProtectedDisk;
use backstay_types::SectorRange;

use crate::machine::{Machine, SECTORS};

type Disk = ProtectedDisk<Machine, Machine>;

/// In which order it reads a sector and looks at its preserved bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the protocol says.
    Right,
    /// The other way round, which is wrong.
    LooksTooEarly,
}

/// A sidecar and what it has shipped.
pub struct Sidecar {
    machine: Machine,
    order: Order,
    image: Vec<u64>,
}

fn name(path: &std::path::Path) -> &str {
    path.to_str().expect("a name")
}

impl Sidecar {
    pub fn new(machine: Machine, order: Order) -> Self {
        Self { machine, order, image: vec![0; SECTORS as usize] }
    }

    /// What of a sector was shipped.
    pub fn shipped(&self, sector: u64) -> u64 {
        self.image[sector as usize]
    }

    /// One cycle, from cut to release.
    pub fn cycle(&mut self, disk: &Disk, base: Base) {
        let asked = self.machine.tick();
        let cut = disk.cut(CutMode::PointInTime).expect("cut");
        let returned = self.machine.tick();
        assert!(self.ship(disk, &cut), "nothing was lost, there is room for all");
        self.check(asked, returned);
        disk.release(cut.epoch, base).expect("release");
    }

    /// A cycle whose change log is too small.
    pub fn cycle_that_may_be_lost(&mut self, disk: &Disk, base: Base) {
        let asked = self.machine.tick();
        let cut = disk.cut(CutMode::PointInTime).expect("cut");
        let returned = self.machine.tick();
        let before = self.image.clone();
        if self.ship(disk, &cut) {
            self.check(asked, returned);
            disk.release(cut.epoch, base).expect("release");
        } else {
            self.image = before;
            disk.fold_back(cut.epoch).expect("fold back");
        }
    }

    /// Cuts, reads a little, and is gone.
    pub fn die_in_a_cycle(&mut self, disk: &Disk) {
        let cut = disk.cut(CutMode::PointInTime).expect("cut");
        let shipped = cut.shipped.as_deref().map(name).expect("shipped bits");
        self.machine.set_bit(shipped, 0);
        disk.fold_back_open().expect("fold back");
    }

    /// Ships what is dirty; `false` if the point in time was lost.
    pub fn ship(&mut self, disk: &Disk, cut: &CutReply) -> bool {
        let names = [&cut.preserved, &cut.shipped, &cut.log];
        let [preserved, shipped, log] = names.map(|path| name(path.as_deref().expect("a path")));
        let dirty = |sector: u64| {
            self.machine.word(name(&cut.dirty), sector / 64) & (1 << (sector % 64)) != 0
        };
        let is_preserved =
            |sector: u64| self.machine.word(preserved, sector / 64) & (1 << (sector % 64)) != 0;
        let mut missing = vec![];
        for sector in (0..SECTORS).filter(|&sector| dirty(sector)) {
            let early = is_preserved(sector);
            let content = self.machine.sector(sector);
            let taken = match self.order {
                Order::Right => !is_preserved(sector),
                Order::LooksTooEarly => !early,
            };
            if taken {
                self.image[sector as usize] = content;
                self.machine.set_bit(shipped, sector);
            } else {
                missing.push(sector);
            }
        }
        let sealed = disk.seal(cut.epoch).expect("seal");
        if sealed.lost.is_some() {
            return false;
        }
        let content = self.machine.file(log);
        let whole = SectorRange::new(0, SECTORS);
        let mut at = HEADER_BYTES;
        while at < sealed.log_end.0 as usize {
            let record = Record::decode(&content[at..], cut.epoch, whole).expect("a whole record");
            let end = at + Record::bytes(record.range.sectors()) as usize;
            let data = &content[at + RECORD_BYTES..end];
            record.check_data(data).expect("whole content");
            for (sector, bytes) in record.range.as_range().zip(data.chunks(512)) {
                if let Some(found) = missing.iter().position(|&s| s == sector) {
                    missing.swap_remove(found);
                    let stamp = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
                    self.image[sector as usize] = stamp;
                }
            }
            at = end;
        }
        assert!(missing.is_empty(), "I7: {missing:?} were preserved and are not in the log");
        true
    }

    /// I2, for what has been shipped until a cut.
    fn check(&self, asked: u64, returned: u64) {
        let writes = self.machine.writes();
        for sector in 0..SECTORS {
            let there = self.image[sector as usize];
            let covers = |at: u64| at == sector || at + 1 == sector;
            if let Some(write) = writes.get(&there) {
                assert!(
                    write.begun < returned,
                    "I2: sector {sector} holds a write begun at {}, after the cut ({returned})",
                    write.begun
                );
            }
            let shown = writes.get(&there).and_then(|write| write.acknowledged).unwrap_or(u64::MAX);
            for write in writes.values().filter(|write| covers(write.sector)) {
                let answered_before = write.acknowledged.is_some_and(|at| at < asked);
                // What is there was over before this write began: it is older, and this one missing.
                let older = there == 0 || shown < write.begun;
                assert!(
                    !(answered_before && older),
                    "I2: sector {sector} holds {there}, write {} was answered before the cut",
                    write.begun
                );
            }
        }
        // The writers' own runs are written whole, so they are in whole or not at all.
        for sector in [0, 2] {
            let (first, second) = (self.image[sector], self.image[sector + 1]);
            assert_eq!(first, second, "I2: half a write at sector {sector}");
        }
    }

    /// I1, when all is quiet: what differs from what was shipped is dirty.
    pub fn check_rest_is_dirty(&mut self, disk: &Disk) {
        let cut = disk.cut(CutMode::PointInTime).expect("cut");
        for sector in 0..SECTORS {
            let bits = self.machine.word(name(&cut.dirty), sector / 64);
            let differs = self.machine.sector(sector) != self.image[sector as usize];
            assert!(
                !differs || bits & (1 << (sector % 64)) != 0,
                "I1: sector {sector} differs from what was shipped and is not dirty"
            );
        }
    }
}

//! Cut, copy-before-write, the sidecar's reads and the preserved and shipped maps, under a schedule
//! explorer: every lock, atomic and I/O is a point where another thread may go on.
//!
//! Run with `cargo test -p backstay-track --features shuttle --test model`. A failure prints the
//! schedule that led to it.
//!
//! What is checked in each schedule:
//! - I2: what the sidecar ships is the disk at the cut: every write answered before the cut was
//!   asked for is in, none begun after it returned is, and none is in by half;
//! - I1: when a write reaches the backing, its region has a durable intent in an epoch that the
//!   durable superblock names, and its sectors are dirty in a live bitmap;
//! - after the last cycle, what is dirty covers all that differs from what was shipped;
//! - groups: of two disks cut and held together, the second, which is written after the first was
//!   answered, is never ahead of it;
//! - nobody waits for ever (the explorer reports a deadlock).
//!
//! That the tests can fail is shown by those whose names end in `is_found` or `are_found`: they break
//! the protocol on purpose.

#[path = "model/group.rs"]
mod group;
#[path = "model/machine.rs"]
mod machine;
#[path = "model/sidecar.rs"]
mod sidecar;

use backstay_format::control::CutMode;
use backstay_format::superblock::Base;
use backstay_track::sync::Arc;
use backstay_track::{OpenOptions, ProtectedDisk};
use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, PointId};
use machine::{Machine, SECTORS};
use sidecar::{Order, Sidecar};

type Disk = ProtectedDisk<Machine, Machine>;

fn open(machine: &Machine) -> Disk {
    let options = OpenOptions { region_shift: 6, ..OpenOptions::default() };
    ProtectedDisk::open(machine.clone(), machine.clone(), options).expect("the disk opens")
}

fn base(cycle: u64) -> Base {
    let point = PointId::from_bytes([cycle as u8; 16]);
    Base { vault_disk: DiskId::from_bytes([1; 16]), cycle: CycleNo(cycle), point }
}

/// A disk that was shipped once, still all zero.
fn shipped_once(machine: &Machine) -> Arc<Disk> {
    let disk = open(machine);
    disk.cut(CutMode::Fuzzy).expect("cut");
    let epoch = disk.cut(CutMode::PointInTime).expect("cut").epoch;
    disk.seal(epoch).expect("seal");
    disk.release(epoch, base(1)).expect("release");
    Arc::new(disk)
}

/// Two writers with a run of their own each and one that they share; each write is one stamp.
fn start_writers(
    disk: &Arc<Disk>,
    machine: &Machine,
    writes: u64,
) -> Vec<shuttle::thread::JoinHandle<()>> {
    (0..2u64)
        .map(|writer| {
            let (disk, machine) = (Arc::clone(disk), machine.clone());
            shuttle::thread::spawn(move || {
                for n in 0..writes {
                    // Own run in one region, shared run at the edge of the next.
                    let sector = if n % 2 == 0 { writer * 2 } else { 64 };
                    let stamp = machine.begin(sector);
                    let mut data = vec![0u8; 1024];
                    data[..8].copy_from_slice(&stamp.to_le_bytes());
                    data[512..520].copy_from_slice(&stamp.to_le_bytes());
                    disk.write(ByteOffset(sector * 512), &data).expect("the guest's write");
                    machine.acknowledge(stamp);
                }
            })
        })
        .collect()
}

fn cycles_under_load(order: Order) {
    let machine = Machine::new();
    let disk = shipped_once(&machine);
    let mut sidecar = Sidecar::new(machine.clone(), order);
    let writers = start_writers(&disk, &machine, 3);
    for cycle in 2..4 {
        sidecar.cycle(&disk, base(cycle));
    }
    for writer in writers {
        writer.join().expect("a writer");
    }
    sidecar.check_rest_is_dirty(&disk);
}

fn dying_sidecar() {
    let machine = Machine::new();
    let disk = shipped_once(&machine);
    let mut sidecar = Sidecar::new(machine.clone(), Order::Right);
    let writers = start_writers(&disk, &machine, 2);
    sidecar.die_in_a_cycle(&disk);
    sidecar.cycle(&disk, base(2));
    for writer in writers {
        writer.join().expect("a writer");
    }
    sidecar.check_rest_is_dirty(&disk);
}

fn lost_point_in_time() {
    let machine = Machine::new();
    let disk = shipped_once(&machine);
    disk.write(ByteOffset(0), &[1; 1024]).expect("write");
    disk.set_change_log_limit(ByteLen(4096));
    let mut sidecar = Sidecar::new(machine.clone(), Order::Right);
    let writers = start_writers(&disk, &machine, 2);
    sidecar.cycle_that_may_be_lost(&disk, base(2));
    for writer in writers {
        writer.join().expect("losing the point in time must not fail a write");
    }
    sidecar.check_rest_is_dirty(&disk);
}

/// A disk of one region grows to two while both are written to; what is beyond its end is refused
/// until then and never after. A cut that was prepared before is of the old size: it is not made.
fn growth_under_load(prepared: bool) {
    let machine = Machine::small();
    let disk = shipped_once(&machine);
    if prepared {
        disk.prepare_cut().expect("prepare");
    }
    let to = ByteLen(SECTORS * 512);
    let writers: Vec<_> = (0..2u64)
        .map(|writer| {
            let (disk, machine) = (Arc::clone(&disk), machine.clone());
            shuttle::thread::spawn(move || {
                for n in 0..3 {
                    let sector = if n % 2 == writer { 64 } else { writer * 2 };
                    let grown = disk.size() == to;
                    let stamp = machine.begin(sector);
                    let mut data = vec![0u8; 1024];
                    data[..8].copy_from_slice(&stamp.to_le_bytes());
                    data[512..520].copy_from_slice(&stamp.to_le_bytes());
                    match disk.write(ByteOffset(sector * 512), &data) {
                        Ok(()) => machine.acknowledge(stamp),
                        Err(e) => assert!(sector == 64 && !grown, "write {n} at {sector}: {e}"),
                    }
                }
            })
        })
        .collect();
    disk.grow(Some(to)).expect("grow");
    if prepared {
        disk.prepare_cut().expect("prepare");
        let stamp = machine.begin(100);
        let mut data = vec![0u8; 1024];
        data[..8].copy_from_slice(&stamp.to_le_bytes());
        data[512..520].copy_from_slice(&stamp.to_le_bytes());
        disk.write(ByteOffset(100 * 512), &data).expect("the guest's write");
        machine.acknowledge(stamp);
    }
    let mut sidecar = Sidecar::new(machine.clone(), Order::Right);
    sidecar.cycle(&disk, base(2));
    for writer in writers {
        writer.join().expect("a writer");
    }
    sidecar.check_rest_is_dirty(&disk);
}

fn iterations() -> usize {
    if std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 200_000 } else { 10_000 }
}

#[test]
fn every_cycle_ships_the_disk_of_its_cut() {
    shuttle::check_random(|| cycles_under_load(Order::Right), iterations());
}

#[test]
fn every_cycle_ships_the_disk_of_its_cut_with_few_preemptions() {
    shuttle::check_pct(|| cycles_under_load(Order::Right), iterations(), 4);
}

#[test]
fn a_sidecar_that_dies_loses_nothing() {
    shuttle::check_random(dying_sidecar, iterations());
}

#[test]
fn losing_the_point_in_time_costs_the_guest_nothing() {
    shuttle::check_random(lost_point_in_time, iterations());
}

#[test]
fn a_disk_grows_under_load() {
    shuttle::check_random(|| growth_under_load(false), iterations());
}

#[test]
fn a_disk_grows_under_load_with_few_preemptions() {
    shuttle::check_pct(|| growth_under_load(false), iterations(), 3);
}

#[test]
fn a_disk_grows_whose_cut_was_prepared() {
    shuttle::check_random(|| growth_under_load(true), iterations() / 4);
}

/// The sidecar must read first and look at the preserved bits afterwards.
#[test]
#[should_panic(expected = "I2")]
fn a_sidecar_that_looks_too_early_is_found() {
    let rewrite_while_shipping = || {
        let machine = Machine::new();
        let disk = shipped_once(&machine);
        start_writers(&disk, &machine, 1).into_iter().for_each(|w| w.join().expect("a writer"));
        let mut sidecar = Sidecar::new(machine.clone(), Order::LooksTooEarly);
        let writers = start_writers(&disk, &machine, 1);
        sidecar.cycle(&disk, base(2));
        writers.into_iter().for_each(|w| w.join().expect("a writer"));
    };
    shuttle::check_pct(rewrite_while_shipping, 20_000, 3);
}

/// An environment that answers for intents it did not write.
#[test]
#[should_panic(expected = "I1")]
fn a_driver_without_intents_is_found() {
    shuttle::check_random(
        || {
            let machine = Machine::new().without_intents();
            let disk = shipped_once(&machine);
            for writer in start_writers(&disk, &machine, 2) {
                writer.join().expect("a writer");
            }
        },
        50,
    );
}

/// All schedules of two first writes to two regions: the group commit must lose neither.
#[test]
fn group_commit_wakes_everyone() {
    shuttle::check_random(
        || {
            let machine = Machine::new();
            let disk = Arc::new(open(&machine));
            let threads: Vec<_> = (0..3u64)
                .map(|n| {
                    let (disk, machine) = (Arc::clone(&disk), machine.clone());
                    shuttle::thread::spawn(move || {
                        let sector = (n * 64) % SECTORS;
                        let stamp = machine.begin(sector);
                        let mut data = [0; 512];
                        data[..8].copy_from_slice(&stamp.to_le_bytes());
                        disk.write(ByteOffset(sector * 512), &data).expect("write");
                    })
                })
                .collect();
            for thread in threads {
                thread.join().expect("a writer");
            }
        },
        iterations(),
    );
}

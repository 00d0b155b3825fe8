//! I4: trouble of the state directory, its memory or the change log never fails a guest's write,
//! and never makes the driver forget one. And what recovery says to damaged state.

use std::collections::BTreeSet;

use backstay_format::control::{CutMode, FoundState, Noted};
use backstay_format::mark::Tracked;
use backstay_format::superblock::{Base, Resync};
use backstay_tests::crash::check::sectors_set;
use backstay_tests::crash::recorder::{Recorder, Sabotage};
use backstay_tests::crash::state::Machine;
use backstay_tests::crash::workload::{REGION_SHIFT, SIZE, identity, open};
use backstay_track::{Binding, Grown, Offline, OpenOptions, ProtectedDisk, TrackError};
use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, EpochNo, PointId};

type Disk = ProtectedDisk<Recorder, Recorder>;

fn recorder() -> Recorder {
    Recorder::new(Machine::default(), SIZE, Sabotage::None)
}

fn write(disk: &Disk, sector: u64) {
    disk.write(ByteOffset(sector * 512), &[sector as u8 | 1; 512]).expect("the guest's write");
}

fn base(cycle: u64) -> Base {
    Base {
        vault_disk: DiskId::from_bytes([1; 16]),
        cycle: CycleNo(cycle),
        point: PointId::from_bytes([cycle as u8; 16]),
    }
}

/// A disk that was shipped once.
fn shipped(recorder: &Recorder) -> Disk {
    let disk = open(recorder).unwrap();
    disk.cut(CutMode::Fuzzy).unwrap();
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    disk.seal(epoch).unwrap();
    disk.release(epoch, base(1)).unwrap();
    assert_eq!(disk.status(&identity()).resync, None);
    disk
}

/// What the next cycle would ship.
fn dirty(recorder: &Recorder, disk: &Disk) -> BTreeSet<u64> {
    let info = disk.cut(CutMode::PointInTime).unwrap();
    let sectors = sectors_set(recorder, &info.dirty);
    disk.fold_back(info.epoch).unwrap();
    sectors
}

#[test]
fn unwritable_intents_cost_a_resync_and_no_write() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 5);
    recorder.faults().files = vec!["intents-"];
    write(&disk, 5); // has its intent
    write(&disk, 100_000); // cannot get one
    assert_eq!(disk.status(&identity()).resync, Some(Resync::StateUnwritable));
    drop(disk);
    recorder.reboot();
    recorder.faults().files.clear();
    let disk = open(&recorder).unwrap();
    assert_eq!(
        disk.status(&identity()).resync,
        Some(Resync::StateUnwritable),
        "it must outlive the boot"
    );
    assert!(disk.status(&identity()).warning.unwrap().contains("state directory"));
}

/// The state directory's disk dies, the guest goes on, the machine goes down. The first change that is
/// noted nowhere else is noted on the backing, and health is told at once.
#[test]
fn a_dead_state_directory_is_noted_on_the_backing() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 5);
    recorder.faults().files = vec![""];
    write(&disk, 5); // has its intent
    let mark = recorder.recording().now.mark.unwrap();
    assert_eq!((mark.disk, mark.tracked), (disk.id(), Tracked::All));
    assert_eq!(disk.status(&identity()).untracked, None);
    write(&disk, 100_000); // cannot get one
    assert_eq!(recorder.recording().now.mark.unwrap().tracked, Tracked::NotAll);
    assert_eq!(disk.status(&identity()).untracked.unwrap().noted, Noted::Backing);
    assert!(disk.status(&identity()).warning.unwrap().contains("not tracked"));
    disk.close().expect_err("nor can it be stopped cleanly");
    drop(disk);
    recorder.reboot();
    recorder.faults().files.clear();
    let disk = open(&recorder).unwrap();
    assert_eq!(disk.status(&identity()).resync, Some(Resync::StateUnwritable));
    // From here on the state directory knows, and the mark is as of a new disk.
    assert_eq!(recorder.recording().now.mark.unwrap().tracked, Tracked::All);
    drop(disk);
    recorder.reboot();
    assert_eq!(open(&recorder).unwrap().status(&identity()).resync, Some(Resync::StateUnwritable));
}

/// A state directory that comes back: after the next cycle nothing is left of it.
#[test]
fn a_state_directory_that_comes_back_is_believed_again() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    recorder.faults().files = vec![""];
    write(&disk, 100_000);
    recorder.faults().files.clear();
    assert_eq!(disk.cut(CutMode::Fuzzy).unwrap().whole_disk, Some(Resync::StateUnwritable));
    assert_eq!(disk.status(&identity()).untracked, None);
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    disk.seal(epoch).unwrap();
    disk.release(epoch, base(2)).unwrap();
    assert_eq!(recorder.recording().now.mark.unwrap().tracked, Tracked::All);
    write(&disk, 9);
    disk.flush().unwrap();
    drop(disk);
    recorder.reboot();
    let disk = open(&recorder).unwrap();
    assert_eq!((disk.found(), disk.status(&identity()).resync), (FoundState::OtherBoot, None));
}

/// If neither place can be written, a change that would be noted nowhere is not made: the next start
/// would believe the mark.
#[test]
fn a_change_that_can_be_noted_nowhere_is_not_made() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 5);
    recorder.faults().files = vec![""];
    recorder.faults().mark = true;
    write(&disk, 5); // was noted before
    disk.write(ByteOffset(100_000 * 512), &[1; 512]).expect_err("not noted");
    assert!(!recorder.recording().now.backing.contains_key(&100_000));
    recorder.faults().mark = false;
    write(&disk, 100_000);
}

/// A backing without a place for a mark (a device): a driver that was killed is exact, a machine that
/// went down proves nothing, and a clean stop is as good as ever.
#[test]
fn without_a_mark_only_a_reboot_needs_a_comparison() {
    let recorder = recorder();
    recorder.faults().no_mark = true;
    let disk = shipped(&recorder);
    write(&disk, 9);
    drop(disk);
    let disk = open(&recorder).unwrap();
    assert_eq!(dirty(&recorder, &disk), BTreeSet::from([9]), "killed");
    disk.close().unwrap();
    recorder.reboot();
    let disk = open(&recorder).unwrap();
    assert_eq!((disk.found(), disk.status(&identity()).resync), (FoundState::Clean, None));
    drop(disk);
    recorder.reboot();
    let disk = open(&recorder).unwrap();
    let found = (disk.found(), disk.status(&identity()).resync);
    assert_eq!(found, (FoundState::OtherBoot, Some(Resync::Unproven)));
}

/// What the mark says about a state that is not of its time, or not of its disk.
#[test]
fn a_state_that_the_mark_denies_is_not_believed() {
    for clean in [true, false] {
        let (_, disk) = reopen_after(clean, |machine| {
            machine.mark.as_mut().unwrap().generation += 1000;
        });
        assert_eq!(
            disk.unwrap().status(&identity()).resync,
            Some(Resync::Unproven),
            "clean: {clean}"
        );
        let (_, disk) = reopen_after(clean, |machine| {
            machine.mark.as_mut().unwrap().disk = DiskId::from_bytes([99; 16]);
        });
        assert_eq!(
            disk.unwrap().status(&identity()).resync,
            Some(Resync::BackingChanged),
            "clean: {clean}"
        );
    }
    let (_, disk) = reopen_after(false, |machine| machine.mark = None);
    assert_eq!(disk.unwrap().status(&identity()).resync, Some(Resync::Unproven));
    let (_, disk) = reopen_after(true, |machine| machine.mark = None);
    assert_eq!(
        disk.unwrap().status(&identity()).resync,
        None,
        "stopped cleanly by an earlier version"
    );
}

/// Regions of which only the intents are known are said to be so until a cycle ends, also by a driver
/// that was killed meanwhile.
#[test]
fn what_only_intents_know_is_coarse_until_a_release() {
    let (recorder, disk) = reopen_after(false, |_| ());
    let disk = disk.unwrap();
    assert!(disk.status(&identity()).coarse);
    drop(disk);
    let disk = open(&recorder).unwrap();
    assert!(disk.found() == FoundState::SameBoot && disk.status(&identity()).coarse);
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    disk.seal(epoch).unwrap();
    disk.release(epoch, base(2)).unwrap();
    assert!(!disk.status(&identity()).coarse);
}

/// What the guest could not read, write or flush is told with the last error and its time.
#[test]
fn errors_of_the_backing_are_told() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    assert_eq!(disk.status(&identity()).io_trouble, None);
    recorder.faults().backing_write = true;
    for _ in 0..3 {
        disk.write(ByteOffset(0), &[1; 512]).unwrap_err();
    }
    recorder.faults().backing_read = true;
    disk.read(ByteOffset(0), &mut [0; 512]).unwrap_err();
    let trouble = disk.status(&identity()).io_trouble.unwrap();
    assert_eq!((trouble.reads, trouble.writes, trouble.flushes), (1, 3, 0));
    assert_eq!((trouble.what.as_str(), trouble.errno), ("read", 5));
    assert!(trouble.at_unix_ns > 0);
}

#[test]
fn no_memory_for_bits_costs_a_resync_and_no_write() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    recorder.faults().no_memory = true;
    write(&disk, 5);
    disk.discard(ByteOffset(0), ByteLen(1 << 20)).unwrap();
    assert_eq!(disk.status(&identity()).resync, Some(Resync::NoMemory));
    recorder.faults().no_memory = false;
    write(&disk, 7);
    // Copy-before-write keeps only sectors known to be dirty: no point in time without a pass
    // over the whole disk first.
    assert!(matches!(disk.cut(CutMode::PointInTime), Err(TrackError::Order(_))));
    assert_eq!(disk.cut(CutMode::Fuzzy).unwrap().whole_disk, Some(Resync::NoMemory));
}

/// Cuts with sector 9 dirty, does `trouble`, overwrites it, and seals.
fn lose_point_in_time(trouble: impl Fn(&Recorder, &Disk), says: &str) {
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 9);
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    trouble(&recorder, &disk);
    write(&disk, 9);
    write(&disk, 50);
    let lost = disk.seal(epoch).unwrap().lost.expect("the sidecar must be told");
    assert!(lost.contains(says), "{lost}");
    assert!(matches!(disk.release(epoch, base(2)), Err(TrackError::Order(_))));
    disk.fold_back(epoch).unwrap();
    recorder.faults().files.clear();
    recorder.faults().backing_read = false;
    assert!(disk.status(&identity()).warning.unwrap().contains(says));
    let dirty = dirty(&recorder, &disk);
    assert!(dirty.contains(&9) && dirty.contains(&50), "{dirty:?}");
}

#[test]
fn change_log_at_its_limit_costs_the_point_in_time() {
    lose_point_in_time(|_, disk| disk.set_change_log_limit(ByteLen(4096 + 1023)), "limit");
}

#[test]
fn unwritable_change_log_costs_the_point_in_time() {
    lose_point_in_time(|recorder, _| recorder.faults().files = vec!["log-"], "change log");
}

#[test]
fn unreadable_old_content_costs_the_point_in_time() {
    lose_point_in_time(|recorder, _| recorder.faults().backing_read = true, "old content");
}

#[test]
fn a_cut_that_cannot_be_made_changes_nothing() {
    for broken in ["intents-", "log-", "super"] {
        let recorder = recorder();
        let disk = shipped(&recorder);
        write(&disk, 9);
        recorder.faults().files = vec![broken];
        disk.cut(CutMode::PointInTime).expect_err(broken);
        write(&disk, 9);
        recorder.faults().files.clear();
        assert_eq!(dirty(&recorder, &disk), BTreeSet::from([9]), "{broken}");
    }
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 9);
    recorder.faults().no_memory = true;
    disk.cut(CutMode::PointInTime).expect_err("no memory");
    write(&disk, 9);
    recorder.faults().no_memory = false;
    assert_eq!(dirty(&recorder, &disk), BTreeSet::from([9]));
}

#[test]
fn a_release_that_cannot_be_made_durable_keeps_everything_dirty() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 9);
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    disk.seal(epoch).unwrap();
    recorder.faults().files = vec!["super"];
    disk.release(epoch, base(2)).expect_err("the superblock cannot be written");
    recorder.faults().files.clear();
    recorder.faults().backing_sync = true;
    disk.release(epoch, base(2)).expect_err("the backing cannot be flushed");
    recorder.faults().backing_sync = false;
    disk.fold_back(epoch).unwrap();
    assert_eq!(dirty(&recorder, &disk), BTreeSet::from([9]));
    assert_eq!(disk.status(&identity()).base, Some(base(1)));
}

#[test]
fn the_guest_sees_the_backings_errors_and_no_others() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    recorder.faults().backing_write = true;
    let error = disk.write(ByteOffset(512), &[1; 512]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc_eio()));
    recorder.faults().backing_write = false;
    recorder.faults().backing_read = true;
    assert_eq!(disk.read(ByteOffset(0), &mut [0; 512]).unwrap_err().raw_os_error(), Some(5));
    recorder.faults().backing_read = false;
    recorder.faults().backing_sync = true;
    assert!(disk.flush().is_err());
    recorder.faults().backing_sync = false;
    assert_eq!(disk.status(&identity()).counters.io_errors, 3);
    // A write that failed may have reached the backing in part.
    assert!(dirty(&recorder, &disk).contains(&1));
    assert!(disk.write(ByteOffset(SIZE.0), &[1]).is_err(), "beyond the end");
    assert!(disk.write(ByteOffset(u64::MAX), &[1]).is_err(), "beyond all ends");
}

fn libc_eio() -> i32 {
    5
}

#[test]
fn cycles_out_of_order_are_refused() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    assert!(matches!(disk.seal(EpochNo(1)), Err(TrackError::WrongEpoch { .. })));
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    assert!(matches!(disk.cut(CutMode::PointInTime), Err(TrackError::Order(_))));
    assert!(disk.release(epoch.next(), base(2)).is_err());
    assert!(disk.fold_back(epoch.next()).is_err());
    disk.seal(epoch).unwrap();
    disk.release(epoch, base(2)).unwrap();
    assert!(disk.release(epoch, base(2)).is_err(), "released already");
}

/// Stops, cleanly or not, lets `damage` at the machine and opens again.
fn reopen_after(
    clean: bool,
    damage: impl FnOnce(&mut Machine),
) -> (Recorder, Result<Disk, TrackError>) {
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 9);
    disk.flush().unwrap();
    if clean {
        disk.close().unwrap();
    }
    drop(disk);
    recorder.reboot();
    damage(&mut recorder.recording().now);
    let disk = open(&recorder);
    (recorder, disk)
}

fn flip(machine: &mut Machine, name: &str, at: usize) {
    let (_, file) = machine.names.iter().find(|(n, _)| n.starts_with(name)).expect("file");
    machine.files.get_mut(file).unwrap()[at] ^= 1;
}

#[test]
fn what_a_restart_finds() {
    let (recorder, disk) = reopen_after(true, |_| ());
    let disk = disk.unwrap();
    assert_eq!(disk.found(), FoundState::Clean);
    assert_eq!(dirty(&recorder, &disk), BTreeSet::from([9]), "a clean stop is exact");

    let (recorder, disk) = reopen_after(false, |_| ());
    let disk = disk.unwrap();
    assert_eq!(disk.found(), FoundState::OtherBoot);
    assert_eq!(dirty(&recorder, &disk), (0..64).collect(), "the region of sector 9");
}

#[test]
fn damaged_state_means_everything_is_dirty() {
    for (clean, file, at) in [(true, "clean", 4096), (true, "clean", 40), (false, "intents-", 9)] {
        let (_, disk) = reopen_after(clean, |machine| flip(machine, file, at));
        let disk = disk.unwrap();
        assert_eq!(disk.found(), FoundState::Damaged, "{file} {at}");
        assert_eq!(disk.status(&identity()).resync, Some(Resync::ChangeLogDamaged), "{file} {at}");
    }
    // A torn block of intents says only that its own regions are dirty.
    let (recorder, disk) = reopen_after(false, |machine| flip(machine, "intents-", 4096 + 20));
    let disk = disk.unwrap();
    assert_eq!(disk.found(), FoundState::OtherBoot);
    assert!(dirty(&recorder, &disk).len() >= 3968 * 64);
    for gone in ["clean", "intents-"] {
        let (_, disk) = reopen_after(gone == "clean", |machine| {
            machine.names.retain(|name, _| !name.starts_with(gone));
        });
        assert_eq!(
            disk.unwrap().status(&identity()).resync,
            Some(Resync::ChangeLogDamaged),
            "{gone}"
        );
    }
}

#[test]
fn an_unusable_superblock_stops_the_start() {
    let (_, disk) = reopen_after(false, |machine| {
        flip(machine, "super", 100);
        flip(machine, "super", 4096 + 100);
    });
    let error = disk.err().expect("must not open").to_string();
    assert!(error.contains("superblock") && error.contains("move it away"), "{error}");

    // A version from the future, well formed.
    let (_, disk) = reopen_after(false, |machine| {
        let id = machine.names["super"];
        for slot in machine.files.get_mut(&id).unwrap().chunks_exact_mut(4096) {
            slot[8] = 9;
            let crc = crc32c::crc32c(&slot[..4092]);
            slot[4092..].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let error = disk.err().expect("must not open").to_string();
    assert!(error.contains("version 9"), "{error}");
}

#[test]
fn another_size_stops_the_start() {
    let recorder = recorder();
    drop(shipped(&recorder));
    let machine = recorder.recording().now.clone();
    for size in [SIZE.0 - 512, SIZE.0 + 512] {
        let changed = Machine { backing_bytes: size, ..machine.clone() };
        let other = Recorder::new(changed, SIZE, Sabotage::None);
        let error = open(&other).err().expect("must not open");
        match error {
            TrackError::Size { .. } => assert!(size < SIZE.0),
            TrackError::Larger { .. } => {
                assert!(size > SIZE.0 && error.to_string().contains("--grow"))
            }
            other => panic!("{other}"),
        }
        assert!(other.recording().log.is_empty(), "nothing may be changed");
    }
}

fn open_growing(recorder: &Recorder) -> Result<Disk, TrackError> {
    let options = OpenOptions { region_shift: REGION_SHIFT, grow: true, ..OpenOptions::default() };
    ProtectedDisk::open(recorder.clone(), recorder.clone(), options)
}

fn sectors(from: u64, to: u64) -> std::ops::Range<u64> {
    from / 512..to.div_ceil(512)
}

/// A disk grows while it is used: what is new is dirty, what was dirty stays so, and the same again
/// after a crash in this boot and in another one.
#[test]
fn a_disk_grows_in_use() {
    let to = ByteLen(2 * SIZE.0 + 700);
    let new: BTreeSet<u64> = sectors(SIZE.0, to.0).collect();
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 9);
    assert!(disk.write(ByteOffset(SIZE.0 + 512), &[1; 512]).is_err(), "not there yet");
    assert_eq!(disk.grow(Some(to)).unwrap(), Grown { from: SIZE, to });
    assert_eq!((disk.size(), disk.status(&identity()).size), (to, to));
    assert_eq!(disk.status(&identity()).change_log_limit, ByteLen(to.0 / 2));
    assert_eq!(disk.grow(Some(to)).unwrap(), Grown { from: to, to }, "once more: nothing to do");
    disk.write(ByteOffset(to.0 - 10), &[1; 10]).unwrap();
    let all: BTreeSet<u64> = new.iter().copied().chain([9]).collect();
    assert_eq!(dirty(&recorder, &disk), all);

    drop(disk);
    let disk = open(&recorder).unwrap();
    assert_eq!((disk.found(), disk.size()), (FoundState::SameBoot, to));
    assert_eq!(dirty(&recorder, &disk), all);
    disk.flush().unwrap();
    drop(disk);
    recorder.reboot();
    let disk = open(&recorder).unwrap();
    assert_eq!((disk.found(), disk.size()), (FoundState::OtherBoot, to));
    assert!(dirty(&recorder, &disk).is_superset(&all));
    disk.close().unwrap();
    drop(disk);
    let disk = open(&recorder).unwrap();
    assert_eq!((disk.found(), disk.size()), (FoundState::Clean, to));
    let epoch = disk.cut(CutMode::PointInTime).unwrap().epoch;
    assert!(matches!(disk.grow(Some(ByteLen(3 * SIZE.0))), Err(TrackError::Order(_))));
    disk.seal(epoch).unwrap();
    disk.release(epoch, base(2)).unwrap();
    assert_eq!(dirty(&recorder, &disk), BTreeSet::new());
}

#[test]
fn a_disk_never_shrinks_and_never_uses_a_part_of_its_backing() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    let log = recorder.recording().log.len();
    for size in [1, SIZE.0 - 1] {
        assert!(matches!(disk.grow(Some(ByteLen(size))), Err(TrackError::GrowTo { .. })));
    }
    assert!(matches!(disk.grow(Some(ByteLen(u64::MAX))), Err(TrackError::Unfit(_))));
    assert_eq!(recorder.recording().log.len(), log, "nothing may be changed");
    assert_eq!(disk.size(), SIZE);
}

/// What a group's cut has made ahead is of the old size: it is made again, and takes nothing with it.
#[test]
fn a_cut_made_ahead_does_not_outlive_a_growth() {
    let to = ByteLen(2 * SIZE.0);
    let recorder = recorder();
    let disk = shipped(&recorder);
    write(&disk, 9);
    disk.prepare_cut().unwrap();
    disk.grow(Some(to)).unwrap();
    write(&disk, 11);
    disk.prepare_cut().unwrap();
    disk.write(ByteOffset(to.0 - 512), &[1; 512]).unwrap();
    let all: BTreeSet<u64> = sectors(SIZE.0, to.0).chain([9, 11]).collect();
    assert_eq!(dirty(&recorder, &disk), all);
    disk.flush().unwrap();
    drop(disk);
    recorder.reboot();
    let disk = open(&recorder).unwrap();
    assert_eq!(
        (disk.size(), disk.found(), disk.status(&identity()).resync),
        (to, FoundState::OtherBoot, None)
    );
    assert!(dirty(&recorder, &disk).is_superset(&all));
}

/// An extended backing is accepted when somebody says so, whatever kind of stop was before.
#[test]
fn an_extended_backing_is_taken_when_told_to() {
    let to = SIZE.0 + (4 << 20);
    for clean in [true, false] {
        let recorder = recorder();
        let disk = shipped(&recorder);
        write(&disk, 9);
        if clean {
            disk.close().unwrap();
        }
        drop(disk);
        recorder.recording().now.backing_bytes = to;
        assert!(matches!(open(&recorder), Err(TrackError::Larger { .. })));
        let disk = open_growing(&recorder).unwrap();
        assert_eq!(disk.size(), ByteLen(to));
        let all: BTreeSet<u64> = sectors(SIZE.0, to).chain([9]).collect();
        assert_eq!(dirty(&recorder, &disk), all, "clean: {clean}");
        drop(disk);
        assert_eq!(open(&recorder).unwrap().size(), ByteLen(to), "it need not be said again");
    }
}

/// Each step of a growth fails in turn: the disk goes on with its old size, and the next attempt, or
/// the next start, finishes it.
#[test]
fn a_growth_that_fails_is_finished_later() {
    let to = ByteLen(2 * SIZE.0);
    let all: BTreeSet<u64> = sectors(SIZE.0, to.0).chain([9]).collect();
    for (broken, restart) in [
        ("intents-", false),
        ("intents-", true),
        ("super", false),
        ("memory", true),
        ("backing", false),
    ] {
        let recorder = recorder();
        let disk = shipped(&recorder);
        write(&disk, 9);
        match broken {
            "memory" => recorder.faults().no_memory = true,
            "backing" => recorder.faults().backing_grow = true,
            name => recorder.faults().files = vec![name],
        }
        disk.grow(Some(to)).expect_err(broken);
        assert_eq!(disk.size(), SIZE);
        let status = disk.status(&identity());
        assert_eq!(status.resync, None, "{broken}");
        recorder.faults().files.clear();
        recorder.faults().no_memory = false;
        recorder.faults().backing_grow = false;
        write(&disk, 9);
        let disk = if restart {
            drop(disk);
            open(&recorder).expect("the start finishes it")
        } else {
            disk.grow(Some(to)).expect("the next attempt finishes it");
            disk
        };
        assert_eq!(disk.size(), to, "{broken}");
        assert_eq!(dirty(&recorder, &disk), all, "{broken}");
    }
}

/// Tracking says what changed on one backing; of another one it says nothing.
#[test]
fn another_backing_is_noticed() {
    for clean in [true, false] {
        let recorder = recorder();
        recorder.faults().identity = Some(1);
        let disk = shipped(&recorder);
        if clean {
            disk.close().unwrap();
        }
        drop(disk);
        recorder.faults().identity = Some(2);
        let disk = open(&recorder).unwrap();
        assert_eq!(disk.status(&identity()).resync, Some(Resync::BackingChanged), "clean: {clean}");
        drop(disk);
        assert_eq!(
            open(&recorder).unwrap().status(&identity()).resync,
            Some(Resync::BackingChanged)
        );
    }
}

/// A move: the state goes with another backing, and not one sector more or less is dirty.
#[test]
fn a_moved_disk_keeps_its_dirty_set() {
    let recorder = recorder();
    recorder.faults().identity = Some(1);
    recorder.faults().mtime_unix_ns = 77;
    let disk = shipped(&recorder);
    write(&disk, 9);
    assert!(matches!(Offline::open(&recorder), Err(TrackError::Order(_))), "not stopped cleanly");
    disk.close().unwrap();
    drop(disk);
    let mut offline = Offline::open(&recorder).unwrap();
    assert_eq!(offline.binding(&recorder, &recorder).unwrap(), Binding::Bound);
    recorder.faults().mtime_unix_ns = 78;
    assert_eq!(
        offline.binding(&recorder, &recorder).unwrap(),
        Binding::Other,
        "somebody wrote to it"
    );
    recorder.faults().identity = Some(2);
    recorder.recording().now.backing_bytes = SIZE.0 - 1;
    assert!(matches!(offline.bind(&recorder, &recorder), Err(TrackError::Size { .. })));
    // The new one is larger: the disk takes its size at the next start.
    recorder.recording().now.backing_bytes = SIZE.0 + 512;
    offline.bind(&recorder, &recorder).unwrap();
    assert_eq!(offline.binding(&recorder, &recorder).unwrap(), Binding::Bound);
    drop(offline);
    let disk = open(&recorder).unwrap();
    assert_eq!((disk.found(), disk.status(&identity()).resync), (FoundState::Clean, None));
    let all: BTreeSet<u64> = sectors(SIZE.0, SIZE.0 + 512).chain([9]).collect();
    assert_eq!(dirty(&recorder, &disk), all);
}

#[test]
fn a_backing_changed_behind_the_drivers_back_is_noticed() {
    let recorder = recorder();
    let disk = shipped(&recorder);
    recorder.faults().mtime_unix_ns = 77;
    disk.close().unwrap();
    assert!(disk.write(ByteOffset(0), &[1]).is_err(), "closed");
    recorder.faults().mtime_unix_ns = 78;
    let disk = open(&recorder).unwrap();
    assert_eq!(disk.status(&identity()).resync, Some(Resync::BackingChanged));
}

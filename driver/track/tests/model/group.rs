//! Two disks cut together while a guest writes a number to the first, waits for the answer, and
//! writes it to the second. Each disk has a thread that makes its held cut, as a connection of the
//! driver has; a hold may expire before its thaw comes.

use backstay_format::control::CutMode;
use backstay_format::control::CutReply;
use backstay_track::sync::Arc;
use backstay_types::ByteOffset;
use shuttle::rand::Rng;
use shuttle::sync::mpsc;
use shuttle::thread;

use crate::machine::Machine;
use crate::sidecar::{Order, Sidecar};
use crate::{Disk, base, shipped_once};

/// How a group is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// Held; a group of which a hold expired is void.
    Right,
    /// Nothing is held.
    NoHold,
    /// A hold that expired is taken for one in force.
    ExpiryIgnored,
}

/// A disk of the group, its sidecar, and what its thread says.
struct Member {
    machine: Machine,
    disk: Arc<Disk>,
    sidecar: Sidecar,
}

/// The thread of one disk: cuts when told to, thaws when told to or before.
fn cut_thread(
    disk: Arc<Disk>,
    rules: Rules,
    commands: mpsc::Receiver<()>,
    cuts: mpsc::Sender<()>,
) -> thread::JoinHandle<(CutReply, bool)> {
    thread::spawn(move || {
        if thread_rng_bool() {
            disk.prepare_cut().expect("prepare");
        }
        commands.recv().expect("told to cut");
        if rules == Rules::NoHold {
            let info = disk.cut(CutMode::PointInTime).expect("cut");
            cuts.send(()).expect("cut");
            commands.recv().expect("told to thaw");
            return (info, true);
        }
        let (info, hold) = disk.cut_and_hold().expect("cut");
        cuts.send(()).expect("cut");
        let expires = thread_rng_bool();
        if expires {
            hold.thaw();
            commands.recv().expect("told to thaw");
        } else {
            commands.recv().expect("told to thaw");
            hold.thaw();
        }
        (info, !expires)
    })
}

fn thread_rng_bool() -> bool {
    shuttle::rand::thread_rng().gen_bool(0.2)
}

fn write(disk: &Disk, number: u64) {
    let mut data = [0u8; 1024];
    data[..8].copy_from_slice(&number.to_le_bytes());
    data[512..520].copy_from_slice(&number.to_le_bytes());
    disk.write(ByteOffset(0), &data).expect("the guest's write");
}

fn group_cycles(rules: Rules) {
    let mut members: Vec<Member> = (0..2)
        .map(|_| {
            let machine = Machine::new();
            let disk = shipped_once(&machine);
            Member { sidecar: Sidecar::new(machine.clone(), Order::Right), machine, disk }
        })
        .collect();
    let disks: Vec<Arc<Disk>> = members.iter().map(|m| Arc::clone(&m.disk)).collect();
    let guest = thread::spawn(move || {
        for number in 1..5 {
            disks.iter().for_each(|disk| write(disk, number));
        }
    });
    for cycle in 2..4 {
        let (cuts, cut) = mpsc::channel();
        let (commands, threads): (Vec<_>, Vec<_>) = members
            .iter()
            .map(|member| {
                let (command, commands) = mpsc::channel();
                let disk = Arc::clone(&member.disk);
                (command, cut_thread(disk, rules, commands, cuts.clone()))
            })
            .unzip();
        commands.iter().for_each(|command| command.send(()).expect("cut"));
        members.iter().for_each(|_| cut.recv().expect("all are cut"));
        commands.iter().for_each(|command| command.send(()).expect("thaw"));
        let cuts: Vec<_> = threads.into_iter().map(|t| t.join().expect("a member")).collect();
        let valid = rules == Rules::ExpiryIgnored || cuts.iter().all(|(_, in_force)| *in_force);
        for (member, (info, _)) in members.iter_mut().zip(&cuts) {
            assert!(member.sidecar.ship(&member.disk, info), "there is room for all");
            member.disk.release(info.epoch, base(cycle)).expect("release");
        }
        let [a, b] = [0, 1].map(|i: usize| members[i].sidecar.shipped(0));
        assert!(!valid || (b <= a && a <= b + 1), "group: A holds {a}, B holds {b}");
    }
    guest.join().expect("the guest was never stuck");
    for member in &mut members {
        member.sidecar.check_rest_is_dirty(&member.disk);
        assert_eq!(member.machine.sector(0), 4, "every write was done");
    }
}

fn iterations() -> usize {
    crate::iterations() / 4
}

#[test]
fn no_disk_of_a_group_is_ahead() {
    shuttle::check_random(|| group_cycles(Rules::Right), iterations());
}

#[test]
fn no_disk_of_a_group_is_ahead_with_few_preemptions() {
    shuttle::check_pct(|| group_cycles(Rules::Right), iterations(), 3);
}

#[test]
#[should_panic(expected = "group: A holds")]
fn cuts_without_a_hold_are_found() {
    shuttle::check_pct(|| group_cycles(Rules::NoHold), 20_000, 3);
}

#[test]
#[should_panic(expected = "group: A holds")]
fn an_expired_hold_that_counts_is_found() {
    shuttle::check_pct(|| group_cycles(Rules::ExpiryIgnored), 20_000, 3);
}

/// What was prepared and not used, then folded back: nothing stays behind, the next cut is right.
#[test]
fn what_was_prepared_may_be_left() {
    let abandon = || {
        let machine = Machine::new();
        let disk = shipped_once(&machine);
        let guest = {
            let disk = Arc::clone(&disk);
            thread::spawn(move || (1..3).for_each(|number| write(&disk, number)))
        };
        disk.prepare_cut().expect("prepare");
        disk.fold_back_open().expect("the sidecar is gone");
        disk.prepare_cut().expect("prepare");
        disk.prepare_cut().expect("twice is once");
        let mut sidecar = Sidecar::new(machine.clone(), Order::Right);
        let (info, hold) = disk.cut_and_hold().expect("cut");
        hold.thaw();
        assert!(sidecar.ship(&disk, &info), "there is room for all");
        disk.release(info.epoch, base(2)).expect("release");
        guest.join().expect("the guest");
        sidecar.check_rest_is_dirty(&disk);
    };
    shuttle::check_random(abandon, iterations());
}

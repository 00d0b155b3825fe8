//! Faults of a disk's backing.

use std::fs::{self, File};

use backstay_tests::harness::must;

use super::lab::{Fault, Lab, Seen};

const FAULT: &[&str] = &["backing-fault"];

fn resize(lab: &Lab, bytes: u64) {
    File::options().write(true).open(&lab.disk.backing).unwrap().set_len(bytes).unwrap();
}

/// Says that it was mended, as status asks for.
fn resume(lab: &mut Lab) {
    lab.host.backstay(&["resume", "d"]);
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the backing was replaced",
        seen: Seen::Itself,
        cause: FAULT,
        says: &[],
        inject: |lab| {
            let backing = lab.disk.backing.clone();
            lab.take_away(&backing);
            File::create(&backing).unwrap().set_len(2 << 20).unwrap();
        },
        mend: |lab| {
            lab.bring_back();
            resume(lab);
        },
    },
    Fault {
        name: "the backing was moved",
        seen: Seen::Itself,
        cause: FAULT,
        says: &[],
        inject: |lab| {
            let backing = lab.disk.backing.clone();
            lab.take_away(&backing);
        },
        mend: |lab| {
            lab.bring_back();
            resume(lab);
        },
    },
    Fault {
        name: "the backing was made larger",
        seen: Seen::Itself,
        cause: &["backing-fault", "backing-extended"],
        says: &[],
        inject: |lab| resize(lab, 4 << 20),
        mend: |lab| {
            resize(lab, 2 << 20);
            resume(lab);
        },
    },
    Fault {
        name: "the backing was deleted",
        seen: Seen::Itself,
        cause: FAULT,
        says: &[],
        inject: |lab| {
            let (backing, copy) = (lab.disk.backing.clone(), lab.host.path("copy.img"));
            must("cp", ["--sparse=always", backing.to_str().unwrap(), copy.to_str().unwrap()]);
            fs::remove_file(backing).unwrap();
        },
        // Its bytes are in the points, and in a copy that somebody made.
        mend: |lab| {
            lab.host.backstay(&["umount", "d", "--force"]);
            fs::rename(lab.host.path("copy.img"), &lab.disk.backing).unwrap();
            lab.host.backstay(&[
                "mount",
                lab.disk.backing.to_str().unwrap(),
                "--name",
                "d",
                "--compare",
            ]);
            lab.host.backstay(&["resync", "d", "--now"]);
        },
    },
];

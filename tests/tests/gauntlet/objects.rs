//! Objects of the vault are gone, damaged, or another's.

use std::fs;
use std::os::unix::fs::symlink;

use super::lab::{Fault, Lab, Seen, flip, halve};

const VERIFY: Seen = Seen::By(&["verify", "d"], 4);
const PRUNE: Seen = Seen::By(&["prune", "d"], 4);

fn back(lab: &mut Lab) {
    lab.bring_back();
}

/// A line whose fault is done to the newest object of a kind.
macro_rules! newest {
    ($name:literal, $seen:expr, $kind:literal, $says:expr, $do:expr) => {
        Fault {
            name: $name,
            seen: $seen,
            says: $says,
            inject: |lab| {
                let path = lab.newest("d", $kind);
                $do(&path);
            },
            mend: back,
        }
    };
}

/// A line whose fault is that the other disk's newest object of a kind is in its place.
macro_rules! foreign {
    ($name:literal, $seen:expr, $kind:literal, $says:expr) => {
        Fault {
            name: $name,
            seen: $seen,
            says: $says,
            inject: |lab| {
                fs::copy(lab.newest("e", $kind), lab.newest("d", $kind)).map(drop).unwrap();
            },
            mend: back,
        }
    };
}

fn empty(path: &std::path::Path) {
    fs::write(path, b"").unwrap();
}

fn remove(path: &std::path::Path) {
    fs::remove_file(path).unwrap();
}

/// Makes a ledger.
fn pruned(lab: &Lab) {
    for disk in ["d", "e"] {
        lab.host.backstay(&["prune", disk]);
    }
    lab.keep_vault();
}

pub const FAULTS: &[Fault] = &[
    newest!("the newest point is gone", Seen::Cycle, "points", &["point"], remove),
    newest!("the newest point is damaged", Seen::Cycle, "points", &["points/"], flip),
    newest!("the newest point is cut short", Seen::Cycle, "points", &["points/"], halve),
    newest!("the newest point is empty", Seen::Cycle, "points", &["points/"], empty),
    foreign!("the newest point is another disk's", Seen::Cycle, "points", &["points/"]),
    Fault {
        name: "the newest point is an older one",
        seen: Seen::Cycle,
        says: &["points/"],
        inject: |lab| {
            let points = lab.objects("d", "points");
            fs::copy(&points[points.len() - 2], &points[points.len() - 1]).map(drop).unwrap();
        },
        mend: back,
    },
    newest!("verify: the newest point is damaged", VERIFY, "points", &["points/"], flip),
    newest!("verify: the newest point is cut short", VERIFY, "points", &["points/"], halve),
    foreign!("verify: the newest point is another disk's", VERIFY, "points", &["points/"]),
    newest!("a segment is damaged", VERIFY, "segments", &["segments/"], flip),
    newest!("a segment is cut short", VERIFY, "segments", &["segments/"], halve),
    newest!("a segment is empty", VERIFY, "segments", &["segments/"], empty),
    foreign!("a segment is another disk's", VERIFY, "segments", &["segments/"]),
    Fault {
        name: "two segments changed places",
        seen: VERIFY,
        says: &["segments/"],
        inject: |lab| {
            let all = lab.objects("d", "segments");
            let (first, last) = (&all[0], &all[all.len() - 1]);
            let bytes = fs::read(first).unwrap();
            fs::copy(last, first).unwrap();
            fs::write(last, bytes).unwrap();
        },
        mend: back,
    },
    Fault {
        name: "a segment is a symbolic link",
        seen: Seen::By(&["verify", "d"], 1),
        says: &["segments", "symbolic link"],
        inject: |lab| {
            let segment = lab.newest("d", "segments");
            let aside = lab.host.path("aside");
            fs::copy(&segment, &aside).unwrap();
            fs::remove_file(&segment).unwrap();
            symlink(aside, segment).unwrap();
        },
        mend: back,
    },
    newest!("the term is damaged", Seen::Cycle, "terms", &["terms/"], flip),
    newest!("the term is cut short", Seen::Cycle, "terms", &["terms/"], halve),
    newest!("the term is empty", Seen::Cycle, "terms", &["terms/"], empty),
    foreign!("the term is another disk's", Seen::Cycle, "terms", &["terms/", "fenced"]),
    Fault {
        name: "another host took the disk over",
        seen: Seen::Cycle,
        says: &["fenced"],
        inject: |lab| {
            let vault = lab.host.open_vault();
            let disk = vault.disk_named(&"d".parse().unwrap()).unwrap().disk;
            vault.claim_term(disk, "another host").unwrap();
        },
        mend: back,
    },
    Fault {
        name: "the disk's record is damaged",
        seen: Seen::Cycle,
        says: &["disk.json"],
        inject: |lab| flip(&lab.of("d").join("disk.json")),
        mend: back,
    },
    Fault {
        name: "the disk's record is empty",
        seen: Seen::Cycle,
        says: &["disk.json"],
        inject: |lab| empty(&lab.of("d").join("disk.json")),
        mend: back,
    },
    Fault {
        name: "the disk's record is another disk's",
        seen: Seen::Cycle,
        says: &["disk.json"],
        inject: |lab| {
            let (from, to) = (lab.of("e"), lab.of("d"));
            fs::copy(from.join("disk.json"), to.join("disk.json")).map(drop).unwrap();
        },
        mend: back,
    },
    Fault {
        name: "the ledger is damaged",
        seen: Seen::Cycle,
        says: &["ledger/"],
        inject: |lab| {
            pruned(lab);
            flip(&lab.newest("d", "ledger"));
        },
        mend: back,
    },
    Fault {
        name: "the ledger is cut short",
        seen: Seen::Cycle,
        says: &["ledger/"],
        inject: |lab| {
            pruned(lab);
            halve(&lab.newest("d", "ledger"));
        },
        mend: back,
    },
    Fault {
        name: "the ledger is another disk's",
        seen: Seen::Cycle,
        says: &["ledger/"],
        inject: |lab| {
            pruned(lab);
            fs::copy(lab.newest("e", "ledger"), lab.newest("d", "ledger")).map(drop).unwrap();
        },
        mend: back,
    },
    Fault {
        name: "a pin is damaged",
        seen: PRUNE,
        says: &["holds/"],
        inject: |lab| {
            lab.host.backstay(&["pin", "d", "latest", "--name", "p"]);
            flip(&lab.newest("d", "holds"));
        },
        mend: back,
    },
    Fault {
        name: "a pin is empty",
        seen: PRUNE,
        says: &["holds/"],
        inject: |lab| {
            lab.host.backstay(&["pin", "d", "latest", "--name", "p"]);
            empty(&lab.newest("d", "holds"));
        },
        mend: back,
    },
    Fault {
        name: "a pin is another one's",
        seen: PRUNE,
        says: &["holds/"],
        inject: |lab| {
            lab.host.backstay(&["pin", "d", "latest", "--name", "p"]);
            lab.host.backstay(&["pin", "e", "latest", "--name", "q"]);
            fs::copy(lab.newest("e", "holds"), lab.newest("d", "holds")).map(drop).unwrap();
        },
        mend: back,
    },
];

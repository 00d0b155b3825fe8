//! Objects of the vault are gone, damaged, or another's.

use std::fs;

use super::lab::{Fault, Lab, Seen, flip, halve};

const VERIFY: Seen = Seen::Before(&["verify", "d"], 4);
const PRUNE: Seen = Seen::After(&["prune", "d"], 4);
/// A cycle does not go on until a person has looked.
const STOPPED: &[&str] = &["cycle-stopped", "vault-damaged", "points-vanished"];
const DAMAGED: &[&str] = &["vault-damaged"];
const UPKEEP: &[&str] = &["upkeep-failed"];

/// What was hurt is brought back after each row.
fn back(_: &mut Lab) {}

/// The same, and it is looked at again.
fn verified(lab: &mut Lab) {
    lab.bring_back();
    lab.host.backstay(&["verify", "d"]);
}

/// The same, for retention.
fn pruned_again(lab: &mut Lab) {
    lab.bring_back();
    lab.host.backstay(&["prune", "d"]);
}

/// A line whose fault is done to the newest object of a kind.
macro_rules! newest {
    ($name:literal, $seen:expr, $kind:literal, $cause:expr, $says:expr, $do:expr, $mend:expr) => {
        Fault {
            name: $name,
            seen: $seen,
            cause: $cause,
            says: $says,
            inject: |lab| {
                let path = lab.newest("d", $kind);
                lab.hurt(&path, $do);
            },
            mend: $mend,
        }
    };
}

/// A line whose fault is that the other disk's newest object of a kind is in its place.
macro_rules! foreign {
    ($name:literal, $seen:expr, $kind:literal, $cause:expr, $says:expr, $mend:expr) => {
        Fault {
            name: $name,
            seen: $seen,
            cause: $cause,
            says: $says,
            inject: |lab| {
                let (from, to) = (lab.newest("e", $kind), lab.newest("d", $kind));
                lab.hurt(&to, |to| fs::copy(from, to).map(drop).unwrap());
            },
            mend: $mend,
        }
    };
}

fn empty(path: &std::path::Path) {
    fs::write(path, b"").unwrap();
}

/// The same bytes, elsewhere.
fn link(path: &std::path::Path) {
    let real = path.with_extension("real");
    fs::rename(path, &real).unwrap();
    std::os::unix::fs::symlink(real, path).unwrap();
}

fn remove(path: &std::path::Path) {
    fs::remove_file(path).unwrap();
}

/// Makes a ledger.
fn pruned(lab: &Lab) {
    for disk in ["d", "e"] {
        lab.host.backstay(&["prune", disk]);
    }
}

pub const FAULTS: &[Fault] = &[
    newest!("the newest point is gone", Seen::Itself, "points", STOPPED, &["point"], remove, back),
    newest!(
        "the newest point is damaged",
        Seen::Itself,
        "points",
        STOPPED,
        &["points/"],
        flip,
        back
    ),
    newest!(
        "the newest point is cut short",
        Seen::Itself,
        "points",
        STOPPED,
        &["points/"],
        halve,
        back
    ),
    newest!(
        "the newest point is empty",
        Seen::Itself,
        "points",
        STOPPED,
        &["points/"],
        empty,
        back
    ),
    foreign!(
        "the newest point is another disk's",
        Seen::Itself,
        "points",
        STOPPED,
        &["points/"],
        back
    ),
    Fault {
        name: "the newest point is an older one",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["points/"],
        inject: |lab| {
            let points = lab.objects("d", "points");
            let (older, newest) = (&points[points.len() - 2], &points[points.len() - 1]);
            lab.hurt(newest, |newest| fs::copy(older, newest).map(drop).unwrap());
        },
        mend: back,
    },
    newest!(
        "verify: the newest point is damaged",
        VERIFY,
        "points",
        DAMAGED,
        &["points/"],
        flip,
        verified
    ),
    newest!(
        "verify: the newest point is cut short",
        VERIFY,
        "points",
        DAMAGED,
        &["points/"],
        halve,
        verified
    ),
    foreign!(
        "verify: the newest point is another disk's",
        VERIFY,
        "points",
        DAMAGED,
        &["points/"],
        verified
    ),
    newest!("a segment is damaged", VERIFY, "segments", DAMAGED, &["segments/"], flip, verified),
    newest!("a segment is cut short", VERIFY, "segments", DAMAGED, &["segments/"], halve, verified),
    newest!(
        "a segment is a symbolic link",
        VERIFY,
        "segments",
        DAMAGED,
        &["symbolic link"],
        link,
        |lab| {
            let linked = lab.newest("d", "segments");
            verified(lab);
            let _ = fs::remove_file(linked.with_extension("real"));
        }
    ),
    newest!("a segment is empty", VERIFY, "segments", DAMAGED, &["segments/"], empty, verified),
    foreign!("a segment is another disk's", VERIFY, "segments", DAMAGED, &["segments/"], verified),
    Fault {
        name: "two segments changed places",
        seen: VERIFY,
        cause: DAMAGED,
        says: &["segments/"],
        inject: |lab| {
            let all = lab.objects("d", "segments");
            let (first, last) = (&all[0], &all[all.len() - 1]);
            let bytes = fs::read(first).unwrap();
            lab.hurt(first, |first| fs::copy(last, first).map(drop).unwrap());
            lab.hurt(last, |last| fs::write(last, bytes).unwrap());
        },
        mend: verified,
    },
    newest!("the term is damaged", Seen::Itself, "terms", STOPPED, &["terms/"], flip, back),
    newest!("the term is cut short", Seen::Itself, "terms", STOPPED, &["terms/"], halve, back),
    newest!("the term is empty", Seen::Itself, "terms", STOPPED, &["terms/"], empty, back),
    foreign!(
        "the term is another disk's",
        Seen::Itself,
        "terms",
        STOPPED,
        &["terms/", "fenced"],
        back
    ),
    Fault {
        name: "another host took the disk over",
        seen: Seen::Itself,
        cause: &["fenced"],
        says: &[],
        inject: |lab| {
            let terms = lab.of("d").join("terms");
            let newest: u64 =
                lab.newest("d", "terms").file_name().unwrap().to_str().unwrap().parse().unwrap();
            // That host never wrote, and it is taken back.
            lab.keep(&terms.join(format!("{:020}", newest + 1)));
            let vault = lab.host.open_vault();
            let disk = vault.disk_named(&"d".parse().unwrap()).unwrap().disk;
            vault.claim_term(disk, "another host").unwrap();
        },
        mend: back,
    },
    Fault {
        name: "the disk's record is damaged",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["disk.json"],
        inject: |lab| {
            let record = lab.of("d").join("disk.json");
            lab.hurt(&record, flip);
        },
        mend: back,
    },
    Fault {
        name: "the disk's record is empty",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["disk.json"],
        inject: |lab| {
            let record = lab.of("d").join("disk.json");
            lab.hurt(&record, empty);
        },
        mend: back,
    },
    Fault {
        name: "the disk's record is another disk's",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["disk.json"],
        inject: |lab| {
            let (from, to) = (lab.of("e"), lab.of("d"));
            lab.hurt(&to.join("disk.json"), |to| {
                fs::copy(from.join("disk.json"), to).map(drop).unwrap();
            });
        },
        mend: back,
    },
    Fault {
        name: "the ledger is damaged",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["ledger/"],
        inject: |lab| {
            pruned(lab);
            let ledger = lab.newest("d", "ledger");
            lab.hurt(&ledger, flip);
        },
        mend: back,
    },
    Fault {
        name: "the ledger is cut short",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["ledger/"],
        inject: |lab| {
            pruned(lab);
            let ledger = lab.newest("d", "ledger");
            lab.hurt(&ledger, halve);
        },
        mend: back,
    },
    Fault {
        name: "the ledger is another disk's",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["ledger/"],
        inject: |lab| {
            pruned(lab);
            let (from, to) = (lab.newest("e", "ledger"), lab.newest("d", "ledger"));
            lab.hurt(&to, |to| fs::copy(from, to).map(drop).unwrap());
        },
        mend: back,
    },
    Fault {
        name: "a pin is damaged",
        seen: PRUNE,
        cause: UPKEEP,
        says: &["holds/"],
        inject: |lab| {
            let pin = lab.pin("d");
            lab.hurt(&pin, flip);
        },
        mend: pruned_again,
    },
    Fault {
        name: "a pin is empty",
        seen: PRUNE,
        cause: UPKEEP,
        says: &["holds/"],
        inject: |lab| {
            let pin = lab.pin("d");
            lab.hurt(&pin, empty);
        },
        mend: pruned_again,
    },
    Fault {
        name: "a pin is another one's",
        seen: PRUNE,
        cause: UPKEEP,
        says: &["holds/"],
        inject: |lab| {
            let (pin, other) = (lab.pin("d"), lab.pin("e"));
            lab.hurt(&pin, |pin| fs::copy(other, pin).map(drop).unwrap());
        },
        mend: pruned_again,
    },
    Fault {
        name: "a segment is gone",
        seen: VERIFY,
        cause: DAMAGED,
        says: &["segments/"],
        inject: |lab| {
            let segment = lab.newest("d", "segments");
            lab.hurt(&segment, remove);
        },
        mend: verified,
    },
    Fault {
        name: "a pin is gone",
        seen: Seen::After(&["prune", "d", "--keep", "last 1"], 3),
        cause: &["hold-not-listed"],
        says: &[],
        inject: |lab| {
            let pin = lab.pin("d");
            lab.hurt(&pin, remove);
            // No rule keeps its point any more.
            for _ in 0..2 {
                lab.write();
                lab.host.backstay(&["cycle", "d"]);
            }
        },
        mend: pruned_again,
    },
    Fault {
        name: "the disk's record is gone",
        seen: Seen::After(&["verify", "d"], 4),
        cause: STOPPED,
        says: &["disk.json"],
        inject: |lab| {
            let record = lab.of("d").join("disk.json");
            lab.hurt(&record, remove);
        },
        mend: back,
    },
    Fault {
        name: "the disk's folder is gone",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &[],
        inject: |lab| {
            let folder = lab.of("d");
            lab.take_away(&folder);
        },
        mend: back,
    },
    Fault {
        name: "the disk's points are gone",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &[],
        inject: |lab| {
            let points = lab.of("d").join("points");
            lab.take_away(&points);
        },
        mend: back,
    },
    Fault {
        name: "the disk's terms are gone",
        seen: Seen::Itself,
        cause: STOPPED,
        says: &["term"],
        inject: |lab| {
            let terms = lab.of("d").join("terms");
            lab.take_away(&terms);
        },
        mend: back,
    },
];

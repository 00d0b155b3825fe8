//! The vault is away, another one, full, or no vault.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use backstay_tests::harness::must;

use super::lab::{Fault, Lab, Seen};

/// What was hurt is brought back after each row.
fn back(_: &mut Lab) {}

const GONE: &[&str] = &["vault-gone"];
const OTHER: &[&str] = &["other-vault"];
const BROKEN: &[&str] =
    &["cycle-stopped", "cycle-failed", "vault-damaged", "points-vanished", "store-refused"];

fn remount(lab: &Lab, how: &str) {
    must("mount", ["-o", &format!("remount,{how}"), lab.vault().to_str().unwrap()]);
}

/// A vault that has nothing to do with this host's.
fn new_vault(lab: &mut Lab) -> PathBuf {
    let at = lab.new_folder().join("vault");
    lab.host.backstay(&["vault", "init", "--vault", &format!("file://{}", at.display())]);
    at
}

/// Empties the vault's folder, as an unmounted file system leaves a mount point.
fn empty(lab: &mut Lab) {
    for entry in fs::read_dir(lab.vault()).unwrap().flatten() {
        lab.take_away(&entry.path());
    }
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the vault's file system is not mounted",
        seen: Seen::Itself,
        cause: GONE,
        says: &[],
        inject: |lab| empty(lab),
        mend: back,
    },
    Fault {
        name: "vault.json is gone",
        seen: Seen::Itself,
        cause: GONE,
        says: &[],
        inject: |lab| {
            lab.hurt(&lab.vault().join("vault.json"), |path| fs::remove_file(path).unwrap())
        },
        mend: back,
    },
    Fault {
        name: "another vault is there",
        seen: Seen::Itself,
        cause: OTHER,
        says: &[],
        inject: |lab| {
            empty(lab);
            let all = format!("{}/.", new_vault(lab).display());
            must("cp", ["-a", &all, lab.vault().to_str().unwrap()]);
        },
        mend: back,
    },
    Fault {
        name: "vault.json is of another vault",
        seen: Seen::Itself,
        cause: OTHER,
        says: &[],
        inject: |lab| {
            let other = new_vault(lab).join("vault.json");
            lab.hurt(&lab.vault().join("vault.json"), |path| {
                fs::copy(other, path).map(drop).unwrap()
            });
        },
        mend: back,
    },
    Fault {
        name: "vault.json is damaged",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["vault.json"],
        inject: |lab| {
            lab.hurt(&lab.vault().join("vault.json"), |path| {
                fs::write(path, b"{\"format\"").unwrap()
            });
        },
        mend: back,
    },
    Fault {
        name: "vault.json is empty",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["vault.json"],
        inject: |lab| {
            lab.hurt(&lab.vault().join("vault.json"), |path| fs::write(path, b"").unwrap())
        },
        mend: back,
    },
    Fault {
        name: "the vault is read-only",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["permission denied"],
        inject: |lab| remount(lab, "ro"),
        mend: |lab| remount(lab, "rw"),
    },
    Fault {
        name: "the vault is full",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["full", "No space", "space"],
        inject: |lab| {
            let filler = lab.vault().join("filler");
            let _ = fs::write(&filler, vec![1; 32 << 20]);
        },
        mend: |lab| fs::remove_file(lab.vault().join("filler")).unwrap(),
    },
    Fault {
        name: "the folder of disks is a symbolic link",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["symbolic link"],
        inject: |lab| {
            let disks = lab.vault().join("disks");
            let real = lab.vault().join("real");
            fs::rename(&disks, &real).unwrap();
            symlink(&real, &disks).unwrap();
        },
        mend: |lab| {
            let disks = lab.vault().join("disks");
            fs::remove_file(&disks).unwrap();
            fs::rename(lab.vault().join("real"), disks).unwrap();
        },
    },
    Fault {
        name: "the folder of disks is a file",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["no record"],
        inject: |lab| {
            let disks = lab.vault().join("disks");
            lab.take_away(&disks);
            fs::write(disks, b"").unwrap();
        },
        mend: back,
    },
    Fault {
        name: "an older state of the vault was brought back",
        seen: Seen::Itself,
        cause: BROKEN,
        says: &["point"],
        inject: |lab| {
            // A backup of the vault, as it was two points ago.
            for path in lab.objects("d", "points").iter().rev().take(2) {
                lab.hurt(path, |path| fs::remove_file(path).unwrap());
            }
        },
        mend: back,
    },
];

//! The vault is away, another one, full, or no vault.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use backstay_tests::harness::must;

use super::lab::{Fault, Lab, Seen};

fn back(lab: &mut Lab) {
    lab.bring_back();
}

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
fn empty(lab: &Lab) {
    for entry in fs::read_dir(lab.vault()).unwrap().flatten() {
        must("rm", ["-rf", entry.path().to_str().unwrap()]);
    }
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the vault's file system is not mounted",
        seen: Seen::Cycle,
        says: &["vault-gone"],
        inject: |lab| empty(lab),
        mend: back,
    },
    Fault {
        name: "vault.json is gone",
        seen: Seen::Cycle,
        says: &["vault-gone"],
        inject: |lab| fs::remove_file(lab.vault().join("vault.json")).unwrap(),
        mend: back,
    },
    Fault {
        name: "another vault is there",
        seen: Seen::Cycle,
        says: &["other-vault"],
        inject: |lab| {
            empty(lab);
            let all = format!("{}/.", new_vault(lab).display());
            must("cp", ["-a", &all, lab.vault().to_str().unwrap()]);
        },
        mend: back,
    },
    Fault {
        name: "vault.json is of another vault",
        seen: Seen::Cycle,
        says: &["other-vault"],
        inject: |lab| {
            fs::copy(new_vault(lab).join("vault.json"), lab.vault().join("vault.json")).unwrap();
        },
        mend: back,
    },
    Fault {
        name: "vault.json is damaged",
        seen: Seen::Cycle,
        says: &["vault.json"],
        inject: |lab| fs::write(lab.vault().join("vault.json"), b"{\"format\"").unwrap(),
        mend: back,
    },
    Fault {
        name: "vault.json is empty",
        seen: Seen::Cycle,
        says: &["vault.json"],
        inject: |lab| fs::write(lab.vault().join("vault.json"), b"").unwrap(),
        mend: back,
    },
    Fault {
        name: "the vault is read-only",
        seen: Seen::Cycle,
        says: &["permission denied"],
        inject: |lab| remount(lab, "ro"),
        mend: |lab| remount(lab, "rw"),
    },
    Fault {
        name: "the vault is full",
        seen: Seen::Cycle,
        says: &["full", "No space", "space"],
        inject: |lab| {
            let filler = lab.vault().join("filler");
            let _ = fs::write(&filler, vec![1; 32 << 20]);
        },
        mend: |lab| fs::remove_file(lab.vault().join("filler")).unwrap(),
    },
    Fault {
        name: "the folder of disks is a symbolic link",
        seen: Seen::Cycle,
        says: &["symbolic link"],
        inject: |lab| {
            let disks = lab.vault().join("disks");
            let real = lab.vault().join("real");
            fs::rename(&disks, &real).unwrap();
            symlink(&real, &disks).unwrap();
        },
        mend: back,
    },
    Fault {
        name: "the folder of disks is a file",
        seen: Seen::Cycle,
        says: &["no record"],
        inject: |lab| {
            let disks = lab.vault().join("disks");
            must("rm", ["-rf", disks.to_str().unwrap()]);
            fs::write(disks, b"").unwrap();
        },
        mend: back,
    },
    Fault {
        name: "an older state of the vault was brought back",
        seen: Seen::Cycle,
        says: &["point"],
        inject: |lab| {
            lab.host.backstay(&["cycle", "d"]);
            lab.keep_vault();
            let newest = lab.newest("d", "points");
            fs::remove_file(newest).unwrap();
        },
        mend: back,
    },
];

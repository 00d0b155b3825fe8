//! Faults of the folders in which this host remembers disks, and of those that live only as long as the boot.

use std::fs;

use backstay_tests::harness::{Host, must};

use super::lab::{BASE, Fault, Lab, Seen, small};

/// A disk whose state and runtime directories are small file systems.
pub fn lab() -> Lab {
    let host = Host::new("gauntlet-state");
    small(&host.path("vault"), "24m");
    small(&host.path("state"), "96m");
    small(&host.runtime, "16m");
    Lab::new(host, format!("{BASE}keep = \"last 3\"\n"))
}

/// Leaves no room but for so many bytes.
fn fill(dir: &std::path::Path, left: u64) {
    let fs = nix::sys::statvfs::statvfs(dir).unwrap();
    let free = fs.blocks_available() * fs.fragment_size();
    // Others write there, too.
    let left = left.max(32 << 10);
    fs::write(dir.join("filler"), vec![1; free.saturating_sub(left) as usize]).unwrap();
}

/// Has anyone who opens a file there find a file system that is read-only, as after an error of it.
fn read_only(lab: &Lab) {
    let state = lab.host.path("state").display().to_string();
    must("mount", ["--bind", &state, &state]);
    must("mount", ["-o", "remount,bind,ro", &state]);
}

fn roomy(lab: &mut Lab) {
    fs::remove_file(lab.host.path("state/filler")).unwrap();
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the state directory is nearly full",
        seen: Seen::Itself,
        cause: &["state-full"],
        says: &["nearly full"],
        inject: |lab| fill(&lab.host.path("state"), 32 << 20),
        mend: roomy,
    },
    Fault {
        name: "the state directory is full",
        seen: Seen::Itself,
        cause: &["state-full"],
        says: &["is full"],
        inject: |lab| fill(&lab.host.path("state"), 0),
        mend: roomy,
    },
    Fault {
        name: "the state directory is read-only",
        seen: Seen::Idle,
        cause: &["state-read-only"],
        says: &[],
        inject: |lab| read_only(lab),
        mend: |lab| drop(must("umount", ["-l", lab.host.path("state").to_str().unwrap()])),
    },
    Fault {
        name: "the runtime directory is full",
        seen: Seen::Itself,
        cause: &["runtime-full"],
        says: &[],
        inject: |lab| fill(&lab.host.runtime, 0),
        mend: |lab| fs::remove_file(lab.host.runtime.join("filler")).unwrap(),
    },
    Fault {
        name: "the disk's state is gone",
        seen: Seen::Idle,
        cause: &["state-gone"],
        says: &[],
        inject: |lab| {
            let state = lab.host.path("state/d");
            lab.take_away(&state);
        },
        mend: |_| {},
    },
    Fault {
        name: "the runtime directory is gone",
        seen: Seen::Idle,
        cause: &["driver-silent", "not-served", "driver-died"],
        says: &[],
        inject: |lab| {
            // Its file system is the test's: all that is in it.
            for entry in fs::read_dir(&lab.host.runtime).unwrap().flatten() {
                lab.take_away(&entry.path());
            }
        },
        mend: |_| {},
    },
    Fault {
        name: "the driver's socket is gone",
        seen: Seen::Idle,
        cause: &["driver-silent", "not-served"],
        says: &[],
        inject: |lab| {
            let socket = lab.disk.control_socket();
            lab.take_away(&socket);
        },
        mend: |_| {},
    },
];

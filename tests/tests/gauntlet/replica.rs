//! Faults of a replica that follows a disk of another host.

use std::fs;
use std::process::Stdio;

use backstay_tests::harness::host::wait_gone;
use backstay_tests::harness::{Host, must};

use super::lab::{BASE, Fault, Lab, METRICS, Seen, small};

/// A disk with its replica; what is asked is the replica's host.
pub fn lab() -> Lab {
    let host = Host::new("gauntlet-replica");
    small(&host.path("vault"), "24m");
    let standby = host.another("gauntlet-standby");
    let mut lab = Lab::new(host, BASE.into());
    lab.asked = Some(standby);
    configure(&lab, "");
    let to = target(&lab);
    lab.asked.as_ref().unwrap().backstay(&["replica", "d", "--to", &to, "--once"]);
    follow(&mut lab);
    lab
}

/// The replica's host's configuration, with these lines more.
fn configure(lab: &Lab, more: &str) {
    let vault = lab.host.vault();
    let text = format!("vault = \"{vault}\"\nallow_local_vault = true\n{BASE}{more}{METRICS}");
    fs::write(lab.asked.as_ref().unwrap().path("backstay.toml"), text).unwrap();
}

fn target(lab: &Lab) -> String {
    lab.asked.as_ref().unwrap().path("standby.img").display().to_string()
}

fn follow(lab: &mut Lab) {
    let standby = lab.asked.as_ref().unwrap();
    let args = ["replica", "d", "--follow", "--interval", "500ms"];
    lab.child = Some(standby.command().args(args).stdin(Stdio::null()).spawn().unwrap());
}

fn end(lab: &mut Lab, signal: &str) {
    let mut child = lab.child.take().unwrap();
    must("kill", [signal, &child.id().to_string()]);
    wait_gone(child.id() as i32);
    child.wait().unwrap();
}

fn signal(lab: &Lab, signal: &str) {
    must("kill", [signal, &lab.child.as_ref().unwrap().id().to_string()]);
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the replica's process was killed",
        seen: Seen::Itself,
        cause: &["replica-not-running"],
        says: &[],
        inject: |lab| end(lab, "-KILL"),
        mend: follow,
    },
    Fault {
        name: "the replica's process is stopped",
        seen: Seen::Itself,
        cause: &["replica-silent"],
        says: &[],
        inject: |lab| signal(lab, "-STOP"),
        mend: |lab| signal(lab, "-CONT"),
    },
    // One at rest makes a point at each heartbeat.
    Fault {
        name: "the replica's source is dead",
        seen: Seen::Idle,
        cause: &["point-late"],
        says: &["makes no recovery points"],
        inject: |lab| {
            configure(lab, "heartbeat = \"2s\"\n");
            lab.service = None;
        },
        mend: |lab| {
            configure(lab, "");
            lab.start();
        },
    },
    Fault {
        name: "the replica's target is gone",
        seen: Seen::Itself,
        cause: &["replica-stopped", "replica-failed", "replica-not-running"],
        says: &[],
        inject: |lab| {
            let target = target(lab);
            lab.take_away(target.as_ref());
        },
        // Its process may have ended.
        mend: |lab| {
            lab.bring_back();
            if lab.child.as_mut().unwrap().try_wait().unwrap().is_some() {
                follow(lab);
            }
        },
    },
    Fault {
        name: "the replica's vault is away",
        seen: Seen::Itself,
        cause: &["replica-stopped", "replica-failed", "vault-gone"],
        says: &[],
        inject: |lab| {
            for entry in fs::read_dir(lab.vault()).unwrap().flatten() {
                lab.take_away(&entry.path());
            }
        },
        mend: |_| {},
    },
    Fault {
        name: "the replica's newest point is damaged",
        seen: Seen::Idle,
        cause: &["replica-stopped", "replica-failed"],
        says: &["points/"],
        inject: |lab| {
            let point = lab.newest("d", "points");
            lab.hurt(&point, super::lab::flip);
        },
        mend: |_| {},
    },
];

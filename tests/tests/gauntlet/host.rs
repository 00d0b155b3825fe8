//! Faults of the host: its clock, configuration, hooks, driver, sidecar's records, drills.

use std::fs;
use std::path::PathBuf;

use backstay_host::clock::trusted::Reading;
use backstay_tests::harness::must;
use serde_json::{Value, json};

use super::lab::{Fault, Lab, Seen};

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400 * SECOND;

fn state(lab: &Lab, file: &str) -> PathBuf {
    lab.host.path("state").join(file)
}

/// What this host remembers of its clock, changed.
fn remember(lab: &Lab, change: fn(&mut Reading)) {
    let mut reading = Reading::take();
    change(&mut reading);
    fs::write(state(lab, ".clock.json"), json!({ "trusted": reading }).to_string()).unwrap();
}

fn accept(lab: &mut Lab) {
    lab.host.backstay(&["prune", "d", "--accept-clock"]);
}

/// Changes what the sidecar remembers of the disk.
fn record(lab: &Lab, change: impl Fn(&mut Value)) {
    let path = state(lab, "d/sidecar.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, record.to_string()).unwrap();
}

fn now() -> u64 {
    backstay_host::clock::now_unix_ns()
}

fn nothing(_: &mut Lab) {}

fn plain(lab: &mut Lab) {
    lab.configure("");
}

fn mount(lab: &mut Lab) {
    lab.disk.mount(&[]);
}

fn signal(lab: &Lab, signal: &str) {
    must("kill", [signal, &lab.disk.driver_pid().unwrap().to_string()]);
}

pub const FAULTS: &[Fault] = &[
    Fault {
        name: "the clock is forty days ahead",
        seen: Seen::Cycle,
        says: &["clock-jumped"],
        inject: |lab| remember(lab, |then| then.unix_ns -= 40 * DAY),
        mend: accept,
    },
    Fault {
        name: "the clock is nine days behind",
        seen: Seen::Cycle,
        says: &["clock-jumped"],
        inject: |lab| remember(lab, |then| then.unix_ns += 9 * DAY),
        mend: accept,
    },
    Fault {
        name: "the clock was ahead for seven seconds",
        seen: Seen::Look,
        says: &["clock-jumped"],
        inject: |lab| {
            remember(lab, |then| then.unix_ns -= 40 * DAY);
        },
        // It agrees again: healthy by itself.
        mend: |lab| remember(lab, |_| {}),
    },
    Fault {
        name: "the clock lies before the reboot",
        seen: Seen::Cycle,
        says: &["clock-jumped"],
        inject: |lab| {
            remember(lab, |then| {
                then.boot = "another".into();
                then.unix_ns += DAY;
            });
        },
        mend: accept,
    },
    Fault {
        name: "nobody knows how long the host was off",
        seen: Seen::Cycle,
        says: &["clock-untrusted"],
        inject: |lab| {
            remember(lab, |then| {
                then.boot = "another".into();
                then.unix_ns -= 40 * DAY;
            });
        },
        mend: accept,
    },
    Fault {
        name: "what is remembered of the clock is damaged",
        seen: Seen::Cycle,
        says: &["clock-untrusted"],
        inject: |lab| fs::write(state(lab, ".clock.json"), b"{\"trusted\"").unwrap(),
        mend: accept,
    },
    Fault {
        name: "prune refuses while the clock is doubted",
        seen: Seen::By(&["prune", "d", "--keep", "last 1"], 3),
        says: &["jumped"],
        inject: |lab| remember(lab, |then| then.unix_ns -= 40 * DAY),
        mend: accept,
    },
    Fault {
        name: "the newest point is from the future",
        seen: Seen::Look,
        says: &["point-from-the-future"],
        inject: |lab| record(lab, |of| of["last"]["cut_unix_ns"] = (now() + 40 * DAY).into()),
        mend: nothing,
    },
    Fault {
        name: "the newest point is old",
        seen: Seen::Look,
        says: &["point-late"],
        inject: |lab| record(lab, |of| of["last"]["cut_unix_ns"] = (now() - 40 * DAY).into()),
        mend: nothing,
    },
    Fault {
        name: "the sidecar's record is damaged",
        seen: Seen::Look,
        says: &["no-point", "record"],
        inject: |lab| fs::write(state(lab, "d/sidecar.json"), b"{").unwrap(),
        mend: nothing,
    },
    Fault {
        name: "a hook fails",
        seen: Seen::Cycle,
        says: &["point-warning"],
        inject: |lab| lab.configure("[disk.d.hooks]\npre = [\"/bin/false\"]\n"),
        mend: plain,
    },
    Fault {
        name: "a hook's program is not there",
        seen: Seen::Cycle,
        says: &["point-warning"],
        inject: |lab| lab.configure("[disk.d.hooks]\npre = [\"/nowhere/hook\"]\n"),
        mend: plain,
    },
    Fault {
        name: "a hook fails, and points have to be consistent",
        seen: Seen::Cycle,
        says: &["cycle-failed", "cycle-stopped"],
        inject: |lab| {
            lab.configure(
                "[disk.d]\nconsistency = \"application\"\n[disk.d.hooks]\npre = [\"/bin/false\"]\n",
            );
        },
        mend: plain,
    },
    Fault {
        name: "the configuration is no TOML",
        seen: Seen::By(&["doctor", "d"], 1),
        says: &["backstay.toml"],
        inject: |lab| fs::write(lab.host.path("backstay.toml"), b"vault = \n").unwrap(),
        mend: plain,
    },
    Fault {
        name: "the configuration has a setting that there is not",
        seen: Seen::By(&["doctor", "d"], 1),
        says: &["intervall"],
        inject: |lab| lab.configure("intervall = \"1h\"\n"),
        mend: plain,
    },
    Fault {
        name: "the configuration names a policy that there is not",
        seen: Seen::By(&["status", "d"], 1),
        says: &["gold"],
        inject: |lab| lab.configure("[disk.d]\npolicy = \"gold\"\n"),
        mend: plain,
    },
    Fault {
        name: "the configuration is gone",
        seen: Seen::By(&["status", "d"], 1),
        says: &["backstay.toml"],
        inject: |lab| {
            let path = lab.host.path("backstay.toml");
            fs::remove_file(&path).unwrap();
            fs::create_dir(path).unwrap();
        },
        mend: |lab| {
            fs::remove_dir(lab.host.path("backstay.toml")).unwrap();
            lab.configure("");
        },
    },
    Fault {
        name: "the driver was killed",
        seen: Seen::Cycle,
        says: &["not-served"],
        inject: |lab| lab.disk.kill_driver(),
        mend: mount,
    },
    Fault {
        name: "the disk is not mounted",
        seen: Seen::Cycle,
        says: &["not-served"],
        inject: |lab| {
            lab.host.backstay(&["umount", "d"]);
        },
        mend: mount,
    },
    Fault {
        name: "a drill failed",
        seen: Seen::Look,
        says: &["drill"],
        inject: |lab| drop(lab.host.try_backstay(&["drill", "d", "--command", "false"])),
        mend: |lab| drop(lab.host.backstay(&["drill", "d", "--command", "true"])),
    },
    Fault {
        name: "the driver is stopped",
        seen: Seen::Look,
        says: &["driver-silent", "does not answer"],
        inject: |lab| {
            fs::write(lab.host.path("frozen"), lab.disk.driver_pid().unwrap().to_string()).unwrap();
            signal(lab, "-STOP");
        },
        mend: |lab| {
            let pid = fs::read_to_string(lab.host.path("frozen")).unwrap();
            must("kill", ["-CONT", &pid]);
            fs::remove_file(lab.host.path("frozen")).unwrap();
        },
    },
];

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

/// What this host remembers of its clock, changed. The sidecar writes it, too.
fn remember(lab: &Lab, change: fn(&mut Reading)) {
    let mut reading = Reading::take();
    change(&mut reading);
    put(lab, ".clock.json", &json!({ "trusted": reading }).to_string());
}

/// Replaces a file that the sidecar writes.
fn put(lab: &Lab, file: &str, text: &str) {
    stop(lab);
    fs::write(state(lab, file), text).unwrap();
    go_on(lab);
}

fn stop(lab: &Lab) {
    lab.service.as_ref().unwrap().signal("-STOP");
}

fn go_on(lab: &Lab) {
    lab.service.as_ref().unwrap().signal("-CONT");
}

/// A sidecar that does nothing more.
fn resumed(lab: &mut Lab) {
    go_on(lab);
}

fn accept(lab: &mut Lab) {
    lab.host.backstay(&["prune", "d", "--accept-clock"]);
}

/// Stops the sidecar and changes what it remembers of the disk.
fn record(lab: &Lab, change: impl Fn(&mut Value)) {
    stop(lab);
    let path = state(lab, "d/sidecar.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, record.to_string()).unwrap();
}

fn now() -> u64 {
    backstay_host::clock::now_unix_ns()
}

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
        seen: Seen::Itself,
        cause: &["clock-jumped"],
        says: &[],
        inject: |lab| remember(lab, |then| then.unix_ns -= 40 * DAY),
        mend: accept,
    },
    Fault {
        name: "the clock is nine days behind",
        seen: Seen::Itself,
        cause: &["clock-jumped"],
        says: &[],
        inject: |lab| remember(lab, |then| then.unix_ns += 9 * DAY),
        mend: accept,
    },
    Fault {
        name: "the clock was ahead for seven seconds",
        seen: Seen::Itself,
        cause: &["clock-jumped"],
        says: &[],
        inject: |lab| {
            remember(lab, |then| then.unix_ns -= 40 * DAY);
        },
        // It agrees again: healthy by itself.
        mend: |lab| remember(lab, |_| {}),
    },
    // In a time namespace: its clock of the boot is ahead, and the wall clock, which has no namespace, is not.
    Fault {
        name: "the wall clock and the clock of the boot differ by forty days",
        seen: Seen::Itself,
        cause: &["clock-jumped"],
        // Forty days, but for the seconds since the clock was noted.
        says: &["jumped", "back"],
        inject: |lab| {
            lab.host.boot_clock_ahead(40 * DAY / SECOND);
            lab.begin_again();
        },
        // They agree again: healthy by itself.
        mend: |lab| {
            lab.host.boot_clock_ahead(0);
            lab.begin_again();
        },
    },
    Fault {
        name: "the clock lies before the reboot",
        seen: Seen::Itself,
        cause: &["clock-jumped"],
        says: &[],
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
        seen: Seen::Itself,
        cause: &["clock-untrusted"],
        says: &[],
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
        seen: Seen::Itself,
        cause: &["clock-untrusted"],
        says: &[],
        inject: |lab| put(lab, ".clock.json", "{\"trusted\""),
        mend: accept,
    },
    Fault {
        name: "prune refuses while the clock is doubted",
        seen: Seen::After(&["prune", "d", "--keep", "last 1"], 3),
        cause: &["clock-jumped"],
        says: &["jumped"],
        inject: |lab| remember(lab, |then| then.unix_ns -= 40 * DAY),
        mend: accept,
    },
    Fault {
        name: "the newest point is from the future",
        seen: Seen::Idle,
        cause: &["point-from-the-future"],
        says: &[],
        inject: |lab| record(lab, |of| of["last"]["cut_unix_ns"] = (now() + 40 * DAY).into()),
        mend: resumed,
    },
    Fault {
        name: "the newest point is old",
        seen: Seen::Idle,
        cause: &["point-late"],
        says: &[],
        inject: |lab| record(lab, |of| of["last"]["cut_unix_ns"] = (now() - 40 * DAY).into()),
        mend: resumed,
    },
    Fault {
        name: "the sidecar's record is damaged",
        seen: Seen::Idle,
        cause: &["record-unreadable"],
        says: &[],
        inject: |lab| {
            stop(lab);
            fs::write(state(lab, "d/sidecar.json"), b"{").unwrap();
        },
        mend: resumed,
    },
    Fault {
        name: "a hook fails",
        seen: Seen::Itself,
        cause: &["point-warning"],
        says: &[],
        inject: |lab| lab.configure("[disk.d.hooks]\npre = [\"/bin/false\"]\n"),
        mend: plain,
    },
    Fault {
        name: "a hook's program is not there",
        seen: Seen::Itself,
        cause: &["point-warning"],
        says: &[],
        inject: |lab| lab.configure("[disk.d.hooks]\npre = [\"/nowhere/hook\"]\n"),
        mend: plain,
    },
    Fault {
        name: "a hook fails, and points have to be consistent",
        seen: Seen::Itself,
        cause: &["cycle-failed", "cycle-stopped"],
        says: &["/bin/false"],
        inject: |lab| {
            lab.configure(
                "[disk.d]\nconsistency = \"application\"\n[disk.d.hooks]\npre = [\"/bin/false\"]\n",
            );
        },
        mend: plain,
    },
    Fault {
        name: "the configuration is no TOML",
        seen: Seen::Refused,
        cause: &[],
        says: &["backstay.toml"],
        inject: |lab| fs::write(lab.host.path("backstay.toml"), b"vault = \n").unwrap(),
        mend: plain,
    },
    Fault {
        name: "the configuration has a setting that there is not",
        seen: Seen::Refused,
        cause: &[],
        says: &["intervall"],
        inject: |lab| lab.configure("intervall = \"1h\"\n"),
        mend: plain,
    },
    Fault {
        name: "the configuration names a policy that there is not",
        seen: Seen::Refused,
        cause: &[],
        says: &["gold"],
        inject: |lab| lab.configure("[disk.d]\npolicy = \"gold\"\n"),
        mend: plain,
    },
    Fault {
        name: "the configuration is gone",
        seen: Seen::Refused,
        cause: &[],
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
        seen: Seen::Itself,
        cause: &["driver-died"],
        says: &[],
        inject: |lab| lab.disk.kill_driver(),
        mend: mount,
    },
    Fault {
        name: "the disk is not mounted",
        seen: Seen::Itself,
        cause: &["not-served"],
        says: &[],
        inject: |lab| {
            lab.host.backstay(&["umount", "d"]);
        },
        mend: mount,
    },
    Fault {
        name: "a drill failed",
        seen: Seen::Itself,
        cause: &["drill"],
        says: &[],
        inject: |lab| drop(lab.host.try_backstay(&["drill", "d", "--command", "false"])),
        mend: |lab| drop(lab.host.backstay(&["drill", "d", "--command", "true"])),
    },
    Fault {
        name: "the driver is stopped",
        seen: Seen::Idle,
        cause: &["driver-silent"],
        says: &[],
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
    Fault {
        name: "the sidecar is stopped",
        seen: Seen::Idle,
        cause: &["sidecar-silent"],
        says: &["stopped by a signal"],
        inject: |lab| stop(lab),
        mend: resumed,
    },
    Fault {
        name: "the sidecar was killed",
        seen: Seen::Idle,
        cause: &["sidecar-not-running"],
        says: &["no sidecar runs"],
        inject: |lab| {
            let child = &mut lab.service.as_mut().unwrap().child;
            child.kill().unwrap();
            child.wait().unwrap();
        },
        mend: Lab::start,
    },
    Fault {
        name: "the sidecar was told to stop",
        seen: Seen::Idle,
        cause: &["sidecar-not-running"],
        says: &["no sidecar runs"],
        inject: |lab| lab.service = None,
        mend: Lab::start,
    },
    Fault {
        name: "where the points go was written down and is damaged",
        seen: Seen::Itself,
        cause: &["vault-unknown"],
        says: &[],
        inject: |lab| {
            let home = state(lab, "d/home.json");
            lab.hurt(&home, |home| fs::write(home, b"{").unwrap());
        },
        mend: |_| {},
    },
    Fault {
        name: "what protect was told is damaged",
        seen: Seen::Itself,
        cause: &["record-unreadable"],
        says: &["protect"],
        inject: |lab| {
            let path = state(lab, "d/protection.json");
            lab.hurt(&path, |path| fs::write(path, b"{").unwrap());
        },
        mend: |_| {},
    },
];

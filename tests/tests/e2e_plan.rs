//! Recovery plans, end to end: a source host whose disks are in a vault, and a host that recovers them
//! by plan: test, planned, unplanned, killed in the middle.
//!
//! Needs root, /dev/fuse and loop devices.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_tests::harness::command::{run, said};
use backstay_tests::harness::host::hash;
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{Disk, Host};

const SIZE: u64 = 4 << 20;

/// Two hosts with one vault: the source has three disks with two points each, the first one also has a
/// block that no point has.
struct Two {
    source: Arc<Host>,
    target: Arc<Host>,
    disks: Vec<Disk>,
    /// What the newest points hold.
    hashes: Vec<String>,
}

fn write(file: &Path, at: u64, what: &str) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(what.as_bytes(), at).unwrap();
    file.sync_all().unwrap();
}

fn two(test: &str) -> Two {
    two_of(Host::new(test), test)
}

/// The same in an encrypted vault.
fn sealed_two(test: &str) -> Two {
    two_of(Host::sealed(test), test)
}

fn two_of(source: Arc<Host>, test: &str) -> Two {
    let target = source.another(test);
    let config =
        format!("vault = \"{}\"\n[group.shop]\ndisks = [\"db\", \"log\"]\n", source.vault());
    fs::write(source.path("backstay.toml"), config).unwrap();
    let disks: Vec<Disk> = ["db", "log", "web"].map(|name| source.disk(name, SIZE)).into();
    for disk in &disks {
        let served = disk.mount(&[]);
        write(&served, 4096, &format!("first of {}", disk.name));
    }
    source.backstay(&["cycle", "web"]);
    source.backstay(&["cycle", "db"]);
    source.backstay(&["cycle", "log"]);
    let mut hashes = vec![];
    for disk in &disks {
        write(&disk.served(), 8192, &format!("second of {}", disk.name));
        disk.cycle();
        hashes.push(hash(&disk.served()));
    }
    Two { source, target, disks, hashes }
}

impl Two {
    /// A plan that writes down what it does; its file.
    fn plan(&self, more: &str) -> String {
        let out = self.target.path("out").display().to_string();
        let text = format!(
            r#"
name = "shop"
vault = "{}"
consistency_group = "shop"
timeout = "60s"

[[group]]
name = "data"
before = [{{ script = "echo $BACKSTAY_RUN begins >> {out}" }}]
after = [{{ script = "cmp $BACKSTAY_DISK_DB $BACKSTAY_DEVICE_DB && echo data $BACKSTAY_POINT_DB >> {out}" }}]
cleanup = [{{ script = "echo cleanup >> {out}" }}]
[[group.machine]]
name = "database"
disks = ["db", "log"]
attach = true
start = "echo start $BACKSTAY_MACHINE >> {out}; test -b $BACKSTAY_DEVICE"
stop = "echo stop >> {out}"

[[group]]
name = "web"
disks = ["web"]
{more}
"#,
            self.source.vault()
        );
        let file = self.target.path("shop.toml");
        fs::write(&file, text).unwrap();
        file.display().to_string()
    }

    fn out(&self) -> Vec<String> {
        let text = fs::read_to_string(self.target.path("out")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What is held of the disks, by name of the hold.
    fn holds(&self) -> String {
        ["db", "log", "web"].map(|name| self.source.backstay(&["holds", name])).concat()
    }

    /// Nothing of a run is left on the target.
    fn nothing_left(&self) {
        let status = self.target.backstay(&["--json", "failover", "status"]);
        assert!(!status.contains("plan"), "{status}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&*self.target.runtime.to_string_lossy()), "{mounts}");
        let loops = run("losetup", ["-l", "-n", "-O", "BACK-FILE"]);
        assert!(!said(&loops).contains(&*self.target.runtime.to_string_lossy()));
        let holds = self.holds();
        assert!(!holds.contains("plan") && !holds.contains("mount"), "{holds}");
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        self.target.json(&[&["plan"], args].concat())
    }

    /// Ends what runs on the target, also after a panic.
    fn end(&self) {
        for name in ["db.plan", "log.plan", "web.plan", "db", "log", "web"] {
            self.target.try_backstay(&["failover", "cleanup", name]);
            self.target.try_backstay(&["detach", name]);
            self.target.try_backstay(&["umount", name]);
        }
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        self.end();
    }
}

fn served(report: &serde_json::Value, disk: usize) -> PathBuf {
    report["disks"][disk]["served"].as_str().expect("served").into()
}

#[test]
fn a_plan_is_checked_and_tried_dry() {
    let two = two("plan-dry");
    let plan = two.plan("parallel = 1");
    let check = two.json(&["check", &plan]);
    assert_eq!((&check["disks"], check["warnings"].as_array().unwrap().len()), (&3.into(), 3));
    let said_dry = two.target.backstay(&["plan", "test", &plan, "--dry-run"]);
    assert!(said_dry.contains("db at point 2, log at point 2; then: echo start"), "{said_dry}");
    let planned = two.target.backstay(&["plan", "planned", &plan, "--dry-run"]);
    assert!(planned.contains("handed over"), "{planned}");
    assert!(two.out().is_empty());
    two.nothing_left();
    // Mistakes have a place.
    let text = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, text.replace("parallel = 1", "paralell = 1")).unwrap();
    let wrong = two.target.try_backstay(&["plan", "check", &plan]);
    assert!(said(&wrong).contains("line 22, column 1"), "{}", said(&wrong));
    fs::write(&plan, text.replace("\"web\"]", "\"nobody\"]")).unwrap();
    let wrong = two.target.try_backstay(&["plan", "check", &plan]);
    assert!(said(&wrong).contains("nobody"), "{}", said(&wrong));
    let wrong = two.target.try_backstay(&["plan", "test", &plan]);
    assert!(said(&wrong).contains("Nothing was begun"), "{}", said(&wrong));
    let wrong = two.target.try_backstay(&["plan", "test", &plan, "--point", "group"]);
    assert!(!wrong.status.success());
    two.nothing_left();
}

#[test]
fn a_test_waits_for_a_person_and_leaves_nothing() {
    let two = two("plan-test");
    let plan = two.plan("after = [{ name = \"look\", manual = \"Look at the shop\" }]");
    let waits = two.target.try_backstay(&["plan", "test", &plan]);
    assert_eq!(waits.status.code(), Some(1), "{}", said(&waits));
    assert!(said(&waits).contains("waits for a person: Look at the shop"), "{}", said(&waits));
    let report = two.json(&["report", &plan]);
    assert_eq!(report["state"], "waiting");
    // All of it is up, and writing to it touches nothing.
    for (disk, expected) in two.hashes.iter().enumerate() {
        assert_eq!(&hash(&served(&report, disk)), expected);
    }
    write(&served(&report, 0), 0, "scribbled");
    let again = two.target.try_backstay(&["plan", "test", &plan]);
    assert_eq!(again.status.code(), Some(3), "{}", said(&again));
    let done = two.json(&["resume", &plan]);
    assert_eq!(done["state"], "done");
    assert!(done["rto_seconds"].as_f64().unwrap() > 0.0);
    assert!(done["rpo_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(two.out(), ["test begins", "start database", "data 2"]);
    let text = two.target.backstay(&["plan", "report", &plan]);
    assert!(text.contains("RTO") && text.contains("RPO") && text.contains("database"), "{text}");
    let commit = two.target.try_backstay(&["plan", "commit", &plan]);
    assert_eq!(commit.status.code(), Some(3), "{}", said(&commit));

    two.target.backstay(&["plan", "cleanup", &plan]);
    assert_eq!(two.out()[3..], ["cleanup", "stop"]);
    two.nothing_left();
    two.target.backstay(&["plan", "cleanup", &plan]);
    // Replication went on all the time.
    assert_eq!(hash(&two.disks[0].restore(2, "db.back")), two.hashes[0]);
    two.disks[0].cycle();
}

#[test]
fn a_test_of_a_group_point() {
    let two = sealed_two("plan-group");
    let plan = two.plan("");
    two.source.backstay(&["group", "cycle", "shop"]);
    for disk in &two.disks {
        write(&disk.served(), 0, "after the group's point");
        disk.cycle();
    }
    // A disk of the plan that is in no group.
    let wrong = two.target.try_backstay(&["plan", "test", &plan, "--point", "group"]);
    assert!(said(&wrong).contains("not in point"), "{}", said(&wrong));
    let text = fs::read_to_string(&plan).unwrap();
    fs::write(&plan, text.split("[[group]]\nname = \"web\"").next().unwrap()).unwrap();
    let report = two.json(&["test", &plan, "--point", "group"]);
    assert_eq!(
        (&report["disks"][0]["cycle"], &report["disks"][1]["cycle"]),
        (&3.into(), &3.into())
    );
    assert_eq!(&hash(&served(&report, 0)), &two.hashes[0]);
    two.target.backstay(&["plan", "cleanup", &plan]);
    two.nothing_left();
}

#[test]
fn killed_in_a_script_it_goes_on() {
    let two = two("plan-kill");
    let (mark, go) = (two.target.path("mark"), two.target.path("go"));
    let script = format!("touch {}; test -e {} || sleep 1000", mark.display(), go.display());
    let plan = two.plan(&format!("before = [{{ name = \"slow\", script = \"{script}\" }}]"));
    let mut test = two.target.start(&["--quiet", "plan", "test", &plan]);
    wait_for("the script", || mark.exists());
    let busy = two.target.try_backstay(&["plan", "cleanup", &plan]);
    assert_eq!(busy.status.code(), Some(3), "{}", said(&busy));
    test.kill().unwrap();
    test.wait().unwrap();
    end_those_of(&mark);
    fs::write(&go, "").unwrap();
    let done = two.json(&["resume", &plan]);
    assert_eq!(done["state"], "done");
    let slow =
        &done["steps"].as_array().unwrap().iter().find(|step| step["name"] == "slow").unwrap();
    assert_eq!(slow["tries"], 2);
    assert_eq!(
        two.out(),
        ["test begins", "start database", "data 2"],
        "what was over is not done again"
    );
    assert_eq!(hash(&served(&done, 2)), two.hashes[2]);

    // Killed while it is taken down: cleanup goes on, too.
    let mut cleanup = two.target.start(&["--quiet", "plan", "cleanup", &plan]);
    wait_for("its first step", || two.out().iter().any(|line| line == "cleanup"));
    cleanup.kill().unwrap();
    cleanup.wait().unwrap();
    two.target.backstay(&["plan", "cleanup", &plan]);
    two.nothing_left();
}

/// Ends processes that name a file in their command lines: those of a script whose plan was killed.
fn end_those_of(mark: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&*mark.to_string_lossy()) {
            run("kill", ["-9", &*entry.file_name().to_string_lossy()]);
        }
    }
}

#[test]
fn unplanned_with_a_script_that_fails_and_commit() {
    let two = sealed_two("plan-unplanned");
    let mended = two.target.path("mended");
    let script = format!("test -e {} || {{ echo no route; exit 7; }}", mended.display());
    let plan = two.plan(&format!("before = [{{ name = \"route\", script = \"{script}\" }}]"));
    for disk in &two.disks {
        disk.kill_driver();
    }
    let failed = two.target.try_backstay(&["plan", "unplanned", &plan]);
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(
        said(&failed).contains("(route) failed: exit status: 7; it said: no route"),
        "{}",
        said(&failed)
    );
    let other = two.target.try_backstay(&["plan", "test", &plan]);
    assert_eq!(other.status.code(), Some(3), "{}", said(&other));
    let early = two.target.try_backstay(&["plan", "commit", &plan]);
    assert_eq!(early.status.code(), Some(3), "{}", said(&early));
    fs::write(mended, "").unwrap();
    let done = two.json(&["resume", &plan]);
    assert_eq!((&done["state"], &done["kind"]), (&"done".into(), &"unplanned".into()));
    for (disk, expected) in two.hashes.iter().enumerate() {
        assert_eq!(&hash(&served(&done, disk)), expected);
    }
    let cleanup = two.target.try_backstay(&["plan", "cleanup", &plan]);
    assert_eq!(cleanup.status.code(), Some(3), "{}", said(&cleanup));
    two.target.backstay(&["plan", "commit", &plan]);
    two.target.backstay(&["plan", "commit", &plan]);
    let holds = two.holds();
    assert!(!holds.contains("plan-shop"), "{holds}");
    // The old source is refused.
    two.disks[0].mount(&[]);
    let refused = two.source.try_backstay(&["cycle", "db"]);
    assert!(said(&refused).contains("term"), "{}", said(&refused));
}

#[test]
fn planned_loses_nothing() {
    let two = two("plan-planned");
    // Written after the last point: only a handover has it.
    let mut hashes = vec![];
    for disk in &two.disks {
        write(&disk.served(), 12_288, "the last words");
        hashes.push(hash(&disk.served()));
    }
    let backstay = backstay_tests::harness::host::backstay();
    let handover = format!(
        "for disk in $BACKSTAY_DISKS; do {} --config {} --state-dir {} --runtime-dir {} failover handover $disk || exit; done",
        backstay.display(),
        two.source.path("backstay.toml").display(),
        two.source.path("state").display(),
        two.source.runtime.display()
    );
    let plan = two.plan("");
    let text = fs::read_to_string(&plan).unwrap();
    let first = format!(
        "[[group]]\nname = \"sources\"\nbefore = [{{ script = \"{handover}\", runs = [\"planned\"] }}]\n\n[[group]]\nname = \"data\""
    );
    fs::write(&plan, text.replacen("[[group]]\nname = \"data\"", &first, 1)).unwrap();
    let done = two.json(&["planned", &plan]);
    assert_eq!((&done["state"], &done["rpo_seconds"]), (&"done".into(), &0.0.into()), "{done}");
    for (disk, expected) in hashes.iter().enumerate() {
        assert_eq!(&hash(&served(&done, disk)), expected, "nothing was lost");
    }
    assert_eq!(two.out()[0], "planned begins");
    two.target.backstay(&["plan", "commit", &plan]);
}

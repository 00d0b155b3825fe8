//! Handing over a disk that is in use, and groups as a whole: whatever fails, the source serves as before.

use std::process::{Child, Command};

use super::*;

/// A process that works in a folder of the disk, until it is killed.
struct Application(Child);

impl Application {
    fn start(folder: &Path) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").current_dir(folder).stdin(Stdio::null());
        Self(sleep.spawn().unwrap())
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_mounted(device: &str, at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.starts_with(&format!("{device} {} ", at.display())))
}

#[test]
fn a_disk_in_use_is_handed_over_or_served_as_before() {
    let a = Host::new("fo-in-use-a");
    let b = other(&a, "fo-in-use-b");
    let source = a.disk("db", 32 * MIB);
    let device = source.attach();
    must("mkfs.ext4", ["-q", &device]);
    let at = a.path("mnt");
    fs::create_dir(&at).unwrap();
    must("mount", ["-o", "noatime", &device, &at.to_string_lossy()]);
    source.cycle();
    fs::write(at.join("file"), "before").unwrap();
    let application = Application::start(&at);
    let pid = application.0.id();
    let [here, away, started, go] =
        ["vault", "away", "started", "go"].map(|name| a.path(name).display().to_string());
    let as_before = |why: &str| {
        assert!(is_mounted(&device, &at), "{why}");
        assert_eq!(fs::read(at.join("file")).unwrap(), b"before", "{why}");
        fs::write(at.join("again"), why).unwrap();
        assert!(source.status().get("failover").is_none(), "{why}");
    };

    refused(&a.try_backstay(&["failover", "handover", "db"]), "is mounted at");
    refused(
        &a.try_backstay(&["failover", "handover", "db", "--unmount"]),
        &format!("process {pid} (sleep)"),
    );
    as_before("somebody works there");
    let stop = ["failover", "handover", "db", "--unmount", "--stop-command"];
    let failed = a.try_backstay(&[&stop[..], &["echo no; exit 4"]].concat());
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("all is as it was"), "{}", said(&failed));
    as_before("it could not be stopped");

    // The application is stopped, the disk unmounted, detached and quiet: and then the vault is gone.
    let line = format!("test \"$BACKSTAY_DISKS\" = db && kill {pid} && mv {here} {away}");
    let start = format!("mv {away} {here} && touch {started}");
    let failed = a.try_backstay(&[&stop[..], &[&line, "--start-command", &start]].concat());
    assert_eq!(failed.status.code(), Some(1), "{}", said(&failed));
    assert!(said(&failed).contains("all is as it was"), "{}", said(&failed));
    assert!(Path::new(&started).exists(), "{}", said(&failed));
    as_before("no vault");
    let jobs = a.json(&["jobs", "db"]);
    let last = jobs.as_array().unwrap().iter().find(|job| job["work"] == "handover").unwrap();
    assert_eq!(last["state"], "failed", "{jobs}");
    source.cycle();

    // While one command is at it, no other is.
    let wait = format!("touch {go}.here; while ! test -e {go}; do sleep 0.02; done");
    let mut handover = a.start(&[&stop[..], &[&wait]].concat());
    wait_for("the command", || Path::new(&format!("{go}.here")).exists());
    for args in [&["failover", "handover", "db"][..], &["failover", "cancel", "db"]] {
        refused(
            &a.try_backstay(args),
            "another command is at work on it (backstay failover handover",
        );
    }
    let to = a.path("x.img").display().to_string();
    refused(&a.try_backstay(&["failback", "db", "--to", &to]), "another command is at work");
    as_before("the command waits");
    fs::write(at.join("file"), "last").unwrap();
    fs::write(&go, "").unwrap();
    assert!(handover.wait().unwrap().success());
    assert!(!is_mounted(&device, &at));

    b.disk("db", MIB);
    let there = b.backstay(&["failover", "planned", "db", "--attach"]);
    must("mount", [there.trim(), &at.to_string_lossy()]);
    assert_eq!(fs::read(at.join("file")).unwrap(), b"last");
    must("umount", [&*at.to_string_lossy()]);
    // The locks of commands that ended are gone, and no driver has one.
    b.backstay(&["failover", "cancel", "db"]);
    a.backstay(&["failover", "cancel", "db"]);
    assert_eq!(fs::read_dir(a.path("state/.failover")).unwrap().count(), 0);
}

/// Two disks in a group, with a group point, and another host; their vault is encrypted.
fn group_pair(test: &str, rng: &mut Rng) -> (Arc<Host>, Arc<Host>, [Disk; 2]) {
    let a = Host::sealed(&format!("{test}-a"));
    let config = format!("vault = \"{}\"\n[group.shop]\ndisks = [\"x\", \"y\"]\n", a.vault());
    fs::write(a.path("backstay.toml"), config).unwrap();
    let disks = ["x", "y"].map(|name| a.disk(name, 8 * MIB));
    for disk in &disks {
        disk.mount(&[]);
        scribble(&disk.served(), rng, 3);
    }
    a.backstay(&["group", "cycle", "shop"]);
    let b = other(&a, &format!("{test}-b"));
    for name in ["x", "y"] {
        b.disk(name, MIB);
    }
    (a, b, disks)
}

fn states(host: &Host) -> Vec<String> {
    let all = host.json(&["failover", "status"]);
    let word = |record: &serde_json::Value| record["state"].as_str().unwrap().to_owned();
    all.as_array().unwrap().iter().map(word).collect()
}

#[test]
fn a_group_goes_as_a_whole_and_comes_back() {
    let mut rng = Rng::with_seed(seed());
    let (a, b, disks) = group_pair("fo-groups", &mut rng);
    let shop = |verb: &'static str| ["failover", verb, "--group", "shop"];
    let hashes = || disks.each_ref().map(|disk| hash(&disk.served()));
    let there = || ["x", "y"].map(|name| hash(&served(&b, name)));

    // One of them is in use: none is handed over.
    let user = File::open(disks[1].served()).unwrap();
    refused(&a.try_backstay(&shop("handover")), "disk y is in use");
    drop(user);
    assert!(states(&a).is_empty());
    refused(&b.try_backstay(&shop("planned")), "was not handed over");
    a.backstay(&["failover", "handover", "x"]);
    refused(&b.try_backstay(&shop("planned")), "disk y was not handed over");
    assert!(states(&b).is_empty() && !b.path("state/x").exists());
    a.backstay(&["failover", "cancel", "x"]);
    disks[0].mount(&[]);

    // The second cannot be brought up: the first is removed again.
    for disk in &disks {
        scribble(&disk.served(), &mut rng, 2);
    }
    let was = hashes();
    a.backstay(&shop("handover"));
    assert_eq!(states(&a), ["handed-over", "handed-over"]);
    fs::create_dir(b.runtime.join("y")).unwrap();
    fs::write(b.runtime.join("y/mnt"), "in the way").unwrap();
    let failed = b.try_backstay(&shop("planned"));
    assert!(
        !failed.status.success() && said(&failed).contains("removed again"),
        "{}",
        said(&failed)
    );
    assert!(!b.path("state/x").exists() && !b.runtime.join("x").exists());
    // The source thinks better of it, and again.
    a.backstay(&shop("cancel"));
    disks.iter().for_each(|disk| drop(disk.mount(&[])));
    assert_eq!(hashes(), was);
    a.backstay(&shop("handover"));
    b.backstay(&shop("planned"));
    assert_eq!(there(), was);
    b.backstay(&shop("cancel"));
    assert!(states(&b).is_empty());
    // The last points are one of the group; another one can be had before the commit.
    let newest = a.json(&["group", "points", "shop"]).as_array().unwrap().len();
    assert_eq!(newest, 3, "the first, and that of each handover");
    b.backstay(&shop("unplanned"));
    assert_eq!(there(), was);
    b.backstay(&["failover", "change", "--group", "shop", "--group-point", "1"]);
    assert_ne!(there(), was);
    b.backstay(&shop("change"));
    assert_eq!(there(), was);
    b.backstay(&shop("commit"));
    refused(&b.try_backstay(&shop("commit")), "committed already");
    refused(&b.try_backstay(&shop("cancel")), "is committed");
    refused(&a.try_backstay(&shop("cancel")), "cannot be taken back");
    // The first, one for each handover that was withdrawn, and this host's.
    for (shown, term) in b.json(&["status"]).as_array().unwrap().iter().zip([4, 3]) {
        assert_eq!(shown["failover"]["state"], "committed", "{shown}");
        assert_eq!(shown["term"], term, "{shown}");
    }
    let text = b.backstay(&["status", "y"]);
    assert!(text.contains("of group shop, term 3"), "{text}");

    // Back, a disk at a time.
    let was = ["x", "y"].map(|name| scribble_and_hash(&served(&b, name), &mut rng));
    let mut backings = vec![];
    for disk in &disks {
        let to = disk.backing.to_string_lossy().into_owned();
        a.backstay(&["failback", &disk.name, "--to", &to, "--once"]);
        backings.push(to);
    }
    for shown in a.json(&["status"]).as_array().unwrap() {
        assert_eq!(shown["failover"]["state"], "seeding", "{shown}");
        assert_eq!(shown["replica"]["running"], false, "{shown}");
        assert!(shown["rpo_ns"].as_u64().is_some(), "{shown}");
    }
    assert!(a.backstay(&["status", "x"]).contains("replica"), "it is one");
    for (disk, to) in disks.iter().zip(&backings) {
        b.backstay(&["failover", "handover", &disk.name]);
        a.backstay(&["failback", &disk.name, "--to", to]);
    }
    assert_eq!(hashes(), was);
    for (host, work) in [(&b, "planned-failover"), (&b, "commit"), (&a, "failback")] {
        let jobs = host.json(&["jobs", "x", "--all"]);
        let done = |job: &serde_json::Value| job["work"] == work && job["state"] == "done";
        let job = jobs.as_array().unwrap().iter().find(|job| done(job));
        assert!(job.is_some_and(|job| job["point"].as_u64().is_some()), "{work}: {jobs}");
    }
}

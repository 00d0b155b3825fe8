//! The vault is the one that was meant: who makes one, which one is taken at a URL, where a disk's points go.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

use backstay_tests::harness::command::said;
use backstay_tests::harness::service::{Service, wait_for, write_config};
use backstay_tests::harness::{Disk, FsMount, Host, must};

const MIB: u64 = 1 << 20;

fn file(path: &Path) -> String {
    format!("file://{}", path.display())
}

fn refused(host: &Host, args: &[&str], why: &str) {
    let output = host.try_backstay(args);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
    assert!(text.contains(why), "{args:?}: {text}");
}

fn write(served: &Path, byte: u8) {
    let file = fs::OpenOptions::new().write(true).open(served).unwrap();
    file.write_all_at(&[byte; 4096], 0).unwrap();
    file.sync_all().unwrap();
}

/// What is wrong with a disk, by the ids of the causes.
fn causes(disk: &Disk) -> Vec<String> {
    let status = disk.status();
    let causes = status["health"]["causes"].as_array().unwrap().clone();
    causes.iter().map(|cause| cause["id"].as_str().unwrap().to_owned()).collect()
}

/// An empty place may be a file system that is not mounted: nothing that ships makes a vault there, nor does looking.
#[test]
fn only_who_says_so_makes_a_vault() {
    let host = Host::new("vault-made");
    host.without_vault();
    write_config(&host, "interval = \"1s\"\nretry = [\"1s\"]\n");
    let disk = host.disk("db", 4 * MIB);
    let backing = disk.backing.to_str().unwrap().to_owned();
    let looked = host.try_backstay(&["protect", &backing, "--name", "db", "--check"]);
    assert!(looked.status.success(), "{}", said(&looked));
    assert!(
        !host.path("vault").exists() && !host.path("state").exists(),
        "--check changes nothing"
    );
    disk.mount(&[]);
    let tried = said(&host.try_backstay(&["cycle", "db"]));
    assert!(tried.contains("backstay vault init --vault"), "{tried}");
    let imported = host.try_backstay(&["import", &backing, "--name", "other"]);
    assert!(!imported.status.success(), "{}", said(&imported));
    let service = Service::start(&host);
    wait_for("critical", || disk.status()["health"]["level"] == "critical");
    drop(service);
    assert!(!host.path("vault").exists(), "nothing was made");
    host.backstay(&["vault", "init"]);
    refused(&host, &["vault", "init"], "already");
    host.backstay(&["resume", "db"]);
    disk.cycle();
    assert_eq!(disk.points().len(), 1);
    host.backstay(&["umount", "db"]);
    // protect says that it makes one.
    let new = file(&host.path("new"));
    let other = host.disk("web", 4 * MIB);
    let backing = other.backing.to_str().unwrap();
    let made = host.try_backstay(&["protect", backing, "--name", "web", "--vault", &new]);
    assert!(made.status.success() && said(&made).contains("a new one was made"), "{}", said(&made));
}

/// Another vault, or none, where the host knows one: nothing is copied, it is critical, and it heals by itself.
#[test]
fn another_vault_at_the_url_is_refused() {
    let host = Host::new("vault-other");
    write_config(&host, "interval = \"1s\"\nretry = [\"1s\"]\n");
    let disk = host.disk("db", 4 * MIB);
    let served = disk.mount(&[]);
    disk.cycle();
    let (vault, away, stranger) = (host.path("vault"), host.path("away"), host.path("stranger"));
    let other = Host::new("vault-stranger");
    other.backstay(&["vault", "init", "--vault", &file(&stranger)]);
    let holds = |dir: &Path| fs::read_dir(dir).unwrap().count();
    for (id, words) in [("vault-gone", "mounted"), ("other-vault", "this host knows vault")] {
        fs::rename(&vault, &away).unwrap();
        if id == "other-vault" {
            fs::rename(&stranger, &vault).unwrap();
        } else {
            fs::create_dir(&vault).unwrap();
        }
        let before = holds(&vault);
        // None there is a failure; another one is refused.
        let code = if id == "other-vault" { 3 } else { 1 };
        for args in [&["cycle", "db"][..], &["verify", "db"]] {
            let output = host.try_backstay(args);
            assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
            assert!(said(&output).contains(words), "{args:?}: {}", said(&output));
        }
        let service = Service::start(&host);
        wait_for(id, || causes(&disk).contains(&id.to_owned()));
        assert_eq!(disk.status()["health"]["level"], "critical");
        let doctor = host.try_backstay(&["doctor", "db"]);
        assert_eq!(doctor.status.code(), Some(1), "{}", said(&doctor));
        assert_eq!(holds(&vault), before, "{id}: something was put there");
        // The right one is back: nobody has to say anything.
        if id == "other-vault" {
            fs::rename(&vault, &stranger).unwrap();
        } else {
            fs::remove_dir(&vault).unwrap();
        }
        fs::rename(&away, &vault).unwrap();
        let points = disk.points().len();
        write(&served, points as u8);
        wait_for("a point", || disk.points().len() > points);
        wait_for("health", || !causes(&disk).contains(&id.to_owned()));
        drop(service);
    }
    // Who means the new one says so.
    fs::rename(&vault, &away).unwrap();
    refused(&host, &["vault", "init"], "--replace-missing");
    host.backstay(&["vault", "init", "--replace-missing"]);
    refused(&host, &["cycle", "db"], "backstay set db");
    host.backstay(&["set", "db", "--vault", &host.vault()]);
    disk.cycle();
    assert_eq!(disk.points().len(), 1);
}

/// Where the first point is, there the others go, whatever is said afterwards, until `set` says otherwise.
#[test]
fn a_disks_points_stay_in_one_vault() {
    let host = Host::new("vault-home");
    let disk = host.disk("db", 4 * MIB);
    let served = disk.mount(&[]);
    let (first, second) = (file(&host.path("first")), file(&host.path("second")));
    for url in [&first, &second] {
        host.backstay(&["vault", "init", "--vault", url]);
    }
    // As in the README: a cycle into one vault, then the service, whose configuration names another.
    host.backstay(&["cycle", "db", "--vault", &first]);
    assert_eq!(disk.status()["vault"], first.as_str());
    assert_eq!(disk.points().len(), 1, "without a word its own vault is meant");
    refused(&host, &["cycle", "db", "--vault", &second], "backstay set db");
    let mut by_variable = host.command();
    by_variable.args(["cycle", "db"]).env("BACKSTAY_VAULT", &second);
    assert_eq!(by_variable.output().unwrap().status.code(), Some(3));
    write_config(&host, &format!("interval = \"1s\"\n[disk.db]\nvault = {second:?}\n"));
    let service = Service::start(&host);
    write(&served, 7);
    wait_for("a point", || {
        host.json(&["points", "db", "--vault", &first]).as_array().unwrap().len() >= 2
    });
    drop(service);
    assert!(causes(&disk).contains(&"vault-setting-ignored".to_owned()), "{:?}", causes(&disk));
    assert!(!host.path("second/disks").exists(), "nothing went to the other");
    // A point by the link to the same vault is the same vault.
    std::os::unix::fs::symlink(host.path("first"), host.path("link")).unwrap();
    host.backstay(&["cycle", "db", "--vault", &file(&host.path("link"))]);
    host.backstay(&["set", "db", "--vault", &second]);
    disk.cycle();
    assert_eq!(disk.status()["vault"], second.as_str());
    let mut listed = host.command();
    let listed = listed.args(["--json", "points", "db"]).env("BACKSTAY_VAULT", &first);
    let listed = String::from_utf8(listed.output().unwrap().stdout).unwrap();
    assert!(
        serde_json::from_str::<Vec<serde_json::Value>>(&listed).unwrap().len() >= 3,
        "{listed}"
    );
    assert_eq!(disk.points().len(), 1);
}

/// A default that is changed does not move a disk that went to the one before, and that is said until somebody
/// decides.
#[test]
fn a_changed_default_vault_is_said() {
    const ID: &str = "vault-default-changed";
    let host = Host::new("vault-default");
    let disks =
        [host.disk("moves", 4 * MIB), host.disk("stays", 4 * MIB), host.disk("own", 4 * MIB)];
    let own = file(&host.path("own-vault"));
    for disk in &disks[..2] {
        let backing = disk.backing.to_string_lossy();
        host.backstay(&["protect", &backing, "--name", &disk.name]);
        assert!(!causes(disk).contains(&ID.to_owned()), "{:?}", causes(disk));
    }
    let backing = disks[2].backing.to_string_lossy();
    host.backstay(&["protect", &backing, "--name", "own", "--vault", &own]);
    let (before, after) = (host.vault(), file(&host.path("after")));
    host.backstay(&["vault", "init", "--vault", &after]);
    let text = format!("vault = {after:?}\nallow_local_vault = true\n");
    fs::write(host.path("backstay.toml"), text).unwrap();
    for disk in &disks[..2] {
        disk.cycle();
        assert!(causes(disk).contains(&ID.to_owned()), "{:?}", causes(disk));
        let said = host.try_backstay(&["doctor", &disk.name]);
        let said = backstay_tests::harness::command::said(&said);
        let command = format!("backstay set {} --vault {after}", disk.name);
        assert!(said.contains(&command) && said.contains(&before), "{said}");
    }
    assert!(!causes(&disks[2]).contains(&ID.to_owned()), "its vault was named");
    host.backstay(&["set", "moves", "--vault", &after]);
    host.backstay(&["set", "stays", "--vault", &before]);
    for disk in &disks {
        disk.cycle();
        assert!(!causes(disk).contains(&ID.to_owned()), "{:?}", causes(disk));
    }
    assert_eq!(disks[0].status()["vault"], after.as_str());
    assert_eq!(disks[1].status()["vault"], before.as_str());
}

/// A vault on the protected disk, directly or in an image on it.
#[test]
fn a_vault_on_the_disk_itself_is_refused() {
    let host = Host::new("vault-on-disk");
    let disk = host.disk("db", 64 * MIB);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let outer = FsMount::new(&host, &device, "outer", "rw");
    let vault = file(&outer.at.join("vault"));
    host.backstay(&["vault", "init", "--vault", &vault]);
    refused(&host, &["cycle", "db", "--vault", &vault], "on this very disk");
    let image = outer.at.join("image");
    fs::File::create(&image).unwrap().set_len(32 * MIB).unwrap();
    must("mkfs.ext4", ["-q", image.to_str().unwrap()]);
    let inner = FsMount::new(&host, image.to_str().unwrap(), "inner", "loop");
    let nested = file(&inner.at.join("vault"));
    host.backstay(&["vault", "init", "--vault", &nested]);
    refused(&host, &["cycle", "db", "--vault", &nested], "on this very disk");
    refused(&host, &["set", "db", "--vault", &nested], "on this very disk");
    drop(inner);
    drop(outer);
    // One beside the backing is taken, with a warning that stays, unless it is meant.
    disk.cycle();
    fs::write(host.path("backstay.toml"), format!("vault = \"{}\"\n", host.vault())).unwrap();
    assert!(causes(&disk).iter().any(|id| id.starts_with("vault-on-")), "{:?}", causes(&disk));
    assert_eq!(disk.status()["health"]["level"], "warning");
    write_config(&host, "");
    assert_eq!(disk.causes(), ["sidecar-not-running"]);
}

/// Two hosts make their first cycle under one name at once: one has it, the other is told, and neither is taken for the
/// other.
#[test]
fn of_two_hosts_one_gets_a_name() {
    for round in 0..4 {
        let one = Host::new("vault-name-one");
        let vault = one.vault();
        one.backstay(&["vault", "init"]);
        let two = one.another("vault-name-two");
        two.ship_to(&vault, &[]);
        let disks = [&one, &two].map(|host| host.disk("db", (4 + round) * MIB));
        let served: Vec<_> = disks.iter().map(|disk| disk.mount(&[])).collect();
        for (n, served) in served.iter().enumerate() {
            write(served, n as u8 + 1);
        }
        let start = Arc::new(Barrier::new(2));
        let outputs: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = disks
                .iter()
                .map(|disk| {
                    let start = Arc::clone(&start);
                    scope.spawn(move || {
                        start.wait();
                        disk.host.try_backstay(&["cycle", "db"])
                    })
                })
                .collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
        let texts: Vec<_> = outputs.iter().map(said).collect();
        let winner =
            codes.iter().position(|code| *code == Some(0)).unwrap_or_else(|| panic!("{texts:?}"));
        let loser = 1 - winner;
        // Who comes late finds a disk with points that is not its own.
        assert!(matches!(codes[loser], Some(3 | 1)), "{codes:?} {texts:?}");
        assert!(texts[loser].contains("name"), "{texts:?}");
        assert_eq!(disks[winner].points().len(), 1);
        let to = disks[winner].restore(1, "back.img");
        assert_eq!(fs::read(&to).unwrap(), fs::read(&served[winner]).unwrap());
        // Again and again: it stays so.
        let again = disks[loser].host.try_backstay(&["cycle", "db"]);
        assert!(!again.status.success(), "{}", said(&again));
        assert_eq!(disks[winner].points().len(), 1);
    }
}

/// One damaged document hides no other disk of the vault, and the advice is what helps.
#[test]
fn a_damaged_record_hides_no_other_disk() {
    let host = Host::new("damaged-record");
    let disks = ["a", "b"].map(|name| host.disk(name, MIB));
    let served = disks.each_ref().map(|disk| {
        let served = disk.mount(&[]);
        disk.cycle();
        served
    });
    let listed = host.json(&["vault", "ls"]);
    let id = listed[0]["disk"].as_str().unwrap();
    assert_eq!(listed[0]["name"], "a", "{listed}");
    let record = host.path("vault").join("disks").join(id).join("disk.json");
    let name = fs::read_dir(host.path("vault/names/a")).unwrap().next().unwrap().unwrap().path();
    for document in [record, name] {
        let whole = fs::read(&document).unwrap();
        fs::write(&document, b"no document").unwrap();
        let output = host.try_backstay(&["--json", "vault", "ls"]);
        assert_eq!(output.status.code(), Some(4), "{}", said(&output));
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 2, "{all:#}");
        let of = |name: &str| all.as_array().unwrap().iter().find(|d| d["name"] == name).unwrap();
        assert!(of("a")["damaged"].as_str().unwrap().contains("copy of the vault"), "{all:#}");
        assert_eq!(
            (&of("b")["damaged"], &of("b")["points"]),
            (&serde_json::Value::Null, &1.into())
        );
        let table = said(&host.try_backstay(&["vault", "ls"]));
        assert!(table.contains("damaged") && table.contains("\nb "), "{table}");
        // A cycle that needs it says the same, not to ship data again.
        write(&served[0], 7);
        if !host.try_backstay(&["cycle", "a"]).status.success() {
            let status = disks[0].status();
            let advice = status["health"]["advice"].as_str().unwrap();
            assert!(
                advice.contains("copy of the vault") && !advice.contains("--deep"),
                "{status:#}"
            );
        }
        fs::write(&document, whole).unwrap();
        disks[0].cycle();
    }
    assert_eq!(host.json(&["vault", "ls"]).as_array().unwrap().len(), 2);
}

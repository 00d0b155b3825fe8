//! Keys that come and go while a disk is shipped: rotation, a slot that is removed, a key that is nowhere else.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::seed::seed;
use backstay_tests::harness::service::{Service, wait_for};
use backstay_tests::harness::{Disk, Host};

use super::{MIB, host, objects, scribble};

/// The generation that each segment is sealed to, in order of their names: the first number of its envelope, which stands
/// before the footer.
fn generations(vault: &Path) -> Vec<u32> {
    let mut segments: Vec<PathBuf> = objects(vault);
    segments.retain(|path| path.parent().unwrap().ends_with("segments"));
    segments.sort();
    let of = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let envelope = bytes.len() - 128 - 56;
        u32::from_le_bytes(bytes[envelope..envelope + 4].try_into().unwrap())
    };
    segments.iter().map(of).collect()
}

fn health(disk: &Disk) -> (String, String) {
    let health = disk.status()["health"].clone();
    let text = |name: &str| health[name].as_str().unwrap_or_default().to_owned();
    (text("level"), text("reason"))
}

fn secret(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn keys_come_and_go_while_a_sidecar_ships() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA5));
    let safe = Host::new("sealed-keys");
    let path = |name: &str| safe.path(name).to_string_lossy().into_owned();
    let (vault, folder) = (safe.vault(), safe.path("vault"));
    for name in ["ours", "theirs"] {
        secret(&safe.path(name), &"0123456789abcdef".repeat(3).replace('0', name));
    }
    safe.backstay(&["key", "init", "--vault", &vault, "--key-file", &path("ours")]);
    let source = host("sealed-running", &vault, &format!("key_file = {:?}", path("ours")));
    let theirs = host("sealed-keeper", &vault, &format!("key_file = {:?}", path("theirs")));
    let disk = source.disk("db", 8 * MIB);
    let served = disk.mount(&[]);
    scribble(&served, &mut rng, true);
    // What ships, ships through the process that runs all the time.
    let mut points = 1;
    let mut cycle = |sidecar: &Service, rng: &mut fastrand::Rng| {
        scribble(&served, rng, true);
        source.backstay(&["cycle", "db", "--by-sidecar", "--no-wait"]);
        points += 1;
        sidecar.says(&format!("recovery point {points}"));
    };
    {
        let sidecar = Service::start(&source);
        // The only key is on this host: lost together, nothing could be read.
        sidecar.says("only keys that are on this host open the vault");
        wait_for("the worry", || health(&disk).1.contains("only keys that are on this host"));
        assert_eq!(health(&disk).0, "warning");
        sidecar.says("recovery point 1");
        cycle(&sidecar, &mut rng);
        source.backstay(&["key", "add", "--key-file", &path("theirs"), "--label", "keeper"]);
        source.backstay(&["key", "rotate"]);
        cycle(&sidecar, &mut rng);
        assert_eq!(generations(&folder).last(), Some(&2), "sealed with the new key at once");
        assert_eq!(generations(&folder).first(), Some(&1));
        // Another's slot goes and comes; ours is not touched.
        theirs.backstay(&["key", "check"]);
        source.backstay(&["key", "remove", "2"]);
        source.backstay(&["key", "rotate"]);
        cycle(&sidecar, &mut rng);
        let refused = said(&theirs.try_backstay(&["key", "check"]));
        assert!(refused.contains("opens no slot"), "{refused}");
        source.backstay(&["key", "add", "--key-file", &path("theirs"), "--label", "keeper"]);
        // Ours goes: the next cycle says so, nothing is written with what is not the vault's any more.
        theirs.backstay(&["key", "remove", "1"]);
        let before = generations(&folder).len();
        scribble(&served, &mut rng, true);
        source.backstay(&["cycle", "db", "--by-sidecar", "--no-wait"]);
        wait_for("the trouble", || health(&disk).0 == "critical");
        assert!(health(&disk).1.contains("opens no slot"), "{:?}", health(&disk));
        assert_eq!(generations(&folder).len(), before);
        let doctor = said(&source.try_backstay(&["doctor"]));
        assert!(doctor.contains("FAILED") && doctor.contains("opens no slot"), "{doctor}");
        // Given back, it goes on.
        theirs.backstay(&["key", "add", "--key-file", &path("ours"), "--label", "source"]);
        source.backstay(&["resume", "db"]);
        cycle(&sidecar, &mut rng);
        assert_eq!(generations(&folder).last(), Some(&3));
    }
    // Every point, whichever key it was sealed with, is read with the one that stayed.
    theirs.backstay(&["verify", "db"]);
    let to = theirs.path("restored.img");
    theirs.backstay(&["restore", "db", "--point", "latest", "--to", &to.to_string_lossy()]);
    assert_eq!(hash(&to), hash(&disk.backing));

    // Somebody else has one now, and nothing worries.
    let _sidecar = Service::start(&source);
    wait_for("no worry", || health(&disk).0 == "ok");
    let doctor = said(&source.try_backstay(&["doctor"]));
    assert!(doctor.contains("somebody else can open it"), "{doctor}");
}

/// Who can only write asks whether anybody can read; a copy on another host counts, one on this host does not.
#[test]
fn a_key_that_nobody_shows_is_asked_for() {
    let safe = Host::new("sealed-care");
    let path = |name: &str| safe.path(name).to_string_lossy().into_owned();
    let vault = safe.vault();
    safe.backstay(&["key", "init", "--vault", &vault, "--key-file", &path("key")]);
    let keys = format!("key_file = {:?}", path("key"));
    let reader = host("sealed-care-reader", &vault, &keys);
    reader.backstay(&["key", "grant", "--to", &path("writer")]);
    let writer = format!("writer_file = {:?}", path("writer"));
    let source = host("sealed-care-writer", &vault, &format!("{writer}\nstale = \"0s\""));
    let doctor = |host: &Host| said(&host.try_backstay(&["doctor"]));
    let found = doctor(&source);
    assert!(found.contains("nobody has shown since"), "{found}");
    // Not stale, nothing to say; after a rotation its key is the old one.
    let fresh = host("sealed-care-fresh", &vault, &writer);
    assert!(doctor(&fresh).contains("somebody else can open it"), "{}", doctor(&fresh));
    reader.backstay(&["key", "rotate"]);
    let found = doctor(&fresh);
    assert!(found.contains("seals to generation 1") && found.contains("newest is 2"), "{found}");

    // The only key, shown here: that is no copy. Shown on a host of another name: it is.
    reader.backstay(&["key", "check"]);
    assert!(doctor(&reader).contains("only keys that are on this host"), "{}", doctor(&reader));
    let line = format!(
        "hostname safe.example && exec {} --config {} key check",
        backstay_tests::harness::host::backstay().display(),
        reader.path("backstay.toml").display()
    );
    let elsewhere = Command::new("unshare").args(["--uts", "sh", "-c", &line]).output().unwrap();
    assert!(elsewhere.status.success(), "{}", said(&elsewhere));
    reader.backstay(&["key", "check"]);
    let found = doctor(&reader);
    assert!(found.contains("somebody else can open it"), "{found}");
    // What a host was told to use and is gone is told, though another way opens.
    let words = safe.path("words");
    secret(&words, "correct horse battery staple\n");
    reader.backstay(&["key", "add", "--passphrase-file", &words.to_string_lossy()]);
    let two = format!("key_file = {:?}\npassphrase_file = {words:?}", path("gone"));
    let found = doctor(&host("sealed-care-gone", &vault, &two));
    assert!(found.contains("No such file") && found.contains("process ends"), "{found}");
}

/// A store can take the newest away, and what it shows then is as well signed as it was. Who has seen what was newer tells.
#[test]
fn an_older_state_of_the_vault_is_noticed_by_who_saw_a_newer_one() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA7));
    let safe = Host::new("sealed-rollback");
    let path = |name: &str| safe.path(name).to_string_lossy().into_owned();
    let (vault, folder) = (safe.vault(), safe.path("vault"));
    safe.backstay(&["key", "init", "--vault", &vault, "--key-file", &path("key")]);
    let keys = format!("key_file = {:?}", path("key"));
    let (source, reader) = (
        host("sealed-rollback-source", &vault, &keys),
        host("sealed-rollback-reader", &vault, &keys),
    );
    let disk = source.disk("db", 8 * MIB);
    let served = disk.mount(&[]);
    let mut cycle = || {
        scribble(&served, &mut rng, false);
        disk.cycle();
    };
    (0..3).for_each(|_| cycle());
    assert_eq!(reader.json(&["points", "db"]).as_array().unwrap().len(), 3);

    // The newest point goes away, with nothing left that tells of it.
    let newest = |kind: &str| {
        let all = objects(&folder).into_iter();
        all.filter(|path| path.parent().unwrap().ends_with(kind)).max().unwrap()
    };
    let (point, away) = (newest("points"), safe.path("away"));
    fs::rename(&point, &away).unwrap();
    let shown = reader.try_backstay(&["points", "db"]);
    assert!(said(&shown).contains("has seen recovery point 3"), "{}", said(&shown));
    let checked = reader.try_backstay(&["key", "check"]);
    assert!(!checked.status.success() && said(&checked).contains("point 3"), "{}", said(&checked));
    fs::rename(&away, &point).unwrap();
    let shown = reader.try_backstay(&["points", "db"]);
    assert!(!said(&shown).contains("has seen"), "{}", said(&shown));

    // The keyring before the rotation: what is shipped from now on, a removed key could read.
    source.backstay(&["key", "rotate"]);
    cycle();
    let keyring = newest("keys");
    fs::rename(&keyring, &away).unwrap();
    let before = objects(&folder).len();
    for verb in [&["cycle", "db"][..], &["prune", "db"], &["doctor"]] {
        let refused = source.try_backstay(verb);
        let text = said(&refused);
        assert!(
            !refused.status.success() && text.contains("this host has seen 2"),
            "{verb:?}: {text}"
        );
    }
    assert_eq!(objects(&folder).len(), before, "something was put");
    assert_eq!(hash(&served), hash(&disk.backing), "the guest is served");
    fs::rename(&away, &keyring).unwrap();
    source.backstay(&["resume", "db"]);
    cycle();
    reader.backstay(&["verify", "db"]);
}

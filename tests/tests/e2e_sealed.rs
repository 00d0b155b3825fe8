//! An encrypted vault from end to end: hosts that read it, a source that can only write, everything lost but
//! vault and key.
//!
//! Needs root, /dev/fuse, loop devices, python3-zstandard, python3-cryptography, python3-argon2.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use backstay_tests::harness::Host;
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::seed::seed;

#[path = "e2e_sealed/keys.rs"]
mod keys;
#[path = "e2e_sealed/read_point.rs"]
mod read_point;
#[path = "e2e_sealed/roles.rs"]
mod roles;
#[path = "e2e_sealed/stores.rs"]
mod stores;

const MIB: u64 = 1 << 20;
const MARKER: &[u8] = b"a customer's plaintext, which no store may ever see";

/// Another host, with the vault of the first and what `[encryption]` says.
fn host(test: &str, vault: &str, encryption: &str) -> Arc<Host> {
    let host = Host::new(test);
    let config =
        format!("vault = {vault:?}\nallow_local_vault = true\n[encryption]\n{encryption}\n");
    fs::write(host.path("backstay.toml"), config).unwrap();
    host
}

/// Writes noise and the marker.
fn scribble(served: &Path, rng: &mut fastrand::Rng, marks: bool) {
    let file = File::options().write(true).open(served).unwrap();
    for _ in 0..6 {
        let mut bytes = vec![0; 200_704];
        rng.fill(&mut bytes[..100_000]);
        if marks {
            bytes[100_000..].chunks_mut(MARKER.len()).for_each(|at| {
                at.copy_from_slice(&MARKER[..at.len()]);
            });
        }
        file.write_all_at(&bytes, rng.u64(..7 * MIB / 4096) * 4096).unwrap();
    }
    file.sync_all().unwrap();
}

fn objects(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    // What is no object yet, and the reserve.
    found.retain(|path| !path.to_string_lossy().contains('#'));
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A line of what `backstay key init` printed for the configuration.
fn setting(printed: &str, name: &str) -> String {
    let line = printed.lines().find(|line| line.starts_with(&format!("{name} = ")));
    line.unwrap_or_else(|| panic!("no {name} in {printed}")).to_owned()
}

#[test]
fn everything_is_lost_but_the_vault_and_one_key() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA1));
    let safe = Host::new("sealed-safe");
    let path = |name: &str| safe.path(name).to_string_lossy().into_owned();
    let vault = safe.vault();
    let printed = safe.backstay(&[
        "key",
        "init",
        "--vault",
        &vault,
        "--key-file",
        &path("key"),
        "--label",
        "usb stick",
    ]);
    let (key_file, owner) = (setting(&printed, "key_file"), setting(&printed, "owner"));
    assert_eq!(fs::metadata(path("key")).unwrap().permissions().mode() & 0o777, 0o600);
    let full = format!("{key_file}\n{owner}");

    // A source that has the key: points, merged ones, a rotation in between.
    let source = host("sealed-source", &vault, &full);
    let disk = source.disk("db", 8 * MIB + 700);
    let served = disk.mount(&[]);
    let mut right = vec![];
    for round in 0..6 {
        scribble(&served, &mut rng, true);
        disk.cycle();
        right.push(hash(&disk.backing));
        if round == 2 {
            source.backstay(&["key", "rotate"]);
        }
    }
    source.backstay(&["prune", "db", "--keep", "last 4"]);
    scribble(&served, &mut rng, true);
    disk.cycle();
    right.push(hash(&disk.backing));
    let backing = fs::read(&disk.backing).unwrap();
    assert!(contains(&backing, MARKER));
    for object in objects(Path::new(vault.strip_prefix("file://").unwrap())) {
        let bytes = fs::read(&object).unwrap();
        for secret in [&MARKER[..14], &fs::read(path("key")).unwrap()[..16]] {
            assert!(!contains(&bytes, secret), "{}", object.display());
        }
    }
    let words = path("words");
    fs::write(&words, "correct horse battery staple\n").unwrap();
    fs::set_permissions(&words, fs::Permissions::from_mode(0o600)).unwrap();
    source.backstay(&["key", "add", "--passphrase-file", &words, "--label", "office"]);
    let points: Vec<u64> = disk.points().iter().map(|point| point.cycle).collect();
    assert!(points.len() >= 4 && points.last() == Some(&7), "{points:?}");
    // The host is gone, with all it had.
    drop(served);
    drop(disk);
    drop(source);

    let recovery = host("sealed-recovery", &vault, &full);
    for &cycle in &points {
        let to = recovery.path("restored.img");
        let (point, to_text) = (cycle.to_string(), to.to_string_lossy().into_owned());
        recovery.backstay(&["restore", "db", "--point", &point, "--to", &to_text, "--force"]);
        assert_eq!(hash(&to), right[cycle as usize - 1], "point {cycle}");
        for key in [["--key-file", &path("key")], ["--passphrase-file", &words]] {
            read_point(
                &vault,
                &["db", "--point", &point, "--to", &to_text, "--force", key[0], key[1]],
            );
            assert_eq!(hash(&to), right[cycle as usize - 1], "point {cycle} with {}", key[0]);
        }
    }
    recovery.backstay(&["verify", "db"]);
    let checked = recovery.json(&["key", "check"]);
    assert_eq!(checked["ok"], true, "{checked}");
    assert_eq!(checked["disks"][0]["point"], 7, "{checked}");

    // Mounted without a copy, and failed over to: a new term, a point of the new host.
    let name = recovery.disk("looked", 0).name;
    recovery.backstay(&["mount", "--vault", &vault, "--disk", "db", "--name", &name]);
    assert_eq!(hash(&recovery.runtime.join(&name).join("mnt/disk")), right[6]);
    recovery.backstay(&["umount", &name, "--forget"]);
    recovery.disk("db", 0);
    recovery.backstay(&["failover", "unplanned", "db"]);
    let now = recovery.runtime.join("db").join("mnt/disk");
    scribble(&now, &mut rng, false);
    recovery.backstay(&["failover", "commit", "db"]);
    recovery.backstay(&["cycle", "db"]);
    let to = recovery.path("restored.img");
    let to_text = to.to_string_lossy();
    recovery.backstay(&["restore", "db", "--point", "latest", "--to", &to_text, "--force"]);
    assert_eq!(hash(&to), hash(&now));

    // Without the key, or with the wrong owner, nothing; and no message has a secret.
    let stranger = host("sealed-stranger", &vault, &format!("required = true\n{owner}"));
    let refused =
        stranger.try_backstay(&["restore", "db", "--point", "latest", "--to", &path("nothing")]);
    assert!(!refused.status.success() && said(&refused).contains("no key"), "{}", said(&refused));
    assert!(!Path::new(&path("nothing")).exists());
    let fooled =
        host("sealed-fooled", &vault, &format!("{key_file}\nowner = \"{}\"", "ab".repeat(32)));
    let refused = said(&fooled.try_backstay(&[
        "restore",
        "db",
        "--point",
        "latest",
        "--to",
        &path("nothing"),
    ]));
    assert!(refused.contains("not of the owner"), "{refused}");
    fs::set_permissions(&words, fs::Permissions::from_mode(0o644)).unwrap();
    let open = host("sealed-open", &vault, &format!("passphrase_file = {words:?}"));
    let refused = open.try_backstay(&["key", "check"]);
    let refused = said(&refused);
    assert!(refused.contains("chmod 600") && !refused.contains("horse"), "{refused}");
}

#[test]
fn a_source_that_can_only_write_is_recovered_by_a_host_that_reads() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA2));
    let safe = Host::new("sealed-owner");
    let path = |name: &str| safe.path(name).to_string_lossy().into_owned();
    let vault = safe.vault();
    safe.backstay(&["key", "init", "--vault", &vault, "--key-file", &path("key")]);
    let recovery = host("sealed-reader", &vault, &format!("key_file = {:?}", path("key")));
    recovery.backstay(&["key", "grant", "--to", &path("writer"), "--label", "db1"]);
    assert_eq!(fs::metadata(path("writer")).unwrap().permissions().mode() & 0o777, 0o600);

    let source = host("sealed-writer", &vault, &format!("writer_file = {:?}", path("writer")));
    let disk = source.disk("db", 8 * MIB);
    let served = disk.mount(&[]);
    let mut right = vec![];
    for round in 0..4 {
        scribble(&served, &mut rng, true);
        if round == 3 {
            // It cannot compare with what it cannot read: everything ships.
            source.backstay(&["resync", "db"]);
        }
        disk.cycle();
        right.push(hash(&disk.backing));
    }
    let refused =
        source.try_backstay(&["restore", "db", "--point", "latest", "--to", &path("nothing")]);
    let refused = said(&refused);
    assert!(refused.contains("seals and does not open"), "{refused}");
    // Looking after the vault goes as far as it can without reading.
    source.backstay(&["prune", "db", "--keep", "last 3"]);
    let listed = source.json(&["points", "db"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    for cycle in 2..=4u64 {
        let to = recovery.path("restored.img");
        let (point, to_text) = (cycle.to_string(), to.to_string_lossy().into_owned());
        recovery.backstay(&["restore", "db", "--point", &point, "--to", &to_text, "--force"]);
        assert_eq!(hash(&to), right[cycle as usize - 1], "point {cycle}");
    }
    recovery.backstay(&["verify", "db"]);
}

/// A key that does not open the vault any more is shown by the sidecar's status, and nothing ships.
#[test]
fn a_vault_is_not_written_in_the_clear_by_mistake() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA3));
    let safe = Host::new("sealed-other");
    let key = safe.path("key").to_string_lossy().into_owned();
    let plain = Host::new("sealed-plain");
    let first = plain.disk("db", MIB * 8);
    scribble(&first.mount(&[]), &mut rng, true);
    first.cycle();
    let meant = host("sealed-meant", &plain.vault(), &format!("key_file = {key:?}"));
    let disk = meant.disk("other", MIB * 8);
    scribble(&disk.mount(&[]), &mut rng, true);
    let refused = said(&meant.try_backstay(&["cycle", "other"]));
    assert!(refused.contains("not encrypted"), "{refused}");
    // The other way about: no key for one that is encrypted.
    safe.backstay(&["key", "init", "--key-file", &key, "--vault", &safe.vault()]);
    let refused =
        said(&safe.try_backstay(&["key", "init", "--key-file", &key, "--vault", &plain.vault()]));
    assert!(refused.contains("cannot be encrypted later"), "{refused}");
    let disk = safe.disk("third", MIB * 8);
    scribble(&disk.mount(&[]), &mut rng, true);
    let refused = said(&safe.try_backstay(&["cycle", "third"]));
    assert!(refused.contains("no key for it"), "{refused}");
    let status = disk.status();
    assert!(status.to_string().contains("no key for it"), "{status}");
}

fn read_point(vault: &str, args: &[&str]) {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/read_point.py");
    let output = Command::new(script).arg(vault).args(args).output().unwrap();
    let said = said(&output);
    assert!(!said.contains("No module named"), "{said}: run scripts/setup");
    assert!(output.status.success(), "{args:?}: {said}");
}

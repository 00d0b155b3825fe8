//! `scripts/read_point.py` on an encrypted vault: written from docs/explanation/format-vault.md alone, it opens the vault in every way that
//! Backstay does, and sees every bit that a store turned.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backstay_tests::harness::Host;
use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::seed::seed;

use super::roles::identity;
use super::{MIB, host, objects, scribble, setting};

fn script(vault: &str, args: &[&str]) -> Output {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/read_point.py");
    let output = Command::new(script).arg(vault).args(args).output().unwrap();
    let said = said(&output);
    assert!(!said.contains("No module named"), "{said}: run scripts/setup");
    assert!(!said.contains("Traceback"), "{args:?}: {said}");
    output
}

/// A keyring with another label for its first slot, and its checksum put right, as somebody does who means it.
fn relabelled(keyring: &str) -> Vec<u8> {
    let mut document: serde_json::Value = serde_json::from_str(keyring).unwrap();
    document["body"]["slots"][0]["label"] = "somebody else's".into();
    let body = serde_json::to_vec(&document["body"]).unwrap();
    document["crc32c"] = crc32c::crc32c(&body).into();
    serde_json::to_vec(&document).unwrap()
}

#[test]
fn an_independent_reader_opens_it_in_every_way_and_sees_every_bit() {
    let mut rng = fastrand::Rng::with_seed(seed(0x5EA6));
    let safe = Host::new("sealed-read");
    let path = |name: &str| safe.path(name).to_string_lossy().into_owned();
    let (vault, folder) = (safe.vault(), safe.path("vault"));
    let printed = safe.backstay(&["key", "init", "--vault", &vault, "--key-file", &path("key")]);
    let owner = setting(&printed, "owner").split('"').nth(1).unwrap().to_owned();
    let reader = host("sealed-read-host", &vault, &format!("key_file = {:?}", path("key")));
    fs::write(path("words"), "ein Pferd, das Köpfe schüttelt\n").unwrap();
    fs::set_permissions(path("words"), fs::Permissions::from_mode(0o600)).unwrap();
    reader.backstay(&["key", "add", "--passphrase-file", &path("words")]);
    reader.backstay(&["key", "add", "--recipient", &identity(&safe.path("identity"))]);
    identity(&safe.path("stranger"));

    // Points of both generations, signed by the owner and by a writer.
    let disk = reader.disk("db", 8 * MIB + 700);
    let served = disk.mount(&[]);
    let mut right = vec![];
    let mut cycle = |more: &dyn Fn()| {
        scribble(&served, &mut rng, true);
        more();
        right.push(hash(&disk.backing));
    };
    cycle(&|| drop(disk.cycle()));
    reader.backstay(&["key", "rotate"]);
    cycle(&|| drop(disk.cycle()));
    reader.backstay(&["key", "grant", "--to", &path("writer")]);
    let own = fs::read_to_string(reader.path("backstay.toml")).unwrap();
    let text = format!("vault = {vault:?}\n[encryption]\nwriter_file = {:?}\n", path("writer"));
    fs::write(reader.path("backstay.toml"), text).unwrap();
    cycle(&|| drop(disk.cycle()));
    fs::write(reader.path("backstay.toml"), own).unwrap();
    reader.backstay(&["pin", "db", "1", "--name", "first"]);
    reader.backstay(&["prune", "db", "--keep", "last 1", "--no-merge"]);

    let image = safe.path("image");
    let to = path("image");
    let restore = |point: usize, key: [&str; 2]| {
        let _ = fs::remove_file(&image);
        script(&vault, &["db", "--point", &point.to_string(), "--to", &to, key[0], key[1]])
    };
    let [key, words, age] = ["key", "words", "identity"].map(path);
    let ways = [["--key-file", &key], ["--passphrase-file", &words], ["--identity-file", &age]];
    for (way, point) in ways.into_iter().flat_map(|way| [1, 3].map(|point| (way, point))) {
        let output = restore(point, way);
        assert!(output.status.success(), "{way:?}: {}", said(&output));
        assert_eq!(hash(&image), right[point - 1], "{way:?}, point {point}");
    }
    // Who has none, or believes another owner, gets nothing.
    let refused = restore(1, ["--identity-file", &path("stranger")]);
    assert!(said(&refused).contains("no key given opens it"), "{}", said(&refused));
    let refused = script(&vault, &["db", "--owner", &"ab".repeat(32), "--identity-file", &age]);
    assert!(said(&refused).contains("another owner"), "{}", said(&refused));
    assert!(script(&vault, &["db", "--owner", &owner, "--identity-file", &age]).status.success());

    // A bit of each kind of object; and in a segment, one of each of its parts. It must say which object it is.
    let mut kinds = std::collections::BTreeSet::new();
    let mut all = objects(&folder);
    // Of segments the first: its point is there.
    all.sort();
    // Beside keyrings there are notes of writers, which nobody reads who restores.
    let numbered = |path: &&PathBuf| {
        path.file_name().unwrap().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
    };
    let newest = |kind: &str| {
        all.iter().filter(|path| path.parent().unwrap().ends_with(kind)).filter(numbered).max()
    };
    let (ledger, keyring) = (newest("ledger").cloned(), newest("keys").cloned());
    for object in &all {
        let name = object.strip_prefix(&folder).unwrap().to_string_lossy().into_owned();
        let kind = match name.split('/').collect::<Vec<_>>()[..] {
            ["disks", _, kind, ..] => kind.to_owned(),
            [kind, ..] => kind.to_owned(),
            [] => unreachable!(),
        };
        let unread = ["proofs", "terms", "handovers", "held", "drills"].contains(&kind.as_str());
        let old = [("ledger", &ledger), ("keys", &keyring)]
            .iter()
            .any(|(of, newest)| kind == *of && newest.as_ref() != Some(object));
        if unread || old || !kinds.insert(kind.clone()) {
            continue;
        }
        let whole = fs::read(object).unwrap();
        let mut places = vec![whole.len() / 2, whole.len() - 2];
        let mut point = 1;
        if kind == "segments" {
            let footer = whole.len() - 128;
            let index = u64::from_le_bytes(whole[footer + 48..footer + 56].try_into().unwrap());
            let index = index as usize;
            // Header, first frame, last frame, index, envelope, footer.
            places = vec![30, 64, index - 1, index + 20, footer - 20, footer + 50];
            let file = object.file_name().unwrap().to_string_lossy();
            point = file.split('-').next().unwrap().parse().unwrap();
        }
        for place in places {
            let mut bad = whole.clone();
            bad[place] ^= 1;
            fs::write(object, &bad).unwrap();
            let output = restore(point, ways[0]);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{name}, byte {place}: {said}");
            assert!(said.contains(&name), "{name}, byte {place}: {said}");
            assert!(!image.exists(), "{name}, byte {place}");
        }
        fs::write(object, &whole).unwrap();
    }
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    for kind in
        ["disk.json", "holds", "keys", "ledger", "names", "points", "segments", "vault.json"]
    {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }

    // Who can put a checksum right cannot put a signature right.
    let keyring: PathBuf = keyring.unwrap();
    let whole = fs::read_to_string(&keyring).unwrap();
    fs::write(&keyring, relabelled(&whole)).unwrap();
    let refused = restore(1, ways[0]);
    assert!(said(&refused).contains("not signed by the vault's owner"), "{}", said(&refused));
    fs::write(&keyring, &whole).unwrap();
    assert!(restore(1, ways[0]).status.success());
}

//! An encrypted vault: what comes back, what must not be seen, and what a store must not be able to pass off.

mod common;

use std::fs;
use std::path::Path;

use backstay_types::{Class, Classified, CycleNo, SectorRange};
use backstay_vault::encrypt::{Hardness, KeySettings, Keyring, NewSlot};
use backstay_vault::format::key::{ObjectKey, Piece};
use backstay_vault::read::verify_points;
use backstay_vault::{Manifest, Vault, VaultError, Vaults};
use common::{Lab, Memory};
use zeroize::Zeroizing;

const SIZE: u64 = 4 << 20;
const MARKER: &[u8] = b"the plaintext of a customer that no store may see";

fn key_file(dir: &Path, name: &str, byte: u8) -> std::path::PathBuf {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join(name);
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
    std::io::Write::write_all(&mut &file, &[byte; 64]).unwrap();
    path
}

fn with_key(path: &Path) -> KeySettings {
    KeySettings { key_file: Some(path.into()), ..KeySettings::default() }
}

fn new_slot(byte: u8) -> NewSlot {
    NewSlot::KeyFile(Zeroizing::new(vec![byte; 64]))
}

/// A vault with one disk, one key file in slot 1, and keys beside it.
struct Site {
    lab: Lab,
    keys: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = dir.path().to_str().unwrap().to_owned();
        let (vault, _) = Vaults::default().create_encrypted(&url, "first", &new_slot(1)).unwrap();
        let keys = tempfile::tempdir().unwrap();
        key_file(keys.path(), "1", 1);
        key_file(keys.path(), "2", 2);
        Self { lab: Lab::with(dir, vault, SIZE), keys }
    }

    fn url(&self) -> &str {
        self.lab.vault.url()
    }

    fn open(&self, key: &str) -> Vault {
        Vaults::default().with_keys(with_key(&self.keys.path().join(key))).open(self.url()).unwrap()
    }

    /// Two points; what the disk holds at each.
    fn history(&self) -> (Vec<(Manifest, Vec<u8>)>, Vec<u8>) {
        let mut content = vec![0u8; SIZE as usize];
        fastrand::Rng::with_seed(7).fill(&mut content[..2 << 20]);
        for at in (0..2 << 20).step_by(64 << 10) {
            content[at..at + MARKER.len()].copy_from_slice(MARKER);
        }
        let first = self.lab.cycle(None, &content, &[self.lab.whole()]).unwrap();
        let mut points = vec![(first, content.clone())];
        let run = SectorRange::new(100, 900);
        content[100 * 512..900 * 512].fill(b'x');
        let second = self.lab.cycle(Some(&points[0].0), &content, &[run]).unwrap();
        points.push((second, content.clone()));
        (points, content)
    }

    /// What another process sees that has this key.
    fn restored(&self, vault: &Vault, cycle: u64) -> Result<Vec<u8>, VaultError> {
        let point = vault.manifest(self.lab.disk, CycleNo(cycle))?;
        let target = Memory::new(point.size);
        backstay_vault::read::restore(vault, &point, &target, 2, &|_, _| {})?;
        Ok(target.bytes())
    }
}

fn reason<T>(result: Result<T, VaultError>) -> String {
    result.err().expect("must fail").to_string()
}

#[test]
fn what_went_in_comes_out_for_whoever_has_a_key_and_for_nobody_else() {
    let site = Site::new();
    let (points, _) = site.history();
    let other = site.open("1");
    for (point, content) in &points {
        assert_eq!(&site.restored(&other, point.cycle.0).unwrap(), content);
    }
    let all: Vec<CycleNo> = points.iter().map(|(point, _)| point.cycle).collect();
    let verified = verify_points(&other, site.lab.disk, &all, 2, &|_, _| {}).unwrap();
    assert_eq!(verified.points, 2);
    let wrong = reason(site.restored(&site.open("2"), 1));
    assert!(wrong.contains("opens no slot"), "{wrong}");
    // Without any key the list can be looked at; nothing can be read.
    let none = Vaults::default().with_keys(KeySettings::default()).open(site.url()).unwrap();
    assert_eq!(none.points(site.lab.disk).unwrap(), all);
    let none = reason(site.restored(&none, 1));
    assert!(none.contains("no key"), "{none}");
}

#[test]
fn no_object_shows_a_byte_of_what_went_in() {
    let site = Site::new();
    let (points, _) = site.history();
    // Twelve bytes suffice to tell; and a chunk's checksum would tell anyone who guesses its content.
    let chunk = backstay_vault::format::segment::chunk_sum(&points[0].1[..64 << 10]);
    for path in site.lab.objects() {
        let bytes = fs::read(&path).unwrap();
        for secret in [&MARKER[..12], &chunk[..8], &[1; 32], &[b'x'; 16]] {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{}", path.display());
        }
    }
}

#[test]
fn slots_come_and_go_and_a_rotation_keeps_them_all() {
    let site = Site::new();
    let (points, _) = site.history();
    let (keyring, opened) = site.open("1").open_keyring().unwrap();
    let (keyring, number) = keyring.with_slot(&opened, "second", &new_slot(2)).unwrap();
    assert_eq!((number, opened.slot), (2, 1));
    site.lab.vault.put_keyring(&keyring).unwrap();
    // Another revision of that number cannot be put over it.
    assert!(site.lab.vault.put_keyring(&keyring.clone().without_slot(&opened, 2).unwrap()).is_ok());
    let taken = Keyring { written_unix_ns: 1, ..keyring.clone() };
    assert!(site.lab.vault.put_keyring(&taken).is_err());
    assert!(reason(site.restored(&site.open("2"), 1)).contains("opens no slot"), "removed again");

    let (keyring, opened) = site.open("1").open_keyring().unwrap();
    let (keyring, third) = keyring.with_slot(&opened, "third", &new_slot(2)).unwrap();
    assert_eq!(third, 3, "numbers are not used again");
    site.lab.vault.put_keyring(&keyring).unwrap();
    // It has the vault open all the time, as a replica does.
    let follower = site.open("2");
    assert_eq!(site.restored(&follower, 1).unwrap(), points[0].1);
    let (keyring, opened) = site.open("2").open_keyring().unwrap();
    let (keyring, opened) = keyring.rotated(opened).unwrap();
    site.lab.vault.put_keyring(&keyring).unwrap();
    // Both, though only one of them was there when it rotated; what is old and what is new.
    let writer = site.open("1");
    assert_eq!(writer.keys().unwrap().generation(), 2);
    let lab = &site.lab;
    let segments =
        common::ship(&writer, lab.disk, CycleNo(3), &points[1].1, &[SectorRange::new(0, 8)])
            .unwrap();
    for vault in [site.open("1"), site.open("2"), follower] {
        assert_eq!(site.restored(&vault, 1).unwrap(), points[0].1);
        backstay_vault::read::read_index(&vault, lab.disk, lab.size, &segments[0]).unwrap();
    }
    // The revision before, put in its place by a store, does not have the generation.
    let keys = lab.dir.path().join("keys");
    fs::remove_file(keys.join(format!("{:020}", keyring.revision))).unwrap();
    let old = site.open("1");
    let lost = reason(backstay_vault::read::read_index(&old, lab.disk, lab.size, &segments[0]));
    assert!(lost.contains("generation 2") && lost.contains("keys/"), "{lost}");
    // The last slot stays.
    let one = keyring.without_slot(&opened, 1).unwrap();
    assert!(one.without_slot(&opened, 3).unwrap_err().to_string().contains("last one"));
}

#[test]
fn a_passphrase_and_an_age_identity_open_it_too() {
    let site = Site::new();
    let (points, _) = site.history();
    let (keyring, opened) = site.open("1").open_keyring().unwrap();
    let hard = Hardness { memory_kib: 64, passes: 1, lanes: 1 };
    let text = Zeroizing::new("correct horse".to_owned());
    let (keyring, _) =
        keyring.with_slot(&opened, "words", &NewSlot::Passphrase(text, hard)).unwrap();
    let identity = age::x25519::Identity::generate();
    let recipient = NewSlot::Recipient(identity.to_public().to_string());
    let (keyring, _) = keyring.with_slot(&opened, "age", &recipient).unwrap();
    let (keyring, _) = keyring.rotated(opened).unwrap();
    // Three revisions further; each number is free.
    site.lab.vault.put_keyring(&keyring).unwrap();
    let words = site.keys.path().join("words");
    fs::write(&words, "correct horse\n").unwrap();
    let age_file = site.keys.path().join("age");
    use age::secrecy::ExposeSecret;
    fs::write(&age_file, identity.to_string().expose_secret()).unwrap();
    for path in [&words, &age_file] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let by_words = KeySettings { passphrase_file: Some(words), ..KeySettings::default() };
    let by_age = KeySettings { identity_file: Some(age_file), ..KeySettings::default() };
    for (slot, settings) in [(2, by_words), (3, by_age.clone())] {
        let vault = Vaults::default().with_keys(settings).open(site.url()).unwrap();
        assert_eq!(site.restored(&vault, 2).unwrap(), points[1].1);
        assert_eq!(vault.try_keys().unwrap()[0].slot, Some(slot));
    }
    // A keyring of somebody else's making, sealed to what everybody can see of the slots, is not believed:
    // by the key file's own proof, and with the owner pinned.
    let (mut forged, _) = {
        let dir = tempfile::tempdir().unwrap();
        let (_, forged) = Vaults::default()
            .create_encrypted(dir.path().to_str().unwrap(), "", &recipient)
            .unwrap();
        (forged, dir)
    };
    forged.vault = keyring.vault;
    let refused = forged.check(keyring.vault).unwrap_err().to_string();
    assert!(refused.contains("not signed"), "{refused}");
    let pinned = KeySettings { owner: Some([9; 32]), ..by_age };
    let vault = Vaults::default().with_keys(pinned).open(site.url()).unwrap();
    let refused = reason(site.restored(&vault, 1));
    assert!(refused.contains("not of the owner"), "{refused}");
}

#[test]
fn a_source_that_can_only_write_ships_and_reads_nothing_back() {
    let site = Site::new();
    let (points, mut content) = site.history();
    let key = site.open("1").new_writer("db1").unwrap();
    let path = site.keys.path().join("writer");
    fs::write(&path, backstay_vault::format::document::encode(&key).unwrap()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let settings = KeySettings { writer_file: Some(path), ..KeySettings::default() };
    let source = Vaults::default().with_keys(settings.clone()).open(site.url()).unwrap();
    // It sees the points, and that they are the owner's; it reads none of them.
    let before = source.manifest(site.lab.disk, CycleNo(2)).unwrap();
    assert_eq!(before, points[1].0);
    assert!(matches!(site.restored(&source, 2), Err(VaultError::WriteOnly { .. })));
    // A whole cycle: what it put it can read back and compare, and its point counts everywhere.
    let run = SectorRange::new(4000, 4100);
    content[4000 * 512..4100 * 512].fill(b'y');
    let lab = Lab {
        vault: source,
        dir: tempfile::tempdir().unwrap(),
        disk: site.lab.disk,
        size: site.lab.size,
    };
    let third = lab.cycle(Some(&before), &content, &[run]).unwrap();
    assert_eq!(site.restored(&site.open("1"), 3).unwrap(), content);
    // Once it was started again it cannot read even that.
    let again = Vaults::default().with_keys(settings).open(site.url()).unwrap();
    let read = backstay_vault::read::read_index(
        &again,
        lab.disk,
        lab.size,
        third.segments.last().unwrap(),
    );
    assert!(matches!(read, Err(VaultError::WriteOnly { .. })), "{read:?}");
    assert!(format!("{key:?}").len() < 80, "its secret is not printed");
}

#[test]
fn a_vault_is_encrypted_or_not_and_no_store_can_change_that() {
    let site = Site::new();
    site.history();
    let required = KeySettings { required: true, ..with_key(&site.keys.path().join("1")) };
    let plain = tempfile::tempdir().unwrap();
    let url = plain.path().to_str().unwrap();
    let lab = Lab::with(tempfile::tempdir().unwrap(), Vaults::default().create(url).unwrap(), SIZE);
    let content = vec![5; SIZE as usize];
    let point = lab.cycle(None, &content, &[lab.whole()]).unwrap();
    let refused = reason(Vaults::default().with_keys(required.clone()).open(url));
    assert!(refused.contains("not encrypted"), "{refused}");
    assert!(
        reason(Vaults::default().create_encrypted(url, "", &new_slot(1)))
            .contains("cannot be encrypted later")
    );
    // vault.json of the one put into the other.
    let record = plain.path().join("vault.json");
    let theirs = site.lab.dir.path().join("vault.json");
    let (ours, encrypted) = (fs::read(&record).unwrap(), fs::read(&theirs).unwrap());
    fs::write(&theirs, &ours).unwrap();
    assert!(
        reason(Vaults::default().with_keys(required).open(site.url())).contains("not encrypted")
    );
    let lax = Vaults::default().with_keys(KeySettings::default()).open(site.url()).unwrap();
    let read = reason(site.restored(&lax, 1));
    assert!(read.contains("its vault says that it is not"), "{read}");
    fs::write(&theirs, &encrypted).unwrap();
    fs::write(&record, &encrypted).unwrap();
    let keys = plain.path().join("keys");
    fs::create_dir(&keys).unwrap();
    fs::copy(
        site.lab.dir.path().join("keys").join(format!("{:020}", 1)),
        keys.join(format!("{:020}", 1)),
    )
    .unwrap();
    let vault =
        Vaults::default().with_keys(with_key(&site.keys.path().join("1"))).open(url).unwrap();
    assert!(reason(vault.manifest(lab.disk, point.cycle)).contains("not signed"));
    let read = backstay_vault::read::read_index(&vault, lab.disk, lab.size, &point.segments[0]);
    assert!(reason(read).contains("its vault says that it is"));
}

/// Whatever a store puts in the place of something else, it is seen, and not one wrong byte is given out.
#[test]
fn objects_swapped_by_the_store_are_not_taken_for_each_other() {
    let site = Site::new();
    let (points, _) = site.history();
    let root = site.lab.dir.path();
    let disk = root.join("disks").join(site.lab.disk.to_string());
    let point = |cycle: u64| disk.join("points").join(format!("{cycle:020}"));
    let reader = || site.open("1");
    // A point under another's number.
    let (first, second) = (fs::read(point(1)).unwrap(), fs::read(point(2)).unwrap());
    fs::write(point(2), &first).unwrap();
    let seen = reason(reader().manifest(site.lab.disk, CycleNo(2)));
    assert!(seen.contains("signature does not match"), "{seen}");
    // Another list of segments in it, with the checksum put right.
    let mut bad = second.clone();
    bad[196] ^= 1;
    let body = bad.len() - backstay_vault::encrypt::sign::TRAILER_BYTES;
    let crc = crc32c::crc32c(&bad[..body - 4]).to_le_bytes();
    bad[body - 4..body].copy_from_slice(&crc);
    fs::write(point(2), &bad).unwrap();
    assert!(reason(reader().manifest(site.lab.disk, CycleNo(2))).contains("signature"));
    fs::write(point(2), &second).unwrap();
    // Segments in each other's place.
    let names = |cycle: u64| -> Vec<_> {
        let all = fs::read_dir(disk.join("segments")).unwrap().map(|e| e.unwrap().path());
        let of = format!("{cycle:020}-");
        let mut all: Vec<_> =
            all.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&of)).collect();
        all.sort();
        all
    };
    let (older, newer) = (names(1), names(2));
    assert!(older.len() > 1 && !newer.is_empty());
    for (a, b) in [(&older[0], &older[1]), (&older[0], &newer[0])] {
        let (one, other) = (fs::read(a).unwrap(), fs::read(b).unwrap());
        fs::write(a, &other).unwrap();
        fs::write(b, &one).unwrap();
        assert!(site.restored(&reader(), 2).unwrap_err().is_damage());
        fs::write(a, &one).unwrap();
        fs::write(b, &other).unwrap();
    }
    assert_eq!(site.restored(&reader(), 2).unwrap(), points[1].1);
}

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden_sealed");

/// What the golden vault's disk holds: a page of noise, a page of zeroes, pages of text.
fn golden_content() -> Vec<u8> {
    let mut content = vec![0; 16 << 10];
    fastrand::Rng::with_seed(16).fill(&mut content[..4096]);
    content[8192..].chunks_mut(MARKER.len()).for_each(|at| at.copy_from_slice(&MARKER[..at.len()]));
    content
}

/// A vault that an earlier version wrote is still read. To make it again: BACKSTAY_MAKE_GOLDEN=1.
#[test]
fn the_golden_vault_is_still_read() {
    let content = golden_content();
    if std::env::var_os("BACKSTAY_MAKE_GOLDEN").is_some() {
        fs::remove_dir_all(GOLDEN).ok();
        let (vault, keyring) =
            Vaults::default().create_encrypted(GOLDEN, "golden", &new_slot(1)).unwrap();
        let hard = Hardness { memory_kib: 64, passes: 1, lanes: 2 };
        let words = NewSlot::Passphrase(Zeroizing::new("correct horse".to_owned()), hard);
        let (_, opened) = Vaults::default()
            .with_keys(with_key(&key_file(&std::env::temp_dir(), "golden", 1)))
            .open(GOLDEN)
            .unwrap()
            .open_keyring()
            .unwrap();
        let (keyring, _) = keyring.with_slot(&opened, "words", &words).unwrap();
        let (keyring, _) = keyring.rotated(opened).unwrap();
        vault.put_keyring(&keyring).unwrap();
        let lab = Lab::with(tempfile::tempdir().unwrap(), vault, content.len() as u64);
        lab.cycle(None, &content, &[lab.whole()]).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(GOLDEN).arg(dir.path()).status();
    assert!(copied.unwrap().success());
    let url = dir.path().join("golden_sealed").to_str().unwrap().to_owned();
    let key = key_file(dir.path(), "key", 1);
    let words = key_file(dir.path(), "words", b'x');
    fs::write(&words, "correct horse\n").unwrap();
    let by_words = KeySettings { passphrase_file: Some(words), ..KeySettings::default() };
    for settings in [with_key(&key), by_words] {
        let vault = Vaults::default().with_keys(settings).open(&url).unwrap();
        let disk = vault.disks().unwrap()[0].disk;
        let point = vault.manifest(disk, CycleNo(1)).unwrap();
        let target = Memory::new(point.size);
        backstay_vault::read::restore(&vault, &point, &target, 1, &|_, _| {}).unwrap();
        assert!(target.bytes() == content);
    }
}

/// Settings of a host that has this writer's key.
fn with_writer(site: &Site, name: &str) -> (KeySettings, [u8; 32]) {
    use std::os::unix::fs::PermissionsExt;
    let key = site.open("1").new_writer(name).unwrap();
    let path = site.keys.path().join(name);
    fs::write(&path, backstay_vault::format::document::encode(&key).unwrap()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    (KeySettings { writer_file: Some(path), ..KeySettings::default() }, key.public().unwrap())
}

/// What a store, or anyone who has its credentials, makes up: terms that shut a source out, holds that keep points for ever,
/// names that lead to another disk, verdicts.
#[test]
fn documents_that_nobody_signed_who_may_count_for_nothing() {
    use backstay_vault::format::document::encode;
    use backstay_vault::retain::HoldRequest;
    use backstay_vault::{HoldKind, HoldRecord, NameRecord, TermRecord};
    let site = Site::new();
    site.history();
    let (disk, root) = (site.lab.disk, site.lab.dir.path());
    let folder = root.join("disks").join(disk.to_string());
    let term = |n: u64| folder.join("terms").join(format!("{n:020}"));
    let right = site.open("1").newest_term(disk).unwrap().unwrap();
    let number = right.term.0;
    // Made up, and the true one under another number.
    let forged = TermRecord {
        disk: None,
        term: right.term.next(),
        writer: "mallory".into(),
        since_unix_ns: 1,
        from: None,
    };
    let moved = fs::read(term(number)).unwrap();
    for bytes in [encode(&forged).unwrap(), moved.clone()] {
        fs::write(term(number + 1), bytes).unwrap();
        let seen = site.open("1").newest_term(disk);
        assert!(matches!(seen, Err(VaultError::Forged { .. })), "{seen:?}");
        assert!(reason(site.open("1").claim_term(disk, "db1")).contains("does not count"));
    }
    fs::remove_file(term(number + 1)).unwrap();
    // Without its signature, and with one bit of it changed.
    let text = String::from_utf8(moved.clone()).unwrap();
    let mut bare: serde_json::Value = serde_json::from_str(&text).unwrap();
    bare.as_object_mut().unwrap().remove("signature").expect("it is signed");
    let at = text.find("signature").unwrap();
    for at in [at + 2, at + 20, at + 100, at + 330] {
        let mut bad = moved.clone();
        bad[at] ^= 1;
        fs::write(term(number), bad).unwrap();
        assert!(site.open("1").newest_term(disk).unwrap_err().is_damage(), "byte {at}");
    }
    fs::write(term(number), bare.to_string()).unwrap();
    assert!(reason(site.open("1").newest_term(disk)).contains("not signed"));
    fs::write(term(number), &moved).unwrap();
    assert_eq!(site.open("1").newest_term(disk).unwrap(), Some(right));

    // A hold that nobody signed holds nothing, and does not keep those that are true from being taken.
    let name: backstay_vault::HoldName = "mine".parse().unwrap();
    let hold = HoldRecord {
        disk: None,
        name: name.clone(),
        version: 7,
        kind: HoldKind::Pin,
        holder: "mallory".into(),
        reason: String::new(),
        first_cycle: CycleNo(1),
        last_cycle: CycleNo(2),
        since_unix_ns: 1,
        until_unix_ns: None,
    };
    fs::create_dir_all(folder.join("holds")).unwrap();
    fs::write(folder.join(format!("holds/{:020}-mine", 7)), encode(&hold).unwrap()).unwrap();
    assert_eq!(site.open("1").holds(disk).unwrap(), []);
    let request = HoldRequest {
        name,
        kind: HoldKind::Read,
        holder: "ours".into(),
        reason: String::new(),
        first_cycle: CycleNo(1),
        last_cycle: CycleNo(1),
        until_unix_ns: None,
    };
    site.open("1").hold(disk, &request).unwrap();
    let holds = site.open("1").holds(disk).unwrap();
    assert_eq!(holds.iter().map(|hold| hold.holder.as_str()).collect::<Vec<_>>(), ["ours"]);

    // A name that leads to another disk.
    let db: backstay_types::DiskName = "other".parse().unwrap();
    let record = NameRecord {
        name: db.clone(),
        number: None,
        disk,
        change: 0,
        renamed_to: None,
        since_unix_ns: 1,
    };
    let file = root.join(ObjectKey::Name("other".parse().unwrap(), 1).to_string());
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, encode(&record).unwrap()).unwrap();
    let seen = site.open("1").name_record(&db);
    assert!(matches!(seen, Err(VaultError::Forged { .. })), "{seen:?}");
}

/// An older vault: its documents count as they are, and from the day on that is said, only those.
#[test]
fn documents_of_before_count_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(GOLDEN).arg(dir.path()).status();
    assert!(copied.unwrap().success());
    let root = dir.path().join("golden_sealed");
    let key = key_file(dir.path(), "key", 1);
    let open = || Vaults::default().with_keys(with_key(&key)).open(root.to_str().unwrap()).unwrap();
    let disk = open().disks().unwrap()[0].disk;
    let before = open().newest_term(disk).unwrap().unwrap();
    let terms = root.join("disks").join(disk.to_string()).join("terms");
    let text = |n: u64| fs::read_to_string(terms.join(format!("{n:020}"))).unwrap();
    assert!(!text(before.term.0).contains("signature"));
    assert!(open().sign_documents().unwrap());
    assert!(!open().sign_documents().unwrap(), "they are");
    assert_eq!(open().newest_term(disk).unwrap().as_ref(), Some(&before));
    let next = open().claim_term(disk, "db1").unwrap();
    assert!(text(next.term.0).contains("signature"));
    assert_eq!(open().newest_term(disk).unwrap().as_ref(), Some(&next));
    // The list of what was there, changed or gone: nothing is believed.
    let keys = fs::read_dir(root.join("keys")).unwrap().map(|entry| entry.unwrap().path());
    let list = keys.into_iter().find(|p| p.to_str().unwrap().contains("bounds-")).unwrap();
    let right = fs::read_to_string(&list).unwrap();
    fs::write(&list, right.replace("terms", "holds")).unwrap();
    assert!(reason(open().terms(disk)).contains("is not what its name says"));
    fs::write(&list, right).unwrap();
    fs::write(terms.join(format!("{:020}", next.term.0 + 1)), text(before.term.0)).unwrap();
    assert!(matches!(open().newest_term(disk), Err(VaultError::Forged { .. })));
}

/// A source that was stolen with its key: shut out, with nothing encrypted again.
#[test]
fn a_writer_that_was_removed_counts_for_what_it_wrote_before() {
    let site = Site::new();
    let (points, mut content) = site.history();
    let disk = site.lab.disk;
    let (stolen, stolen_id) = with_writer(&site, "db1");
    let lab_of = |settings: &KeySettings| Lab {
        vault: Vaults::default().with_keys(settings.clone()).open(site.url()).unwrap(),
        dir: tempfile::tempdir().unwrap(),
        disk,
        size: site.lab.size,
    };
    let mut cycle = |lab: &Lab, before: &Manifest, byte: u8| {
        content[4000 * 512..4100 * 512].fill(byte);
        let made = lab.cycle(Some(before), &content, &[SectorRange::new(4000, 4100)]);
        made.map(|point| (point, content.clone()))
    };
    // Its process runs on: it has looked a moment ago, and does not ask whether it may.
    let thief = lab_of(&stolen);
    let (third, at_third) = cycle(&thief, &points[1].0, b'3').unwrap();
    site.open("1").remove_writer(&stolen_id, "db1").unwrap();
    assert!(reason(site.open("1").remove_writer(&stolen_id, "db1")).contains("removed before"));
    // What it wrote before is read as ever.
    let all: Vec<CycleNo> = (1..4).map(CycleNo).collect();
    verify_points(&site.open("1"), disk, &all, 2, &|_, _| {}).unwrap();
    assert_eq!(site.restored(&site.open("1"), 3).unwrap(), at_third);
    // What it writes now nobody takes: not who stands before the vault, nor who reads it.
    let (_, _) = cycle(&thief, &third, b'4').unwrap();
    let key = Piece::Point(CycleNo(4)).of(disk);
    let file = site.lab.dir.path().join(key.to_string());
    let bytes = fs::read(&file).unwrap();
    let none = Vaults::default().with_keys(KeySettings::default()).open(site.url()).unwrap();
    for refused in
        [none.check_arriving(&key, &bytes).err(), site.restored(&site.open("1"), 4).err()]
    {
        let text = refused.expect("it is removed").to_string();
        assert!(text.contains("removed from the vault"), "{text}");
    }
    // Nor a hold of an old version, whose number was never used.
    let hold = backstay_vault::retain::HoldRequest {
        name: "back".parse().unwrap(),
        kind: backstay_vault::HoldKind::Read,
        holder: "thief".into(),
        reason: String::new(),
        first_cycle: CycleNo(1),
        last_cycle: CycleNo(1),
        until_unix_ns: None,
    };
    thief.vault.hold(disk, &hold).unwrap();
    assert_eq!(site.open("1").holds(disk).unwrap(), []);
    // An honest one that is started again says so, before it ships a byte.
    let honest = lab_of(&stolen);
    let refused = cycle(&honest, &third, b'5').unwrap_err();
    assert_eq!((refused.class(), refused.may_pass()), (Class::Person, false));
    assert!(refused.to_string().contains("writer's key was removed"), "{refused}");
    // With a new key the host goes on, over what is thrown away.
    fs::remove_file(&file).unwrap();
    let (fresh, _) = with_writer(&site, "db1-again");
    let (_, at_fourth) = cycle(&lab_of(&fresh), &third, b'6').unwrap();
    assert_eq!(site.restored(&site.open("1"), 4).unwrap(), at_fourth);
    let known: Vec<_> = site.open("1").writers().unwrap();
    assert_eq!(known.iter().map(|w| w.label.as_str()).collect::<Vec<_>>(), ["db1", "db1-again"]);
}

/// Every byte of every segment, point and keyring: changed, it is either seen or says the same as before.
#[test]
fn no_flipped_bit_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp").arg("-r").arg(GOLDEN).arg(dir.path()).status();
    assert!(copied.unwrap().success());
    let root = dir.path().join("golden_sealed");
    let key = key_file(dir.path(), "key", 1);
    let disk = Vaults::default()
        .with_keys(with_key(&key))
        .open(root.to_str().unwrap())
        .unwrap()
        .disks()
        .unwrap()[0]
        .disk;
    let content = golden_content();
    let mut objects = vec![];
    common_walk(&root, &mut objects);
    let (mut seen, mut same) = (0, 0);
    for path in objects {
        let name = path.to_str().unwrap().to_owned();
        let points = name.contains("/points/");
        if !(points || name.contains("/segments/") || name.contains("/keys/")) {
            continue;
        }
        let right = fs::read(&path).unwrap();
        let step = if points || std::env::var_os("BACKSTAY_TEST_LONG").is_some() { 1 } else { 7 };
        for at in (0..right.len()).step_by(step) {
            let mut bad = right.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            let restored = Vaults::default()
                .with_keys(with_key(&key))
                .open(root.to_str().unwrap())
                .and_then(|vault| {
                    let point = vault.manifest(disk, CycleNo(1))?;
                    let target = Memory::new(point.size);
                    backstay_vault::read::restore(&vault, &point, &target, 1, &|_, _| {})?;
                    Ok(target.bytes())
                });
            match restored {
                Ok(bytes) => {
                    assert!(bytes == content, "{name}: byte {at}");
                    assert!(!points, "{name}: byte {at} of a point says nothing?");
                    same += 1;
                }
                Err(_) => seen += 1,
            }
        }
        fs::write(&path, &right).unwrap();
    }
    // White space and the older revision of the keyring; a restore does not look at a segment's header.
    println!("{seen} seen, {same} without effect");
    assert!(seen > 500 && same < seen, "{seen} {same}");
}

fn common_walk(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { common_walk(&path, found) } else { found.push(path) }
    }
}

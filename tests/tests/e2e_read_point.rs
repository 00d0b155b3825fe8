//! `scripts/read_point.py`, written from docs/explanation/format-vault.md alone, gets back what `backstay restore`
//! does, byte for byte, and refuses what is damaged.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, python3-zstandard.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::hash;
use backstay_tests::harness::seed::seed;
use backstay_tests::harness::{Disk, FsMount, Host, must};

const MIB: u64 = 1 << 20;
/// Objects of each kind that are damaged in the short form.
const OF_EACH_KIND: u32 = 2;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn try_read_point(host: &Host, args: &[&str]) -> Output {
    let mut command = Command::new(repository().join("scripts/read_point.py"));
    command.arg(host.vault()).args(args);
    let output = command.output().expect("scripts/read_point.py starts");
    let said = said(&output);
    assert!(!said.contains("No module named"), "{said}: run scripts/setup");
    assert!(!said.contains("Traceback"), "{args:?}: {said}");
    output
}

fn read_point(host: &Host, args: &[&str]) -> String {
    let output = try_read_point(host, args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What the script lists of a disk's points, the way `backstay points` does.
fn cycles(host: &Host, disk: &str) -> Vec<u64> {
    let listed = read_point(host, &[disk, "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    listed.as_array().unwrap().iter().map(|point| point["cycle"].as_u64().unwrap()).collect()
}

/// Each point both ways; they must be the same.
fn same_points(disk: &Disk) {
    let host = &disk.host;
    let points: Vec<u64> = disk.points().iter().map(|point| point.cycle).collect();
    assert_eq!(cycles(host, &disk.name), points);
    let theirs = host.path("read_point.img");
    for cycle in points {
        let ours = disk.restore(cycle, "restored.img");
        read_point(
            host,
            &[&disk.name, "--point", &cycle.to_string(), "--to", &theirs.to_string_lossy()],
        );
        assert_eq!(hash(&theirs), hash(&ours), "point {cycle}");
        fs::remove_file(&theirs).unwrap();
    }
}

/// An ext4's life: files come, change and go, the disk is trimmed and grown, points are merged, thinned
/// out and pinned.
#[test]
fn every_point_is_the_one_that_backstay_restores() {
    let host = Host::new("read-point");
    let mut rng = fastrand::Rng::with_seed(seed(5));
    let mut noise = |path: &Path, bytes: usize| {
        let mut content = vec![0; bytes];
        rng.fill(&mut content);
        fs::write(path, content).unwrap();
    };
    // Neither size is a whole number of sectors.
    let disk = host.disk("data", 48 * MIB + 1234);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let mut mounted = FsMount::new(&host, &device, "mnt", "rw");
    noise(&mounted.at.join("large"), 8 << 20);
    must("cp", ["-r", &repository().join("docs").to_string_lossy(), &mounted.at.to_string_lossy()]);
    for round in 0..9 {
        noise(&mounted.at.join(format!("small{round}")), 30_000);
        must("sync", ["-f", &mounted.at.to_string_lossy()]);
        disk.cycle();
    }
    // What is trimmed ships as zero extents.
    fs::remove_file(mounted.at.join("large")).unwrap();
    must("fstrim", [&mounted.at]);
    disk.cycle();
    let pinned = disk.points()[2].cycle;
    host.backstay(&["pin", "data", &pinned.to_string(), "--name", "before-growth"]);
    same_points(&disk);

    drop(mounted);
    host.backstay(&["grow", "data", "--size", &(64 * MIB + 700).to_string()]);
    must("e2fsck", ["-fp", &device]);
    must("resize2fs", [&device]);
    mounted = FsMount::new(&host, &device, "mnt", "rw");
    noise(&mounted.at.join("grown"), 12 << 20);
    must("sync", ["-f", &mounted.at.to_string_lossy()]);
    disk.cycle();

    let pruned = host.json(&["prune", "data", "--keep", "last 3"]);
    assert!(pruned["report"]["merged"]["replaced"].as_u64().unwrap() > 0, "{pruned}");
    noise(&mounted.at.join("merged"), 300_000);
    must("sync", ["-f", &mounted.at.to_string_lossy()]);
    disk.cycle();
    // The very end of the disk, which the file system does not use.
    let served = OpenOptions::new().write(true).open(disk.served()).unwrap();
    served.write_all_at(&[0xA5; 700], 64 * MIB).unwrap();
    served.sync_all().unwrap();
    disk.cycle();
    assert!(cycles(&host, "data").contains(&pinned));
    assert_eq!(cycles(&host, "data").len(), 6);
    same_points(&disk);

    // As a stream, and under another name.
    let image = host.path("streamed.img");
    let script = repository().join("scripts/read_point.py");
    let stream =
        format!("'{}' '{}' data --to - >'{}'", script.display(), host.vault(), image.display());
    must("sh", ["-c", &stream]);
    assert_eq!(hash(&image), hash(&disk.restore(disk.points()[5].cycle, "restored.img")));
    let listed = read_point(&host, &[]);
    assert!(listed.contains("data") && listed.contains(&(64 * MIB + 700).to_string()), "{listed}");
    let none = try_read_point(&host, &["other"]);
    assert_eq!(none.status.code(), Some(1), "{}", said(&none));
}

/// The files below a folder of a vault.
fn objects(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(objects(&path));
        } else if !path.to_string_lossy().contains('#') {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn damage_is_refused() {
    let host = Host::new("read-point-damage");
    let mut rng = fastrand::Rng::with_seed(seed(5));
    let disk = host.disk("data", 4 * MIB);
    let served = disk.mount(&[]);
    let file = OpenOptions::new().write(true).open(served).unwrap();
    let mut write = || {
        let mut bytes = vec![0; 100_000];
        rng.fill(&mut bytes);
        // Something that compresses, too.
        bytes[20_000..50_000].fill(7);
        file.write_all_at(&bytes, rng.u64(..3 * MIB)).unwrap();
        file.sync_all().unwrap();
        disk.cycle();
    };
    for _ in 0..3 {
        write();
    }
    host.backstay(&["pin", "data", "1", "--name", "first"]);
    host.backstay(&["prune", "data", "--keep", "last 1"]);
    // Takes over what was merged; so every segment is of a point.
    write();
    let vault = host.path("vault");
    let group = vault.join("groups/shop/points/00000000000000000007");
    fs::create_dir_all(group.parent().unwrap()).unwrap();
    fs::copy(repository().join("sidecar/vault/tests/golden/group-point.json"), &group).unwrap();

    let image = host.path("image");
    let to = image.to_string_lossy().into_owned();
    let restored =
        |point: &str| try_read_point(&host, &["data", "--point", point, "--to", &to, "--force"]);
    let points: Vec<String> = disk.points().iter().map(|point| point.cycle.to_string()).collect();
    assert_eq!(points, ["1", "3", "4"]);
    let right: Vec<String> = points
        .iter()
        .map(|point| {
            assert!(restored(point).status.success());
            hash(&image)
        })
        .collect();
    assert!(try_read_point(&host, &["--groups"]).status.success());

    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let mut kinds = std::collections::BTreeMap::new();
    // Of the ledger the newest revision holds; the one before it is a left-over that nobody reads.
    let mut all = objects(&vault);
    let ledgers: Vec<PathBuf> =
        all.iter().filter(|path| path.to_string_lossy().contains("/ledger/")).cloned().collect();
    all.retain(|path| !ledgers.contains(path) || ledgers.last() == Some(path));
    // Marks beside held points are for who deletes: no reader looks at them.
    all.retain(|path| !path.to_string_lossy().contains("/held/"));
    for object in all {
        let key = object.strip_prefix(&vault).unwrap().to_string_lossy().into_owned();
        let kind = match key.split('/').collect::<Vec<_>>()[..] {
            ["disks", _, kind, ..] => kind.to_owned(),
            [kind, ..] => kind.to_owned(),
            [] => unreachable!(),
        };
        let seen = kinds.entry(kind.clone()).or_insert(0);
        *seen += 1;
        if *seen > OF_EACH_KIND && !long {
            continue;
        }
        let whole = fs::read(&object).unwrap();
        let mut places = vec![0, whole.len() - 1, whole.len() / 2];
        places.extend((0..2).map(|_| rng.usize(..whole.len())));
        if kind == "segments" {
            // Header, frames, index, footer.
            places.extend([20, 40, 64, 65, whole.len() - 129, whole.len() - 100, whole.len() - 20]);
        }
        for place in places {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << rng.u32(..8);
            fs::write(&object, &damaged).unwrap();
            let _ = fs::remove_file(&image);
            // A point that does not need the object is restored; then it is whole.
            let refused = |output: Output| match output.status.code() {
                Some(1) => true,
                _ => {
                    assert!(output.status.success(), "{key}, byte {place}: {}", said(&output));
                    assert!(
                        !image.exists() || right.contains(&hash(&image)),
                        "{key}, byte {place}"
                    );
                    false
                }
            };
            let seen = match kind.as_str() {
                "groups" => refused(try_read_point(&host, &["--groups"])),
                "terms" => refused(try_read_point(&host, &["data"])),
                _ => points.iter().any(|point| refused(restored(point))),
            };
            // What changes only how an index is compressed, and nothing in it, may pass.
            if !seen {
                assert_eq!(kind, "segments", "{key}, byte {place}");
                let footer = whole.len() - 128;
                let index = u64::from_le_bytes(whole[footer + 48..footer + 56].try_into().unwrap());
                assert!((index as usize..footer).contains(&place), "{key}, byte {place}");
            }
        }
        fs::write(&object, &whole).unwrap();
    }
    let kinds: Vec<&str> = kinds.keys().map(String::as_str).collect();
    let all = [
        "disk.json",
        "groups",
        "holds",
        "ledger",
        "names",
        "points",
        "segments",
        "terms",
        "vault.json",
    ];
    assert_eq!(kinds, all);
}

/// A library that is not installed is named with the package that brings it, and nothing is done.
#[test]
fn a_missing_library_is_a_sentence() {
    let host = Host::new("read-point-library");
    let scripts = repository().join("scripts");
    for (library, package, code) in [
        ("zstandard", "python3-zstandard", "import read_point"),
        ("cryptography", "python3-cryptography", "import read_point; read_point.sealed()"),
        ("argon2", "python3-argon2", "import read_point; read_point.sealed()"),
    ] {
        let shadow = host.path(&format!("{library}.py"));
        fs::write(&shadow, "import nowhere_to_be_found\n").unwrap();
        let paths = format!("{}:{}", host.dir.display(), scripts.display());
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-B", "-c", code]).env("PYTHONPATH", paths);
        let output = python.output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{library}: {said}");
        let named = said.contains(package) && said.contains("apt install");
        assert!(named && !said.contains("Traceback"), "{library}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{library}: {said}");
        fs::remove_file(shadow).unwrap();
    }
}

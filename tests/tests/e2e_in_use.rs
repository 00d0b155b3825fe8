//! Nothing in use is overwritten, and nothing half written is taken for a disk.
//!
//! Needs root, /dev/fuse, loop devices, swap, qemu-utils (`scripts/setup test`).

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backstay_host::clock;
use backstay_host::kill_point::DIE_AT;
use backstay_tests::harness::command::{must, run, said};
use backstay_tests::harness::host::hash;
use backstay_tests::harness::{Disk, Host};

const SIZE: u64 = 24 << 20;

/// A new mount namespace has copies of all mounts, also of those of other tests.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A disk with one point, not served any more.
fn with_point(host: &Arc<Host>) -> Disk {
    let disk = host.disk("db", SIZE);
    must("mkfs.ext4", ["-q", &text(&disk.backing)]);
    disk.mount(&[]);
    disk.cycle();
    host.backstay(&["umount", "db"]);
    disk
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    assert_eq!(output.status.code(), Some(3), "{}", said(output));
    for word in words {
        assert!(said(output).contains(word), "{word:?} is missing: {}", said(output));
    }
}

/// What must not be overwritten, whatever `--force` says, and is neither imported nor served.
#[track_caller]
fn is_untouchable(host: &Host, path: &Path, words: &[&str]) {
    let before = hash(path);
    let to = text(path);
    let restore = ["restore", "db", "--point", "1", "--to", &to, "--force"];
    refused(&host.try_backstay(&restore), &[words, &["disk db: cannot restore: "]].concat());
    if path.is_file() {
        let export = ["export", "db", "--point", "1", "--to", &to, "--force"];
        refused(&host.try_backstay(&export), words);
    }
    refused(&host.try_backstay(&["import", &to, "--name", "other"]), words);
    let (standby, vault) = (host.another("in-use-standby"), host.vault());
    let replica = ["replica", "db", "--to", &to, "--once", "--force", "--vault", &vault];
    refused(&standby.try_backstay(&replica), words);
    refused(&host.try_backstay(&["move", "db", "--to", &to, "--force"]), words);
    refused(&host.try_backstay(&["mount", &to, "--name", "second"]), &[]);
    let protect = host.try_backstay(&["protect", &to, "--name", "second", "--check"]);
    assert_ne!(protect.status.code(), Some(0), "{}", said(&protect));
    assert_eq!(hash(path), before, "nothing was written");
}

fn process(program: &str, args: &[&str], ready: &str, begin: &[u8]) -> Child {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(begin).unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains(ready), "{program}: {first}");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn files_in_use_are_left_alone() {
    let _alone = alone();
    let host = Host::new("in-use-file");
    with_point(&host);

    // The backing of a disk that is served by another state directory's driver, mounted or idle.
    let other = host.another("in-use-other");
    let served = other.disk("web", SIZE);
    served.mount(&[]);
    is_untouchable(&host, &served.backing, &["served as disk web by process"]);
    let device = served.attach();
    must("mkfs.ext4", ["-q", &device]);
    is_untouchable(&host, &served.backing, &["served as disk web by process"]);
    // The served file, and an idle device on it.
    let file = served.served();
    let to = text(&file);
    refused(&host.try_backstay(&["import", &to, "--name", "x"]), &["served as disk web"]);
    refused(&host.try_backstay(&["import", &device, "--name", "x"]), &["served as disk web"]);
    let restore = ["restore", "db", "--point", "1", "--to", &to, "--force"];
    refused(&host.try_backstay(&restore), &["served as disk web"]);
    other.backstay(&["detach", "web"]);

    // Below a plain loop device, mounted or not.
    let plain = host.path("plain.img");
    File::create(&plain).unwrap().set_len(SIZE).unwrap();
    let device = must("losetup", ["--find", "--show", &text(&plain)]).trim().to_owned();
    is_untouchable(&host, &plain, &[&format!("{device} is attached to it")]);
    must("mkfs.ext4", ["-q", &device]);
    let at = host.path("mnt");
    fs::create_dir(&at).unwrap();
    // Read-only, so that the file system itself writes nothing.
    must("mount", ["-o", "ro", &device, &text(&at)]);
    is_untouchable(&host, &plain, &[&format!("mounted at {}", at.display())]);
    // Only in another mount namespace.
    let script = format!("mount -o ro {device} {} && echo ready && read x", at.display());
    must("umount", [&at]);
    let child = process("unshare", &["-m", "sh", "-c", &script], "ready", b"");
    is_untouchable(&host, &plain, &["mounted at", "in mount namespace", "(sh)"]);
    is_untouchable(&host, Path::new(&device), &["in mount namespace"]);
    end(child);
    must("losetup", ["-d", &device]);

    // Open in QEMU, in a writer, and locked.
    let qemu = process("qemu-io", &["-f", "raw", &text(&plain)], "read 512", b"read 0 512\n");
    is_untouchable(&host, &plain, &["(qemu-io)", "open for writing and locked"]);
    end(qemu);
    let reader =
        process("qemu-io", &["-r", "-f", "raw", &text(&plain)], "read 512", b"read 0 512\n");
    is_untouchable(&host, &plain, &["(qemu-io)", "locked"]);
    end(reader);
    let writer = format!("exec 9<>{}; echo ready; read x", text(&plain));
    let writer = process("sh", &["-c", &writer], "ready", b"");
    is_untouchable(&host, &plain, &["(sh)", "open for writing"]);
    end(writer);

    // Nobody uses it any more.
    host.backstay(&["restore", "db", "--point", "1", "--to", &text(&plain), "--force"]);
}

#[test]
fn devices_in_use_are_left_alone() {
    let _alone = alone();
    let host = Host::new("in-use-device");
    with_point(&host);
    let plain = host.path("plain.img");
    File::create(&plain).unwrap().set_len(4 * SIZE).unwrap();
    let device = must("losetup", ["--find", "--show", "-P", &text(&plain)]).trim().to_owned();
    must("addpart", [&device, "1", "2048", "65536"]);
    let part = format!("{device}p1");
    must("mkswap", ["-q", &part]);
    must("swapon", [&part]);
    for path in [&part, &device] {
        is_untouchable(&host, Path::new(path), &[&format!("{part} is used as swap")]);
    }
    must("swapoff", [&part]);
    // A partition of a device that is served.
    let other = host.another("in-use-part");
    let served = other.disk("web", SIZE);
    run("rm", [&served.backing]);
    other.backstay(&["mount", &device, "--name", "web"]);
    is_untouchable(&host, Path::new(&part), &["served as disk web"]);
    is_untouchable(&host, Path::new(&device), &["served as disk web"]);
    other.backstay(&["umount", "web"]);
    must("delpart", [&device, "1"]);
    // A second device on the same file.
    let second = must("losetup", ["--find", "--show", &text(&plain)]).trim().to_owned();
    must("mkfs.ext4", ["-q", &device]);
    let at = host.path("mnt");
    fs::create_dir(&at).unwrap();
    must("mount", ["-o", "ro", &device, &text(&at)]);
    is_untouchable(&host, Path::new(&second), &[&format!("{device} is mounted at")]);
    must("umount", [&at]);
    must("losetup", ["-d", &second]);
    host.backstay(&["restore", "db", "--point", "1", "--to", &device, "--force"]);
    must("losetup", ["-d", &device]);
}

/// Signals a command as soon as there is a part. One that was quicker is run again.
fn interrupted(host: &Host, args: &[&str], part: &Path, signal: &str) -> Output {
    for _ in 0..20 {
        let mut command = host.command();
        command.args(args).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        while !part.exists() && child.try_wait().unwrap().is_none() {
            clock::sleep(std::time::Duration::from_millis(1));
        }
        run("kill", [signal, &child.id().to_string()]);
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return output;
        }
    }
    panic!("it was always quicker than the signal");
}

#[test]
fn a_restore_to_a_file_takes_effect_at_once_or_not_at_all() {
    let _alone = alone();
    let host = Host::new("restore-file");
    let size = 700 << 20;
    let disk = host.disk("db", size);
    let file = OpenOptions::new().write(true).open(&disk.backing).unwrap();
    let mut rng = fastrand::Rng::with_seed(11);
    for at in 0..28 {
        let mut block = vec![0; 600_000];
        rng.fill(&mut block);
        file.write_all_at(&block, at * (25 << 20)).unwrap();
    }
    drop(file);
    fs::write(
        host.path("backstay.toml"),
        format!("vault = \"{}\"\n[ship]\nsegment_size = \"1MiB\"\n", host.vault()),
    )
    .unwrap();
    disk.mount(&[]);
    disk.cycle();
    host.backstay(&["umount", "db"]);
    let whole = hash(&disk.backing);

    let to = host.path("out.img");
    let part = host.path("out.img.backstay-part");
    fs::write(&to, b"what was here before").unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&to, Some(33), Some(33)).unwrap();
    let args = ["restore", "db", "--point", "1", "--to", &text(&to), "--force"];
    let die = |step: &str| {
        let mut command = host.command();
        let status = command
            .args(args)
            .env(DIE_AT, format!("restore:{step}"))
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().code().is_none(), "killed at step {step}");
        assert_eq!(fs::read(&to).unwrap(), b"what was here before");
        assert!(part.exists());
    };
    // Killed with something done: the next one goes on there.
    die("1");
    let done = host.json(&args);
    let resumed = done["resumed_bytes"].as_u64().unwrap();
    assert!(resumed > 0 && resumed < size, "{done}");
    assert_eq!(hash(&to), whole);
    let meta = fs::metadata(&to).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (33, 33, 0o640));
    assert!(!part.exists());
    // A part of another point is not gone on with.
    fs::write(&to, b"what was here before").unwrap();
    die("1");
    let served = disk.mount(&[]);
    OpenOptions::new()
        .write(true)
        .open(served)
        .unwrap()
        .write_all_at(&[9; 4096], 77 << 20)
        .unwrap();
    disk.cycle();
    host.backstay(&["umount", "db"]);
    let newer = host.json(&["restore", "db", "--point", "2", "--to", &text(&to), "--force"]);
    assert_eq!(newer["resumed_bytes"], 0);
    assert_eq!(hash(&to), hash(&disk.backing));
    // A note that is damaged counts for nothing.
    fs::write(&to, b"what was here before").unwrap();
    die("1");
    let file = OpenOptions::new().write(true).read(true).open(&part).unwrap();
    file.write_all_at(b"9", size + 17).unwrap();
    drop(file);
    assert_eq!(host.json(&args)["resumed_bytes"], 0);
    assert_eq!(hash(&to), whole);

    // Ended by a signal: nothing is left, and it says so.
    for signal in ["-INT", "-TERM"] {
        fs::write(&to, b"what was here before").unwrap();
        let output = interrupted(&host, &args, &part, signal);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        for word in ["stopped", "is as it was", "nothing is left"] {
            assert!(said(&output).contains(word), "{}", said(&output));
        }
        assert_eq!(fs::read(&to).unwrap(), b"what was here before");
        assert!(!part.exists());
    }

    // A link leads to its file; one that leads nowhere is no place.
    let (link, nowhere) = (host.path("link.img"), host.path("nowhere.img"));
    std::os::unix::fs::symlink(&to, &link).unwrap();
    host.backstay(&["restore", "db", "--point", "1", "--to", &text(&link), "--force"]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(hash(&to), whole);
    fs::remove_file(&to).unwrap();
    std::os::unix::fs::symlink(host.path("gone.img"), &nowhere).unwrap();
    for verb in ["restore", "export"] {
        let to = text(&nowhere);
        let dangling = [verb, "db", "--point", "1", "--to", &to, "--force"];
        refused(&host.try_backstay(&dangling), &["symbolic link", "does not exist"]);
        assert!(!host.path("gone.img").exists());
    }
}

#[test]
fn a_device_is_marked_until_it_is_whole() {
    let _alone = alone();
    let host = Host::new("restore-device");
    let disk = with_point(&host);
    let whole = hash(&disk.backing);
    let plain = host.path("plain.img");
    File::create(&plain).unwrap().set_len(SIZE).unwrap();
    must("mkfs.ext4", ["-q", &text(&plain)]);
    let device = must("losetup", ["--find", "--show", &text(&plain)]).trim().to_owned();
    let args = ["restore", "db", "--point", "1", "--to", &device, "--force"];
    // The body is there; then all but the first block.
    for step in ["0", "1"] {
        let mut command = host.command();
        let status = command.args(args).env(DIE_AT, format!("restore:{step}")).status().unwrap();
        assert!(status.code().is_none(), "killed at step {step}");
        let words = ["holds only a part of recovery point 1 of disk db"];
        for verb in ["mount", "attach"] {
            refused(&host.try_backstay(&[verb, &device, "--name", "new"]), &words);
        }
        let check = host.try_backstay(&["protect", &device, "--name", "new", "--check"]);
        assert_ne!(check.status.code(), Some(0));
        assert!(said(&check).contains(words[0]), "{}", said(&check));
        refused(&host.try_backstay(&["import", &device, "--name", "new"]), &["unfinished restore"]);
        // Until the last block nobody else takes it for a disk either.
        let blkid = said(&run("blkid", ["-p", &device]));
        assert!(step == "1" || !blkid.contains("ext4"), "{blkid}");
    }
    // Ended by a signal or finished.
    host.backstay(&args);
    assert_eq!(hash(Path::new(&device)), whole);
    must("losetup", ["-d", &device]);
    let other = host.disk("new", 1);
    fs::rename(&plain, &other.backing).unwrap();
    other.mount(&[]);
    host.backstay(&["umount", "new"]);
}

/// A device that a replica or a move has filled by half says so itself, also when nothing else knows of it.
#[test]
fn what_a_replica_or_a_move_did_not_finish_is_marked() {
    let _alone = alone();
    let host = Host::new("half-written");
    let disk = with_point(&host);
    let target = host.path("target.img");
    File::create(&target).unwrap().set_len(SIZE).unwrap();
    must("mkfs.ext4", ["-q", &text(&target)]);
    let device = must("losetup", ["--find", "--show", &text(&target)]).trim().to_owned();
    let other = host.another("half-written-there");
    // One segment is damaged: the replica fails in the middle.
    let folder = fs::read_dir(host.path("vault/disks")).unwrap().next().unwrap().unwrap().path();
    let segments = fs::read_dir(folder.join("segments")).unwrap();
    let segment = segments
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| fs::metadata(path).unwrap().len());
    let segment = segment.unwrap();
    let whole = fs::read(&segment).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 3] ^= 1;
    fs::set_permissions(&segment, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&segment, &damaged).unwrap();
    let vault = host.vault();
    let replica = ["replica", "db", "--vault", &vault, "--once"];
    let begin = [&replica[..], &["--to", &device, "--force", "--seed", "full"]].concat();
    let output = other.try_backstay(&begin);
    assert!(!output.status.success(), "{}", said(&output));
    println!("{}", said(&output));
    let marked = |device: &str, words: &[&str]| {
        for verb in ["mount", "attach"] {
            refused(&host.try_backstay(&[verb, device, "--name", "new"]), words);
        }
        let blkid = said(&run("blkid", ["-p", device]));
        assert!(!blkid.contains("ext4"), "{blkid}");
    };
    marked(&device, &["holds only a part of recovery point 1 of disk db", "backstay replica db"]);
    // Finished, it is a disk like any other.
    fs::write(&segment, &whole).unwrap();
    other.backstay(&replica);
    assert_eq!(hash(Path::new(&device)), hash(&disk.backing));
    must("losetup", ["-d", &device]);

    // A move to a device whose ground has no room for it.
    let small = host.path("small");
    fs::create_dir(&small).unwrap();
    must("mount", ["-t", "tmpfs", "-o", "size=4m", "small", &text(&small)]);
    let target = small.join("target.img");
    File::create(&target).unwrap().set_len(SIZE).unwrap();
    let device = must("losetup", ["--find", "--show", &text(&target)]).trim().to_owned();
    let mut noise = vec![0; 8 << 20];
    fastrand::Rng::with_seed(5).fill(&mut noise);
    let served = disk.mount(&[]);
    OpenOptions::new().write(true).open(served).unwrap().write_all_at(&noise, 8 << 20).unwrap();
    host.backstay(&["umount", "db"]);
    let output = host.try_backstay(&["move", "db", "--to", &device, "--force"]);
    assert!(!output.status.success(), "{}", said(&output));
    // Also where nobody knows of the move.
    let words = ["holds only a part of disk db", "moving the disk there was not finished"];
    refused(&other.try_backstay(&["mount", &device, "--name", "new"]), &words);
    must("losetup", ["-d", &device]);
    must("umount", [&small]);
    disk.mount(&[]);
    host.backstay(&["umount", "db"]);
}

/// Parts of vaults, records and configuration of Backstay, and backings of other disks that nobody serves: `--force` overwrites
/// data, never these.
#[test]
fn what_is_backstays_or_another_disks_is_never_overwritten() {
    let host = Host::new("ours");
    let [one, other] = ["one", "other"].map(|name| {
        let disk = host.disk(name, 4 << 20);
        disk.mount(&[]);
        disk.cycle();
        host.backstay(&["umount", name]);
        disk
    });
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let vault = host.path("vault");
    let point = walk(&vault).into_iter().find(|path| text(path).contains("/points/")).unwrap();
    let targets = [
        (vault.join("vault.json"), "part of the vault"),
        (point, "part of the vault"),
        (vault.join("new.img"), "part of the vault"),
        (host.path("state").join("other/protection.json"), "state folder"),
        (host.path("state").join("new.img"), "state folder"),
        (host.runtime.join("new.img"), "runtime folder"),
        (other.backing.clone(), "backing of disk other"),
    ];
    let link = host.path("link.img");
    std::os::unix::fs::symlink(&other.backing, &link).unwrap();
    let before = hash(&other.backing);
    for (to, word) in targets.into_iter().chain([(link, "backing of disk other")]) {
        let to = text(&to);
        let restore = ["restore", "one", "--point", "latest", "--to", &to, "--force"];
        let export = ["export", "one", "--point", "latest", "--to", &to, "--force"];
        let moving = ["move", "one", "--to", &to, "--force"];
        for args in [&restore[..], &export[..], &moving[..]] {
            let refused = host.try_backstay(args);
            assert_eq!(refused.status.code(), Some(3), "{args:?}: {}", said(&refused));
            assert!(said(&refused).contains(word), "{args:?}: {}", said(&refused));
        }
    }
    let standby = ["replica", "copy", "--to", &text(&other.backing), "--once", "--force"];
    let refused = host.try_backstay(&standby);
    assert!(!refused.status.success(), "{}", said(&refused));
    assert_eq!(hash(&other.backing), before);
    // Its own backing is another matter: that is how a disk is brought back.
    let own = text(&one.backing);
    host.backstay(&["restore", "one", "--point", "latest", "--to", &own, "--force"]);
    host.backstay(&["verify", "other"]);
}

/// All files below a folder.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

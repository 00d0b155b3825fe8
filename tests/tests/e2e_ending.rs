//! No command ends a disk under its users, wherever they are; and a driver that hangs has a way
//! out.
//!
//! Needs root, /dev/fuse, loop devices, swap, unshare, qemu-utils (`scripts/setup test`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backstay_host::{clock, fuse_connection};
use backstay_tests::harness::command::{must, run, said};
use backstay_tests::harness::host::{FsMount, backstay, hash, wait_gone};
use backstay_tests::harness::service::wait_for;
use backstay_tests::harness::{Disk, Host};

const SIZE: u64 = 64 << 20;

/// A new mount namespace has copies of all mounts, also of those of other tests.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A process that has said something, and stays until its input is closed.
fn process(program: &str, args: &[&str], begin: &[u8]) -> Child {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(begin).unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
    assert!(!first.is_empty(), "{program} {args:?} ended");
    child
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// A command that must refuse within a few seconds, name the user, and change nothing, now or later.
#[track_caller]
fn refused_in_time(disk: &Disk, args: &[&str], words: &[&str]) -> Output {
    let (pid, began) = (disk.driver_pid(), clock::monotonic());
    let output = disk.host.try_backstay(args);
    assert_eq!(output.status.code(), Some(3), "{args:?}: {}", said(&output));
    assert!(
        clock::monotonic() - began < Duration::from_secs(20),
        "{args:?} took {:?}",
        (clock::monotonic() - began)
    );
    for word in words {
        assert!(said(&output).contains(word), "{word:?} is missing: {}", said(&output));
    }
    assert!(pid.is_some() && disk.driver_pid() == pid, "the driver is as it was");
    output
}

#[test]
fn users_of_every_kind_keep_their_disk() {
    let _alone = alone();
    let host = Host::new("ending");
    let disk = host.disk("db", SIZE);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let detach = ["detach", "db", "--wait", "1s"];
    let umount = ["umount", "db", "--wait", "1s"];

    // An idle device: umount names it, detach takes it away.
    refused_in_time(&disk, &umount, &[&format!("{device} is attached to it")]);

    // A process that reads the device.
    let script = format!("exec 9<{device}; echo ready; read x");
    let reader = process("sh", &["-c", &script], b"");
    let pid = format!("process {} (sh)", reader.id());
    for args in [&detach, &umount] {
        let output = refused_in_time(&disk, args, &[&pid, "Nothing was changed", "--force"]);
        assert!(said(&output).contains("waiting up to"), "{}", said(&output));
    }
    end(reader);

    // Swap.
    must("mkswap", ["-q", &device]);
    must("swapon", [&device]);
    refused_in_time(&disk, &detach, &[&format!("{device} is used as swap")]);
    must("swapoff", [&device]);

    // A mount in another mount namespace alone.
    must("mkfs.ext4", ["-q", "-F", &device]);
    let at = host.path("mnt");
    fs::create_dir(&at).unwrap();
    let script = format!("mount {device} {} && echo ready && read x", at.display());
    let other = process("unshare", &["-m", "sh", "-c", &script], b"");
    let words = ["is mounted at", "in mount namespace", &format!("process {}", other.id()), "(sh)"];
    for args in [&detach[..], &umount, &["detach", "db", "--unmount", "--wait", "1s"]] {
        refused_in_time(&disk, args, &words);
    }
    end(other);

    // Mounted here, too, and used: --unmount names who.
    must("mount", [&device, &text(&at)]);
    let script = format!("cd {}; echo ready; read x", at.display());
    let inside = process("sh", &["-c", &script], b"");
    let unmount = ["detach", "db", "--unmount", "--wait", "1s"];
    refused_in_time(
        &disk,
        &unmount,
        &[&format!("process {} (sh) uses {}", inside.id(), at.display())],
    );
    end(inside);
    host.backstay(&["detach", "db", "--unmount"]);
    assert!(
        disk.driver_pid().is_none()
            && !fs::read_to_string("/proc/mounts").unwrap().contains(&text(&at))
    );

    // QEMU has the file open; a refused umount is not done when it goes.
    let served = disk.mount(&[]);
    let qemu = process("qemu-io", &["-f", "raw", &text(&served)], b"read 0 512\n");
    refused_in_time(&disk, &umount, &["(qemu-io)", "open for writing"]);
    refused_in_time(&disk, &umount, &["(qemu-io)"]);
    end(qemu);
    clock::sleep(Duration::from_millis(500));
    assert!(disk.driver_pid().is_some(), "what was refused is not done later");
    // SIGTERM waits for the last user.
    let qemu = process("qemu-io", &["-f", "raw", &text(&served)], b"read 0 512\n");
    let driver = disk.driver_pid().unwrap();
    for _ in 0..2 {
        must("kill", ["-TERM", &driver.to_string()]);
    }
    refused_in_time(&disk, &umount, &["(qemu-io)"]);
    end(qemu);
    wait_gone(driver);
    assert!(disk.driver_pid().is_none());
}

/// Any user can make a namespace, which copies all mounts: nobody uses the disk there.
#[test]
fn copies_of_the_mount_elsewhere_keep_nobody_waiting() {
    let _alone = alone();
    let host = Host::new("ending-copies");
    let disk = host.disk("db", SIZE);
    for flags in ["-m", "-Urm"] {
        disk.mount(&[]);
        let driver = disk.driver_pid().unwrap();
        let copy = process("unshare", &[flags, "sh", "-c", "echo ready; read x"], b"");
        let began = clock::monotonic();
        host.backstay(&["umount", "db"]);
        assert!(
            clock::monotonic() - began < Duration::from_secs(8),
            "{flags}: {:?}",
            (clock::monotonic() - began)
        );
        wait_gone(driver);
        let device = disk.attach();
        assert_eq!(disk.status()["driver"]["found"], "clean", "{flags}");
        must("dd", ["if=/dev/zero", &format!("of={device}"), "bs=4k", "count=1", "conv=fsync"]);
        host.backstay(&["detach", "db"]);
        end(copy);
    }
}

#[test]
fn a_handover_leaves_a_disk_to_its_users() {
    let _alone = alone();
    let host = Host::new("ending-handover");
    let disk = host.disk("db", SIZE);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    disk.cycle();
    let at = host.path("mnt");
    fs::create_dir(&at).unwrap();
    let script = format!("mount {device} {} && echo ready && read x", at.display());
    let other = process("unshare", &["-m", "sh", "-c", &script], b"");
    let handover = ["failover", "handover", "db"];
    refused_in_time(&disk, &handover, &["in mount namespace", "(sh)"]);
    refused_in_time(&disk, &["failover", "handover", "db", "--unmount"], &["in mount namespace"]);
    end(other);
    host.backstay(&handover);
}

#[test]
fn force_says_what_is_lost_and_ends_it() {
    let _alone = alone();
    let host = Host::new("ending-force");
    let disk = host.disk("db", SIZE);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", &device]);
    let at = host.path("mnt");
    fs::create_dir(&at).unwrap();
    must("mount", [&device, &text(&at)]);
    let driver = disk.driver_pid().unwrap();
    let output = host.try_backstay(&["detach", "db", "--force"]);
    assert!(output.status.success(), "{}", said(&output));
    for word in ["is mounted at", "lost", "I/O errors"] {
        assert!(said(&output).contains(word), "{}", said(&output));
    }
    wait_gone(driver);
    run("umount", ["-l", &text(&at)]);
    // All that was acknowledged is there.
    disk.mount(&[]);
    disk.cycle();
    assert_eq!(hash(&disk.restore(1, "back.img")), hash(&disk.backing));
    host.backstay(&["umount", "db"]);
}

#[test]
fn a_driver_that_hangs_is_named_and_ended_in_time() {
    let _alone = alone();
    let host = Host::new("ending-hung");
    let disk = host.disk("db", SIZE);
    let device = disk.attach();
    let driver = disk.driver_pid().unwrap();
    let writer = process("qemu-io", &["-f", "raw", &device], b"read 0 512\n");
    // What is written and not synced has every sync of the host wait for the driver.
    must("dd", ["if=/dev/urandom", &format!("of={device}"), "bs=64k", "count=4", "conv=notrunc"]);
    must("kill", ["-STOP", &driver.to_string()]);
    let mut sync = Command::new("sync").spawn().unwrap();
    let doctor = host.try_backstay(&["doctor"]);
    let words =
        [&format!("pid {driver}")[..], "does not answer", "kill -CONT", "umount db --force"];
    for word in words {
        assert!(said(&doctor).contains(word), "{word}: {}", said(&doctor));
    }
    assert_ne!(doctor.status.code(), Some(0));
    for verb in ["umount", "detach"] {
        let began = clock::monotonic();
        let output = host.try_backstay(&[verb, "db"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(
            said(&output).contains("kill -CONT")
                && (clock::monotonic() - began) < Duration::from_secs(5)
        );
    }
    let began = clock::monotonic();
    let output = host.try_backstay(&["umount", "db", "--force"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("does not answer them (the process is stopped"),
        "{}",
        said(&output)
    );
    assert!(
        clock::monotonic() - began < Duration::from_secs(20),
        "{:?}",
        (clock::monotonic() - began)
    );
    wait_gone(driver);
    // Anyone who waited in a sync goes on.
    let until = clock::monotonic() + Duration::from_secs(20);
    while sync.try_wait().unwrap().is_none() {
        assert!(clock::monotonic() < until, "sync still waits");
        clock::sleep(Duration::from_millis(20));
    }
    end(writer);
    must("losetup", ["-d", &device]);
    // The bitmaps of a driver that was killed are exact.
    disk.mount(&[]);
    assert_eq!(disk.status()["driver"]["found"], "same-boot");
    host.backstay(&["umount", "db"]);
}

/// A file system that takes no writes; it goes on also when the test fails.
struct Frozen(String);

impl Frozen {
    fn new(at: &Path) -> Self {
        must("fsfreeze", ["-f", &text(at)]);
        Self(text(at))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", ["-u", &self.0]);
    }
}

/// The driver answers, its backing does not: that is said with the time and the process, and the disk can be ended
/// all the same.
#[test]
fn a_backing_that_hangs_is_named_and_its_users_get_away() {
    let _alone = alone();
    let host = Host::new("ending-frozen");
    let (image, at) = (host.path("ground.img"), host.path("ground"));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    must("mkfs.ext4", ["-q", "-F", &text(&image)]);
    let ground = FsMount::new(&host, &text(&image), "ground", "loop");
    let backing = at.join("d.img");
    File::create(&backing).unwrap().set_len(SIZE).unwrap();
    host.backstay(&["mount", &text(&backing), "--name", "d"]);
    let status = || host.json(&["status", "d"])[0].clone();
    let driver = &status()["driver"];
    let (pid, served) = (driver["pid"].as_i64().unwrap(), driver["served"].as_str().unwrap());
    let pid = i32::try_from(pid).unwrap();
    let frozen = Frozen::new(&at);
    let mut writer = Command::new("dd")
        .args([
            "if=/dev/urandom",
            &format!("of={served}"),
            "bs=4k",
            "count=1",
            "conv=notrunc,fsync",
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let until = clock::monotonic() + Duration::from_secs(30);
    let found = loop {
        let status = status();
        let causes = status["health"]["causes"].as_array().unwrap().clone();
        if let Some(found) = causes.into_iter().find(|cause| cause["id"] == "backing-hangs") {
            assert_eq!(status["health"]["level"], "critical", "{status:#}");
            break found;
        }
        assert!(clock::monotonic() < until, "{status:#}");
        clock::sleep(Duration::from_millis(200));
    };
    let reason = found["reason"].as_str().unwrap();
    assert!(reason.contains(&text(&backing)) && reason.contains(&pid.to_string()), "{reason}");
    assert!(reason.contains("waits in the kernel"), "{reason}");
    assert!(found["advice"].as_str().unwrap().contains("umount d --force"), "{found}");
    assert!(found["since_unix_ns"].as_u64().is_some_and(|at| at > 0), "{found}");
    // The process waits for its backing and cannot go; its users can.
    let began = clock::monotonic();
    let output = host.try_backstay(&["umount", "d", "--force"]);
    assert!(clock::monotonic() - began < Duration::from_secs(30), "{}", said(&output));
    let until = clock::monotonic() + Duration::from_secs(10);
    while writer.try_wait().unwrap().is_none() {
        assert!(clock::monotonic() < until, "its user still waits: {}", said(&output));
        clock::sleep(Duration::from_millis(20));
    }
    drop(frozen);
    wait_gone(pid);
    drop(ground);
}

/// A driver that was killed is no disk that was detached: what depends on it is named, and goes.
#[test]
fn what_a_dead_driver_leaves_is_told_and_freed() {
    let _alone = alone();
    let host = Host::new("died");
    let disk = host.disk("d", SIZE);
    let device = disk.attach();
    must("mkfs.ext4", ["-q", "-F", &device]);
    let mounted = FsMount::new(&host, &device, "fs", "rw");
    let backing = || {
        let name = device.strip_prefix("/dev/").unwrap();
        fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default()
    };
    let ours = host.runtime.to_string_lossy().into_owned();
    assert!(backing().contains(&ours));
    disk.kill_driver();
    let status = disk.status();
    let cause = &status["health"]["causes"][0];
    assert_eq!(cause["id"], "driver-died", "{status:#}");
    assert_eq!(cause["level"], "critical", "{status:#}");
    assert!(cause["since_unix_ns"].is_u64(), "{status:#}");
    let reason = cause["reason"].as_str().unwrap();
    assert!(reason.contains(&device) && reason.contains(&text(&mounted.at)), "{reason}");
    let refused = host.try_backstay(&["detach", "d"]);
    assert_eq!(refused.status.code(), Some(3), "{}", said(&refused));
    assert!(said(&refused).contains("its driver died"), "{}", said(&refused));
    must("umount", ["-l", &text(&mounted.at)]);
    // Served again, the dead device is gone, or is the one that was made again.
    let again = disk.attach();
    assert!(again == device || !backing().contains("/disk"), "{again}, {device}: {}", backing());
    assert!(!disk.causes().contains(&"driver-died".to_owned()));
    assert!(hash(Path::new(&again)) == hash(&disk.served()));
    disk.kill_driver();
    host.backstay(&["detach", "d", "--force"]);
    let left = must("losetup", ["--noheadings", "--raw", "--output", "NAME,BACK-FILE"]);
    assert!(!left.lines().any(|line| line.starts_with(&format!("{again} "))), "{left}");
    let causes = disk.causes();
    assert!(causes.contains(&"not-served".to_owned()), "{causes:?}");
    assert!(!causes.contains(&"driver-died".to_owned()), "{causes:?}");
}

/// A container is killed with its driver, which is its last process: the kernel takes the container's mounts apart first, and
/// waits for the driver that is just ending. Nothing but the end of the connection helps.
#[test]
fn a_disk_that_died_with_its_container_is_named_with_its_way_out() {
    let _alone = alone();
    let host = Host::new("container");
    let disk = host.disk("d", SIZE);
    let command = host.command();
    let words = command.get_args().map(|arg| arg.to_string_lossy().into_owned());
    let ours = format!("{} {}", text(&backstay()), words.collect::<Vec<_>>().join(" "));
    let (at, backing) = (host.path("fs"), text(&disk.backing));
    let script = format!(
        "set -e; device=$({ours} attach {backing} --name d); mkfs.ext4 -q -F $device; mkdir {0}; mount $device {0}; \
         echo there; read x",
        text(&at)
    );
    let inside = ["--mount", "--propagation", "private", "bash", "-c", &script];
    end(process("unshare", &inside, b""));
    let driver = disk.driver_pid().expect("it is the last process of its namespace");
    must("kill", ["-KILL", &driver.to_string()]);
    // As long as a connection is abandoned, every sync of this host waits: no other command in between.
    let mut abandoned = vec![];
    wait_for("the kernel's wait for the driver", || {
        abandoned = fuse_connection::abandoned().unwrap().expect("this host shows who serves");
        !abandoned.is_empty()
    });
    let doctor = host.try_backstay(&["doctor"]);
    for connection in &abandoned {
        fuse_connection::abort(*connection).unwrap();
    }
    let line = said(&doctor);
    let line = line.lines().find(|line| line.contains("dead disks")).expect("a finding").to_owned();
    let way = format!("echo 1 > /sys/fs/fuse/connections/{}/abort", abandoned[0]);
    assert!(line.starts_with("FAILED") && line.contains(&way), "{line}");
    wait_gone(driver);
    assert_eq!(fuse_connection::abandoned().unwrap(), Some(vec![]));
    must("sync", [""; 0]);
}

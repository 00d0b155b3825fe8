//! What tracking promises when its own disk dies, after a reboot, and while a driver does not answer.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_format::asked::Asked;
use backstay_format::control::{self, ErrorCode, Request, Response};
use backstay_host::clock;
use backstay_tests::harness::command::{must, said};
use backstay_tests::harness::host::{Disk, FsMount, Host, hash, wait_gone};

const MIB: u64 = 1 << 20;

fn noise(path: &Path, offset: u64, len: usize, seed: u64) {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes, offset).unwrap();
    file.sync_all().unwrap();
}

/// A disk of noise with one recovery point.
fn shipped(host: &Arc<Host>, size: u64) -> (Disk, PathBuf) {
    let disk = host.disk("d", size);
    let served = disk.mount(&[]);
    noise(&served, 0, size as usize, 1);
    disk.cycle();
    (disk, served)
}

/// The machine goes down: the driver and what is on tmpfs are gone.
fn power_off(disk: &Disk, served: &Path) {
    disk.kill_driver();
    must("umount", ["-l", served.parent().unwrap().to_str().unwrap()]);
    fs::remove_dir_all(disk.host.runtime.join(&disk.name)).unwrap();
}

/// The newest point is the disk as it is, and the vault is whole.
fn check(disk: &Disk, served: &Path) {
    let cycle = disk.points().last().unwrap().cycle;
    assert_eq!(hash(&disk.restore(cycle, "restored.img")), hash(served));
    disk.host.backstay(&["verify", &disk.name]);
}

fn cause(status: &serde_json::Value, id: &str) -> Option<serde_json::Value> {
    let causes = status["health"]["causes"].as_array().unwrap();
    causes.iter().find(|cause| cause["id"] == id).cloned()
}

/// The file system of a disk's state directory, on an image of its own.
fn state_on_its_own_disk(host: &Host) -> FsMount {
    let image = host.path("state-disk.img");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    must("mkfs.ext4", ["-q", "-F", image.to_str().unwrap()]);
    FsMount::new(host, image.to_str().unwrap(), "state/d", "loop")
}

/// Has a file system die as after an error of its disk: nothing in it can be written or read any more.
fn die(at: &Path) {
    // EXT4_IOC_SHUTDOWN, without what is in the log: from linux/fs/ext4/ext4.h.
    const SHUTDOWN: libc::Ioctl = 0x8004_587D_u32 as libc::Ioctl;
    let dir = File::open(at).unwrap();
    let flags: u32 = 2;
    // SAFETY: the call reads the number it is given, which lives as long as the call.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &flags) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The state directory's file system dies, the guest goes on, the machine goes down and comes up with a
/// state directory that was repaired. Health is critical at once, and the next point is the disk.
#[test]
fn a_dead_state_directory_loses_nothing() {
    let host = Host::new("trackdead");
    let state = state_on_its_own_disk(&host);
    let (disk, served) = shipped(&host, 32 * MIB);
    noise(&served, 0, 4096, 2);
    die(&state.at);
    // A region without an intent, and one with.
    noise(&served, 20 * MIB, 4096, 3);
    noise(&served, 4096, 4096, 4);
    let status = disk.status();
    let found = cause(&status, "not-tracked").unwrap_or_else(|| panic!("{status:#}"));
    assert_eq!(status["health"]["level"], "critical", "{status:#}");
    assert!(found["reason"].as_str().unwrap().contains("state directory"), "{found}");
    assert!(found["since_unix_ns"].as_u64().is_some_and(|at| at > 0), "{found}");
    power_off(&disk, &served);
    drop(state);
    let _state =
        FsMount::new(&host, host.path("state-disk.img").to_str().unwrap(), "state/d", "loop");
    let served = disk.mount(&[]);
    let driver = disk.status()["driver"].clone();
    assert_eq!(driver["resync"], "state-unwritable", "{driver}");
    disk.cycle();
    check(&disk, &served);
    host.backstay(&["umount", "d"]);
}

/// A block device has no room for a witness: after the same, whatever the state directory says, all of it is
/// compared.
#[test]
fn a_dead_state_directory_loses_nothing_of_a_block_device() {
    let host = Host::new("trackdevice");
    let state = state_on_its_own_disk(&host);
    let disk = host.disk("d", 32 * MIB);
    let device = must("losetup", ["--find", "--show", disk.backing.to_str().unwrap()]);
    let mount = ["mount", device.trim(), "--name", "d"];
    let served = PathBuf::from(host.backstay(&mount).trim());
    noise(&served, 0, 3 * MIB as usize, 1);
    disk.cycle();
    noise(&served, 0, 4096, 2);
    die(&state.at);
    noise(&served, 20 * MIB, 4096, 3);
    noise(&served, 4096, 4096, 4);
    assert!(cause(&disk.status(), "not-tracked").is_some());
    power_off(&disk, &served);
    drop(state);
    let _state =
        FsMount::new(&host, host.path("state-disk.img").to_str().unwrap(), "state/d", "loop");
    let served = PathBuf::from(host.backstay(&mount).trim());
    let driver = disk.status()["driver"].clone();
    assert!(!driver["resync"].is_null(), "{driver}");
    disk.cycle();
    assert_eq!(hash(&disk.restore(2, "two.img")), hash(&served));
    host.backstay(&["umount", "d"]);
    must("losetup", ["-d", device.trim()]);
}

/// After a reboot what is shipped is what changed, not the regions it lies in.
#[test]
fn a_reboot_ships_what_changed() {
    const SPOTS: u64 = 10;
    let host = Host::new("trackreboot");
    let (disk, served) = shipped(&host, 64 * MIB);
    for spot in 0..SPOTS {
        noise(&served, spot * 6 * MIB + 8192, 4096, 10 + spot);
    }
    power_off(&disk, &served);
    let served = disk.mount(&[]);
    let driver = disk.status()["driver"].clone();
    assert_eq!((&driver["found"], &driver["coarse"]), (&"other-boot".into(), &true.into()));
    assert!(driver["resync"].is_null(), "{driver}");
    assert!(driver["dirty_sectors"].as_u64().unwrap() * 512 >= SPOTS * 4 * MIB, "{driver}");
    // And what is written now, in a touched region and elsewhere.
    noise(&served, 16 * MIB, 4096, 30);
    noise(&served, 8192, 4096, 31);
    disk.cycle();
    let last = disk.status()["record"]["last"].clone();
    let moved = last["moved"].as_u64().unwrap();
    let most = (SPOTS + 1) * 256 * 1024;
    assert!(last["kind"] == "delta" && moved <= most + most / 10, "{moved} of {most}: {last}");
    check(&disk, &served);
    assert!(disk.status()["driver"]["coarse"].is_null());
    host.backstay(&["umount", "d"]);
}

/// A driver that was stopped holds up nobody, is told as what it is, and does nothing later that was given
/// up before.
#[test]
fn a_driver_that_does_not_answer_is_told_and_holds_up_nobody() {
    let host = Host::new("tracksilent");
    let (disk, served) = shipped(&host, 8 * MIB);
    let other = host.disk("e", 8 * MIB);
    let served_too = other.mount(&[]);
    noise(&served_too, 0, 8192, 5);
    other.cycle();
    let pid = disk.driver_pid().unwrap();
    must("kill", ["-STOP", &pid.to_string()]);
    let begun = Instant::now();
    let all = host.json(&["status"]);
    // One second, and what the machine takes to start a process.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let of = |name: &str| {
        all.as_array().unwrap().iter().find(|status| status["name"] == name).unwrap().clone()
    };
    let found = cause(&of("d"), "driver-silent").unwrap_or_else(|| panic!("{all:#}"));
    let reason = found["reason"].as_str().unwrap();
    assert!(reason.contains("stopped") && reason.contains(&pid.to_string()), "{reason}");
    let advice = found["advice"].as_str().unwrap();
    assert!(advice.contains("kill -CONT") && advice.contains("umount d --force"), "{found}");
    assert!(found["since_unix_ns"].as_u64().is_some_and(|at| at > 0), "{found}");
    assert_eq!(cause(&of("e"), "driver-silent"), None);
    assert!(!of("e")["driver"].is_null(), "{all:#}");
    for verb in [&["cycle", "d"][..], &["umount", "d"]] {
        let begun = Instant::now();
        let output = host.try_backstay(verb);
        let text = said(&output);
        assert!(begun.elapsed() < Duration::from_secs(10), "{verb:?}: {:?}", begun.elapsed());
        assert!(!output.status.success() && text.contains("kill -CONT"), "{verb:?}: {text}");
    }
    other.cycle();
    must("kill", ["-CONT", &pid.to_string()]);
    // The umount that was given up is not carried out: it is served, and can be written.
    let status = disk.status();
    assert_eq!(status["driver"]["pid"], pid, "{status:#}");
    assert_eq!(cause(&status, "driver-silent"), None);
    noise(&served, 0, 4096, 6);
    disk.cycle();
    check(&disk, &served);
    assert_eq!(disk.driver_pid(), Some(pid));
    host.backstay(&["umount", "d"]);
    host.backstay(&["umount", "e"]);
}

/// What a driver comes to after its client's time is over is not done, although the client's connection is still
/// there; what carries no deadline is.
/// Whether all threads of a process are stopped.
fn is_stopped(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap())
        .all(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T')))
}

#[test]
fn a_request_whose_time_is_over_is_not_carried_out() {
    let host = Host::new("trackdeadline");
    let disk = host.disk("d", 8 * MIB);
    disk.mount(&[]);
    assert_eq!(disk.status()["driver"]["takes_deadlines"], true);
    let pid = disk.driver_pid().unwrap();
    let socket = host.runtime.join("d/control.sock");
    let ask = |deadline_boot_ns: Option<u64>| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        must("kill", ["-STOP", &pid.to_string()]);
        // One of its threads takes the signal; until then the others go on.
        while !is_stopped(pid) {
            clock::sleep(Duration::from_millis(5));
        }
        let asked = Asked { request: Request::Stop, deadline_boot_ns };
        stream.write_all(&control::FRAMING.encode(&asked).unwrap()).unwrap();
        let over = || deadline_boot_ns.is_none_or(|at| clock::since_boot_ns() > at);
        while !over() {
            clock::sleep(Duration::from_millis(5));
        }
        must("kill", ["-CONT", &pid.to_string()]);
        let mut header = [0; control::HEADER_BYTES];
        stream.read_exact(&mut header).unwrap();
        let (len, crc) = control::FRAMING.decode_header(&header).unwrap();
        let mut body = vec![0; len];
        stream.read_exact(&mut body).unwrap();
        control::FRAMING.decode_body::<Response>(&body, crc).unwrap()
    };
    let soon = clock::since_boot_ns() + 200_000_000;
    match ask(Some(soon)) {
        Response::Error(e) => assert_eq!(e.code, ErrorCode::Expired, "{e:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.driver_pid(), Some(pid));
    // As clients of earlier versions ask.
    assert_eq!(ask(None), Response::Done);
    wait_gone(pid);
}

/// The state directory's file system is full and the driver dies: it comes up again, exactly.
#[test]
fn a_full_state_directory_does_not_stop_a_start() {
    let host = Host::new("trackfull");
    let state = state_on_its_own_disk(&host);
    let (disk, served) = shipped(&host, 8 * MIB);
    noise(&served, MIB, 4096, 2);
    // To the last block, as another program might.
    let fill = state.at.join("somebody-elses");
    let file = File::create(&fill).unwrap();
    for block in [MIB as usize, 4096, 512] {
        let bytes = vec![7; block];
        while std::io::Write::write_all(&mut &file, &bytes).is_ok() {}
    }
    let _ = file.sync_all();
    drop(file);
    disk.kill_driver();
    must("umount", ["-l", served.parent().unwrap().to_str().unwrap()]);
    let served = disk.mount(&[]);
    let driver = disk.status()["driver"].clone();
    assert_eq!((&driver["found"], &driver["dirty_sectors"]), (&"same-boot".into(), &8.into()));
    fs::remove_file(fill).unwrap();
    disk.cycle();
    check(&disk, &served);
    host.backstay(&["umount", "d"]);
}

/// The file system of the runtime directory is full to the last block and the driver dies: it comes up again with
/// what is known, or names the directory and says what to do; with room it comes up in any case.
#[test]
fn a_full_runtime_directory_does_not_stop_a_start() {
    let host = Host::new("trackruntime");
    fs::create_dir_all(&host.runtime).unwrap();
    let room = FsMount::new_tmpfs(&host.runtime, "size=4m,mode=0700");
    let (disk, served) = shipped(&host, 8 * MIB);
    noise(&served, MIB, 4096, 2);
    let fill = host.runtime.join("somebody-elses");
    let file = File::create(&fill).unwrap();
    for block in [MIB as usize, 4096, 512] {
        let bytes = vec![7; block];
        while std::io::Write::write_all(&mut &file, &bytes).is_ok() {}
    }
    drop(file);
    // Also what is written now is in the next point.
    noise(&served, 5 * MIB, 4096, 3);
    disk.kill_driver();
    must("umount", ["-l", served.parent().unwrap().to_str().unwrap()]);
    let output = host.try_backstay(&["mount", disk.backing.to_str().unwrap(), "--name", "d"]);
    println!("{}", said(&output));
    if !output.status.success() {
        let text = said(&output);
        assert!(text.contains(host.runtime.to_str().unwrap()) && text.contains("room"), "{text}");
    }
    fs::remove_file(fill).unwrap();
    let served = match output.status.success() {
        true => served,
        false => disk.mount(&[]),
    };
    disk.cycle();
    check(&disk, &served);
    host.backstay(&["umount", "d"]);
    drop(room);
}

/// A driver without CAP_SYS_RESOURCE leaves a memory group with a limit, or does not start in it.
#[test]
fn a_driver_does_not_stay_in_a_limited_memory_group() {
    let root = Path::new("/sys/fs/cgroup/memory");
    if !root.join("memory.limit_in_bytes").exists() {
        // Version 2: what is read of it is tested where it is read.
        return;
    }
    let host = Host::new("trackmemory");
    let disk = host.disk("d", 8 * MIB);
    let group = root.join(format!("backstay-test-{}", std::process::id()));
    fs::create_dir(&group).unwrap();
    fs::write(group.join("memory.limit_in_bytes"), (96 * MIB).to_string()).unwrap();
    let bin = backstay_tests::harness::host::backstay();
    let mount = |before: &str| {
        let args = host.command();
        let args: Vec<String> =
            args.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let script = format!(
            "echo $$ > {}/cgroup.procs; {before} exec setpriv --bounding-set -sys_resource \
             --inh-caps -sys_resource {} {} mount {} --name d",
            group.display(),
            bin.display(),
            args.join(" "),
            disk.backing.display()
        );
        std::process::Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap()
    };
    // It cannot leave where the hierarchy cannot be written.
    let refused = mount("mount -o remount,bind,ro /sys/fs/cgroup/memory;");
    let text = said(&refused);
    assert!(refused.status.code() == Some(3) && text.contains("CAP_SYS_RESOURCE"), "{text}");
    assert!(disk.driver_pid().is_none());
    let started = mount("");
    assert!(started.status.success(), "{}", said(&started));
    let pid = disk.driver_pid().unwrap();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(!groups.contains("backstay-test-"), "{groups}");
    disk.kill_driver();
    fs::remove_dir(&group).unwrap();
}

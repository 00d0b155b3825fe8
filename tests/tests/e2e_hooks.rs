//! Application-consistent points of a real ext4 on a protected disk, and everybody killed, stopped or hung
//! while it is frozen: it never stays so.
//!
//! Needs root, /dev/fuse, loop devices, e2fsprogs, util-linux.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstay_tests::harness::command::said;
use backstay_tests::harness::host::wait_gone;
use backstay_tests::harness::{Disk, FsMount, Host, must};

const MIB: u64 = 1 << 20;
/// No test waits longer for what must happen; far below `freeze_timeout` where that must not be why.
const SOON: Duration = Duration::from_secs(40);

mod ioctl {
    nix::ioctl_readwrite!(fi_freeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(fi_thaw, b'X', 120, libc::c_int);
}

/// A mounted ext4 on a protected disk that has one point already, with hooks.
struct Lab {
    mounted: FsMount,
    device: String,
    disk: Disk,
    host: Arc<Host>,
}

impl Lab {
    fn new(test: &str) -> Self {
        let host = Host::new(test);
        let disk = host.disk("db", 64 * MIB);
        let device = disk.attach();
        must("mkfs.ext4", ["-q", &device]);
        let mounted = FsMount::new(&host, &device, "mnt", "rw");
        disk.cycle();
        Self { mounted, device, disk, host }
    }

    fn hooks(&self, settings: &str) {
        let text = format!("vault = \"{}\"\n[disk.db.hooks]\n{settings}", self.host.vault());
        fs::write(self.host.path("backstay.toml"), text).unwrap();
    }

    /// The setting that freezes the file system.
    fn freeze(&self) -> String {
        format!("freeze = [{:?}]\n", self.mounted.at)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.host.path(name)
    }

    /// Consistency and warning of the cycle that runs now.
    fn cycle(&self) -> (String, String) {
        let report = self.host.json(&["cycle", "db"]);
        let points = self.host.json(&["points", "db"]);
        let newest = points.as_array().unwrap().last().unwrap().clone();
        assert_eq!(newest["cycle"], report["cycle"]);
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        (text(&newest["consistency"]), text(&report["warning"]))
    }

    /// Writes a file durably; blocks as long as the file system is frozen.
    fn write(&self, name: &str) {
        let mut file = File::create(self.mounted.at.join(name)).unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        file.sync_all().unwrap();
    }

    /// Writes a file and fails if that takes long.
    #[track_caller]
    fn is_not_frozen(&self) {
        thread::scope(|scope| {
            let write = scope.spawn(|| self.write("written"));
            let began = Instant::now();
            while !write.is_finished() {
                if began.elapsed() > SOON {
                    // The thread must come to its end, too.
                    thaw(&self.mounted.at);
                    panic!("the file system is still frozen");
                }
                thread::yield_now();
            }
        });
    }

    /// Seen by what a freeze writes: asking by freezing would come in its way.
    fn wait_until_frozen(&self) {
        wait_for("the freeze", || !needs_recovery(Path::new(&self.device)));
        assert!(is_frozen(&self.mounted.at));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A test that failed may have left it frozen: nothing could be unmounted then.
        thaw(&self.mounted.at);
    }
}

#[track_caller]
fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !happened() {
        assert!(began.elapsed() < SOON, "{what} did not come");
        thread::yield_now();
    }
}

/// Whether a file system is frozen: freezing it once more is refused then.
fn is_frozen(at: &Path) -> bool {
    let root = File::open(at).unwrap();
    let mut unused = 0;
    // SAFETY: the descriptor is open; the kernel does not use the argument.
    match unsafe { ioctl::fi_freeze(root.as_raw_fd(), &raw mut unused) } {
        Err(nix::Error::EBUSY) => true,
        Ok(_) => {
            thaw(at);
            false
        }
        Err(e) => panic!("{}: {e}", at.display()),
    }
}

/// Thaws; whether it was frozen.
fn thaw(at: &Path) -> bool {
    let root = File::open(at).unwrap();
    let mut unused = 0;
    // SAFETY: the descriptor is open; the kernel does not use the argument.
    unsafe { ioctl::fi_thaw(root.as_raw_fd(), &raw mut unused) }.is_ok()
}

/// Whether an ext4 is in use or was left without being unmounted or frozen.
fn needs_recovery(image: &Path) -> bool {
    must("dumpe2fs", ["-h", &image.to_string_lossy()]).contains("needs_recovery")
}

/// A hook that says who its guardian is and stops the sidecar, so that the guardian goes on alone. Once
/// only.
fn stop_the_sidecar(lab: &Lab) -> String {
    let script = lab.path("stop");
    let guardian = lab.path("guardian");
    fs::write(
        &script,
        format!(
            "[ -e {0} ] && exit 0\n\
             sidecar=$(ps -o ppid= -p $PPID | tr -d ' ')\n\
             echo $PPID > {0}.new\n\
             kill -STOP $sidecar\n\
             mv {0}.new {0}\n",
            guardian.display()
        ),
    )
    .unwrap();
    // exec: the script's parent is the guardian then.
    format!("pre = [\"exec /bin/sh {}\"]\n", script.display())
}

fn guardian_pid(lab: &Lab) -> i32 {
    fs::read_to_string(lab.path("guardian")).unwrap().trim().parse().unwrap()
}

fn kill(signal: &str, pid: impl std::fmt::Display) {
    must("kill", [signal, &pid.to_string()]);
}

#[test]
fn a_frozen_file_system_makes_an_application_consistent_point() {
    let lab = Lab::new("freeze");
    let told = lab.path("told");
    lab.hooks(&format!(
        "{}pre = [\"echo pre $BACKSTAY_DISK >> {1}\"]\npost = [\"echo post >> {1}\"]\n",
        lab.freeze(),
        told.display()
    ));
    for round in 0..3 {
        lab.write(&format!("file{round}"));
        // Not synced: the freeze has to write it.
        fs::write(lab.mounted.at.join(format!("lazy{round}")), [round; 300_000]).unwrap();
        assert_eq!(lab.cycle(), ("application".into(), String::new()));
        lab.is_not_frozen();
    }
    let tried = lab.host.json(&["hooks", "db"]);
    println!("{tried}");
    assert_eq!((&tried["consistency"], &tried["warning"]), (&"application".into(), &().into()));
    assert_eq!(lab.disk.points().len(), 4, "no point of it");
    lab.is_not_frozen();
    assert_eq!(fs::read_to_string(&told).unwrap(), "pre db\npost\n".repeat(4));
    for point in lab.disk.points() {
        let image = lab.disk.restore(point.cycle, "restored.img");
        // The first was made of a mounted file system without any hooks.
        assert_eq!(needs_recovery(&image), point.cycle == 1, "point {}", point.cycle);
        if point.cycle > 1 {
            must("e2fsck", ["-fn", &image.to_string_lossy()]);
            let options = "loop,ro,norecovery";
            let back = FsMount::new(&lab.host, &image.to_string_lossy(), "back", options);
            let round = point.cycle as u8 - 2;
            assert_eq!(fs::read(back.at.join(format!("file{round}"))).unwrap().len(), 100_000);
            let lazy = fs::read(back.at.join(format!("lazy{round}"))).unwrap();
            assert!(lazy.len() == 300_000 && lazy.iter().all(|byte| *byte == round));
        }
    }
}

/// Somebody writes and syncs all the time: freezes and cuts go on beside that, and every point is whole.
#[test]
fn freezes_and_a_busy_application_do_not_wait_for_each_other() {
    let lab = Lab::new("busyfreeze");
    lab.hooks(&lab.freeze());
    let (stop, files) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for writer in 0..2 {
            let (lab, stop, files) = (&lab, &stop, &files);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    lab.write(&format!("busy{writer}-{}", n % 20));
                    files.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let ends = backstay_tests::harness::stamp::StopOnDrop(&stop);
        for _ in 0..8 {
            let before = files.load(Ordering::Relaxed);
            assert_eq!(lab.cycle(), ("application".into(), String::new()));
            wait_for("a write after a cut", || files.load(Ordering::Relaxed) > before);
        }
        drop(ends);
    });
    for point in lab.disk.points().split_off(1) {
        let image = lab.disk.restore(point.cycle, "restored.img");
        assert!(!needs_recovery(&image), "point {}", point.cycle);
        must("e2fsck", ["-fn", &image.to_string_lossy()]);
    }
}

#[test]
fn a_hook_that_hangs_or_fails_leaves_a_crash_consistent_point_and_nothing_frozen() {
    let lab = Lab::new("hanghook");
    let told = lab.path("told");
    let post = format!("post = [\"echo post >> {}\"]\n", told.display());
    let child = lab.path("child");
    lab.hooks(&format!(
        "{}{post}timeout = \"300ms\"\npre = [\"sleep 1000 & echo $! > {}; wait\"]\n",
        lab.freeze(),
        child.display()
    ));
    let (consistency, warning) = lab.cycle();
    assert_eq!(consistency, "crash");
    assert!(warning.contains("did not end within 300ms and was killed"), "{warning}");
    lab.is_not_frozen();
    let child: i32 = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
    wait_gone(child);
    let health = lab.disk.status()["health"].clone();
    assert_eq!(health["level"], "warning", "{health}");

    lab.hooks(&format!("{}{post}pre = [\"echo no such database; exit 5\"]\n", lab.freeze()));
    let (consistency, warning) = lab.cycle();
    assert_eq!(consistency, "crash");
    assert!(
        warning.contains("exit status: 5") && warning.contains("no such database"),
        "{warning}"
    );
    let tried = lab.host.try_backstay(&["hooks", "db"]);
    assert_eq!(tried.status.code(), Some(1), "{}", said(&tried));
    assert!(said(&tried).contains("no such database"), "{}", said(&tried));
    lab.is_not_frozen();

    // Not a mount point: its folder lies on another file system, which must not be frozen.
    lab.hooks(&format!("{post}freeze = [{:?}]\n", lab.host.dir));
    let (consistency, warning) = lab.cycle();
    assert_eq!(consistency, "crash");
    assert!(warning.contains("is its file system mounted?"), "{warning}");

    // A post command that fails takes nothing from the point.
    lab.hooks(&format!(
        "{}post = [\"exit 6\", \"echo post >> {}\"]\n",
        lab.freeze(),
        told.display()
    ));
    let (consistency, warning) = lab.cycle();
    assert_eq!(consistency, "application");
    assert!(warning.contains("exit status: 6"), "{warning}");
    assert_eq!(fs::read_to_string(&told).unwrap(), "post\n".repeat(5), "post always runs");

    let points = lab.disk.points().len();
    lab.hooks(&format!("{}{post}pre = [\"exit 5\"]\nrequire = true\n", lab.freeze()));
    let refused = lab.host.try_backstay(&["cycle", "db"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("require"), "{}", said(&refused));
    assert_eq!(lab.disk.points().len(), points, "no point at all");
    lab.is_not_frozen();
    lab.hooks(&lab.freeze());
    assert_eq!(lab.cycle().0, "application");
    lab.host.backstay(&["verify", "db"]);
}

#[test]
fn kill_9_of_the_sidecar_thaws() {
    let lab = Lab::new("killfrozen");
    let told = lab.path("told");
    // The time-out must not be what thaws.
    lab.hooks(&format!(
        "{}{}post = [\"echo post > {}\"]\nfreeze_timeout = \"10m\"\n",
        lab.freeze(),
        stop_the_sidecar(&lab),
        told.display()
    ));
    let mut sidecar = lab.host.start(&["cycle", "db"]);
    wait_for("the hook", || lab.path("guardian").exists());
    lab.wait_until_frozen();
    kill("-9", sidecar.id());
    sidecar.wait().unwrap();
    lab.is_not_frozen();
    wait_gone(guardian_pid(&lab));
    assert_eq!(fs::read_to_string(told).unwrap(), "post\n");
    assert_eq!(lab.disk.points().len(), 1);
    assert_eq!(lab.cycle(), ("application".into(), String::new()));
}

#[test]
fn a_sidecar_that_does_not_go_on_is_not_waited_for() {
    let lab = Lab::new("stopfrozen");
    let settings = format!("{}freeze_timeout = \"500ms\"\n", lab.freeze());
    lab.hooks(&format!("{settings}{}", stop_the_sidecar(&lab)));
    let mut sidecar = lab.host.start(&["cycle", "db"]);
    wait_for("the hook", || lab.path("guardian").exists());
    // Before or after the freeze: in the end this goes through.
    lab.is_not_frozen();
    wait_for("post", || !lab.host.runtime.join("db/frozen.json").exists());
    kill("-CONT", sidecar.id());
    assert!(sidecar.wait().unwrap().success());
    let points = lab.host.json(&["points", "db"]);
    assert_eq!(points[1]["consistency"], "crash", "it was thawed before the cut");
    let warning = lab.disk.status()["record"]["last"]["warning"].clone();
    assert!(warning.as_str().unwrap().contains("freeze_timeout"), "{warning}");
    assert_eq!(lab.cycle().0, "application");
}

#[test]
fn kill_9_of_the_guardian_is_mended_by_the_sidecar() {
    let lab = Lab::new("killguardian");
    let told = lab.path("told");
    lab.hooks(&format!(
        "{}{}post = [\"echo post >> {}\"]\nfreeze_timeout = \"10m\"\n",
        lab.freeze(),
        stop_the_sidecar(&lab),
        told.display()
    ));
    let mut sidecar = lab.host.start(&["cycle", "db"]);
    wait_for("the hook", || lab.path("guardian").exists());
    lab.wait_until_frozen();
    kill("-9", guardian_pid(&lab));
    assert!(is_frozen(&lab.mounted.at), "a freeze outlives its process");
    kill("-CONT", sidecar.id());
    lab.is_not_frozen();
    assert!(sidecar.wait().unwrap().success());
    let points = lab.host.json(&["points", "db"]);
    assert_eq!(points[1]["consistency"], "crash");
    assert_eq!(fs::read_to_string(told).unwrap(), "post\n");
}

#[test]
fn kill_9_of_both_is_mended_by_the_next_cycle_or_start() {
    for by_service in [false, true] {
        let lab = Lab::new("killboth");
        let told = lab.path("told");
        lab.hooks(&format!(
            "{}{}post = [\"echo post >> {}\"]\nfreeze_timeout = \"10m\"\n",
            lab.freeze(),
            stop_the_sidecar(&lab),
            told.display()
        ));
        let mut sidecar = lab.host.start(&["cycle", "db"]);
        wait_for("the hook", || lab.path("guardian").exists());
        lab.wait_until_frozen();
        // The sidecar is stopped: it mends nothing.
        kill("-9", guardian_pid(&lab));
        wait_gone(guardian_pid(&lab));
        kill("-9", sidecar.id());
        sidecar.wait().unwrap();
        assert!(is_frozen(&lab.mounted.at), "a freeze outlives its process");
        if by_service {
            let mut service = lab.host.start(&["sidecar"]);
            lab.is_not_frozen();
            wait_for("post", || told.exists());
            kill("-TERM", service.id());
            assert!(service.wait().unwrap().success());
        } else {
            let (consistency, warning) = lab.cycle();
            assert_eq!(consistency, "application");
            assert!(warning.contains("was frozen and is thawed"), "{warning}");
            lab.is_not_frozen();
        }
        assert!(fs::read_to_string(told).unwrap().starts_with("post\n"));
    }
}

/// The disk is gone under a frozen file system: nobody waits for it, and post runs.
#[test]
fn kill_9_of_the_driver_under_a_frozen_file_system_ends_the_cycle() {
    let lab = Lab::new("killunder");
    let told = lab.path("told");
    lab.hooks(&format!(
        "{}{}post = [\"echo post > {}\"]\nfreeze_timeout = \"10m\"\n",
        lab.freeze(),
        stop_the_sidecar(&lab),
        told.display()
    ));
    let mut sidecar = lab.host.start(&["cycle", "db"]);
    wait_for("the hook", || lab.path("guardian").exists());
    lab.wait_until_frozen();
    lab.disk.kill_driver();
    kill("-CONT", sidecar.id());
    assert_eq!(sidecar.wait().unwrap().code(), Some(1));
    wait_gone(guardian_pid(&lab));
    assert_eq!(fs::read_to_string(told).unwrap(), "post\n");
    assert!(!thaw(&lab.mounted.at), "it was frozen still");
}

/// SIGTERM and SIGINT to all of a unit or terminal: the guardian must not die of them.
#[test]
fn the_guardian_outlives_what_is_sent_to_a_whole_unit() {
    let lab = Lab::new("termguardian");
    lab.hooks(&format!("{}{}freeze_timeout = \"10m\"\n", lab.freeze(), stop_the_sidecar(&lab)));
    let mut sidecar = lab.host.start(&["cycle", "db"]);
    wait_for("the hook", || lab.path("guardian").exists());
    lab.wait_until_frozen();
    for signal in ["-TERM", "-INT", "-HUP"] {
        kill(signal, guardian_pid(&lab));
    }
    assert!(is_frozen(&lab.mounted.at));
    kill("-CONT", sidecar.id());
    assert!(sidecar.wait().unwrap().success());
    let points = lab.host.json(&["points", "db"]);
    assert_eq!(points[1]["consistency"], "application");
    lab.is_not_frozen();
}

#[test]
fn what_backstay_writes_to_is_not_frozen_and_what_others_froze_is_not_thawed() {
    let lab = Lab::new("refusefreeze");
    lab.hooks(&lab.freeze());
    must("fsfreeze", ["--freeze", &lab.mounted.at.to_string_lossy()]);
    let (consistency, warning) = lab.cycle();
    assert_eq!(consistency, "crash");
    assert!(warning.contains("frozen by somebody else"), "{warning}");
    assert!(is_frozen(&lab.mounted.at), "it is theirs");
    must("fsfreeze", ["--unfreeze", &lab.mounted.at.to_string_lossy()]);

    // A file system that holds the vault.
    let image = lab.path("vault.img");
    File::create(&image).unwrap().set_len(256 * MIB).unwrap();
    must("mkfs.ext4", ["-q", &image.to_string_lossy()]);
    let vault = FsMount::new(&lab.host, &image.to_string_lossy(), "vaultfs", "loop");
    fs::write(
        lab.path("backstay.toml"),
        format!(
            "vault = \"{}\"\n[disk.db.hooks]\nfreeze = [{:?}, {:?}]\n",
            vault.at.join("vault").display(),
            lab.mounted.at,
            vault.at
        ),
    )
    .unwrap();
    let other = vault.at.join("vault").display().to_string();
    lab.host.backstay(&["vault", "init", "--vault", &other]);
    lab.host.backstay(&["set", "db", "--vault", &other]);
    let (consistency, warning) = lab.cycle();
    assert_eq!(consistency, "crash");
    assert!(warning.contains("lies on the same file system"), "{warning}");
    assert!(!is_frozen(&vault.at));
    lab.is_not_frozen();
}

/// At any moment of a cycle, and anyone who is killed: in the end nothing is frozen, and every pre command has
/// its post. Short form some kills, long form (`BACKSTAY_TEST_LONG`) a hundred.
#[test]
fn kills_at_any_moment_leave_nothing_frozen() {
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let seed = if long { fastrand::u64(..) } else { 0x6A4D };
    println!("seed {seed:#x}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let lab = Lab::new("killany");
    let told = lab.path("told");
    lab.hooks(&format!(
        "{}pre = [\"echo $PPID > {1}.pid; echo pre >> {1}\"]\npost = [\"echo post >> {1}\"]\n\
         freeze_timeout = \"10m\"\n",
        lab.freeze(),
        told.display()
    ));
    let (stop, files) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut in_time = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                lab.write("busy");
                files.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ends = backstay_tests::harness::stamp::StopOnDrop(&stop);
        for round in 0..if long { 100 } else { 12 } {
            let mut sidecar = lab.host.start(&["cycle", "db"]);
            // Somewhere in the life of a cycle, or just after it.
            let pause = Duration::from_micros(rng.u64(0..120_000));
            let began = Instant::now();
            while began.elapsed() < pause {
                thread::yield_now();
            }
            let guardian = fs::read_to_string(format!("{}.pid", told.display()));
            if let (true, Ok(pid)) = (rng.bool(), guardian) {
                let pid: i32 = pid.trim().parse().unwrap();
                // If it is not there any more, that is a moment, too; its number may be another's.
                let is_it = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                if is_it.is_ok_and(|command| command == "backstay\0guardian\0") {
                    let pid = nix::unistd::Pid::from_raw(pid);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
            }
            let _ = fs::remove_file(format!("{}.pid", told.display()));
            if rng.bool() {
                kill("-9", sidecar.id());
            }
            let whole = sidecar.wait().unwrap().success();
            in_time += u32::from(whole);
            // What nobody is left to mend, the next start does.
            let frozen = lab.host.runtime.join("db/frozen.json");
            let began = Instant::now();
            while frozen.exists() && began.elapsed() < Duration::from_secs(1) {
                thread::yield_now();
            }
            if frozen.exists() {
                let mut service = lab.host.start(&["sidecar"]);
                wait_for("the mending", || !frozen.exists());
                kill("-TERM", service.id());
                assert!(service.wait().unwrap().success(), "round {round}");
            }
            let before = files.load(Ordering::Relaxed);
            wait_for("a write", || files.load(Ordering::Relaxed) > before + 1);
        }
        drop(ends);
    });
    println!("{in_time} cycles were whole");
    let told = fs::read_to_string(told).unwrap();
    let mut open = false;
    for line in told.lines() {
        // Post may come alone, and twice: when its guardian was killed in it. Pre never follows pre.
        assert!(!(open && line == "pre"), "an application was left waiting: {told}");
        open = line == "pre";
    }
    assert!(!open, "an application was left waiting: {told}");
    assert_eq!(lab.cycle(), ("application".into(), String::new()));
    lab.host.backstay(&["verify", "db"]);
}

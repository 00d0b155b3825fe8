//! A host of a test: its own state, runtime and vault folders, and the disks protected on it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backstay_vault::Vault;

use super::command::{must, run, said};
use super::{sealed, vaults};

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// Folders and clean-up of one test.
pub struct Host {
    /// On a disk: backings, state, vault, restored images.
    pub dir: PathBuf,
    /// On tmpfs: sockets and bitmaps.
    pub runtime: PathBuf,
    disks: Mutex<Vec<String>>,
    /// The vault's URL and the variables it needs, if it is not in the folder.
    elsewhere: Mutex<Option<(String, Variables)>>,
    /// Whether its vault is encrypted.
    sealed: bool,
    /// Whether its vault is made before its first command.
    has_vault: AtomicBool,
    /// Seconds by which its commands see the clock of the boot ahead.
    boot_clock_ahead: AtomicU64,
}

/// Environment variables, by name.
pub type Variables = Vec<(String, String)>;

/// A protected disk of a host.
pub struct Disk {
    /// Its host.
    pub host: Arc<Host>,
    /// Its name.
    pub name: String,
    /// Its backing file.
    pub backing: PathBuf,
}

impl Host {
    /// A new host.
    ///
    /// # Panics
    /// Without root or /dev/fuse: such a test must not pass unseen.
    pub fn new(test: &str) -> Arc<Self> {
        Self::made(test, sealed::all())
    }

    /// A new host whose vault is encrypted and whose commands have the key.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn sealed(test: &str) -> Arc<Self> {
        Self::made(test, true)
    }

    /// A new host that has the key of this one's vault, if that is encrypted; what its vault is, its configuration says.
    #[must_use]
    pub fn another(&self, test: &str) -> Arc<Self> {
        Self::made(test, self.sealed)
    }

    /// The vault, opened in this process.
    ///
    /// # Panics
    /// If it does not open.
    #[must_use]
    pub fn open_vault(&self) -> Vault {
        sealed::open(&self.vault(), &self.dir, self.sealed)
    }

    fn made(test: &str, sealed: bool) -> Arc<Self> {
        assert!(nix_is_root(), "this test needs root: it mounts and attaches loop devices");
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse");
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let name = format!("backstay-test-{test}-{}-{number}", std::process::id());
        let (dir, runtime) = (Path::new("/var/tmp").join(&name), Path::new("/dev/shm").join(name));
        for dir in [&dir, &runtime] {
            fs::create_dir_all(dir).unwrap();
        }
        let (disks, elsewhere) = (Mutex::default(), Mutex::default());
        let (has_vault, boot_clock_ahead) = (AtomicBool::new(true), AtomicU64::new(0));
        Arc::new(Self { dir, runtime, disks, elsewhere, sealed, has_vault, boot_clock_ahead })
    }

    /// Has its vault not be made: the test is about that, or makes it itself.
    pub fn without_vault(&self) {
        self.has_vault.store(false, Ordering::Relaxed);
    }

    /// Has the vault be elsewhere, reached with these environment variables.
    pub fn ship_to(&self, url: &str, variables: &[(String, String)]) {
        *self.elsewhere.lock().unwrap() = Some((url.into(), variables.to_vec()));
    }

    /// The vault's URL.
    pub fn vault(&self) -> String {
        if let Some((url, _)) = &*self.elsewhere.lock().unwrap() {
            return url.clone();
        }
        format!("file://{}", self.dir.join("vault").display())
    }

    /// A path in the host's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The `backstay` command with this host's folders and vault.
    pub fn command(&self) -> Command {
        let config = self.dir.join("backstay.toml");
        if !config.exists() {
            // A vault beside the disk is what a test has.
            let text = format!("vault = \"{}\"\nallow_local_vault = true\n", self.vault());
            fs::write(&config, text).unwrap();
        }
        if self.has_vault.load(Ordering::Relaxed) {
            // A test of broken settings has a vault all the same; but without those of its store none is reached.
            let of_store = fs::read_to_string(&config).is_ok_and(|text| text.contains("[store]"));
            let settings = if of_store { &*config } else { Path::new("/dev/null") };
            let new = [(); 2].map(|()| self.plain_command(settings));
            let elsewhere = self.elsewhere.lock().unwrap().is_some();
            vaults::prepare(&config, (&self.dir, self.sealed), elsewhere, new);
        }
        let mut command = self.plain_command(&config);
        if self.sealed {
            sealed::give_key(&mut command, &self.dir);
        }
        command
    }

    /// Has commands run from now on in a time namespace whose clock of the boot is ahead by so many seconds; 0: in none.
    pub fn boot_clock_ahead(&self, seconds: u64) {
        self.boot_clock_ahead.store(seconds, Ordering::Relaxed);
    }

    fn plain_command(&self, config: &Path) -> Command {
        let mut command = match self.boot_clock_ahead.load(Ordering::Relaxed) {
            0 => Command::new(backstay()),
            ahead => {
                let mut there = Command::new("unshare");
                there.args(["--time", "--boottime", &ahead.to_string()]).arg(backstay());
                there
            }
        };
        if let Some((_, variables)) = &*self.elsewhere.lock().unwrap() {
            command.envs(variables.iter().map(|(name, value)| (name, value)));
        }
        command.arg("--config").arg(config);
        command.arg("--state-dir").arg(self.dir.join("state"));
        command.arg("--runtime-dir").arg(&self.runtime);
        command
    }

    /// Runs `backstay` with arguments; its output, whatever its exit code.
    pub fn try_backstay(&self, args: &[&str]) -> Output {
        if let ["key" | "vault", "init", ..] = args {
            self.without_vault();
        }
        self.command().args(args).stdin(Stdio::null()).output().expect("backstay starts")
    }

    /// Runs `backstay` with arguments; must succeed; its standard output.
    ///
    /// # Panics
    /// If it fails, with all it said.
    pub fn backstay(&self, args: &[&str]) -> String {
        let output = self.try_backstay(args);
        assert!(output.status.success(), "backstay {args:?}: {}\n{}", output.status, said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `backstay --json` with arguments and reads what it printed.
    ///
    /// # Panics
    /// If it fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.backstay(&[&["--json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("backstay {args:?}: {e}\n{text}"))
    }

    /// Starts `backstay` and leaves it running.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command().args(args).stdin(Stdio::null()).spawn().expect("backstay starts")
    }

    /// A new sparse backing file; the disk is not mounted yet.
    pub fn disk(self: &Arc<Self>, name: &str, size_bytes: u64) -> Disk {
        let backing = self.dir.join(format!("{name}.img"));
        File::create(&backing).unwrap().set_len(size_bytes).unwrap();
        self.disks.lock().unwrap().push(name.into());
        Disk { host: Arc::clone(self), name: name.into(), backing }
    }

    /// A disk under another name.
    pub fn renamed(self: &Arc<Self>, disk: &Disk, name: &str) -> Disk {
        self.disks.lock().unwrap().push(name.into());
        Disk { host: Arc::clone(self), name: name.into(), backing: disk.backing.clone() }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for name in self.disks.lock().unwrap().iter() {
            for device in loops_on(&self.runtime.join(name)) {
                run("umount", ["-l", &device]);
                run("losetup", ["-d", &device]);
            }
            self.try_backstay(&["umount", name]);
            if let Some(pid) = driver_pid(&self.runtime, name) {
                run("kill", ["-9", &pid.to_string()]);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for line in mounts.lines().rev() {
            let target = line.split(' ').nth(1).unwrap_or_default();
            let ours =
                [&self.dir, &self.runtime].iter().any(|dir| Path::new(target).starts_with(dir));
            if ours {
                run("umount", ["-l", target]);
            }
        }
        for dir in [&self.dir, &self.runtime] {
            if let Err(e) = fs::remove_dir_all(dir) {
                eprintln!("{}: {e}", dir.display());
            }
        }
    }
}

impl Disk {
    /// Mounts the disk; the file it is served as.
    pub fn mount(&self, more: &[&str]) -> PathBuf {
        let backing = self.backing.to_string_lossy();
        self.host.backstay(&[&["mount", &backing, "--name", &self.name], more].concat());
        self.served()
    }

    /// Mounts the disk and attaches a loop device; its path.
    pub fn attach(&self) -> String {
        let backing = self.backing.to_string_lossy();
        let device = self.host.backstay(&["attach", &backing, "--name", &self.name]);
        let device = device.trim().to_owned();
        assert!(device.starts_with("/dev/loop"), "attach printed {device:?}");
        device
    }

    /// The status of the disk.
    pub fn status(&self) -> serde_json::Value {
        let status = self.host.json(&["status", &self.name]);
        match status {
            serde_json::Value::Array(mut all) => all.remove(0),
            one => one,
        }
    }

    /// The ids of all that is wrong with the disk, the worst first; without what is only worth knowing.
    pub fn causes(&self) -> Vec<String> {
        let status = self.status();
        let causes = status["health"]["causes"].as_array().expect("causes");
        let id = |cause: &serde_json::Value| cause["id"].as_str().expect("an id").to_owned();
        causes.iter().filter(|cause| cause["level"] != "ok").map(id).collect()
    }

    /// The file the running driver serves.
    pub fn served(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = self.host.runtime.join(&self.name);
        let mount = mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1))
            .find(|target| Path::new(target).starts_with(&root))
            .unwrap_or_else(|| panic!("no mount below {}", root.display()));
        Path::new(mount).join("disk")
    }

    /// Runs one cycle.
    pub fn cycle(&self) -> String {
        self.host.backstay(&["cycle", &self.name])
    }

    /// The cycle numbers of all recovery points, oldest first.
    pub fn points(&self) -> Vec<Point> {
        let points = self.host.json(&["points", &self.name]);
        let all =
            points.as_array().or_else(|| points["points"].as_array()).expect("a list").clone();
        let mut all: Vec<Point> = all
            .iter()
            .map(|p| Point {
                cycle: p["cycle"].as_u64().expect("cycle"),
                cut_unix_ns: p["cut_unix_ns"].as_u64().expect("cut_unix_ns"),
            })
            .collect();
        all.sort_by_key(|point| point.cycle);
        all
    }

    /// Restores a point to a new file of the host's folder.
    pub fn restore(&self, cycle: u64, name: &str) -> PathBuf {
        let to = self.host.path(name);
        let (point, target) = (cycle.to_string(), to.to_string_lossy().into_owned());
        self.host.backstay(&["restore", &self.name, "--point", &point, "--to", &target, "--force"]);
        to
    }

    /// Where the driver answers.
    pub fn control_socket(&self) -> PathBuf {
        self.host.runtime.join(&self.name).join("control.sock")
    }

    /// The driver's process.
    pub fn driver_pid(&self) -> Option<i32> {
        driver_pid(&self.host.runtime, &self.name)
    }

    /// Kills the driver as a crash would, and waits until it is gone.
    pub fn kill_driver(&self) {
        let pid = self.driver_pid().expect("a driver runs");
        must("kill", ["-9", &pid.to_string()]);
        wait_gone(pid);
    }
}

/// A recovery point, as `backstay points` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Its cycle.
    pub cycle: u64,
    /// When it was cut.
    pub cut_unix_ns: u64,
}

/// A file system mounted from a device or image; unmounted when dropped.
pub struct FsMount {
    /// Where it is mounted.
    pub at: PathBuf,
}

impl FsMount {
    /// Mounts a device at a new folder of the host.
    pub fn new(host: &Host, device: &str, name: &str, options: &str) -> Self {
        let at = host.path(name);
        fs::create_dir_all(&at).unwrap();
        must("mount", ["-o", options, device, &at.to_string_lossy()]);
        Self { at }
    }

    /// Mounts a tmpfs of its own over a folder.
    pub fn new_tmpfs(at: &Path, options: &str) -> Self {
        must("mount", ["-t", "tmpfs", "-o", options, "tmpfs", &at.to_string_lossy()]);
        Self { at: at.into() }
    }
}

impl Drop for FsMount {
    fn drop(&mut self) {
        run("umount", [&self.at]);
    }
}

/// The `backstay` binary: next to the tests, or where `BACKSTAY` says.
///
/// # Panics
/// If it was not built.
pub fn backstay() -> PathBuf {
    if let Some(path) = std::env::var_os("BACKSTAY") {
        return path.into();
    }
    let tests = std::env::current_exe().unwrap();
    let built = tests.parent().and_then(Path::parent).unwrap().join("backstay");
    assert!(built.exists(), "{} is not built: cargo build -p backstay", built.display());
    built
}

/// Waits until a process is gone, by event.
pub fn wait_gone(pid: i32) {
    let Ok(process) = File::open(format!("/proc/{pid}")) else { return };
    // A pidfd becomes readable when its process ends.
    // SAFETY: takes two numbers, returns a descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    drop(process);
    if fd < 0 {
        return;
    }
    // SAFETY: the descriptor is new and ours alone.
    let pidfd = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32) };
    let mut wait =
        [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut wait, nix::poll::PollTimeout::from(30_000u16)).unwrap();
}

/// The process that serves a disk: anyone who listens on its control socket.
fn driver_pid(runtime: &Path, name: &str) -> Option<i32> {
    let socket = runtime.join(name).join("control.sock");
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    let credentials =
        nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials).ok()?;
    Some(credentials.pid())
}

/// Loop devices attached to files below a folder.
fn loops_on(dir: &Path) -> Vec<String> {
    let list = run("losetup", ["-l", "-n", "-O", "NAME,BACK-FILE"]);
    String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, file)| Path::new(file.trim()).starts_with(dir))
        .map(|(device, _)| device.to_owned())
        .collect()
}

fn nix_is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A hash of a file's or device's whole content.
pub fn hash(path: &Path) -> String {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&file).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    hasher.finalize().to_hex().to_string()
}

/// Reads a part of a file.
pub fn read_at(file: &File, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    file.read_exact_at(&mut buf, offset).unwrap();
    buf
}

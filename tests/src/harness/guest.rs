//! A small Linux machine in QEMU that boots from a disk of a test (see `scripts/guest-image`).
//!
//! QEMU runs without KVM, so that it does the same on every machine.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::must;

/// How long anything in a machine may take that is emulated on a busy one.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the machine does when it has booted.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// Says the hash of each file in /data and powers off.
    Check,
    /// Writes files to /data and says each that is there for good, until it is killed.
    Write,
}

/// A machine that runs; killed when dropped.
pub struct Guest {
    qemu: Child,
    lines: Receiver<String>,
}

/// An image of the machine's disk; made if there is none yet.
///
/// # Panics
/// If it cannot be made.
pub fn image() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-image");
    let said = must(&script.to_string_lossy(), [""; 0]);
    said.lines().last().expect("scripts/guest-image says where the image is").into()
}

/// Copies the image to where a test wants its disk.
pub fn copy_image(to: &Path) {
    must("cp", ["--sparse=always", &image().to_string_lossy(), &to.to_string_lossy()]);
}

impl Guest {
    /// Boots from a disk: a file or device.
    ///
    /// # Panics
    /// If QEMU cannot be started: package qemu-system-x86.
    pub fn boot(disk: &Path, task: Task) -> Self {
        let what = match task {
            Task::Check => "check",
            Task::Write => "write",
        };
        Self::start(disk, "192", &["-smbios", &format!("type=1,serial={what}")])
    }

    /// Boots a system in memory (see [`super::lab`]), with a disk.
    ///
    /// # Panics
    /// If QEMU cannot be started: package qemu-system-x86.
    pub fn boot_lab(lab: &super::lab::Lab, disk: &Path) -> Self {
        let (kernel, initrd) = (lab.kernel(), lab.initrd());
        let [kernel, initrd] = [&kernel, &initrd].map(|path| path.to_str().unwrap());
        let append = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check";
        Self::start(disk, "1024", &["-kernel", kernel, "-initrd", initrd, "-append", append])
    }

    fn start(disk: &Path, memory_mib: &str, more: &[&str]) -> Self {
        // Past the host's page cache: what the guest has flushed is on the disk, and nothing else.
        let drive =
            format!("file={},if=virtio,format=raw,cache=none,discard=unmap", disk.display());
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-cpu", "max", "-m", memory_mib, "-nodefaults"]);
        command.args(["-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"]);
        command.args(["-drive", &drive]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = command.spawn().expect("package qemu-system-x86 is installed");
        let said = BufReader::new(qemu.stdout.take().unwrap());
        let (line, lines) = channel();
        thread::spawn(move || {
            for said in said.split(b'\n').map_while(Result::ok) {
                let said = String::from_utf8_lossy(&said).trim().to_owned();
                println!("guest: {said}");
                let _ = line.send(said);
            }
        });
        Self { qemu, lines }
    }

    /// Waits until it says something that begins so; the rest of the line.
    ///
    /// # Panics
    /// If it does not, or ends.
    #[track_caller]
    pub fn says(&self, beginning: &[&str]) -> (usize, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(e) => panic!("the guest did not say one of {beginning:?}: {e}"),
            };
            for (which, beginning) in beginning.iter().enumerate() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return (which, rest.trim().to_owned());
                }
            }
        }
    }

    /// Waits for a line that begins so; the rest of it.
    ///
    /// # Panics
    /// If it does not come, or the machine says first that something failed.
    #[track_caller]
    #[must_use]
    pub fn line(&self, beginning: &str) -> String {
        match self.says(&[beginning, "GUEST failed: "]) {
            (0, rest) => rest,
            (_, why) => panic!("the guest says, instead of {beginning:?}: {why}"),
        }
    }

    /// Waits until `more` further files are there for good; adds their hashes.
    ///
    /// # Panics
    /// If it does not write them.
    #[track_caller]
    pub fn write(&self, more: usize, files: &mut BTreeMap<String, String>) {
        for _ in 0..more {
            match self.says(&["GUEST wrote ", "GUEST cannot write"]) {
                (0, line) => drop(insert(files, line.split_once(' '))),
                _ => panic!("the guest cannot write"),
            }
        }
    }

    /// What it has written by now without waiting.
    pub fn written(&self, files: &mut BTreeMap<String, String>) {
        for line in self.lines.try_iter() {
            assert!(!line.contains("GUEST cannot write"), "the guest cannot write");
            insert(files, line.strip_prefix("GUEST wrote ").and_then(|l| l.split_once(' ')));
        }
    }

    /// Waits until it has checked all files and is off; their hashes.
    ///
    /// # Panics
    /// If it does not boot, or does not end.
    #[track_caller]
    pub fn checked(mut self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        while let (0, line) = self.says(&["GUEST sha256 ", "GUEST done"]) {
            insert(&mut files, line.split_once(' ').map(|(hash, name)| (name, hash)));
        }
        let status = self.qemu.wait().unwrap();
        assert!(status.success(), "QEMU: {status}");
        files
    }
}

fn insert(files: &mut BTreeMap<String, String>, line: Option<(&str, &str)>) -> Option<String> {
    line.and_then(|(name, hash)| files.insert(name.to_owned(), hash.to_owned()))
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

//! Does a machine start from a disk? QEMU runs it without KVM and without a network, until its serial
//! console says what is expected.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use backstay_engine::hooks::withhold;
use backstay_host::clock;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::{DrillError, Verdict};

/// What of the console is kept for the verdict.
const TAIL_BYTES: usize = 2 << 10;
/// Most memory of a machine, in MiB.
const MEMORY_MIB_MAX: u64 = 1 << 20;

/// How to start a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// What its serial console must say.
    pub expect: String,
    /// Its memory, in bytes.
    pub memory: u64,
    /// A kernel, if the disk has no boot loader that writes to the serial console.
    pub kernel: Option<PathBuf>,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub append: Option<String>,
    /// The emulator.
    pub qemu: String,
}

impl Default for Boot {
    fn default() -> Self {
        Self {
            expect: "login:".into(),
            memory: 512 << 20,
            kernel: None,
            initrd: None,
            append: None,
            qemu: "qemu-system-x86_64".into(),
        }
    }
}

impl Boot {
    fn command(&self, served: &Path) -> Command {
        // A comma would begin the next option.
        let file = served.to_string_lossy().replace(',', ",,");
        let memory = (self.memory >> 20).clamp(16, MEMORY_MIB_MAX);
        let mut command = Command::new(&self.qemu);
        command.args(["-accel", "tcg", "-m", &format!("{memory}M"), "-no-reboot"]);
        command.args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-nic", "none"]);
        // What it writes goes to the overlay, which is thrown away: nothing need be durable.
        command.arg("-drive").arg(format!("file={file},format=raw,if=virtio,cache=unsafe"));
        if let Some(kernel) = &self.kernel {
            command.arg("-kernel").arg(kernel);
        }
        if let Some(initrd) = &self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        if let Some(append) = &self.append {
            command.arg("-append").arg(append);
        }
        command
    }
}

enum Console {
    Expected,
    Closed,
}

/// Starts a machine from a served disk and waits for what it should say.
pub(super) fn check(
    boot: &Boot,
    served: &Path,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> Result<Verdict, DrillError> {
    let mut command = boot.command(served);
    withhold(&mut command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0);
    let not_started = |e| DrillError::Tool(format!("{} could not be started: {e}", boot.qemu));
    let mut child = command.spawn().map_err(not_started)?;
    let (console, errors) = (child.stdout.take(), child.stderr.take());
    let (tell, told) = channel();
    let expect = boot.expect.clone().into_bytes();
    let listener = thread::spawn(move || {
        let mut tail = vec![];
        let mut buffer = [0; 4096];
        let mut seen = false;
        let Some(mut console) = console else { return tail };
        while let Ok(n @ 1..) = console.read(&mut buffer) {
            tail.extend_from_slice(&buffer[..n]);
            if !seen && tail.windows(expect.len().max(1)).any(|part| part == expect) {
                seen = true;
                let _ = tell.send(Console::Expected);
            }
            let keep = TAIL_BYTES.max(expect.len());
            tail.drain(..tail.len().saturating_sub(keep));
        }
        let _ = tell.send(Console::Closed);
        tail
    });
    let complaints = thread::spawn(move || {
        let mut said = String::new();
        if let Some(errors) = errors {
            let _ = errors.take(TAIL_BYTES as u64).read_to_string(&mut said);
        }
        said
    });
    let began = clock::monotonic();
    let outcome = loop {
        let left = timeout.saturating_sub(clock::since(began));
        match told.recv_timeout(left.min(Duration::from_millis(100))) {
            Ok(Console::Expected) => break Some(true),
            Ok(Console::Closed) | Err(RecvTimeoutError::Disconnected) => break Some(false),
            Err(RecvTimeoutError::Timeout) if stop() => break None,
            Err(RecvTimeoutError::Timeout) if left.is_zero() => break Some(false),
            Err(RecvTimeoutError::Timeout) => {}
        }
    };
    let took = clock::since(began);
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
    let tail = listener.join().unwrap_or_default();
    let said = complaints.join().unwrap_or_default();
    let seconds = took.as_secs_f64();
    match outcome {
        None => Err(DrillError::Stopped),
        Some(true) => {
            let message = format!("its console said {:?} after {seconds:.1} s", boot.expect);
            Ok(Verdict { passed: true, message })
        }
        Some(false) => {
            let how = if took >= timeout { "in time" } else { "before it ended" };
            let tail = String::from_utf8_lossy(&tail);
            let message = format!(
                "its console did not say {:?} {how} ({seconds:.1} s); it ends: {} {}",
                boot.expect,
                tail.trim(),
                said.trim()
            );
            Ok(Verdict { passed: false, message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in place of QEMU: what is done with a console, not what QEMU does.
    fn says(script: &str, timeout: Duration, stop: bool) -> Result<Verdict, DrillError> {
        let dir = tempfile::tempdir().unwrap();
        let qemu = dir.path().join("qemu");
        std::fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&qemu, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        let boot = Boot { qemu: qemu.to_string_lossy().into_owned(), ..Boot::default() };
        check(&boot, Path::new("/disk"), timeout, &|| stop)
    }

    #[test]
    fn consoles_are_listened_to() {
        let long = Duration::from_secs(60);
        assert!(says("printf 'one log'; echo in:; sleep 100", long, false).unwrap().passed);
        let ended = says("seq 5000; echo no >&2", long, false).unwrap();
        assert!(!ended.passed && ended.message.contains("5000") && ended.message.contains("no"));
        let late = says("sleep 100", Duration::from_millis(100), false).unwrap();
        assert!(!late.passed && late.message.contains("in time"), "{}", late.message);
        assert!(matches!(says("sleep 100", long, true), Err(DrillError::Stopped)));
    }
}

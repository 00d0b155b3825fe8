//! A running `backstay sidecar`: what it says, waiting for what it does, and new settings.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::host::{Host, wait_gone};
use super::must;

/// How long anything may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// A running service and what it says; stopped when dropped.
pub struct Service {
    /// Its process.
    pub child: Child,
    lines: Receiver<String>,
}

impl Service {
    /// Starts it.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(host: &Host) -> Self {
        Self::start_as(host, |command| {
            let mut same = Command::new(command.get_program());
            same.args(command.get_args());
            same.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            same
        })
    }

    /// Starts it by another command that runs this one, as in another network.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_as(host: &Host, by: impl FnOnce(&Command) -> Command) -> Self {
        let mut command = host.command();
        let mut command = by(command.args(["--verbose", "sidecar"]));
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        let (line, lines) = channel();
        thread::spawn(move || {
            for said in said.lines().map_while(Result::ok) {
                println!("sidecar: {said}");
                let _ = line.send(said);
            }
        });
        Self { child, lines }
    }

    /// Waits until it says something; the line.
    ///
    /// # Panics
    /// If it does not say it soon.
    #[track_caller]
    pub fn says(&self, what: &str) -> String {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(what) => return line,
                Ok(_) => {}
                Err(e) => panic!("it did not say {what:?}: {e}"),
            }
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: &str) {
        must("kill", [signal, &self.child.id().to_string()]);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // A test may have killed it.
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        self.signal("-TERM");
        wait_gone(self.child.id() as i32);
        let _ = self.child.wait();
    }
}

/// Replaces the configuration of a host.
///
/// # Panics
/// If it cannot be written.
pub fn write_config(host: &Host, settings: &str) {
    // As an editor or a tool replaces it: never half a file.
    let text = format!("vault = \"{}\"\nallow_local_vault = true\n{settings}", host.vault());
    fs::write(host.path("new.toml"), text).unwrap();
    fs::rename(host.path("new.toml"), host.path("backstay.toml")).unwrap();
}

/// Waits until something has happened.
///
/// # Panics
/// If it does not happen soon.
#[track_caller]
pub fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !happened() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::yield_now();
    }
}

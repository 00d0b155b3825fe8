//! Starting a driver: the one thing that a program is run for. A driver outlives anyone who started it, and a process
//! that has threads must not fork.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use backstay_front::paths::Roots;
use backstay_host::kill_point;

use super::error::{Doing, HostError};

/// The areas in which tests kill a command, and not what it starts.
const AREAS: [&str; 2] = [crate::failover::STEPS, "replica"];

/// The program that serves disks (`backstay`), and the flags that it gets before all others: the configuration's
/// file says how the vault's store is reached, and what opens it.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it is.
    pub path: PathBuf,
    /// Its flags.
    pub flags: Vec<OsString>,
}

impl Program {
    /// The program for the disks of these places.
    #[must_use]
    pub fn command(&self, roots: &Roots) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.flags).arg("--state-dir").arg(&roots.state);
        command.arg("--runtime-dir").arg(&roots.runtime);
        command
    }

    /// Has a disk served by a driver in the background: `backstay mount`. The file that is served.
    ///
    /// # Errors
    /// What it said.
    pub(super) fn mount(&self, roots: &Roots, args: &[&str]) -> Result<PathBuf, HostError> {
        let mut command = self.command(roots);
        command.args(["--quiet", "mount"]).args(args);
        if AREAS.into_iter().any(|area| kill_point::told(area).is_some()) {
            command.env_remove(kill_point::DIE_AT);
        }
        let output = command.stdin(Stdio::null()).output();
        let output = output.doing(|| format!("starting {}", self.path.display()))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout).into());
        }
        let said = text(&output.stderr);
        let said = said.strip_prefix("backstay: ").unwrap_or(&said).to_owned();
        match output.status.code() {
            Some(3) => Err(HostError::Refused(said)),
            _ => Err(HostError::Failed(said)),
        }
    }
}

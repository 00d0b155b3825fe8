//! Commands of people and of the system, which are not told what opens stores and vaults.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::time::Duration;

use backstay_engine::hooks::withhold;
use backstay_host::child::{self, Output};
pub use backstay_host::child::{Ended, shell};

/// Runs a command and waits for its end, at most as long as it may take. What it prints goes to a file; the
/// end of that is returned.
///
/// # Errors
/// If it cannot be started or waited for.
pub fn run(
    mut command: Command,
    output: &mut File,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<(Ended, String)> {
    withhold(&mut command);
    child::run(command, Output::To(output), timeout, stop)
}

/// A file without a name, for what a command prints that may leave others behind.
///
/// # Errors
/// If there is no room for one.
pub fn scratch() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    options.open(std::env::temp_dir())
}

/// As [`run`], for commands whose output is only of interest here.
///
/// # Errors
/// As for [`run`].
pub fn run_to_us(
    mut command: Command,
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<(Ended, String)> {
    withhold(&mut command);
    child::run(command, Output::Us, timeout, stop)
}

/// Runs one of the system's tools that must succeed; what it printed.
///
/// # Errors
/// If it cannot be started, fails, takes too long or was stopped, with what it said.
pub fn tool(
    program: &str,
    args: &[&str],
    timeout: Duration,
    stop: &(dyn Fn() -> bool + Sync),
) -> io::Result<String> {
    let mut command = Command::new(program);
    command.args(args);
    let failed = |why: String| io::Error::other(format!("{program} {}: {why}", args.join(" ")));
    match run_to_us(command, timeout, stop) {
        Ok((ended, said)) if ended.is_success() => Ok(said),
        Ok((ended, said)) => Err(failed(format!("{}: {said}", ended.words(timeout)))),
        Err(e) => Err(failed(e.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_must_succeed() {
        let long = Duration::from_secs(60);
        assert_eq!(tool("echo", &["here"], long, &|| false).unwrap(), "here");
        assert!(tool("false", &[], long, &|| false).is_err());
        assert!(tool("there-is-no-such-tool", &[], long, &|| false).is_err());
    }
}

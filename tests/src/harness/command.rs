//! Running commands and seeing all they said when they fail.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// Runs a command; its output, whatever its exit code.
///
/// # Panics
/// If it cannot be started: then a package is missing (see `scripts/setup`).
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program);
    command.args(args);
    command.output().unwrap_or_else(|e| panic!("{program} cannot be started: {e}"))
}

/// Runs a command that must succeed; its standard output.
///
/// # Panics
/// If it fails, with all it said.
pub fn must<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    let mut command = Command::new(program);
    command.args(args);
    let shown = format!("{command:?}");
    let output = command.output().unwrap_or_else(|e| panic!("{shown} cannot be started: {e}"));
    assert!(output.status.success(), "{shown}: {}\n{}", output.status, said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both outputs of a command, for a message.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

//! Starting programs of the system.

use std::path::Path;
use std::process::Command;

/// Where an administrator's programs are. They are not on everyone's path: not on cron's, nor on that of
/// what mount(8) calls.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A program of the system, also if its folder is not on the path.
pub fn command(program: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let elsewhere = || SBIN.iter().map(|dir| Path::new(dir).join(program)).find(|p| p.is_file());
    match elsewhere() {
        Some(found) if !on_path => Command::new(found),
        _ => Command::new(program),
    }
}

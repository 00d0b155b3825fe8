//! Vaults of hosts: made before a host's first command, as its owner would have done.
//!
//! A vault is made by `backstay vault init`, `key init` or `protect`, never by what ships into it. So the vault
//! that a host's configuration names is made here when the first command of the host is about to run. A test
//! about a vault that is not there says so with [`Host::without_vault`](super::Host::without_vault).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use super::command::said;
use super::sealed;

/// Vaults that were looked at; two commands of a test must not both make one.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Makes the vault that a configuration names, if it is not there: `new` are commands of the host that do so when
/// they are told where. `elsewhere`: it is in a store that the test has started.
///
/// # Panics
/// If the vault cannot be made.
pub(super) fn prepare(
    config: &Path,
    (dir, sealed): (&Path, bool),
    elsewhere: bool,
    new: [Command; 2],
) {
    let text = fs::read_to_string(config).unwrap_or_default();
    let vault = text.lines().find_map(|line| line.strip_prefix("vault = "));
    let Some(vault) = vault.map(|url| url.trim().trim_matches('"').to_owned()) else { return };
    // A gateway makes no vaults; a store that the test did not start does not answer; and a relative or broken URL is
    // what the test is about.
    let remote = ["s3://", "az://", "gs://"].iter().any(|scheme| vault.starts_with(scheme));
    if !(vault.starts_with("file://") || remote && elsewhere) {
        return;
    }
    // Anyone who says that vaults are encrypted makes it with a key.
    if text.contains("[encryption]") && !sealed {
        return;
    }
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.contains(&vault) {
        return;
    }
    seen.push(vault.clone());
    let there = vault.strip_prefix("file://").map(|dir| Path::new(dir).join("vault.json").exists());
    match there {
        Some(true) => {}
        _ if sealed => sealed::make(&vault, dir, new),
        _ => {
            let [mut new, _] = new;
            init(&mut new, &vault);
        }
    }
}

/// Makes a vault with a command that is told where, unless there is one.
///
/// # Panics
/// If it cannot be made.
pub(super) fn init(command: &mut Command, vault: &str) {
    const THERE: Option<i32> = Some(3);
    let made = command.args(["vault", "init", "--vault", vault]).output().unwrap();
    assert!(made.status.success() || made.status.code() == THERE, "{vault}: {}", said(&made));
}

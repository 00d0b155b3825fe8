//! Hosts whose vaults are encrypted, so that a test of anything else runs in one, too.
//!
//! A test asks for it with [`Host::sealed`](super::Host::sealed); all of them with the variable `BACKSTAY_TEST_SEALED`. The
//! vault that a host's configuration names is made encrypted before the host's first command, and every command has the key
//! in its environment. The key is the same everywhere: it is no secret.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_vault::encrypt::KeySettings;
use backstay_vault::{Vault, Vaults};

use super::command::said;

/// With it every host's vault is encrypted.
const ALL: &str = "BACKSTAY_TEST_SEALED";
const KEY_FILE_VARIABLE: &str = "BACKSTAY_KEY_FILE";

/// Whether every host's vault is to be encrypted.
#[must_use]
pub fn all() -> bool {
    std::env::var_os(ALL).is_some()
}

/// A key file, made if it is not there.
pub(super) fn key_file(dir: &Path) -> PathBuf {
    let path = dir.join("sealed.key");
    let mut options = fs::OpenOptions::new();
    if let Ok(mut file) = options.write(true).create_new(true).mode(0o600).open(&path) {
        std::io::Write::write_all(&mut file, &[0x5E; 64]).unwrap();
    }
    path
}

/// Gives a command the key.
pub(super) fn give_key(command: &mut Command, dir: &Path) {
    command.env(KEY_FILE_VARIABLE, key_file(dir));
}

/// Makes an encrypted vault: `new` are commands of this host that do so when they are told where.
///
/// # Panics
/// If the vault cannot be made.
pub(super) fn make(vault: &str, dir: &Path, new: [Command; 2]) {
    let key = key_file(dir);
    let [mut new, mut spare] = new;
    let made =
        new.args(["key", "init", "--vault", vault, "--label", "test", "--key-file"]).arg(&key);
    let made = made.output().unwrap();
    assert!(made.status.success(), "{vault}: {}", said(&made));
    // Another key, as if it were kept elsewhere: nothing about these vaults is to worry anybody.
    spare.args(["key", "add", "--vault", vault, "--label", "spare", "--key-file"]);
    let added = spare.arg(dir.join("spare.key")).env(KEY_FILE_VARIABLE, &key).output().unwrap();
    assert!(added.status.success(), "{vault}: {}", said(&added));
}

/// Opens a vault with the key of a host, if it has one.
pub(super) fn open(url: &str, dir: &Path, sealed: bool) -> Vault {
    let key_file = sealed.then(|| key_file(dir));
    Vaults::default()
        .with_keys(KeySettings { key_file, ..KeySettings::default() })
        .open(url)
        .unwrap()
}

//! What this host has to open vaults with, as its configuration and its environment say. No secret stands in
//! either's files: they name files that nobody else can read.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeroize::Zeroizing;

use super::sign::PublicKey;
use super::unlock::{KEY_FILE_BYTES_MIN, Unlock};
use super::writer::WriterKey;
use crate::format::document::decode;

/// Longest file of a secret.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// The variable with a passphrase.
pub const PASSPHRASE_VARIABLE: &str = "BACKSTAY_PASSPHRASE";
/// The variable with the path of a key file.
pub const KEY_FILE_VARIABLE: &str = "BACKSTAY_KEY_FILE";
/// The variable with the path of an age identity file.
pub const IDENTITY_FILE_VARIABLE: &str = "BACKSTAY_IDENTITY_FILE";

/// Asks a person for the passphrase of a vault.
pub type Prompt = dyn Fn(&str) -> io::Result<Zeroizing<String>> + Send + Sync;

/// What this host has to open vaults with.
#[derive(Clone, Default)]
pub struct KeySettings {
    /// A file whose first line is a passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// A file of random bytes.
    pub key_file: Option<PathBuf>,
    /// A file of age identities.
    pub identity_file: Option<PathBuf>,
    /// A file of a writer's key (see [`WriterKey`]): this host writes and cannot read.
    pub writer_file: Option<PathBuf>,
    /// The owner that this host believes; anyone who opens the keyring with a passphrase or a key file knows it anyway.
    pub owner: Option<PublicKey>,
    /// Whether vaults that are not encrypted are refused.
    pub required: bool,
    /// How to ask for a passphrase, where there is somebody to ask.
    pub prompt: Option<Arc<Prompt>>,
}

impl std::fmt::Debug for KeySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySettings").field("required", &self.required).finish_non_exhaustive()
    }
}

impl PartialEq for KeySettings {
    /// Whether they lead to the same; who is asked does not matter.
    fn eq(&self, other: &Self) -> bool {
        let all = |s: &Self| {
            let files = [&s.passphrase_file, &s.key_file, &s.identity_file, &s.writer_file];
            (files.map(Clone::clone), s.owner, s.required, s.prompt.is_some())
        };
        all(self) == all(other)
    }
}

/// Reads a file that nobody but its owner (root, or who runs this) can read or write.
pub fn read_secret(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let meta = file.metadata()?;
    let us = nix::unistd::geteuid().as_raw();
    if !meta.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if meta.mode() & 0o077 != 0 || !(meta.uid() == us || meta.uid() == 0) {
        let reason = "others can read or change it, and it holds a secret: chown it to the user that \
                      runs Backstay and chmod 600 it";
        return Err(io::Error::other(reason));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(meta.len().min(FILE_BYTES_MAX) as usize + 1));
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("it is too long for a secret"));
    }
    Ok(bytes)
}

/// The passphrase in a file: its first line.
pub fn read_passphrase(path: &Path) -> io::Result<Zeroizing<String>> {
    let bytes = read_secret(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| io::Error::other("it is no text"))?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(Zeroizing::new(line.to_owned())),
        _ => Err(io::Error::other("its first line is empty")),
    }
}

/// The content of a key file.
pub fn read_key_file(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let bytes = read_secret(path)?;
    if bytes.len() < KEY_FILE_BYTES_MIN {
        let reason = format!("a key file has {KEY_FILE_BYTES_MIN} random bytes at least");
        return Err(io::Error::other(reason));
    }
    Ok(bytes)
}

/// The age identities in a file.
pub fn read_identities(path: &Path) -> io::Result<Unlock> {
    let bytes = read_secret(path)?;
    let file = age::IdentityFile::from_buffer(&bytes[..])?;
    let identities = file.into_identities().map_err(|_| io::Error::other("no usable identity"))?;
    Ok(Unlock::Identities(identities))
}

/// A writer's key.
pub fn read_writer(path: &Path) -> io::Result<WriterKey> {
    decode(&read_secret(path)?).map_err(|e| io::Error::other(e.to_string()))
}

/// Whether the environment has a key.
fn is_given() -> bool {
    [PASSPHRASE_VARIABLE, KEY_FILE_VARIABLE, IDENTITY_FILE_VARIABLE]
        .iter()
        .any(|name| std::env::var_os(name).is_some())
}

/// Something to open a keyring with, and what people call it.
pub(crate) type Way = (String, io::Result<Unlock>);

impl KeySettings {
    /// Whether this host has anything to open a vault with, but for a person to ask.
    #[must_use]
    pub fn has_any(&self) -> bool {
        self.passphrase_file.is_some()
            || self.key_file.is_some()
            || self.identity_file.is_some()
            || self.writer_file.is_some()
            || is_given()
    }

    /// The writer's key, if this process is to write and not to read: anyone who brings a key in the environment wants to
    /// read, on a host that otherwise cannot.
    pub(crate) fn writer(&self) -> Option<&Path> {
        self.writer_file.as_deref().filter(|_| !is_given())
    }

    /// Whether this host can open vaults, a person who can be asked included.
    pub(crate) fn can_unlock(&self) -> bool {
        self.has_any() || self.prompt.is_some()
    }

    /// What this host has, one after the other, those first that cost least. A person is asked last.
    pub(crate) fn ways(&self, vault: &str) -> Vec<Way> {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let named = |what: &str, path: &Path| format!("{what} {}", path.display());
        let mut ways: Vec<Way> = vec![];
        for path in self.key_file.iter().chain(&variable(KEY_FILE_VARIABLE)) {
            ways.push((named("key file", path), read_key_file(path).map(Unlock::KeyFile)));
        }
        for path in self.identity_file.iter().chain(&variable(IDENTITY_FILE_VARIABLE)) {
            ways.push((named("age identity file", path), read_identities(path)));
        }
        if let Some(path) = &self.passphrase_file {
            let read = read_passphrase(path).map(Unlock::Passphrase);
            ways.push((named("passphrase file", path), read));
        }
        if let Ok(text) = std::env::var(PASSPHRASE_VARIABLE) {
            let text = Zeroizing::new(text);
            ways.push((
                format!("passphrase in {PASSPHRASE_VARIABLE}"),
                Ok(Unlock::Passphrase(text)),
            ));
        }
        if let (true, Some(prompt)) = (ways.is_empty(), &self.prompt) {
            ways.push(("passphrase".into(), prompt(vault).map(Unlock::Passphrase)));
        }
        ways
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_that_others_can_read_is_refused_without_being_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "hunter2hunter2\nmore").unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for open in [0o604, 0o640, 0o620, 0o666] {
            mode(open);
            let error = read_passphrase(file.path()).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && !error.contains("hunter2"), "{error}");
        }
        mode(0o600);
        assert_eq!(*read_passphrase(file.path()).unwrap(), "hunter2hunter2");
        let error = read_key_file(file.path()).unwrap_err().to_string();
        assert!(error.contains("32 random bytes"), "{error}");
        let error = read_identities(file.path()).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let error = read_writer(file.path()).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

//! Which vault this host means by a URL.
//!
//! A URL names a place, and what stands in a place can change: a file system is not mounted, a bucket was
//! emptied, somebody made another vault there. So a host remembers the identity of the vault that it found
//! at a URL first, and from then on takes no other one there, and no empty place, until somebody says so.
//!
//! The folder of these records belongs to what vaults are opened with ([`crate::Vaults`]), so opening one cannot forget to
//! ask. A program that named no folder remembers nothing.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use backstay_host::atomic::Durability;
use backstay_host::record::RecordError;
use backstay_host::{own_dir, record};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::VaultError;
use crate::remote::place::VaultPlace;
use crate::store::now_unix_ns;

/// The folder of the records, below a host's state directory.
const FOLDER: &str = ".vaults";

/// The records of a host; none are kept where no folder was named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownVaults {
    folder: Option<PathBuf>,
}

/// The vault that this host means by a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownVault {
    /// The URL, in the one way in which it is compared.
    pub url: String,
    /// The vault's identity.
    pub vault: Uuid,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

/// A URL in the one way in which URLs are compared: `file:///a/b`, no slash at the end.
///
/// # Errors
/// If it is no vault's URL.
pub fn canonical(url: &str) -> Result<String, VaultError> {
    Ok(match VaultPlace::parse(url)? {
        VaultPlace::Directory(root) => {
            let parts: PathBuf = root.components().collect();
            format!("file://{}", parts.display())
        }
        VaultPlace::Bucket { .. } | VaultPlace::Gateway { .. } => url.trim_end_matches('/').into(),
    })
}

impl KnownVaults {
    /// Those below a state directory. A drill has a state directory of its own inside the host's (`.drills`): what it
    /// meets, the host has met.
    #[must_use]
    pub fn below(state_root: &Path) -> Self {
        let hidden =
            |path: &&Path| path.file_name().is_some_and(|n| n.as_encoded_bytes()[0] == b'.');
        let state_root =
            Some(state_root).filter(hidden).and_then(Path::parent).unwrap_or(state_root);
        Self { folder: Some(state_root.join(FOLDER)) }
    }

    /// The record's file; `None` if nothing is remembered.
    fn file(&self, url: &str) -> Result<Option<(String, PathBuf)>, VaultError> {
        let Some(root) = &self.folder else { return Ok(None) };
        let url = canonical(url)?;
        let name = blake3::hash(url.as_bytes()).to_hex();
        Ok(Some((url, root.join(format!("{}.json", &name[..32])))))
    }

    /// The vault that this host means by a URL; `None` if it has met none there yet.
    ///
    /// # Errors
    /// If the record cannot be read: then nobody knows which vault is meant.
    pub fn at(&self, url: &str) -> Result<Option<KnownVault>, VaultError> {
        let Some((url, file)) = self.file(url)? else { return Ok(None) };
        let known = match record::load::<KnownVault>(&file) {
            // Somebody who may not look into the state of this host: as on a host that has met no vault.
            Err(RecordError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
                None
            }
            known => known.map_err(|e| unreadable(&url, &e))?,
        };
        match known {
            // Two URLs with one digest: not by chance.
            Some(known) if known.url != url => Ok(None),
            known => Ok(known),
        }
    }

    /// Compares a vault that was opened with the one that is meant.
    pub(crate) fn compare(&self, url: &str, vault: Uuid) -> Result<(), VaultError> {
        match self.at(url)? {
            Some(known) if known.vault != vault => {
                Err(VaultError::OtherVault { url: url.into(), known: known.vault, found: vault })
            }
            _ => Ok(()),
        }
    }

    /// Compares a vault that was opened with the one that is meant, and remembers one that is met for the first
    /// time. A host that cannot write its state remembers nothing.
    pub(crate) fn meet(&self, url: &str, vault: Uuid) -> Result<(), VaultError> {
        self.compare(url, vault)?;
        if self.at(url)?.is_none()
            && let Err(e) = self.accept(url, vault)
        {
            tracing::debug!("{e}");
        }
        Ok(())
    }

    /// Records which vault this host means by a URL. An earlier record is replaced.
    ///
    /// # Errors
    /// If the record cannot be written.
    pub fn accept(&self, url: &str, vault: Uuid) -> Result<(), VaultError> {
        let Some((canonical, file)) = self.file(url)? else { return Ok(()) };
        let failed = |e: &dyn std::fmt::Display| VaultError::Url {
            url: url.into(),
            reason: format!("this host cannot remember which vault it means by that URL: {e}"),
        };
        if let Some(folder) = file.parent() {
            own_dir::own_dir(folder).map_err(|e| failed(&e))?;
        }
        let known = KnownVault { url: canonical, vault, since_unix_ns: now_unix_ns() };
        record::save(&file, &known, Durability::Durable).map_err(|e| failed(&e))
    }

    /// Forgets which vault this host means by a URL: somebody says that it is lost and another takes its place.
    ///
    /// # Errors
    /// If the record cannot be removed.
    pub fn forget(&self, url: &str) -> Result<(), VaultError> {
        let Some((canonical, file)) = self.file(url)? else { return Ok(()) };
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(VaultError::Url { url: canonical, reason: format!("{}: {e}", file.display()) })
            }
            _ => Ok(()),
        }
    }

    /// What it means that there is no vault at a URL.
    pub(crate) fn none_at(&self, url: &str) -> VaultError {
        match self.at(url) {
            Ok(Some(known)) => VaultError::VaultGone { url: url.into(), known: known.vault },
            Ok(None) => VaultError::NoVault { url: url.into() },
            Err(e) => e,
        }
    }
}

fn unreadable(url: &str, e: &RecordError) -> VaultError {
    VaultError::Url {
        url: url.into(),
        reason: format!(
            "{e}. So it cannot be told which vault this host means by that URL; nothing was changed. If \
             the vault that is there now is the right one: backstay vault accept --vault {url}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_to_write_a_url() {
        let same = ["/a/b", "/a/b/", "file:///a/b", "file:///a//b/", "/a/./b"];
        for url in same {
            assert_eq!(canonical(url).unwrap(), "file:///a/b", "{url}");
        }
        assert_eq!(canonical("s3://bucket/x/").unwrap(), "s3://bucket/x");
        assert!(canonical("ftp://x").is_err());
    }
}

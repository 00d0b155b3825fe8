//! What was there at an instant: of everything that a removed writer signed, or that nobody signed before documents
//! were, only this counts.
//!
//! Points, ledgers and group points are numbered and never put again under a number that was used: the highest number
//! of each folder suffices. Of the other documents each is named, for a hold of an old version could be made
//! up. Kept under its own digest, which the keyring names and its owner has signed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::secret::hex;
use crate::error::VaultError;
use crate::store::Vault;

/// Longest one that is read, in bytes.
const BYTES_MAX: usize = 64 << 20;
/// Folders of a disk that are numbered without gaps above what retention has deleted.
const NUMBERED: [&str; 2] = ["points", "ledger"];
/// Folders of a disk whose documents are named one by one.
const NAMED: [&str; 5] = ["terms", "handovers", "holds", "held", "drills"];

/// What was there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bounds {
    vault: Uuid,
    /// The last name in each folder.
    last: BTreeMap<String, String>,
    /// Everything else.
    there: BTreeSet<String>,
}

/// Where it is.
fn key(digest: &str) -> String {
    format!("keys/bounds-{digest}")
}

impl Bounds {
    /// Whether an object was there.
    pub fn cover(&self, key: &str) -> bool {
        let numbered = || {
            let (folder, name) = key.rsplit_once('/')?;
            self.last.get(folder).map(|last| name <= last.as_str())
        };
        self.there.contains(key) || numbered().unwrap_or(false)
    }

    /// What is there now.
    pub fn now(vault: &Vault, id: Uuid) -> Result<Self, VaultError> {
        let mut found = Self { vault: id, last: BTreeMap::new(), there: BTreeSet::new() };
        for disk in vault.folders("disks")? {
            let disk = format!("disks/{disk}");
            found.there.insert(format!("{disk}/disk.json"));
            for folder in NUMBERED.map(|folder| format!("{disk}/{folder}")) {
                found.add_last(vault, folder)?;
            }
            for folder in NAMED.map(|folder| format!("{disk}/{folder}")) {
                found.add_all(vault, &folder)?;
            }
        }
        for name in vault.folders("names")? {
            found.add_all(vault, &format!("names/{name}"))?;
        }
        for group in vault.folders("groups")? {
            found.add_last(vault, format!("groups/{group}/points"))?;
        }
        Ok(found)
    }

    fn add_last(&mut self, vault: &Vault, folder: String) -> Result<(), VaultError> {
        if let Some((last, _)) = vault.listed(&folder)?.pop() {
            self.last.insert(folder, last);
        }
        Ok(())
    }

    fn add_all(&mut self, vault: &Vault, folder: &str) -> Result<(), VaultError> {
        let names = vault.listed(folder)?;
        self.there.extend(names.into_iter().map(|(name, _)| format!("{folder}/{name}")));
        Ok(())
    }

    /// Keeps it in the vault; its digest.
    pub fn keep(&self, vault: &Vault) -> Result<String, VaultError> {
        // Strings and maps of them: cannot fail.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > BYTES_MAX {
            let reason = format!("{} bytes of names are more than a reader takes", bytes.len());
            return Err(VaultError::Inconsistent { object: "keys/bounds".into(), reason });
        }
        let digest = hex(blake3::hash(&bytes).as_bytes());
        vault.put(&key(&digest), bytes.into())?;
        Ok(digest)
    }

    /// The one of a digest.
    pub fn load(vault: &Vault, id: Uuid, digest: &str) -> Result<Self, VaultError> {
        let key = key(digest);
        let wrong = |reason: String| VaultError::Inconsistent { object: key.clone(), reason };
        let bytes = vault.get(&key, BYTES_MAX)?;
        if hex(blake3::hash(&bytes).as_bytes()) != digest {
            return Err(wrong("it is not what its name says".into()));
        }
        let found: Self = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        match found.vault == id {
            true => Ok(found),
            false => Err(wrong("it is another vault's".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_and_nothing_later() {
        let bounds = Bounds {
            vault: Uuid::nil(),
            last: BTreeMap::from([("disks/a/points".into(), format!("{:020}", 7))]),
            there: BTreeSet::from(["disks/a/holds/1-x".into()]),
        };
        let point = |disk: &str, n: u64| bounds.cover(&format!("disks/{disk}/points/{n:020}"));
        assert!(point("a", 1) && point("a", 7));
        assert!(!point("a", 8) && !point("b", 1));
        assert!(bounds.cover("disks/a/holds/1-x") && !bounds.cover("disks/a/holds/0-y"));
        assert!(!bounds.cover("disks/a/terms/1") && !bounds.cover("points"));
    }
}

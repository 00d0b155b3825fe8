//! What was there at an instant: of everything that a removed writer signed, or that nobody signed before documents
//! were, only this counts.
//!
//! Points, ledgers and group points are numbered and never put again under a number that was used: the highest number
//! of each folder suffices. Of the other documents each is named, for a hold of an old version could be made
//! up. Kept under its own digest, which the keyring names and its owner has signed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::secret::{hex, unhex32};
use crate::error::VaultError;
use crate::format::key::{DiskFolder, Folder, KeyNote, ObjectKey, Piece};
use crate::store::Vault;

/// Longest one that is read, in bytes.
const BYTES_MAX: usize = 64 << 20;
/// Folders of a disk that are numbered without gaps above what retention has deleted.
const NUMBERED: [DiskFolder; 2] = [DiskFolder::Points, DiskFolder::Ledger];
/// Folders of a disk whose documents are named one by one.
const NAMED: [DiskFolder; 5] = [
    DiskFolder::Terms,
    DiskFolder::Handovers,
    DiskFolder::Holds,
    DiskFolder::Held,
    DiskFolder::Drills,
];

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
        for folder in vault.folders(&Folder::Disks)? {
            let Folder::Disk(disk) = folder else { continue };
            found.there.insert(Piece::Record.of(disk).to_string());
            for folder in NUMBERED {
                found.add_last(vault, &folder.of(disk))?;
            }
            for folder in NAMED {
                found.add_all(vault, &folder.of(disk))?;
            }
        }
        found.add_all(vault, &Folder::Names)?;
        for folder in vault.folders(&Folder::Groups)? {
            if let Folder::Group(group) = folder {
                found.add_last(vault, &Folder::GroupPoints(group))?;
            }
        }
        Ok(found)
    }

    fn add_last(&mut self, vault: &Vault, folder: &Folder) -> Result<(), VaultError> {
        if let Some((last, _)) = vault.listed(folder)?.pop() {
            let last = last.to_string();
            self.last.extend(last.rsplit_once('/').map(|(at, name)| (at.into(), name.into())));
        }
        Ok(())
    }

    fn add_all(&mut self, vault: &Vault, folder: &Folder) -> Result<(), VaultError> {
        self.there.extend(vault.listed(folder)?.iter().map(|(key, _)| key.to_string()));
        Ok(())
    }

    /// Keeps it in the vault; its digest.
    pub fn keep(&self, vault: &Vault) -> Result<String, VaultError> {
        // Strings and maps of them: cannot fail.
        let bytes = serde_json::to_vec(self).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > BYTES_MAX {
            let reason = format!("{} bytes of names are more than a reader takes", bytes.len());
            return Err(VaultError::Inconsistent { object: Folder::Keys.to_string(), reason });
        }
        let digest = *blake3::hash(&bytes).as_bytes();
        vault.put(&ObjectKey::KeyNote(KeyNote::Bounds, digest), bytes.into())?;
        Ok(hex(&digest))
    }

    /// The one of a digest.
    pub fn load(vault: &Vault, id: Uuid, digest: &str) -> Result<Self, VaultError> {
        let wrong = |object: String, reason: String| VaultError::Inconsistent { object, reason };
        let Some(digest) = unhex32(digest) else {
            let reason = format!("the keyring names {digest:?}, which is no digest");
            return Err(wrong(Folder::Keys.to_string(), reason));
        };
        let key = ObjectKey::KeyNote(KeyNote::Bounds, digest);
        let wrong = |reason: String| wrong((&key).into(), reason);
        let bytes = vault.get(&key, BYTES_MAX)?;
        if *blake3::hash(&bytes).as_bytes() != digest {
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

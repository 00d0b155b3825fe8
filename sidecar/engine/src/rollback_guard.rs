//! Detects a rollback of encrypted vaults: remembers the newest keyring revision and the newest point of
//! each disk that this host has seen.
//!
//! An attacker with the credentials of a store cannot forge objects in an encrypted vault. But he can
//! delete the newest objects and present an older state, whose signatures are still valid. A host that has
//! seen the newer state detects this. An older keyring is refused before anything is encrypted, because
//! somebody whose key was removed could read the result. Missing points are reported to every command that
//! looks for points.
//!
//! There is one small file per vault in the state directory. Its values never decrease.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backstay_host::atomic::Durability;
use backstay_host::own_dir::own_dir;
use backstay_host::record::{self, RecordError};
use backstay_types::{CycleNo, DiskId};
use backstay_vault::{Vault, VaultError};
use serde::{Deserialize, Serialize};

const FOLDER: &str = ".seen";

/// What was seen of a vault.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Seen {
    /// The newest revision of its keyring.
    keyring: u64,
    /// The newest point of each disk.
    newest: BTreeMap<String, u64>,
}

/// The file of a vault; `None` if what is in it can be forged anyway.
fn file(root: &Path, vault: &Vault) -> Option<PathBuf> {
    let id = vault.id().filter(|_| vault.is_encrypted())?;
    Some(root.join(FOLDER).join(format!("{id}.json")))
}

/// What was seen of a vault. Damaged is not the same as nothing seen: anyone who shows an older vault would
/// only have to wait for that.
fn load(file: &Path, vault: &Vault) -> Result<Seen, VaultError> {
    Ok(record::load(file).map_err(|e| forgotten(vault, &e))?.unwrap_or_default())
}

fn forgotten(vault: &Vault, e: &RecordError) -> VaultError {
    let reason = format!(
        "what this host has seen of it cannot be read, so nobody knows whether it shows an older state. \
         Nothing was written. {e}. Compare backstay key list and backstay points with what you know, then \
         remove that file"
    );
    VaultError::Locked { url: vault.url().into(), reason }
}

/// Writes down what is new. A host that cannot is as good as one that comes for the first time.
fn save(file: &Path, seen: &Seen) {
    let made = file.parent().map_or(Ok(()), own_dir);
    let saved = made
        .map_err(|e| e.to_string())
        .and_then(|()| record::save(file, seen, Durability::Durable).map_err(|e| e.to_string()));
    if let Err(e) = saved {
        tracing::warn!("cannot record what was seen of a vault: {e}");
    }
}

/// Whether the vault's keyring is not older than one that this host has seen. To be asked before anything is sealed.
///
/// # Errors
/// [`VaultError::Locked`] if it is, or if it does not open.
pub fn keyring(root: &Path, vault: &Vault) -> Result<(), VaultError> {
    let Some(file) = file(root, vault) else { return Ok(()) };
    // A writer's key has its generation in itself, and reads no keyring.
    let Some(revision) = vault.keys()?.revision() else { return Ok(()) };
    let mut seen = load(&file, vault)?;
    if revision < seen.keyring {
        let reason = format!(
            "its keyring is of revision {revision}, and this host has seen {}: somebody has put an older one in its \
             place, with which keys that were removed or replaced since read what is shipped. Nothing was written. Look with \
             backstay key list; if a person did it and means it, remove {}",
            seen.keyring,
            file.display()
        );
        return Err(VaultError::Locked { url: vault.url().into(), reason });
    }
    if revision > seen.keyring {
        seen.keyring = revision;
        save(&file, &seen);
    }
    Ok(())
}

/// The newest point of a disk that this host has seen, if the vault does not have it any more: then an older state is shown.
///
/// # Errors
/// If the vault cannot be read.
pub fn taken_away(root: &Path, vault: &Vault, disk: DiskId) -> Result<Option<CycleNo>, VaultError> {
    let Some(file) = file(root, vault) else { return Ok(None) };
    let newest = vault.points(disk)?.last().map_or(0, |newest| newest.0);
    let mut seen = load(&file, vault)?;
    let known = seen.newest.entry(disk.to_string()).or_default();
    if newest < *known {
        return Ok(Some(CycleNo(*known)));
    }
    if newest > *known {
        *known = newest;
        save(&file, &seen);
    }
    Ok(None)
}

//! Proofs that a slot's secret was there and opened the vault: so that a lost one is missed before it matters.
//!
//! Anyone who opens a slot with `backstay key check` notes it. Nobody decides anything by it but a person who is
//! reminded.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::key_health::{Known, Worry, worries};
use crate::error::VaultError;
use crate::format::document::{Document, Object};
use crate::format::key::{Folder, ObjectKey};
use crate::store::{Vault, now_unix_ns};

/// `proofs/<slot>/<time>`: a slot was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyProof {
    /// The slot.
    pub slot: u32,
    /// When, nanoseconds since 1970.
    pub proved_unix_ns: u64,
    /// On which host, for people.
    pub by: String,
}

impl Document for KeyProof {
    const FORMAT: &'static str = "backstay-key-proof";
}

impl Object for KeyProof {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::Proof(self.slot, self.proved_unix_ns);
        (!same).then(|| format!("a proof of slot {} at {}", self.slot, self.proved_unix_ns))
    }
}

/// Hosts whose last proof of a slot is looked at.
const PROOFS_MAX: usize = 16;

/// This host, as its proofs call it.
#[must_use]
pub fn this_host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

impl Vault {
    /// Notes that a slot was opened just now. What this host noted before goes.
    ///
    /// # Errors
    /// If the vault cannot be written.
    pub fn note_proof(&self, slot: u32, by: &str) -> Result<(), VaultError> {
        let before = self.numbers(&Folder::ProofsOf(slot))?;
        let newest = before.last().map_or(0, |last| last + 1);
        let proved_unix_ns = now_unix_ns().max(newest);
        let by: String = by.chars().filter(|c| !c.is_control()).take(255).collect();
        let proof = KeyProof { slot, proved_unix_ns, by: by.clone() };
        self.put_document(&ObjectKey::Proof(slot, proved_unix_ns), &proof)?;
        // One of each host stays: whether a key is elsewhere, too, is what people are asked.
        let (old, recent) = before.split_at(before.len().saturating_sub(PROOFS_MAX));
        old.iter().try_for_each(|&at| self.delete(&ObjectKey::Proof(slot, at)))?;
        for &at in recent {
            if self.proof(slot, at)?.is_none_or(|proof| proof.by == by) {
                self.delete(&ObjectKey::Proof(slot, at))?;
            }
        }
        Ok(())
    }

    fn proof(&self, slot: u32, at: u64) -> Result<Option<KeyProof>, VaultError> {
        match self.document::<KeyProof>(&ObjectKey::Proof(slot, at)) {
            Ok(proof) => Ok(Some(proof)),
            Err(VaultError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// When a slot was opened, as far as it was noted: the last time of each host, oldest first.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn proofs(&self, slot: u32) -> Result<Vec<KeyProof>, VaultError> {
        let all = self.numbers(&Folder::ProofsOf(slot))?;
        let newest = &all[all.len().saturating_sub(PROOFS_MAX)..];
        let found = newest.iter().filter_map(|&at| self.proof(slot, at).transpose());
        found.collect()
    }

    /// When a slot was opened last, as far as it was noted.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn last_proof(&self, slot: u32) -> Result<Option<KeyProof>, VaultError> {
        let Some(&last) = self.numbers(&Folder::ProofsOf(slot))?.last() else { return Ok(None) };
        self.proof(slot, last)
    }

    /// What about the vault's keys should worry somebody on this host. Nobody is asked for a passphrase.
    ///
    /// # Errors
    /// If the vault cannot be read, or what this host was told to seal with cannot be used.
    pub fn worries(&self, stale: Duration) -> Result<Vec<Worry>, VaultError> {
        let Some(keyring) = self.keyring()? else { return Ok(vec![]) };
        let writes_to = match self.is_write_only() {
            true => Some(self.keys()?.generation()),
            false => None,
        };
        let reads = writes_to.is_none() && self.inner.vaults.keychain.settings.has_any();
        let tried = if reads { self.try_keys()? } else { vec![] };
        let proofs = keyring.slots.iter().map(|slot| self.proofs(slot.slot));
        let proofs = proofs.collect::<Result<Vec<_>, _>>()?.concat();
        let host = this_host();
        let known =
            Known { keyring: &keyring, proofs: &proofs, tried: &tried, writes_to, host: &host };
        Ok(worries(&known, now_unix_ns(), stale))
    }
}

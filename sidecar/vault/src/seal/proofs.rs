//! Proofs that a slot's secret was there and opened the vault: so that a lost one is missed before it matters.
//!
//! Whoever opens a slot with `backstay key check` notes it. Nobody decides anything by it but a person who is
//! reminded.

use serde::{Deserialize, Serialize};

use crate::error::VaultError;
use crate::format::document::Document;
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

fn prefix(slot: u32) -> String {
    format!("proofs/{slot:010}")
}

fn key(slot: u32, unix_ns: u64) -> String {
    format!("{}/{unix_ns:020}", prefix(slot))
}

impl Vault {
    /// Notes that a slot was opened just now. What was noted before goes.
    ///
    /// # Errors
    /// If the vault cannot be written.
    pub fn note_proof(&self, slot: u32, by: &str) -> Result<(), VaultError> {
        let before = self.numbers(&prefix(slot))?;
        let proved_unix_ns = now_unix_ns().max(before.last().map_or(0, |last| last + 1));
        let by = by.chars().filter(|c| !c.is_control()).take(255).collect();
        let proof = KeyProof { slot, proved_unix_ns, by };
        self.put_document(&key(slot, proved_unix_ns), &proof)?;
        before.into_iter().try_for_each(|old| self.delete(&key(slot, old)))
    }

    /// When a slot was opened last, as far as it was noted.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn last_proof(&self, slot: u32) -> Result<Option<KeyProof>, VaultError> {
        let Some(&last) = self.numbers(&prefix(slot))?.last() else { return Ok(None) };
        match self.document::<KeyProof>(&key(slot, last)) {
            Ok(proof) if proof.slot == slot => Ok(Some(proof)),
            Ok(_) | Err(VaultError::NotFound { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

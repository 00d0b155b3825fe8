//! The keyring: a numbered document that says who can open the vault. The highest revision holds.
//!
//! ```text
//!   passphrase ─Argon2id─┐
//!   key file ────HKDF────┼─▶ slot's X25519 half ─▶ secret of the newest generation ─▶ those before it
//!   age identity ────────┘                                  │                     └─▶ owner's Ed25519 half
//!                                                           └─▶ segments
//! ```
//!
//! A slot is known by a public half, so a rotation seals the new generation to all slots without asking for
//! any secret but one.

use backstay_types::{Class, Classified};
use std::collections::BTreeMap;

use backstay_format::FormatError;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::agree::{open_box, public_of, seal_to};
use super::secret::{NoRandom, Secret, hex, random, unhex, unhex32};
use super::sign::{self, PublicKey, Signer};
use super::unlock::{Hardness, Opener, Unlock, open_with_identities, seal_for_recipient};
use crate::format::document::{Document, Object};
use crate::format::key::ObjectKey;
use crate::store::now_unix_ns;

/// Most slots in a keyring.
pub const SLOTS_MAX: usize = 32;
/// Most generations in a keyring.
pub const GENERATIONS_MAX: usize = 64;
/// Most writers that were removed.
pub const REMOVED_MAX: usize = 64;
/// Most characters in a slot's label.
pub const LABEL_CHARS_MAX: usize = 64;
const WHAT: &str = "backstay-keyring";

/// What kind of secret opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A passphrase.
    Passphrase,
    /// A file of random bytes.
    KeyFile,
    /// An age identity, known by its recipient.
    Recipient,
}

impl std::fmt::Display for SlotKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key file",
            Self::Recipient => "age recipient",
        })
    }
}

/// One way to open the vault. Bytes are in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// Its number; never used again.
    pub slot: u32,
    /// What opens it.
    pub kind: SlotKind,
    /// What people call it.
    pub label: String,
    /// Since when it is there.
    pub since_unix_ns: u64,
    /// Of passphrases and key files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub salt: Option<String>,
    /// Of passphrases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argon2id: Option<Hardness>,
    /// The X25519 half it is known by; of passphrases and key files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<String>,
    /// What shows that its maker knew its secret and meant this owner; of passphrases and key files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
    /// Of age recipients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
    /// The newest generation's secret, sealed to it.
    pub sealed: String,
}

/// A key pair to which segments are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Its number, from 1.
    pub generation: u32,
    /// The X25519 half that segments are sealed to.
    pub public: String,
    /// Since when.
    pub since_unix_ns: u64,
    /// Its secret, sealed to the newest generation; not there in the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

/// A writer whose signatures count for nothing but what was there when it was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovedWriter {
    /// Its Ed25519 public half.
    pub writer: String,
    /// Who it was made for, for people.
    pub label: String,
    /// Since when.
    pub removed_unix_ns: u64,
    /// The digest of what was there then: `keys/bounds-<digest>`.
    pub bounds: String,
}

/// Who can open the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keyring {
    /// The vault.
    pub vault: Uuid,
    /// From 1.
    pub revision: u64,
    /// When it was written.
    pub written_unix_ns: u64,
    /// The owner's Ed25519 public half, which never changes.
    pub owner: String,
    /// Its secret half, sealed to the newest generation.
    pub owner_sealed: String,
    /// From the first to the newest, without gaps.
    pub generations: Vec<Generation>,
    /// The slots.
    pub slots: Vec<Slot>,
    /// The number of the next slot.
    pub next_slot: u32,
    /// Whether documents of disks, names and groups are signed. Not in older vaults.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub documents_signed: bool,
    /// Of an older vault: the digest of what was there without a signature, which counts all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsigned: Option<String>,
    /// Writers that were removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<RemovedWriter>,
    /// The owner's signature of all this, in its canonical form.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}

impl Document for Keyring {
    const FORMAT: &'static str = WHAT;
}

impl Object for Keyring {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        (*key != ObjectKey::Keyring(self.revision)).then(|| format!("revision {}", self.revision))
    }
}

/// What a new slot is to be opened with.
#[derive(Debug)]
pub enum NewSlot {
    /// A passphrase.
    Passphrase(zeroize::Zeroizing<String>, Hardness),
    /// A key file's content.
    KeyFile(zeroize::Zeroizing<Vec<u8>>),
    /// An age recipient.
    Recipient(String),
}

/// A keyring that was opened.
#[derive(Debug)]
pub struct Opened {
    /// The slot that opened; 0 right after the keyring was made.
    pub slot: u32,
    /// The secrets of all generations.
    pub(crate) secrets: BTreeMap<u32, Secret>,
    /// Signs as the owner.
    pub(crate) signer: Signer,
    seed: Secret,
}

/// Why a keyring was not changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The kernel has no random bytes.
    #[error("the system has no random bytes to give")]
    NoRandom,
    /// That is not an age recipient.
    #[error("{0:?} is not an age recipient (age1…)")]
    Recipient(String),
    /// There is no such slot.
    #[error("there is no slot {0}; see backstay key list")]
    NoSlot(u32),
    /// Nothing would open the vault any more.
    #[error(
        "slot {0} is the last one: without it nobody could ever read the vault; add another first"
    )]
    LastSlot(u32),
    /// There are too many.
    #[error("there are {0} already, and more have no place in a keyring")]
    TooMany(&'static str),
    /// Argon2id was given what it refuses.
    #[error("invalid Argon2id parameters")]
    Hardness,
}

impl Classified for KeyringError {
    fn class(&self) -> Class {
        match self {
            Self::NoRandom
            | Self::Recipient(_)
            | Self::NoSlot(_)
            | Self::TooMany(_)
            | Self::Hardness => Class::Person,
            Self::LastSlot(_) => Class::Refused,
        }
    }
}

impl From<NoRandom> for KeyringError {
    fn from(_: NoRandom) -> Self {
        Self::NoRandom
    }
}

fn context(vault: Uuid, number: u32) -> Vec<u8> {
    [vault.as_bytes(), &number.to_le_bytes()[..]].concat()
}

const OF_SLOT: &[u8] = b"backstay slot secret 1";
const OF_GENERATION: &[u8] = b"backstay generation 1";
const OF_OWNER: &[u8] = b"backstay owner 1";

impl Keyring {
    /// A new one for a vault, with one slot.
    pub(crate) fn new(
        vault: Uuid,
        revision: u64,
        label: &str,
        first: &NewSlot,
    ) -> Result<(Self, Opened), KeyringError> {
        let (seed, secret) = (Secret::random()?, Secret::random()?);
        let signer = Signer::owner(&seed).ok_or(KeyringError::NoRandom)?;
        let public = public_of(&secret);
        let now = now_unix_ns();
        let generation =
            Generation { generation: 1, public: hex(&public), since_unix_ns: now, sealed: None };
        let mut keyring = Self {
            vault,
            revision,
            written_unix_ns: now,
            owner: hex(&signer.public()),
            owner_sealed: hex(&seal_to(&public, OF_OWNER, vault.as_bytes(), &seed)?),
            generations: vec![generation],
            slots: vec![],
            next_slot: 1,
            documents_signed: true,
            unsigned: None,
            removed: vec![],
            signature: String::new(),
        };
        let opened = Opened { slot: 0, secrets: BTreeMap::from([(1, secret)]), signer, seed };
        keyring.push_slot(&opened, label, first)?;
        keyring.sign(&opened);
        Ok((keyring, opened))
    }

    fn newest(&self) -> Option<&Generation> {
        self.generations.last()
    }

    /// The newest generation and its public half.
    pub(crate) fn seal_to(&self) -> Option<(u32, [u8; 32])> {
        let newest = self.newest()?;
        Some((newest.generation, unhex32(&newest.public)?))
    }

    /// The owner's public half.
    #[must_use]
    pub fn owner(&self) -> Option<PublicKey> {
        unhex32(&self.owner)
    }

    /// What is signed: the canonical form without the signature.
    fn unsigned(&self) -> Vec<u8> {
        let unsigned = Self { signature: String::new(), ..self.clone() };
        // Strings and numbers: cannot fail; and if it did, no signature would fit.
        let value = serde_json::to_value(unsigned).unwrap_or_default();
        serde_json::to_vec(&value).unwrap_or_default()
    }

    fn sign(&mut self, opened: &Opened) {
        self.signature = hex(&opened.signer.sign_keyring(&self.unsigned()));
    }

    /// Whether it makes sense, and is signed by the owner it names.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, vault: Uuid) -> Result<(), FormatError> {
        let wrong = |reason: &str| Err(FormatError::Text { what: WHAT, reason: reason.into() });
        if self.vault != vault {
            return wrong("it is another vault's");
        }
        if self.slots.len() > SLOTS_MAX || self.generations.len() > GENERATIONS_MAX {
            return wrong("it has too many slots or generations");
        }
        if self.removed.len() > REMOVED_MAX {
            return wrong("it has too many removed writers");
        }
        let numbered = self.generations.iter().zip(1..).all(|(g, number)| g.generation == number);
        if self.slots.is_empty() || self.generations.is_empty() || !numbered {
            return wrong("its slots or generations are not what they should be");
        }
        let signature = unhex(&self.signature).unwrap_or_default();
        match self.owner() {
            Some(owner) if sign::keyring_holds(&owner, &self.unsigned(), &signature) => Ok(()),
            _ => wrong("it is not signed by the vault's owner"),
        }
    }

    /// Opens it, if one of its slots opens with that. The keyring must have been checked.
    #[must_use]
    pub fn open(&self, unlock: &Unlock) -> Option<Opened> {
        self.slots.iter().find_map(|slot| self.open_slot(slot, unlock))
    }

    /// Opens one slot.
    fn open_slot(&self, slot: &Slot, unlock: &Unlock) -> Option<Opened> {
        let sealed = unhex(&slot.sealed)?;
        let salt = || unhex(slot.salt.as_deref()?);
        let opener = match (slot.kind, unlock) {
            (SlotKind::Passphrase, Unlock::Passphrase(text)) => {
                Opener::of_passphrase(text, &salt()?, slot.argon2id?)?
            }
            (SlotKind::KeyFile, Unlock::KeyFile(content)) => Opener::of_key_file(content, &salt()?),
            (SlotKind::Recipient, Unlock::Identities(identities)) => {
                return self.opened(slot.slot, open_with_identities(identities, &sealed)?);
            }
            _ => return None,
        };
        let proof = unhex(slot.proof.as_deref()?)?;
        if !opener.proves(self.vault, &self.owner()?, &proof) {
            return None;
        }
        let context = context(self.vault, slot.slot);
        self.opened(slot.slot, open_box(&opener.private(), OF_SLOT, &context, &sealed)?)
    }

    /// All that the newest generation's secret opens.
    fn opened(&self, slot: u32, newest: Secret) -> Option<Opened> {
        let (number, public) = self.seal_to()?;
        if public_of(&newest) != public {
            return None;
        }
        let sealed = unhex(&self.owner_sealed)?;
        let seed = open_box(&newest, OF_OWNER, self.vault.as_bytes(), &sealed)?;
        let signer = Signer::owner(&seed).filter(|signer| Some(signer.public()) == self.owner())?;
        let mut secrets = BTreeMap::new();
        for older in self.generations.iter().filter(|older| older.generation != number) {
            let context = context(self.vault, older.generation);
            let sealed = unhex(older.sealed.as_deref()?)?;
            let secret = open_box(&newest, OF_GENERATION, &context, &sealed)?;
            if hex(&public_of(&secret)) != older.public {
                return None;
            }
            secrets.insert(older.generation, secret);
        }
        secrets.insert(number, newest);
        Some(Opened { slot, secrets, signer, seed })
    }

    fn push_slot(
        &mut self,
        opened: &Opened,
        label: &str,
        new: &NewSlot,
    ) -> Result<u32, KeyringError> {
        if self.slots.len() >= SLOTS_MAX {
            return Err(KeyringError::TooMany("slots"));
        }
        let number = self.next_slot;
        let salt: [u8; 16] = random()?;
        let (kind, opener, argon2id) = match new {
            NewSlot::Passphrase(text, hard) => {
                let opener = Opener::of_passphrase(text, &salt, *hard);
                (SlotKind::Passphrase, Some(opener.ok_or(KeyringError::Hardness)?), Some(*hard))
            }
            NewSlot::KeyFile(content) => {
                (SlotKind::KeyFile, Some(Opener::of_key_file(content, &salt)), None)
            }
            NewSlot::Recipient(_) => (SlotKind::Recipient, None, None),
        };
        let owner = opened.signer.public();
        let recipient = match new {
            NewSlot::Recipient(recipient) => Some(recipient.clone()),
            _ => None,
        };
        let mut slot = Slot {
            slot: number,
            kind,
            label: label.chars().filter(|c| !c.is_control()).take(LABEL_CHARS_MAX).collect(),
            since_unix_ns: now_unix_ns(),
            salt: opener.as_ref().map(|_| hex(&salt)),
            argon2id,
            public: opener.as_ref().map(|opener| hex(&public_of(&opener.private()))),
            proof: opener.as_ref().map(|opener| hex(&opener.proof(self.vault, &owner))),
            recipient,
            sealed: String::new(),
        };
        self.seal_slot(&mut slot, opened)?;
        self.slots.push(slot);
        self.next_slot += 1;
        Ok(number)
    }

    /// Seals the newest generation's secret to a slot.
    fn seal_slot(&self, slot: &mut Slot, opened: &Opened) -> Result<(), KeyringError> {
        let (_, newest) = opened.secrets.last_key_value().ok_or(KeyringError::NoRandom)?;
        let sealed = match (&slot.recipient, slot.public.as_deref().and_then(unhex32)) {
            (Some(recipient), _) => seal_for_recipient(recipient, newest)
                .ok_or_else(|| KeyringError::Recipient(recipient.clone()))?,
            (None, Some(public)) => {
                seal_to(&public, OF_SLOT, &context(self.vault, slot.slot), newest)?
            }
            (None, None) => return Err(KeyringError::NoSlot(slot.slot)),
        };
        slot.sealed = hex(&sealed);
        Ok(())
    }

    fn next_revision(&mut self) {
        self.revision += 1;
        self.written_unix_ns = now_unix_ns();
    }

    /// The next revision, with one more slot, whose number it is.
    ///
    /// # Errors
    /// If the slot cannot be made.
    pub fn with_slot(
        mut self,
        opened: &Opened,
        label: &str,
        new: &NewSlot,
    ) -> Result<(Self, u32), KeyringError> {
        self.next_revision();
        let number = self.push_slot(opened, label, new)?;
        self.sign(opened);
        Ok((self, number))
    }

    /// The next revision, without a slot.
    ///
    /// # Errors
    /// If there is no such slot, or no other.
    pub fn without_slot(mut self, opened: &Opened, slot: u32) -> Result<Self, KeyringError> {
        let there = self.slots.len();
        self.slots.retain(|one| one.slot != slot);
        match self.slots.len() {
            left if left == there => return Err(KeyringError::NoSlot(slot)),
            0 => return Err(KeyringError::LastSlot(slot)),
            _ => {}
        }
        self.next_revision();
        self.sign(opened);
        Ok(self)
    }

    /// The next revision, in which a writer counts only for what these bounds have.
    ///
    /// # Errors
    /// If there are too many.
    pub(crate) fn without_writer(
        mut self,
        opened: &Opened,
        writer: &PublicKey,
        label: &str,
        bounds: &str,
    ) -> Result<Self, KeyringError> {
        if self.removed.len() >= REMOVED_MAX {
            return Err(KeyringError::TooMany("removed writers"));
        }
        self.next_revision();
        self.removed.push(RemovedWriter {
            writer: hex(writer),
            label: label.into(),
            removed_unix_ns: self.written_unix_ns,
            bounds: bounds.into(),
        });
        self.sign(opened);
        Ok(self)
    }

    /// The next revision, in which documents are signed but for what these bounds have.
    pub(crate) fn with_documents_signed(mut self, opened: &Opened, bounds: &str) -> Self {
        self.next_revision();
        (self.documents_signed, self.unsigned) = (true, Some(bounds.into()));
        self.sign(opened);
        self
    }

    /// Since when a writer is removed, if it is.
    #[must_use]
    pub fn removed(&self, writer: &PublicKey) -> Option<&RemovedWriter> {
        let writer = hex(writer);
        self.removed.iter().find(|removed| removed.writer == writer)
    }

    /// The next revision, with a new generation, sealed to the slots there are.
    ///
    /// # Errors
    /// If there are too many, or no random bytes.
    pub fn rotated(mut self, mut opened: Opened) -> Result<(Self, Opened), KeyringError> {
        if self.generations.len() >= GENERATIONS_MAX {
            return Err(KeyringError::TooMany("generations"));
        }
        let secret = Secret::random()?;
        let public = public_of(&secret);
        for older in &mut self.generations {
            let there = opened.secrets.get(&older.generation).ok_or(KeyringError::NoRandom)?;
            let context = context(self.vault, older.generation);
            older.sealed = Some(hex(&seal_to(&public, OF_GENERATION, &context, there)?));
        }
        let generation = self.generations.len() as u32 + 1;
        self.next_revision();
        self.generations.push(Generation {
            generation,
            public: hex(&public),
            since_unix_ns: self.written_unix_ns,
            sealed: None,
        });
        let owner = seal_to(&public, OF_OWNER, self.vault.as_bytes(), &opened.seed)?;
        self.owner_sealed = hex(&owner);
        opened.secrets.insert(generation, secret);
        let mut slots = std::mem::take(&mut self.slots);
        slots.iter_mut().try_for_each(|slot| self.seal_slot(slot, &opened))?;
        self.slots = slots;
        self.sign(&opened);
        Ok((self, opened))
    }
}

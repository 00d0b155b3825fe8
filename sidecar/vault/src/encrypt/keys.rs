//! The keys of one vault that this process has, and how it got them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use super::keyring::{Keyring, Opened};
use super::secret::Secret;
use super::segment::{Envelope, SegmentKey};
use super::settings::KeySettings;
use super::sign::{PublicKey, Signer};
use super::trust::Trusts;
use super::writer::Writer;
use crate::format::segment::SegmentId;

/// What a program has to open vaults with, and those it has opened: Argon2id is not for every cycle.
pub(crate) struct Keychain {
    pub settings: KeySettings,
    opened: Mutex<BTreeMap<Uuid, Arc<Keys>>>,
    /// From it this process finds the keys of the segments that it sealed itself: so one that can only write
    /// can read back what it put, and compare (I7), as long as it runs. `None` without random bytes.
    session: Option<Secret>,
    /// Whose signatures count.
    pub trusts: Trusts,
}

impl Default for Keychain {
    fn default() -> Self {
        Self::new(KeySettings::default())
    }
}

impl Keychain {
    pub fn new(settings: KeySettings) -> Self {
        let (opened, session) = (Mutex::default(), Secret::random().ok());
        Self { settings, opened, session, trusts: Trusts::default() }
    }

    /// The keys of a vault, if they are of this revision of its keyring.
    pub fn known(&self, vault: Uuid, keyring: Option<&Keyring>) -> Option<Arc<Keys>> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let signature = keyring.map(|keyring| keyring.signature.as_str());
        opened.get(&vault).filter(|keys| keys.keyring.as_deref() == signature).cloned()
    }

    /// Keeps them for the next time the vault is opened.
    pub fn keep(&self, keys: Keys) -> Arc<Keys> {
        let keys = Arc::new(keys);
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.insert(keys.vault, Arc::clone(&keys));
        keys
    }
}

/// The keys of a vault.
#[derive(Debug)]
pub struct Keys {
    vault: Uuid,
    owner: PublicKey,
    to: (u32, [u8; 32]),
    /// Of the generations; none for one that can only write.
    secrets: BTreeMap<u32, Secret>,
    signer: Signer,
    /// The signature of the keyring they come from, and its revision.
    keyring: Option<String>,
    revision: Option<u64>,
    session: Option<Secret>,
}

/// Why a segment's key was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSegmentKey {
    /// This host can only write, and another process sealed it.
    WriteOnly,
    /// The keyring does not have its generation.
    NoGeneration(u32),
    /// Its envelope is no public key.
    Malformed,
    /// No random bytes.
    NoRandom,
}

impl Keys {
    pub(crate) fn of_keyring(chain: &Keychain, keyring: &Keyring, opened: Opened) -> Option<Self> {
        Some(Self {
            vault: keyring.vault,
            owner: keyring.owner()?,
            to: keyring.seal_to()?,
            secrets: opened.secrets,
            signer: opened.signer,
            keyring: Some(keyring.signature.clone()),
            revision: Some(keyring.revision),
            session: chain.session.clone(),
        })
    }

    pub(crate) fn of_writer(chain: &Keychain, writer: Writer) -> Self {
        Self {
            vault: writer.vault,
            owner: writer.owner,
            to: writer.to,
            secrets: BTreeMap::new(),
            signer: writer.signer,
            keyring: None,
            revision: None,
            session: chain.session.clone(),
        }
    }

    /// Whether this host can only write.
    #[must_use]
    pub fn is_write_only(&self) -> bool {
        self.secrets.is_empty()
    }

    /// Whose vault it is.
    #[must_use]
    pub fn owner(&self) -> &PublicKey {
        &self.owner
    }

    /// The generation to which segments are sealed.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.to.0
    }

    /// The revision of the keyring they come from; `None` for one that can only write, who reads none.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    pub(crate) fn vault(&self) -> Uuid {
        self.vault
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.signer
    }

    /// A new key for a segment.
    pub(crate) fn seal(&self, id: SegmentId) -> Result<(SegmentKey, Envelope), NoSegmentKey> {
        let session = self.session.as_ref().ok_or(NoSegmentKey::NoRandom)?;
        let (generation, public) = &self.to;
        let key = SegmentKey::fresh(session, (*generation, public), id);
        key.map_err(|_| NoSegmentKey::NoRandom)
    }

    /// The key of a segment that is there.
    pub(crate) fn open(
        &self,
        id: SegmentId,
        envelope: &Envelope,
    ) -> Result<SegmentKey, NoSegmentKey> {
        if let Some(secret) = self.secrets.get(&envelope.generation) {
            return SegmentKey::opened(secret, envelope, id).ok_or(NoSegmentKey::Malformed);
        }
        if !self.is_write_only() {
            return Err(NoSegmentKey::NoGeneration(envelope.generation));
        }
        let session = self.session.as_ref().ok_or(NoSegmentKey::NoRandom)?;
        (self.to.0 == envelope.generation)
            .then(|| SegmentKey::remembered(session, &self.to.1, envelope, id))
            .flatten()
            .ok_or(NoSegmentKey::WriteOnly)
    }
}

/// Keys of segments that were read a moment ago, for those who come back for frames.
#[derive(Default)]
pub(crate) struct SegmentKeys(Mutex<HashMap<SegmentId, Arc<SegmentKey>>>);

/// Most keys that are kept: some 10 MiB.
const SEGMENT_KEYS_MAX: usize = 16_384;

impl SegmentKeys {
    pub fn get(&self, id: SegmentId) -> Option<Arc<SegmentKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    pub fn put(&self, id: SegmentId, key: &Arc<SegmentKey>) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= SEGMENT_KEYS_MAX {
            keys.clear();
        }
        keys.insert(id, Arc::clone(key));
    }
}

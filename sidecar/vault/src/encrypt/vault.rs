//! A vault that is encrypted: finding its keys, sealing and opening through them, making and changing its keyring.

use std::sync::{Arc, PoisonError};

use uuid::Uuid;

use super::bounds::Bounds;
use super::keyring::{Keyring, KeyringError, Opened};
use super::keys::{Keychain, Keys, NoSegmentKey};
use super::secret::{hex, unhex32};
use super::segment::{Envelope, SegmentKey};
use super::settings::{KeySettings, read_writer};
use super::sign::PublicKey;
use super::unlock::Unlock;
use super::writer::{Granted, WriterKey, granted_key};
use crate::error::{In, VaultError};
use crate::format::document::{DOCUMENT_BYTES_MAX, VaultRecord, encode};
use crate::format::key::{Folder, KeyNote, ObjectKey};
use crate::format::segment::SegmentId;
use crate::remote::Role;
use crate::store::{Vault, now_unix_ns};

/// Revisions that others may put while one is put.
const ROUNDS_MAX: usize = 16;

/// A way to open a vault that this host has, and what came of it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Tried {
    /// What it is: never the secret.
    pub what: String,
    /// The slot that it opened.
    pub slot: Option<u32>,
    /// Why it opened none.
    pub problem: Option<String>,
}

impl Vault {
    /// Whether what is in it is encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.inner.record.get().is_some_and(|record| record.encrypted)
    }

    /// Whether this host can only write into it: what others put there, it cannot read.
    #[must_use]
    pub fn is_write_only(&self) -> bool {
        self.is_encrypted() && self.inner.vaults.keychain.settings.writer().is_some()
    }

    /// Whether this host can read what is in it, before anything is begun that would find out late.
    ///
    /// # Errors
    /// [`VaultError::Locked`] without a key; [`VaultError::WriteOnly`] with a writer's; [`VaultError::Url`] behind a gateway
    /// with a source's certificate.
    pub fn check_readable(&self) -> Result<(), VaultError> {
        if self.role()? == Some(Role::Source) {
            let reason = "this host's certificate is a source's, and a source reads of a segment its header, index \
                          and footer, never its data: do this with a recovery certificate. Nothing was changed";
            return Err(VaultError::Url { url: self.inner.url.clone(), reason: reason.into() });
        }
        if self.is_write_only() {
            return Err(VaultError::WriteOnly { object: self.inner.url.clone() });
        }
        if self.is_encrypted() { self.keys().map(|_| ()) } else { Ok(()) }
    }

    /// Whether this host can ship to it: that it opens, if it is encrypted.
    ///
    /// # Errors
    /// [`VaultError::Locked`] if it does not.
    pub fn check_usable(&self) -> Result<(), VaultError> {
        if self.is_encrypted() { self.keys().map(|_| ()) } else { Ok(()) }
    }

    /// Its identity, as far as it was read.
    #[must_use]
    pub fn id(&self) -> Option<Uuid> {
        self.inner.record.get().map(|record| record.vault)
    }

    pub(crate) fn locked(&self, reason: String) -> VaultError {
        VaultError::Locked { url: self.inner.url.clone(), reason }
    }

    /// Takes what `vault.json` says, unless this host must not use such a vault.
    pub(crate) fn take_record(&self, record: VaultRecord) -> Result<(), VaultError> {
        if self.inner.vaults.keychain.settings.required && !record.encrypted {
            let reason = "it is not encrypted, and [encryption] of this host's configuration says \
                          that its vaults are. Nothing was written. A vault cannot be encrypted \
                          later: make a new one with backstay key init; or, if this is meant, set \
                          required = false"
                .into();
            return Err(VaultError::Url { url: self.inner.url.clone(), reason });
        }
        let _ = self.inner.record.set(record);
        Ok(())
    }

    /// The newest keyring, checked but not opened; `None` if the vault is not encrypted.
    ///
    /// # Errors
    /// If it cannot be read, is damaged or another vault's.
    pub fn keyring(&self) -> Result<Option<Keyring>, VaultError> {
        let Some(record) = self.inner.record.get().filter(|record| record.encrypted) else {
            return Ok(None);
        };
        for _ in 0..ROUNDS_MAX {
            let revisions = self.numbers_to_newest(&Folder::Keys, ObjectKey::Keyring)?;
            let Some(&revision) = revisions.last() else {
                return Err(
                    self.locked("its keyring is gone: without keys/ nobody can read it".into())
                );
            };
            let key = ObjectKey::Keyring(revision);
            let keyring = match self.document::<Keyring>(&key) {
                // A revision that was removed by a person.
                Err(VaultError::NotFound { .. }) => continue,
                keyring => keyring?,
            };
            keyring
                .check(record.vault)
                .map_err(|source| VaultError::Damaged { object: (&key).into(), source })?;
            return Ok(Some(keyring));
        }
        Err(self.locked("its keyring was replaced again and again while it was read".into()))
    }

    /// The keys of an encrypted vault.
    ///
    /// # Errors
    /// [`VaultError::Locked`] if this host has none that open it.
    pub fn keys(&self) -> Result<Arc<Keys>, VaultError> {
        match self.known_keys() {
            Some(keys) => Ok(keys),
            None => self.look_for_keys(),
        }
    }

    pub(super) fn known_keys(&self) -> Option<Arc<Keys>> {
        self.inner.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As the newest keyring has them.
    fn look_for_keys(&self) -> Result<Arc<Keys>, VaultError> {
        let keys = self.find_keys(&self.inner.vaults.keychain)?;
        self.take_keys(&keys);
        Ok(keys)
    }

    pub(crate) fn take_keys(&self, keys: &Arc<Keys>) {
        let mut known = self.inner.keys.write().unwrap_or_else(PoisonError::into_inner);
        *known = Some(Arc::clone(keys));
    }

    fn find_keys(&self, chain: &Keychain) -> Result<Arc<Keys>, VaultError> {
        let Some(vault) = self.id().filter(|_| self.is_encrypted()) else {
            return Err(self.locked("it is not encrypted".into()));
        };
        if let Some(path) = chain.settings.writer() {
            if let Some(keys) = chain.known(vault, None) {
                return Ok(keys);
            }
            let wrong = |why: &str| self.locked(format!("writer's key {}: {why}", path.display()));
            let key = read_writer(path).map_err(|e| wrong(&e.to_string()))?;
            let writer = key.writer().ok_or_else(|| wrong("it does not fit together"))?;
            if writer.vault != vault {
                return Err(wrong("it is another vault's"));
            }
            return Ok(chain.keep(Keys::of_writer(chain, writer)));
        }
        let Some(keyring) = self.keyring()? else {
            return Err(self.locked("it is not encrypted".into()));
        };
        if let Some(keys) = chain.known(vault, Some(&keyring)) {
            return Ok(keys);
        }
        let (opened, tried) = self.unlock(&keyring, &chain.settings)?;
        match opened.and_then(|opened| Keys::of_keyring(chain, &keyring, opened)) {
            Some(keys) => Ok(chain.keep(keys)),
            None => Err(self.locked(why_not(&tried))),
        }
    }

    /// Opens a keyring with what this host has.
    fn unlock(
        &self,
        keyring: &Keyring,
        settings: &KeySettings,
    ) -> Result<(Option<Opened>, Vec<Tried>), VaultError> {
        self.check_owner(keyring, settings)?;
        let mut tried = vec![];
        for (what, unlock) in settings.ways(&self.inner.url) {
            let unlock = match unlock {
                Ok(unlock) => unlock,
                Err(e) => {
                    tried.push(Tried { what, slot: None, problem: Some(e.to_string()) });
                    continue;
                }
            };
            match keyring.open(&unlock) {
                Some(opened) => {
                    if matches!(unlock, Unlock::Identities(_)) && settings.owner.is_none() {
                        tracing::warn!(
                            "{}: an age identity cannot tell whether the vault's keyring is the one \
                             you made: set owner = {:?} in [encryption]",
                            self.inner.url,
                            keyring.owner
                        );
                    }
                    let slot = Some(opened.slot);
                    tried.push(Tried { what, slot, problem: None });
                    return Ok((Some(opened), tried));
                }
                None => {
                    let problem = Some("it opens no slot of this vault".into());
                    tried.push(Tried { what, slot: None, problem });
                }
            }
        }
        Ok((None, tried))
    }

    fn check_owner(&self, keyring: &Keyring, settings: &KeySettings) -> Result<(), VaultError> {
        match settings.owner {
            Some(owner) if keyring.owner() != Some(owner) => Err(self.locked(
                "its keyring is not of the owner that [encryption] of this host's configuration \
                 names: somebody has put another one there, or this is another vault"
                    .into(),
            )),
            _ => Ok(()),
        }
    }

    /// Tries every way this host has.
    ///
    /// # Errors
    /// If the keyring cannot be read, or is not of the owner that this host believes.
    pub fn try_keys(&self) -> Result<Vec<Tried>, VaultError> {
        let settings = &self.inner.vaults.keychain.settings;
        let Some(keyring) = self.keyring()? else { return Ok(vec![]) };
        self.check_owner(&keyring, settings)?;
        let mut tried = vec![];
        for (what, unlock) in settings.ways(&self.inner.url) {
            let opened = match unlock {
                Ok(unlock) => match keyring.open(&unlock) {
                    Some(opened) => Ok(opened.slot),
                    None => Err("it opens no slot of this vault".into()),
                },
                Err(e) => Err(e.to_string()),
            };
            let (slot, problem) = (opened.as_ref().ok().copied(), opened.err());
            tried.push(Tried { what, slot, problem });
        }
        Ok(tried)
    }

    /// The keyring, opened, to change it.
    ///
    /// # Errors
    /// If the vault is not encrypted, or nothing this host has opens it.
    pub fn open_keyring(&self) -> Result<(Keyring, Opened), VaultError> {
        let keyring = self.keyring()?.ok_or_else(|| {
            self.locked("it is not encrypted, and cannot be encrypted later: make a new one".into())
        })?;
        let (opened, tried) = self.unlock(&keyring, &self.inner.vaults.keychain.settings)?;
        opened.map(|opened| (keyring, opened)).ok_or_else(|| self.locked(why_not(&tried)))
    }

    /// Puts the next revision of the keyring. Those before it stay: they are small, and what a removed slot could open
    /// it has opened.
    ///
    /// # Errors
    /// If the vault cannot be written, or another was faster.
    pub fn put_keyring(&self, keyring: &Keyring) -> Result<(), VaultError> {
        let key = ObjectKey::Keyring(keyring.revision);
        let bytes = encode(keyring).within(&key)?;
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let reason = "it would be longer than any reader takes: fewer slots, shorter labels";
            return Err(VaultError::Inconsistent { object: key.into(), reason: reason.into() });
        }
        self.put(&key, bytes.into())
    }

    /// A key for a host that may write and not read.
    ///
    /// # Errors
    /// If the keyring does not open.
    pub fn new_writer(&self, label: &str) -> Result<WriterKey, VaultError> {
        let (keyring, opened) = self.open_keyring()?;
        let key = WriterKey::new(&keyring, &opened, label).map_err(|_| self.no_random())?;
        // A gateway puts nothing below keys/; there, anyone who grants keeps the writer's name.
        if let Some(writer) = key.public().filter(|_| !self.is_behind_gateway()) {
            let granted = Granted {
                writer: hex(&writer),
                label: key.label.clone(),
                granted_unix_ns: now_unix_ns(),
            };
            self.put_document(&granted_key(writer), &granted)?;
        }
        Ok(key)
    }

    /// The writers' keys that were made, the oldest first; those made behind a gateway, or before this was noted, are
    /// not among them.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn writers(&self) -> Result<Vec<Granted>, VaultError> {
        let mut found: Vec<Granted> = vec![];
        for (key, _) in self.listed(&Folder::Keys)? {
            if matches!(key, ObjectKey::KeyNote(KeyNote::Writer, _)) {
                found.push(self.document(&key)?);
            }
        }
        found.sort_by(|a, b| (a.granted_unix_ns, &a.writer).cmp(&(b.granted_unix_ns, &b.writer)));
        Ok(found)
    }

    /// Takes a writer out: what it signs from now on counts for nothing; what was there before is read as ever, and
    /// nothing is encrypted again. The revision of the keyring from which that is so.
    ///
    /// # Errors
    /// If the keyring does not open or cannot be put, or the writer was removed before.
    pub fn remove_writer(&self, writer: &PublicKey, label: &str) -> Result<u64, VaultError> {
        let (keyring, opened) = self.open_keyring()?;
        if keyring.removed(writer).is_some() {
            let reason = format!("writer {} was removed before", hex(writer));
            return Err(VaultError::Url { url: self.inner.url.clone(), reason });
        }
        let bounds = Bounds::now(self, keyring.vault)?.keep(self)?;
        let keyring = keyring.without_writer(&opened, writer, label, &bounds);
        let keyring = keyring.map_err(|e| self.keyring_error(&e))?;
        self.put_keyring(&keyring)?;
        Ok(keyring.revision)
    }

    /// Has documents of disks, names and groups be signed from now on, in an older vault; `false` if they are. Those that
    /// are there count without.
    ///
    /// # Errors
    /// If the keyring does not open or cannot be put.
    pub fn sign_documents(&self) -> Result<bool, VaultError> {
        let (keyring, opened) = self.open_keyring()?;
        if keyring.documents_signed {
            return Ok(false);
        }
        let bounds = Bounds::now(self, keyring.vault)?.keep(self)?;
        self.put_keyring(&keyring.with_documents_signed(&opened, &bounds))?;
        Ok(true)
    }

    /// A writer's public half, from how people write it.
    #[must_use]
    pub fn writer_named(text: &str) -> Option<PublicKey> {
        unhex32(text)
    }

    fn no_random(&self) -> VaultError {
        self.locked("the system has no random bytes to give".into())
    }

    /// The key to seal a segment with; `None` in a vault that is not encrypted.
    pub(crate) fn segment_key_to_seal(
        &self,
        id: SegmentId,
    ) -> Result<Option<(SegmentKey, Envelope)>, VaultError> {
        if !self.is_encrypted() {
            return Ok(None);
        }
        self.check_not_removed()?;
        self.keys()?.seal(id).map(Some).map_err(|_| self.no_random())
    }

    /// The key of a segment that is there.
    pub(crate) fn segment_key_to_open(
        &self,
        id: SegmentId,
        envelope: &Envelope,
    ) -> Result<Arc<SegmentKey>, VaultError> {
        if let Some(known) = self.inner.segment_keys.get(id).filter(|key| key.is_of(envelope)) {
            return Ok(known);
        }
        let opened = match self.keys()?.open(id, envelope) {
            // Rotated since the vault was opened, it may be: a replica has it open for months.
            Err(NoSegmentKey::NoGeneration(_)) => self.look_for_keys()?.open(id, envelope),
            opened => opened,
        };
        let key = opened.map_err(|e| match e {
            NoSegmentKey::WriteOnly => VaultError::WriteOnly { object: id.key().into() },
            NoSegmentKey::NoGeneration(generation) => self.locked(format!(
                "{} is sealed to generation {generation} of its key, which the keyring does not \
                 have: the newest revision below keys/ is missing",
                id.key()
            )),
            NoSegmentKey::Malformed => VaultError::Inconsistent {
                object: id.key().into(),
                reason: "what it is sealed with is no key".into(),
            },
            NoSegmentKey::NoRandom => self.no_random(),
        })?;
        let key = Arc::new(key);
        self.inner.segment_keys.put(id, &key);
        Ok(key)
    }

    /// The key of a segment whose index was read a moment ago.
    pub(crate) fn known_segment_key(&self, id: SegmentId) -> Option<Arc<SegmentKey>> {
        self.inner.segment_keys.get(id)
    }

    /// A keyring's change that failed, in the words of a vault's.
    #[must_use]
    pub fn keyring_error(&self, error: &KeyringError) -> VaultError {
        VaultError::Url { url: self.inner.url.clone(), reason: error.to_string() }
    }
}

fn why_not(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return "this host has no key for it: set [encryption] in the configuration, or \
                BACKSTAY_KEY_FILE, BACKSTAY_IDENTITY_FILE or BACKSTAY_PASSPHRASE"
            .into();
    }
    let tried: Vec<String> = tried
        .iter()
        .map(|one| format!("{}: {}", one.what, one.problem.as_deref().unwrap_or("it opened")))
        .collect();
    format!("nothing this host has opens it ({})", tried.join("; "))
}

//! Whose signatures count in an encrypted vault, and whether an object has one.
//!
//! The owner's, and those of writers that the owner allowed to, until the owner removes one: then the keyring says so, and
//! what that writer signs afterwards counts for nothing, with no byte encrypted again. So who has the vault open for
//! months looks for a newer keyring now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use uuid::Uuid;

use super::bounds::Bounds;
use super::keyring::Keyring;
use super::keys::Keychain;
use super::secret::hex;
use super::sign::{NotSigned, PublicKey, content, document_signed_by, signed_by};
use crate::error::{In, VaultError};
use crate::format::document::{Document, encode, encode_with, signed_part};
use crate::format::key::ObjectKey;
use crate::store::Vault;

/// For so long a keyring is taken for the newest.
const FRESH: Duration = Duration::from_secs(30);

/// Whose signatures count.
#[derive(Debug)]
pub(crate) struct Trust {
    vault: Uuid,
    owner: PublicKey,
    revision: u64,
    documents_signed: bool,
    /// What counts without a signature.
    unsigned: Option<Bounds>,
    /// Writers that were removed, by their public halves in hexadecimal, and what of theirs counts.
    removed: BTreeMap<String, Bounds>,
}

/// The trust in a vault, and when it was last looked whether it is the newest.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    trust: Arc<Trust>,
    looked: Instant,
}

/// What a process trusts, by vault.
pub(crate) type Trusts = Mutex<BTreeMap<Uuid, Known>>;

impl Keychain {
    fn trusted(&self, vault: Uuid) -> Option<Known> {
        self.trusts.lock().unwrap_or_else(PoisonError::into_inner).get(&vault).cloned()
    }

    /// Remembers that this is the newest just now; what holds. A store that shows an older keyring than it did gains
    /// nothing as long as we remember.
    fn trust(&self, trust: Arc<Trust>) -> Arc<Trust> {
        let mut trusts = self.trusts.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = trusts.get(&trust.vault).filter(|known| known.trust.revision > trust.revision);
        let trust = newer.map_or(trust, |known| Arc::clone(&known.trust));
        let known = Known { trust: Arc::clone(&trust), looked: clock::monotonic() };
        trusts.insert(trust.vault, known);
        trust
    }
}

impl Trust {
    fn load(vault: &Vault, keyring: &Keyring) -> Result<Self, VaultError> {
        let id = keyring.vault;
        let owner = keyring.owner().ok_or_else(|| VaultError::Inconsistent {
            object: ObjectKey::Keyring(keyring.revision).into(),
            reason: "it names no owner".into(),
        })?;
        let load = |digest: &String| Bounds::load(vault, id, digest);
        let removed =
            keyring.removed.iter().map(|one| Ok((one.writer.clone(), load(&one.bounds)?)));
        Ok(Self {
            vault: id,
            owner,
            revision: keyring.revision,
            documents_signed: keyring.documents_signed,
            unsigned: keyring.unsigned.as_ref().map(load).transpose()?,
            removed: removed.collect::<Result<_, VaultError>>()?,
        })
    }

    /// Whether what this one signed counts.
    fn counts(&self, signer: &PublicKey, key: &ObjectKey) -> Result<(), NotSigned> {
        match self.removed.get(&hex(signer)) {
            Some(bounds) if !bounds.cover(&key.to_string()) => Err(NotSigned::Removed),
            _ => Ok(()),
        }
    }

    /// Whether a document counts.
    fn document(
        &self,
        key: &ObjectKey,
        canonical: &[u8],
        seal: Option<&str>,
    ) -> Result<(), NotSigned> {
        match document_signed_by(&self.owner, self.vault, &key.to_string(), canonical, seal) {
            Ok(signer) => self.counts(&signer, key),
            Err(NotSigned::Missing) if !self.documents_signed => Ok(()),
            Err(NotSigned::Missing)
                if self.unsigned.as_ref().is_some_and(|bounds| bounds.cover(&key.to_string())) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }
}

/// Whether an object is a document that is signed: those of disks, names and groups. The vault's own record is read
/// before anything is known, and keyrings are signed in another way.
fn is_signed(key: &ObjectKey) -> bool {
    matches!(key, ObjectKey::Disk(..) | ObjectKey::Name(..) | ObjectKey::GroupPoint(..))
}

fn forged(key: &ObjectKey, source: NotSigned) -> VaultError {
    VaultError::Forged { object: key.into(), source }
}

impl Vault {
    /// Whose signatures count, as the newest keyring says, or one that was the newest a moment ago.
    fn trust(&self) -> Result<Arc<Trust>, VaultError> {
        let keys = self.keys()?;
        let chain = &self.inner.vaults.keychain;
        if let Some(known) = chain.trusted(keys.vault()) {
            if clock::since(known.looked) < FRESH {
                return Ok(known.trust);
            }
            match self.len(&ObjectKey::Keyring(known.trust.revision + 1)) {
                Err(VaultError::NotFound { .. }) => return Ok(chain.trust(known.trust)),
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
        let keyring = self.keyring()?.ok_or_else(|| self.locked("it is not encrypted".into()))?;
        let trust = Arc::new(Trust::load(self, &keyring)?);
        // A writer's key knows the owner, and anyone who opened the keyring has it proved.
        match trust.owner == *keys.owner() {
            true => Ok(chain.trust(trust)),
            false => {
                Err(self.locked("its keyring is of another owner than this host knows".into()))
            }
        }
    }

    /// Whether this host has nothing to tell with.
    fn is_blind(&self) -> bool {
        self.known_keys().is_none() && !self.inner.vaults.keychain.settings.can_unlock()
    }

    /// Refuses to go on with a writer's key that was removed: nothing it puts would count.
    pub(crate) fn check_not_removed(&self) -> Result<(), VaultError> {
        if !self.is_write_only() {
            return Ok(());
        }
        match self.trust()?.removed.contains_key(&hex(&self.keys()?.signer().public())) {
            true => Err(self.locked(
                "this host's writer's key was removed from it (backstay key remove). Nothing that it \
                 writes counts any more. If that is a mistake, have another one made: backstay key grant"
                    .into(),
            )),
            false => Ok(()),
        }
    }

    /// An object's bytes, signed if the vault is encrypted.
    pub(crate) fn signed(&self, key: &ObjectKey, bytes: Vec<u8>) -> Result<Vec<u8>, VaultError> {
        if !self.is_encrypted() {
            return Ok(bytes);
        }
        self.check_not_removed()?;
        let keys = self.keys()?;
        Ok(keys.signer().signed(keys.vault(), &key.to_string(), bytes))
    }

    /// A document's bytes, signed if it is of a kind that is and the vault is encrypted.
    pub(crate) fn signed_document<D: Document>(
        &self,
        key: &ObjectKey,
        document: &D,
    ) -> Result<Vec<u8>, VaultError> {
        if !self.is_encrypted() || !is_signed(key) {
            return encode(document).within(key);
        }
        // In an older vault, what has no signature counts.
        if self.is_blind() && self.keyring()?.is_some_and(|keyring| !keyring.documents_signed) {
            return encode(document).within(key);
        }
        self.check_not_removed()?;
        let keys = self.keys()?;
        let sign = |canonical: &[u8]| {
            Some(keys.signer().document(keys.vault(), &key.to_string(), canonical))
        };
        encode_with(document, sign).within(key)
    }

    /// An object's content, if its signature is what it should be. A host without any key cannot tell, and can use none
    /// of what the object leads to: it may look.
    pub(crate) fn verified<'a>(
        &self,
        key: &ObjectKey,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], VaultError> {
        if !self.is_encrypted() || self.is_blind() {
            return Ok(content(bytes));
        }
        let keys = self.keys()?;
        let signer = signed_by(keys.owner(), keys.vault(), &key.to_string(), bytes);
        let signer = signer.map_err(|e| forged(key, e))?;
        // The owner is never removed.
        if signer != *keys.owner() {
            self.trust()?.counts(&signer, key).map_err(|e| forged(key, e))?;
        }
        Ok(content(bytes))
    }

    /// The same of a document.
    pub(crate) fn verify_document(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), VaultError> {
        if !self.is_encrypted() || !is_signed(key) || self.is_blind() {
            return Ok(());
        }
        let (canonical, seal) = signed_part(bytes).within(key)?;
        let keys = self.keys()?;
        let seal = seal.as_deref();
        // What the owner signed counts, whatever the keyring says: no request is needed.
        let signer =
            document_signed_by(keys.owner(), keys.vault(), &key.to_string(), &canonical, seal);
        if signer == Ok(*keys.owner()) {
            return Ok(());
        }
        self.trust()?.document(key, &canonical, seal).map_err(|e| forged(key, e))
    }

    /// Whether an object that arrives was signed by the vault's owner, or by a writer that it has a certificate
    /// of and was not removed: what such a one puts now was not there before. That needs no key but the public half in the
    /// keyring. In a vault that is not encrypted nothing is signed.
    ///
    /// # Errors
    /// If it was not, or the keyring cannot be read.
    pub fn check_arriving(&self, key: &ObjectKey, bytes: &[u8]) -> Result<(), VaultError> {
        let Some(keyring) = self.keyring()? else { return Ok(()) };
        let name = key.to_string();
        let owner = keyring.owner().ok_or_else(|| forged(key, NotSigned::Stranger))?;
        let signer = match bytes.first() {
            Some(b'{') => {
                let (canonical, seal) = signed_part(bytes).within(key)?;
                let seal = seal.as_deref();
                match document_signed_by(&owner, keyring.vault, &name, &canonical, seal) {
                    Err(NotSigned::Missing) if !keyring.documents_signed => return Ok(()),
                    signer => signer,
                }
            }
            _ => signed_by(&owner, keyring.vault, &name, bytes),
        };
        let signer = signer.map_err(|e| forged(key, e))?;
        match keyring.removed(&signer) {
            Some(_) => Err(forged(key, NotSigned::Removed)),
            None => Ok(()),
        }
    }
}

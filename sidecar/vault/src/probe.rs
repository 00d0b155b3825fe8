//! Whether a store can do what a vault needs: found out by doing it.
//!
//! I5 stands on one thing that not every store has: a put that fails if the object is there. Some refuse
//! such a put altogether; worse are those that do not know the condition and overwrite. Both are found here,
//! before anything is begun in them.

use std::sync::PoisonError;

use object_store::PutPayload;

use crate::error::VaultError;
use crate::format::document::VaultRecord;
use crate::format::key::{Folder, ObjectKey};
use crate::store::Vault;

const FIRST: &[u8] = b"backstay";
const SECOND: &[u8] = b"another writer";

impl Vault {
    /// Finds out whether objects can be put, put only if absent, read back, listed and deleted; leaves
    /// nothing behind.
    ///
    /// # Errors
    /// The first of these that cannot be done; [`VaultError::Unfit`] if the store cannot do it at all.
    pub fn probe(&self) -> Result<(), VaultError> {
        if self.is_behind_gateway() {
            // It has tried its store itself, and nobody deletes through it. That it lets us in is what
            // can be found out.
            self.document::<VaultRecord>(&ObjectKey::Vault)?;
            return self.role().map(drop);
        }
        let key = ObjectKey::Probe(uuid::Uuid::new_v4());
        self.put(&key, PutPayload::from_static(FIRST)).map_err(|e| self.unfit(e))?;
        let looked = self.look_at(&key);
        let deleted = self.delete(&key);
        looked.and(deleted)
    }

    /// Finds out again whether puts are still kept apart, once in the life of a program: a proxy or an update may have
    /// changed that since the vault was made, and a source that was failed over would overwrite points. Of a directory
    /// the kernel sees to it.
    ///
    /// # Errors
    /// As for [`Self::probe`].
    pub fn probe_once(&self) -> Result<(), VaultError> {
        let probed = &self.inner.vaults.probed;
        let known = || probed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_local() || known().contains(self.url()) {
            return Ok(());
        }
        self.probe()?;
        known().insert(self.url().into());
        Ok(())
    }

    fn look_at(&self, key: &ObjectKey) -> Result<(), VaultError> {
        let unfit =
            |reason: &str| Err(VaultError::Unfit { url: self.url().into(), reason: reason.into() });
        // I5: of two writers one must lose.
        match self.put(key, PutPayload::from_static(SECOND)) {
            Err(VaultError::Store {
                source: object_store::Error::AlreadyExists { .. }, ..
            }) => {}
            Err(e) => return Err(e),
            Ok(()) => {
                return unfit(
                    "it overwrote an object that it was told to put only if absent \
                     (If-None-Match: *). Without that an old source could overwrite recovery \
                     points after a failover. Nothing was begun in it; use a store that has \
                     conditional puts, or update it",
                );
            }
        }
        if &self.get(key, 64)?[..] != FIRST {
            return Err(VaultError::Inconsistent {
                object: key.into(),
                reason: "something else was read back than was put".into(),
            });
        }
        match self.listed(&Folder::Probes)?.iter().any(|(listed, _)| listed == key) {
            true => Ok(()),
            false => unfit("it does not list an object that was just put"),
        }
    }

    /// What a refusal of the first put means.
    fn unfit(&self, error: VaultError) -> VaultError {
        use object_store::Error as E;
        let reason = match &error {
            VaultError::Store {
                source: E::NotImplemented { .. } | E::NotSupported { .. }, ..
            } => {
                "puts that fail if the object is there (conditional puts) are switched off or not \
                 there: I5 stands on them"
            }
            _ => return error,
        };
        VaultError::Unfit { url: self.url().into(), reason: reason.into() }
    }
}

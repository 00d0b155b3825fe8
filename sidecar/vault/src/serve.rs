//! What a gateway needs of the vault it stands before: objects as they are, by their keys.
//!
//! Nothing here knows what an object means. Who may put what, and whether it is whole, is decided before
//! (`sidecar/gateway`, [`crate::admission`]); that nothing is overwritten is seen to here.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::VaultError;
use crate::format::key::ObjectKey;
use crate::store::Vault;

/// Bytes that are copied at a time.
pub(crate) const STEP_BYTES: u64 = 1 << 20;
/// A file up to this length goes to a store as a whole, with the condition that nothing is there.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

impl Vault {
    /// The store that it is in.
    #[must_use]
    pub fn object_store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(self.inner.store.objects())
    }

    /// Puts an object if it is absent. It is durable when this returns.
    ///
    /// # Errors
    /// If it is there and something else, or the vault cannot be written.
    pub fn put_object(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), VaultError> {
        self.put(key, bytes.into())
    }

    /// Deletes an object. One that is not there is deleted already.
    ///
    /// # Errors
    /// If the store does not let us or cannot be reached.
    pub fn delete_object(&self, key: &ObjectKey) -> Result<(), VaultError> {
        self.delete(key)
    }

    /// Puts an object from a file that does not change, if it is absent. It is durable when this returns.
    ///
    /// One that is too long to be put as a whole goes up in parts, for which no store that is
    /// supported has the condition: it is looked for first.
    ///
    /// # Errors
    /// If it is there, the file cannot be read, or the vault cannot be written.
    pub fn put_file(&self, key: &ObjectKey, path: &FsPath) -> Result<(), VaultError> {
        self.inner.store.put_file(self, key, path)
    }

    /// The same of a store.
    pub(crate) fn put_file_by_requests(
        &self,
        key: &ObjectKey,
        path: &FsPath,
    ) -> Result<(), VaultError> {
        let of_io = |e| VaultError::of_io(key, e);
        let file = File::open(path).map_err(of_io)?;
        let len = file.metadata().map_err(of_io)?.len();
        if len <= WHOLE_BYTES_MAX {
            let mut bytes = Vec::with_capacity(len as usize);
            file.take(WHOLE_BYTES_MAX).read_to_end(&mut bytes).map_err(of_io)?;
            return self.put(key, Bytes::from(bytes).into());
        }
        match self.len(key) {
            Ok(_) => return Err(exists(key)),
            Err(VaultError::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
        let part_bytes = self.inner.vaults.store.part_bytes;
        let put = self.block_on(async {
            let mut upload = self.store().put_multipart(&Path::from(key)).await?;
            for part in steps(file, part_bytes) {
                let put = match part {
                    Ok(part) => upload.put_part(part.into()).await,
                    Err(e) => {
                        Err(object_store::Error::Generic { store: "cache", source: e.into() })
                    }
                };
                if let Err(e) = put {
                    let _ = upload.abort().await;
                    return Err(e);
                }
            }
            upload.complete().await
        });
        put.map_err(|e| VaultError::of_store(key, e))?;
        self.prove_file(key, path)?;
        self.inner.store.lock(self, key)
    }

    /// Proves that what was put from a file is there. What is not goes: it is put again by who asks again.
    pub(crate) fn prove_file(&self, key: &ObjectKey, path: &FsPath) -> Result<(), VaultError> {
        let file = File::open(path).map_err(|e| VaultError::of_io(key, e))?;
        if self.inner.store.reads_back(self, key, &mut steps(file, STEP_BYTES))? {
            return Ok(());
        }
        self.delete(key)?;
        Err(VaultError::Altered { object: key.into(), tries: 1 })
    }
}

pub(crate) fn exists(key: &ObjectKey) -> VaultError {
    let source = io::Error::from(io::ErrorKind::AlreadyExists).into();
    let source = object_store::Error::AlreadyExists { path: key.into(), source };
    VaultError::Store { object: key.into(), source }
}

/// A file in steps of one length; the last one may be shorter.
pub(crate) fn steps(mut file: File, step_bytes: u64) -> impl Iterator<Item = io::Result<Bytes>> {
    std::iter::from_fn(move || {
        let mut step = Vec::new();
        match (&mut file).take(step_bytes).read_to_end(&mut step) {
            Ok(0) => None,
            Ok(_) => Some(Ok(step.into())),
            Err(e) => Some(Err(e)),
        }
    })
}

//! A vault in a local directory: what the kernel says is so, and names are made durable by hand (`crate::local`).

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::{ObjectStore, PutPayload};

use super::{Steps, Store};
use crate::error::VaultError;
use crate::format::key::{Folder, ObjectKey};
use crate::frame::Object;
use crate::local::Folders;
use crate::paced::{Pace, Unlimited};
use crate::serve::{STEP_BYTES, exists, steps};
use crate::store::Vault;

/// See the head of this file.
pub(crate) struct InDirectory {
    folders: Folders,
    objects: Arc<dyn ObjectStore>,
}

impl InDirectory {
    /// The one at a path.
    pub fn at(root: &Path) -> Self {
        let folders = Folders::below(root);
        Self { objects: Arc::new(folders.store()), folders }
    }
}

impl Store for InDirectory {
    fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn root(&self) -> Option<&Path> {
        Some(self.folders.root())
    }

    fn prepare(&self, key: &ObjectKey) -> io::Result<()> {
        self.folders.prepare(&key.to_string()).map(drop)
    }

    fn settle(&self, key: &ObjectKey) -> io::Result<()> {
        self.folders.settle(&key.to_string())
    }

    fn sweep(&self, folder: &Folder, untouched: Duration) -> io::Result<u64> {
        self.folders.sweep(&folder.to_string(), untouched)
    }

    fn put_segment(
        &self,
        vault: &Vault,
        key: &ObjectKey,
        segment: &Object,
        pace: &dyn Pace,
    ) -> Result<bool, VaultError> {
        vault.until_proven(key, std::slice::from_ref(&segment.payload), || {
            let put = self.folders.put(&key.to_string(), segment.payload.iter().map(Ok), pace);
            Ok(put.map_err(|e| VaultError::of_io(key, e))?.then_some(None))
        })
    }

    fn put_file(&self, vault: &Vault, key: &ObjectKey, file: &Path) -> Result<(), VaultError> {
        let of_io = |e| VaultError::of_io(key, e);
        let from = std::fs::File::open(file).map_err(of_io)?;
        match self.folders.put(&key.to_string(), steps(from, STEP_BYTES), &Unlimited) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(exists(key)),
            put => {
                put.map_err(of_io)?;
                vault.prove_file(key, file)
            }
        }
    }

    fn replace(&self, _: &Vault, key: &ObjectKey, payload: &PutPayload) -> Result<(), VaultError> {
        let put = self.folders.replace(&key.to_string(), payload.iter().map(Ok::<_, io::Error>));
        put.map_err(|e| VaultError::of_io(key, e))
    }

    fn reads_back(
        &self,
        _: &Vault,
        key: &ObjectKey,
        wanted: Steps<'_>,
    ) -> Result<bool, VaultError> {
        let same = self.folders.reads_back(&key.to_string(), wanted);
        same.map_err(|e| VaultError::of_io(key, e))
    }
}

//! A vault in a bucket of a cloud: its credentials change, a line leads to it, and S3 can lock what is put.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;

use super::Store;
use crate::error::VaultError;
use crate::format::key::ObjectKey;
use crate::objects::{READ_PAUSE, of_bucket};
use crate::remote::connect::connect;
use crate::remote::lock::ObjectLock;
use crate::remote::lock::bucket::Bucket;
use crate::remote::place::Kind;
use crate::remote::renewing::Renewing;
use crate::remote::settings::StoreSettings;
use crate::store::Vault;

/// See the head of this file.
pub(crate) struct InBucket {
    renewing: Arc<Renewing>,
    objects: Arc<dyn ObjectStore>,
    /// What all keys in it begin with.
    prefix: String,
    lock: Option<ObjectLock>,
}

impl InBucket {
    /// The one of a URL. Nothing is asked of it yet.
    pub fn of(
        url: &str,
        (kind, bucket, prefix): (Kind, String, String),
        settings: &Arc<StoreSettings>,
    ) -> Result<Self, VaultError> {
        let (of, with, below) = (url.to_owned(), Arc::clone(settings), prefix.clone());
        let make = move || connect(&of, (kind, &bucket, &below), &with);
        let file = settings.credentials_file.clone();
        let renewing = Arc::new(Renewing::new(file, Box::new(make))?);
        let objects = Arc::<Renewing>::clone(&renewing);
        Ok(Self { renewing, objects, prefix, lock: settings.object_lock })
    }

    /// How what is put is locked, if it is.
    fn locked(&self) -> Option<(Arc<Bucket>, ObjectLock)> {
        self.renewing.now().bucket.zip(self.lock)
    }
}

impl Store for InBucket {
    fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    fn read_pause(&self) -> Duration {
        READ_PAUSE
    }

    fn check_lock(&self, vault: &Vault) -> Result<(), VaultError> {
        let Some((bucket, _)) = self.locked() else { return Ok(()) };
        vault.block_on(bucket.can_lock()).map_err(|e| of_bucket("object lock", e))
    }

    fn lock(&self, vault: &Vault, key: &ObjectKey) -> Result<(), VaultError> {
        let Some((bucket, lock)) = self.locked() else { return Ok(()) };
        let at = Path::from(format!("{}/{key}", self.prefix));
        vault.block_on(bucket.retain(&at, lock)).map_err(|e| of_bucket(key, e))
    }
}

//! What a vault has of a disk: its record, its points.

use backstay_types::{CycleNo, DiskId};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::error::{In, VaultError};
use crate::format::document::DiskRecord;
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::seal::sign::TRAILER_BYTES;
use crate::store::{Vault, disk_key, point_key};

impl Vault {
    /// The records of all disks, as they were made.
    pub(crate) fn disk_records(&self) -> Result<Vec<DiskRecord>, VaultError> {
        let prefix = Path::from("disks");
        let listed = self.block_on(self.store().list_with_delimiter(Some(&prefix)));
        let listed = listed.map_err(|e| VaultError::of_store("disks", e))?;
        let mut disks = vec![];
        for folder in listed.common_prefixes {
            // Other folders are not ours.
            let id = folder.filename().and_then(|name| name.parse().ok());
            let Some(disk) = id.map(DiskId) else { continue };
            match self.disk(disk) {
                Ok(record) => disks.push(record),
                // A folder whose record was never finished.
                Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(disks)
    }

    /// The record of a disk.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn disk(&self, disk: DiskId) -> Result<DiskRecord, VaultError> {
        self.document(&disk_key(disk))
    }

    /// Puts the record of a new disk.
    ///
    /// # Errors
    /// If it is there already, or the vault cannot be written.
    pub fn create_disk(&self, record: &DiskRecord) -> Result<(), VaultError> {
        self.put_document(&disk_key(record.disk), record)
    }

    /// The cycles of all recovery points of a disk, oldest first. Those that retention deletes while
    /// this is read may be in it; who must have a point holds it (see [`crate::retain`]).
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn points(&self, disk: DiskId) -> Result<Vec<CycleNo>, VaultError> {
        crate::retain::existing_points(self, disk)
    }

    /// The cycles of all objects among a disk's points, whatever the ledger says of them.
    pub(crate) fn point_objects(&self, disk: DiskId) -> Result<Vec<CycleNo>, VaultError> {
        let points = self.numbers(&format!("disks/{disk}/points"))?;
        Ok(points.into_iter().map(CycleNo).collect())
    }

    /// A recovery point.
    ///
    /// # Errors
    /// If there is none, or it is damaged or not what its name says.
    pub fn manifest(&self, disk: DiskId, cycle: CycleNo) -> Result<Manifest, VaultError> {
        let key = point_key(disk, cycle);
        let bytes = self.get(&key, MANIFEST_BYTES_MAX + TRAILER_BYTES)?;
        let manifest = Manifest::decode(self.verified(&key, &bytes)?).within(&key)?;
        let manifest = self.is_at(&key, manifest)?;
        self.is_as_decided(&key, &manifest)?;
        Ok(manifest)
    }

    /// Deletes everything that the vault has of a disk: its points first, its record last, so that
    /// one that is killed half-way can be finished.
    ///
    /// # Errors
    /// If the vault cannot be listed or refuses to delete.
    pub fn remove_disk(&self, disk: DiskId) -> Result<(), VaultError> {
        let prefix = format!("disks/{disk}");
        let path = Path::from(prefix.as_str());
        let listed = self.inner.store.list(Some(&path)).try_collect::<Vec<_>>();
        let listed =
            self.inner.runtime.block_on(listed).map_err(|e| VaultError::of_store(&prefix, e))?;
        let mut keys: Vec<Path> = listed.into_iter().map(|meta| meta.location).collect();
        let record = disk_key(disk);
        let points = format!("{prefix}/points/");
        keys.sort_by_key(|key| {
            (key.as_ref() == record, !key.as_ref().starts_with(&points), key.as_ref().to_owned())
        });
        for key in keys {
            match self.inner.runtime.block_on(self.inner.store.delete(&key)) {
                // Somebody else deleted it at the same time.
                Err(object_store::Error::NotFound { .. }) | Ok(()) => {}
                Err(e) => return Err(VaultError::of_store(key.as_ref(), e)),
            }
        }
        Ok(())
    }
}

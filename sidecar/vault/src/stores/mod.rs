//! The kinds of places that a vault can be in. What they have in common is an object store; what differs between them is
//! said in one file each, and chosen once, where a vault is opened ([`crate::Vaults`]).

mod behind_gateway;
mod in_bucket;
mod in_directory;

use std::io;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, PutMode, PutOptions, PutPayload};

pub(crate) use behind_gateway::BehindGateway;
pub(crate) use in_bucket::InBucket;
pub(crate) use in_directory::InDirectory;

use crate::error::VaultError;
use crate::format::key::{Folder, ObjectKey};
use crate::frame::Object;
use crate::paced::Pace;
use crate::remote::WhoAmI;
use crate::store::Vault;

/// Bytes of an object, from somewhere.
pub(crate) type Steps<'a> = &'a mut dyn Iterator<Item = io::Result<Bytes>>;

/// What differs between the places that a vault can be in. What is not said is as of any object store.
pub(crate) trait Store: Send + Sync {
    /// The objects in it.
    fn objects(&self) -> &Arc<dyn ObjectStore>;

    /// Whether what it says is so: its lists are what it has, and no line or cache is between.
    fn is_exact(&self) -> bool {
        false
    }

    /// Whether a gateway stands before it, which proves what is put and does the upkeep.
    fn is_behind_gateway(&self) -> bool {
        false
    }

    /// How long to wait before something is read again that is not as it should be.
    fn read_pause(&self) -> Duration {
        Duration::ZERO
    }

    /// The directory that it is in.
    fn root(&self) -> Option<&FsPath> {
        None
    }

    /// Whom its gateway takes us for.
    fn who(&self, _: &Vault) -> Result<Option<&WhoAmI>, VaultError> {
        Ok(None)
    }

    /// Makes room for the name of an object that is about to be put.
    fn prepare(&self, _: &ObjectKey) -> io::Result<()> {
        Ok(())
    }

    /// Makes durable the name of an object that is there though its put failed.
    fn settle(&self, _: &ObjectKey) -> io::Result<()> {
        Ok(())
    }

    /// Removes what killed puts left in a folder for so long; how many.
    fn sweep(&self, _: &Folder, _: Duration) -> io::Result<u64> {
        Ok(0)
    }

    /// Finds out whether what is put can be locked, where that is asked for.
    fn check_lock(&self, _: &Vault) -> Result<(), VaultError> {
        Ok(())
    }

    /// Locks an object that was put in parts, where what is put is locked.
    fn lock(&self, _: &Vault, _: &ObjectKey) -> Result<(), VaultError> {
        Ok(())
    }

    /// Puts a segment, proven; false if it was given up.
    fn put_segment(
        &self,
        vault: &Vault,
        key: &ObjectKey,
        segment: &Object,
        pace: &dyn Pace,
    ) -> Result<bool, VaultError> {
        vault.put_by_requests(key, segment, pace)
    }

    /// Puts an object from a file that does not change, proven, if it is absent.
    fn put_file(&self, vault: &Vault, key: &ObjectKey, file: &FsPath) -> Result<(), VaultError> {
        vault.put_file_by_requests(key, file)
    }

    /// Replaces an object by what it was.
    fn replace(
        &self,
        vault: &Vault,
        key: &ObjectKey,
        payload: &PutPayload,
    ) -> Result<(), VaultError> {
        let options = PutOptions { mode: PutMode::Overwrite, ..PutOptions::default() };
        let at = Path::from(key);
        let put = self.objects().put_opts(&at, payload.clone(), options);
        vault.block_on(put).map(drop).map_err(|e| VaultError::of_store(key, e))
    }

    /// Whether an object reads back as these bytes.
    fn reads_back(
        &self,
        vault: &Vault,
        key: &ObjectKey,
        wanted: Steps<'_>,
    ) -> Result<bool, VaultError> {
        vault.reads_back_by_ranges(key, wanted)
    }
}

/// Any object store.
impl Store for Arc<dyn ObjectStore> {
    fn objects(&self) -> &Arc<dyn ObjectStore> {
        self
    }
}

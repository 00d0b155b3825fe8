//! Bringing back what was deleted from a bucket that keeps versions, and keeping locks from running out.
//!
//! Anyone who has the store's keys can delete and overwrite, but where objects are locked what was there before stays as
//! an older version. Here the vault is put back to how it was at a time, but for what is new since: it is not
//! opened, for its own record may be among what is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use backstay_host::clock;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, path::Path};
use tokio::runtime::Runtime;

use super::ObjectLock;
use super::bucket::Bucket;
use super::versions::Version;
use crate::error::VaultError;
use crate::objects::of_bucket;
use crate::remote::connect::{Connected, connect};
use crate::remote::place::{Kind, VaultPlace};
use crate::vaults::Vaults;

/// Requests under way at a time.
const AT_A_TIME: usize = 8;

/// The versions of a vault's objects, in an S3 bucket.
pub struct Versions {
    url: String,
    /// What the vault's keys begin with.
    prefix: String,
    store: Arc<dyn ObjectStore>,
    bucket: Arc<Bucket>,
    lock: Option<ObjectLock>,
    runtime: Runtime,
}

/// What was brought back, or would be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Undeleted {
    /// Objects that were deleted.
    pub deleted: u64,
    /// Objects that were overwritten.
    pub overwritten: u64,
    /// Objects that something newer still hides, which cannot be removed.
    pub hidden: Vec<String>,
}

/// What was locked for longer.
#[derive(Debug, PartialEq, Eq)]
pub struct Extended {
    /// Objects.
    pub objects: u64,
    /// Until when, at least.
    pub until: SystemTime,
}

impl Versions {
    /// Those of a vault.
    ///
    /// # Errors
    /// If it is in no S3 bucket.
    pub fn of(vaults: &Vaults, url: &str) -> Result<Self, VaultError> {
        let wrong = |reason: &str| VaultError::Url { url: url.into(), reason: reason.into() };
        let VaultPlace::Bucket { kind: Kind::S3, bucket, prefix } = VaultPlace::parse(url)? else {
            return Err(wrong(
                "versions of objects are looked at in s3:// alone; see docs/reference/stores.md",
            ));
        };
        let settings = &vaults.store;
        let connected = connect(url, (Kind::S3, &bucket, &prefix), settings)?;
        let Connected { store, bucket: Some(bucket) } = connected else {
            return Err(wrong("that is no S3 bucket"));
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| wrong(&e.to_string()))?;
        let prefix = if prefix.is_empty() { prefix } else { format!("{prefix}/") };
        Ok(Self { url: url.into(), prefix, store, bucket, lock: settings.object_lock, runtime })
    }

    /// Brings back what was there at a time and was deleted or overwritten after it. What is new since stays.
    /// If `only_look`, it finds out what that would be.
    ///
    /// # Errors
    /// If the store does not answer or forbids it.
    pub fn undelete(&self, at: SystemTime, only_look: bool) -> Result<Undeleted, VaultError> {
        let mut done = Undeleted::default();
        for (key, versions) in self.by_key()? {
            let Some(newer) = to_remove(&versions, at) else { continue };
            let overwritten = newer.iter().any(|version| !version.is_marker);
            let mut hidden = false;
            for version in newer.iter().filter(|_| !only_look) {
                let removed = self.bucket.delete_version(&key, &version.id);
                match self.runtime.block_on(removed) {
                    Ok(()) => {}
                    // It is locked, too: anyone who put it saw to that.
                    Err(e) if !version.is_marker => {
                        tracing::debug!("{key}: version {}: {e}", version.id);
                        hidden = true;
                    }
                    Err(e) => return Err(of_bucket(&key, e)),
                }
            }
            match (hidden, overwritten) {
                (true, _) => done.hidden.push(key),
                (false, true) => done.overwritten += 1,
                (false, false) => done.deleted += 1,
            }
        }
        Ok(done)
    }

    /// Locks all that is there for the whole period from now on.
    ///
    /// # Errors
    /// If `object_lock` is not set, or the store does not answer or forbids it.
    pub fn extend(&self) -> Result<Extended, VaultError> {
        let Some(lock) = self.lock else {
            let reason = "store.object_lock is not set: it says for how long".into();
            return Err(VaultError::Url { url: self.url.clone(), reason });
        };
        let until = clock::now() + lock.period;
        let work = async {
            let can = self.bucket.can_lock().await;
            can.map_err(|e| of_bucket("object lock", e))?;
            let listed = self.store.list(None).map_err(|e| VaultError::of_store(&self.prefix, e));
            let retained = listed.try_filter(|meta| {
                let is_probe = meta.location.as_ref().starts_with("probes/");
                futures::future::ready(!is_probe)
            });
            let retained = retained.map(|meta| async {
                let key = Path::from(format!("{}{}", self.prefix, meta?.location));
                let retained = self.bucket.retain(&key, lock).await;
                retained.map_err(|e| of_bucket(key.as_ref(), e))
            });
            let count = retained.buffer_unordered(AT_A_TIME);
            count.try_fold(0, async |count, ()| Ok(count + 1)).await
        };
        Ok(Extended { objects: self.runtime.block_on(work)?, until })
    }

    fn by_key(&self) -> Result<BTreeMap<String, Vec<Version>>, VaultError> {
        let mut all: BTreeMap<String, Vec<Version>> = BTreeMap::new();
        let mut from = None;
        loop {
            let page = self.runtime.block_on(self.bucket.versions(&self.prefix, from.as_ref()));
            let page = page.map_err(|e| of_bucket(&self.prefix, e))?;
            for version in page.versions {
                // A store that says more than it was asked for changes nothing elsewhere.
                if version.key.starts_with(&self.prefix) {
                    all.entry(version.key.clone()).or_default().push(version);
                }
            }
            match page.next {
                None => return Ok(all),
                next if next == from => {
                    let reason = "a list of versions that does not end".into();
                    return Err(VaultError::Inconsistent { object: self.prefix.clone(), reason });
                }
                next => from = next,
            }
        }
    }
}

/// Of one object's versions those that came after a time, if the object was there at that time.
fn to_remove(versions: &[Version], at: SystemTime) -> Option<Vec<&Version>> {
    let newest = |is_marker| {
        let before = versions.iter().filter(|v| v.since < at && v.is_marker == is_marker);
        before.map(|version| version.since).max()
    };
    // Stores tell seconds: of two in one the deletion was the later one.
    let was_there = newest(false).is_some_and(|put| newest(true).is_none_or(|gone| gone < put));
    let after: Vec<&Version> = versions.iter().filter(|version| version.since >= at).collect();
    (was_there && !after.is_empty()).then_some(after)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_state_at_a_time() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let version = |(seconds, is_marker): (u64, bool)| Version {
            key: "k".into(),
            id: format!("{seconds}"),
            since: at(seconds),
            is_marker,
        };
        let (put, gone) = (false, true);
        for (history, removed) in [
            // Nothing happened, or all of it before.
            (&[(1, put)][..], None),
            (&[(1, put), (2, gone)], None),
            // Deleted, overwritten, both, several times.
            (&[(1, put), (11, gone)], Some(vec!["11"])),
            (&[(1, put), (12, put)], Some(vec!["12"])),
            (&[(1, put), (11, put), (12, gone), (13, gone)], Some(vec!["11", "12", "13"])),
            // Put again before, deleted after.
            (&[(1, put), (2, gone), (3, put), (11, gone)], Some(vec!["11"])),
            // New since, deleted or not; deleted before, put again since.
            (&[(11, put)], None),
            (&[(11, put), (12, gone)], None),
            (&[(1, put), (2, gone), (11, put)], None),
            (&[(1, put), (1, gone), (11, gone)], None),
        ] {
            let versions: Vec<Version> = history.iter().copied().map(version).collect();
            let found = to_remove(&versions, at(10));
            let found = found.map(|all| all.iter().map(|v| v.id.clone()).collect::<Vec<_>>());
            assert_eq!(
                found,
                removed.map(|all| all.into_iter().map(String::from).collect()),
                "{history:?}"
            );
        }
    }
}

//! The objects of a vault and their names, over any object store.
//!
//! The API blocks and can be called from any plain thread; a small runtime inside does the network's
//! part. Every object but none is put only if it is absent: nothing is ever overwritten.
//!
//! What a local directory needs beyond that to be durable is in `crate::local`.

use std::path::Path as FsPath;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, RwLock};

pub(crate) use backstay_host::clock::now_unix_ns;
use backstay_types::ByteLen;
use object_store::ObjectStore;
use tokio::runtime::Runtime;

use crate::encrypt::keys::{Keys, SegmentKeys};
use crate::error::VaultError;
use crate::format::document::VaultRecord;
use crate::format::key::ObjectKey;
use crate::paced::Pace;
use crate::read::tails::Tails;
use crate::remote::gateway::{Role, WhoAmI};
use crate::retain::Decided;
use crate::stores::Store;
use crate::vaults::Vaults;

/// A vault. Clones share it.
#[derive(Clone)]
pub struct Vault {
    pub(crate) inner: Arc<Inner>,
    /// How fast segments are put through this handle.
    pub(crate) pace: Option<Arc<dyn Pace + Send>>,
}

pub(crate) struct Inner {
    pub url: String,
    pub store: Box<dyn Store>,
    pub runtime: Runtime,
    pub fetched_bytes: AtomicU64,
    /// Requests for objects and lists.
    pub requests: AtomicU64,
    /// What it was opened with.
    pub vaults: Vaults,
    /// What `vault.json` says.
    pub record: OnceLock<VaultRecord>,
    /// Its keys, once they were needed.
    pub keys: RwLock<Option<Arc<Keys>>>,
    /// Keys of segments that were read.
    pub segment_keys: SegmentKeys,
    /// Which points are kept, as far as ledgers were read.
    pub decided: Decided,
    /// Where the indexes of segments are that were put.
    pub tails: Tails,
}

impl Vault {
    /// On a store. Nothing is asked of it yet.
    pub(crate) fn on(
        url: &str,
        store: Box<dyn Store>,
        vaults: &Vaults,
    ) -> Result<Self, VaultError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(16)
            .thread_name("vault")
            .enable_all()
            .build()
            .map_err(|e| VaultError::Url { url: url.into(), reason: e.to_string() })?;
        let inner = Inner {
            url: url.into(),
            store,
            runtime,
            fetched_bytes: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            vaults: vaults.clone(),
            record: OnceLock::new(),
            keys: RwLock::default(),
            segment_keys: SegmentKeys::default(),
            decided: Decided::default(),
            tails: Tails::default(),
        };
        Ok(Self { inner: Arc::new(inner), pace: None })
    }

    /// Puts the record of a new vault: from now on it is one, and this host means it by its URL.
    pub(crate) fn found(&self, record: VaultRecord) -> Result<(), VaultError> {
        match self.put_document(&ObjectKey::Vault, &record) {
            // Somebody else made one at the same time.
            Err(VaultError::Store {
                source: object_store::Error::AlreadyExists { .. }, ..
            }) => return Err(VaultError::VaultExists { url: self.url().into() }),
            put => put?,
        }
        if let Err(e) = self.inner.vaults.known().accept(self.url(), record.vault) {
            tracing::warn!("{e}");
        }
        self.keep_reserve();
        self.take_record(record)
    }

    /// Whom the gateway that it is behind takes us for; `None` if it is behind none.
    ///
    /// # Errors
    /// If the gateway does not say.
    pub fn who_am_i(&self) -> Result<Option<&WhoAmI>, VaultError> {
        self.inner.store.who(self)
    }

    /// What the gateway that it is behind lets us do; `None` if it is behind none.
    ///
    /// # Errors
    /// If the gateway does not say.
    pub fn role(&self) -> Result<Option<Role>, VaultError> {
        Ok(self.who_am_i()?.map(|who| who.role))
    }

    /// Whether it is behind a gateway, which does the upkeep itself.
    #[must_use]
    pub fn is_behind_gateway(&self) -> bool {
        self.inner.store.is_behind_gateway()
    }

    /// Whether it is in a local directory.
    pub(crate) fn is_local(&self) -> bool {
        self.inner.store.is_exact()
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The directory it is in, if it is in one.
    #[must_use]
    pub fn local_dir(&self) -> Option<&FsPath> {
        self.inner.store.root()
    }

    /// The room that is left where it is; none if that cannot be told, as of a store.
    pub(crate) fn free(&self) -> Option<ByteLen> {
        let fs = nix::sys::statvfs::statvfs(self.local_dir()?).ok()?;
        Some(ByteLen(fs.blocks_available().saturating_mul(fs.fragment_size())))
    }

    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &**self.inner.store.objects()
    }

    pub(crate) fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.inner.runtime.block_on(work)
    }

    /// The same vault, into which [`Self::put_segment`] puts no faster than it is let through.
    #[must_use]
    pub fn paced(self, pace: Arc<dyn Pace + Send>) -> Self {
        Self { pace: Some(pace), ..self }
    }
}

/// Asks for two things that do not depend on each other at the same time: over a line each answer takes its time.
pub fn at_once<A: Send, B>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B) -> (A, B) {
    std::thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other();
        match one.join() {
            Ok(one) => (one, other),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

//! The objects of a vault and their names, over any object store.
//!
//! The API blocks and can be called from any plain thread; a small runtime inside does the network's
//! part. Every object but none is put only if it is absent: nothing is ever overwritten.
//!
//! What a local directory needs beyond that to be durable is in `crate::local`.

use std::io::ErrorKind;
use std::path::Path as FsPath;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock, RwLock};

pub(crate) use backstay_host::clock::now_unix_ns;
use backstay_types::ByteLen;
use object_store::ObjectStore;
use tokio::runtime::Runtime;

use crate::encrypt::KeySettings;
use crate::encrypt::keys::{Keychain, Keys, SegmentKeys};
use crate::error::{OF_DIRECTORY, VaultError};
use crate::format::document::VaultRecord;
use crate::format::key::ObjectKey;
use crate::known;
use crate::local::{self, Folders};
use crate::paced::Pace;
use crate::read::tails::Tails;
use crate::remote::connect::{connect, refuse_lock};
use crate::remote::gateway::{Gateway, Role, WhoAmI};
use crate::remote::lock::bucket::Bucket;
use crate::remote::place::{Kind, VaultPlace};
use crate::remote::renewing::Renewing;
use crate::remote::settings::{StoreSettings, settings};
use crate::retain::Decided;

/// A vault. Clones share it.
#[derive(Clone)]
pub struct Vault {
    pub(crate) inner: Arc<Inner>,
    /// How fast segments are put through this handle.
    pub(crate) pace: Option<Arc<dyn Pace + Send>>,
}

pub(crate) struct Inner {
    pub url: String,
    pub store: Arc<dyn ObjectStore>,
    /// Of a vault in a bucket: what makes its clients.
    pub renewing: Option<Arc<Renewing>>,
    /// What its keys begin with in a bucket.
    pub prefix: String,
    /// Of a vault in a local directory.
    pub folders: Option<Folders>,
    /// What it is behind, if it is behind a gateway.
    pub gateway: Option<Gateway>,
    pub runtime: Runtime,
    pub fetched_bytes: AtomicU64,
    /// Requests for objects and lists.
    pub requests: AtomicU64,
    /// What it was opened with.
    pub settings: Arc<StoreSettings>,
    /// What `vault.json` says.
    pub record: OnceLock<VaultRecord>,
    /// What this process has to open it with.
    pub keychain: Arc<Keychain>,
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
    /// Opens a vault that exists.
    ///
    /// # Errors
    /// If there is none, or it is not of this version.
    pub fn open(url: &str) -> Result<Self, VaultError> {
        Self::open_with_keychain(url, Keychain::current())
    }

    /// The same with other keys than the configuration's.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_with(url: &str, keys: KeySettings) -> Result<Self, VaultError> {
        Self::open_with_keychain(url, Keychain::new(keys))
    }

    fn open_with_keychain(url: &str, keychain: Arc<Keychain>) -> Result<Self, VaultError> {
        let vault = Self::look(url, keychain)?;
        vault.meet().map(|()| vault)
    }

    /// The same, for anyone who must change nothing on this host either: a vault that is met for the first time is not
    /// remembered.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_to_look(url: &str) -> Result<Self, VaultError> {
        let vault = Self::look(url, Keychain::current())?;
        vault.id().map_or(Ok(()), |id| known::compare(url, id))?;
        Ok(vault)
    }

    /// Opens the vault that is at a URL, whichever it is. For anyone who says that this one is meant
    /// ([`crate::known::accept`]); everybody else uses [`Self::open`].
    ///
    /// # Errors
    /// If there is none, or it is not of this version.
    pub fn open_whichever(url: &str) -> Result<Self, VaultError> {
        Self::look(url, Keychain::current())
    }

    fn look(url: &str, keychain: Arc<Keychain>) -> Result<Self, VaultError> {
        let vault = match VaultPlace::parse(url)? {
            VaultPlace::Directory(root) if !root.is_dir() => return Err(known::none_at(url)),
            VaultPlace::Directory(root) => Self::on_directory(url, &root, keychain)?,
            VaultPlace::Bucket { kind, bucket, prefix } => {
                Self::on_bucket(url, (kind, &bucket, &prefix), keychain)?
            }
            VaultPlace::Gateway { hosts } => Self::behind(url, &hosts, keychain)?,
        };
        match vault.document::<VaultRecord>(&ObjectKey::Vault) {
            Err(VaultError::NotFound { .. }) => Err(known::none_at(url)),
            record => vault.take_record(record?).map(|()| vault),
        }
    }

    /// Makes a new vault where there is none. Of an object store it is found out first whether it can do what a
    /// vault needs. Nothing else makes vaults but [`Self::create_encrypted`]: an empty place may be a file
    /// system that is not mounted.
    ///
    /// # Errors
    /// [`VaultError::VaultExists`] if there is one; [`VaultError::VaultGone`] if this host knows one there (see
    /// [`crate::known::forget`]); [`VaultError::Unfit`] if the store is no place for one; or it cannot be made.
    pub fn create(url: &str) -> Result<Self, VaultError> {
        let keychain = Keychain::current();
        if keychain.settings.required {
            let reason = "[encryption] of this host's configuration says that its vaults are encrypted. Make an \
                          encrypted one: backstay key init --vault URL"
                .into();
            return Err(VaultError::Url { url: url.into(), reason });
        }
        let vault = Self::at_new_place(url)?;
        let record = VaultRecord {
            vault: uuid::Uuid::new_v4(),
            created_unix_ns: now_unix_ns(),
            names: true,
            encrypted: false,
        };
        vault.found(record).map(|()| vault)
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
        if let Err(e) = known::accept(self.url(), record.vault) {
            tracing::warn!("{e}");
        }
        self.keep_reserve();
        self.take_record(record)
    }

    /// A place where a vault can be, and none is. Of an object store it is found out first whether it can do what
    /// a vault needs.
    pub(crate) fn at_new_place(url: &str) -> Result<Self, VaultError> {
        match Self::look(url, Keychain::current()) {
            Ok(_) => return Err(VaultError::VaultExists { url: url.into() }),
            Err(VaultError::NoVault { .. }) => {}
            Err(e) => return Err(e),
        }
        let vault = Self::place(url)?;
        if !vault.is_local() {
            vault.probe()?;
        }
        Ok(vault)
    }

    /// Whether a vault could be made at a URL where none is. Leaves nothing there.
    ///
    /// # Errors
    /// Why not.
    pub fn check_place(url: &str) -> Result<(), VaultError> {
        match VaultPlace::parse(url)? {
            VaultPlace::Directory(root) => {
                let there = root.ancestors().find(|dir| dir.exists()).unwrap_or(FsPath::new("/"));
                if !there.is_dir() {
                    let reason = format!("{} is not a directory", there.display());
                    return Err(VaultError::Url { url: url.into(), reason });
                }
                use nix::unistd::{AccessFlags, access};
                access(there, AccessFlags::W_OK | AccessFlags::X_OK)
                    .map_err(|e| VaultError::of_io(url, e.into()))
            }
            VaultPlace::Bucket { kind, bucket, prefix } => {
                Self::on_bucket(url, (kind, &bucket, &prefix), Keychain::current())?.probe()
            }
            VaultPlace::Gateway { .. } => Err(known::none_at(url)),
        }
    }

    fn place(url: &str) -> Result<Self, VaultError> {
        let keychain = Keychain::current();
        let vault = match &VaultPlace::parse(url)? {
            VaultPlace::Directory(root) => {
                let vault = Self::on_directory(url, root, keychain)?;
                local::make_root(root).map_err(|source| match source.kind() {
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                        VaultError::Denied { object: url.into(), why: OF_DIRECTORY.into() }
                    }
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                        VaultError::Full { object: url.into() }
                    }
                    _ => VaultError::Url { url: url.into(), reason: source.to_string() },
                })?;
                vault
            }
            VaultPlace::Bucket { kind, bucket, prefix } => {
                Self::on_bucket(url, (*kind, bucket, prefix), keychain)?
            }
            VaultPlace::Gateway { .. } => {
                let reason =
                    "a vault is made where its store is reached directly, not through a gateway"
                        .into();
                return Err(VaultError::Url { url: url.into(), reason });
            }
        };
        Ok(vault)
    }

    fn on_directory(url: &str, root: &FsPath, keychain: Arc<Keychain>) -> Result<Self, VaultError> {
        refuse_lock(url, &settings(), "A directory has no such thing: use a store that has")?;
        let folders = Folders::below(root);
        Self::build(url, Arc::new(folders.store()), Some(folders), None, keychain)
    }

    fn on_bucket(
        url: &str,
        at: (Kind, &str, &str),
        keychain: Arc<Keychain>,
    ) -> Result<Self, VaultError> {
        let (kind, bucket, prefix) = (at.0, at.1.to_owned(), at.2.to_owned());
        let (settings, of) = (settings(), url.to_owned());
        let file = settings.credentials_file.clone();
        let make = move || connect(&of, (kind, &bucket, &prefix), &settings);
        let renewing = Arc::new(Renewing::new(file, Box::new(make))?);
        let store = Arc::<Renewing>::clone(&renewing);
        let mut vault = Self::build(url, store, None, None, keychain)?;
        if let Some(inner) = Arc::get_mut(&mut vault.inner) {
            at.2.clone_into(&mut inner.prefix);
            inner.renewing = Some(renewing);
        }
        Ok(vault)
    }

    fn behind(url: &str, hosts: &[String], keychain: Arc<Keychain>) -> Result<Self, VaultError> {
        refuse_lock(
            url,
            &settings(),
            "Here the gateway puts: set it in the gateway's configuration",
        )?;
        let gateway = Gateway::new(url, hosts, &settings())?;
        let store = Arc::<crate::remote::gateway::GatewayStore>::clone(&gateway.store);
        Self::build(url, store, None, Some(gateway), keychain)
    }

    /// Whom the gateway that it is behind takes us for; `None` if it is behind none.
    ///
    /// # Errors
    /// If the gateway does not say.
    pub fn who_am_i(&self) -> Result<Option<&WhoAmI>, VaultError> {
        let Inner { gateway, runtime, .. } = &*self.inner;
        gateway.as_ref().map(|gateway| gateway.who(runtime)).transpose()
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
        self.inner.gateway.is_some()
    }

    /// Whether it is in a local directory.
    pub(crate) fn is_local(&self) -> bool {
        self.inner.folders.is_some()
    }

    /// A vault on any store.
    ///
    /// # Errors
    /// If the runtime's threads cannot be started.
    pub fn on_store(url: &str, store: Arc<dyn ObjectStore>) -> Result<Self, VaultError> {
        Self::build(url, store, None, None, Keychain::current())
    }

    fn build(
        url: &str,
        store: Arc<dyn ObjectStore>,
        folders: Option<Folders>,
        gateway: Option<Gateway>,
        keychain: Arc<Keychain>,
    ) -> Result<Self, VaultError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(16)
            .thread_name("vault")
            .enable_all()
            .build()
            .map_err(|e| VaultError::Url { url: url.into(), reason: e.to_string() })?;
        Ok(Self {
            inner: Arc::new(Inner {
                url: url.into(),
                store,
                renewing: None,
                prefix: String::new(),
                folders,
                gateway,
                runtime,
                fetched_bytes: AtomicU64::new(0),
                requests: AtomicU64::new(0),
                settings: settings(),
                record: OnceLock::new(),
                keychain,
                keys: RwLock::default(),
                segment_keys: SegmentKeys::default(),
                decided: Decided::default(),
                tails: Tails::default(),
            }),
            pace: None,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The directory it is in, if it is in one.
    #[must_use]
    pub fn local_dir(&self) -> Option<&FsPath> {
        self.inner.folders.as_ref().map(Folders::root)
    }

    /// The room that is left where it is; none if that cannot be told, as of a store.
    pub(crate) fn free(&self) -> Option<ByteLen> {
        let fs = nix::sys::statvfs::statvfs(self.local_dir()?).ok()?;
        Some(ByteLen(fs.blocks_available().saturating_mul(fs.fragment_size())))
    }

    /// The bucket it is in, if it is one of S3.
    pub(crate) fn bucket(&self) -> Option<Arc<Bucket>> {
        self.inner.renewing.as_ref().and_then(|renewing| renewing.now().bucket)
    }

    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &*self.inner.store
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

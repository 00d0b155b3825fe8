//! How a program reaches vaults: how their stores answer, what opens them, and which one is meant by a URL.
//!
//! A program makes one [`Vaults`] of its configuration and passes it on; it is cheap to clone. Vaults that are open keep
//! what they were opened with.

use std::collections::BTreeSet;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use object_store::ObjectStore;

use crate::encrypt::keys::{Keychain, Keys};
use crate::encrypt::{KeySettings, Keyring, NewSlot};
use crate::error::{OF_DIRECTORY, VaultError};
use crate::format::document::VaultRecord;
use crate::format::key::{Folder, ObjectKey};
use crate::known::KnownVaults;
use crate::local;
use crate::remote::connect::refuse_lock;
use crate::remote::place::VaultPlace;
use crate::remote::settings::StoreSettings;
use crate::store::{Vault, now_unix_ns};
use crate::stores::{BehindGateway, InBucket, InDirectory, Store};

/// How vaults are reached.
#[derive(Clone, Default)]
pub struct Vaults {
    pub(crate) store: Arc<StoreSettings>,
    pub(crate) keychain: Arc<Keychain>,
    known: KnownVaults,
    /// URLs of stores that were tried.
    pub(crate) probed: Arc<Mutex<BTreeSet<String>>>,
}

impl PartialEq for Vaults {
    fn eq(&self, other: &Self) -> bool {
        let parts = |of: &Self| (Arc::clone(&of.store), of.known.clone());
        parts(self) == parts(other) && self.keychain.settings == other.keychain.settings
    }
}

impl fmt::Debug for Vaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vaults").field("store", &self.store).finish_non_exhaustive()
    }
}

impl Vaults {
    /// The same, with stores reached as these settings say.
    #[must_use]
    pub fn with_store(self, settings: StoreSettings) -> Self {
        Self { store: Arc::new(settings), ..self }
    }

    /// The same, with vaults unlocked as these settings say. Who can be asked stays the same in a program, whatever its
    /// configuration says; and with the same settings, what was opened stays open.
    #[must_use]
    pub fn with_keys(self, mut settings: KeySettings) -> Self {
        if settings.prompt.is_none() {
            settings.prompt.clone_from(&self.keychain.settings.prompt);
        }
        match self.keychain.settings == settings {
            true => self,
            false => Self { keychain: Arc::new(Keychain::new(settings)), ..self },
        }
    }

    /// The same, remembering below a state directory which vault is meant by a URL.
    #[must_use]
    pub fn remembering_in(self, state_root: &Path) -> Self {
        Self { known: KnownVaults::below(state_root), ..self }
    }

    /// The same for finding out whether vaults answer: they are tried once, and answer in about that time.
    #[must_use]
    pub fn answering_within(&self, time: Duration) -> Self {
        let mut store = StoreSettings::clone(&self.store);
        store.retries = 0;
        for most in [&mut store.timeout, &mut store.connect_timeout, &mut store.retry_timeout] {
            *most = time.min(*most);
        }
        self.clone().with_store(store)
    }

    /// Which vault is meant by a URL.
    #[must_use]
    pub fn known(&self) -> &KnownVaults {
        &self.known
    }

    /// Opens a vault that exists.
    ///
    /// # Errors
    /// If there is none, or it is not of this version.
    pub fn open(&self, url: &str) -> Result<Vault, VaultError> {
        let vault = self.open_whichever(url)?;
        vault.id().map_or(Ok(()), |id| self.known.meet(url, id))?;
        Ok(vault)
    }

    /// The same, for callers that must change nothing on this host either: a vault that is met for the first time is not
    /// remembered.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_to_look(&self, url: &str) -> Result<Vault, VaultError> {
        let vault = self.open_whichever(url)?;
        vault.id().map_or(Ok(()), |id| self.known.compare(url, id))?;
        Ok(vault)
    }

    /// Opens the vault that is at a URL, whichever it is. For callers that say that this one is meant
    /// ([`KnownVaults::accept`]); everybody else uses [`Self::open`].
    ///
    /// # Errors
    /// If there is none, or it is not of this version.
    pub fn open_whichever(&self, url: &str) -> Result<Vault, VaultError> {
        let vault = match VaultPlace::parse(url)? {
            VaultPlace::Directory(root) if !root.is_dir() => return Err(self.known.none_at(url)),
            place => self.at(url, place)?,
        };
        match vault.document::<VaultRecord>(&ObjectKey::Vault) {
            Err(VaultError::NotFound { .. }) => Err(self.known.none_at(url)),
            record => vault.take_record(record?).map(|()| vault),
        }
    }

    /// Makes a new vault where there is none. Of an object store it is found out first whether it can do what a
    /// vault needs. Nothing else makes vaults but [`Self::create_encrypted`]: an empty place may be a file
    /// system that is not mounted.
    ///
    /// # Errors
    /// [`VaultError::VaultExists`] if there is one; [`VaultError::VaultGone`] if this host knows one there (see
    /// [`KnownVaults::forget`]); [`VaultError::Unfit`] if the store is no place for one; or it cannot be made.
    pub fn create(&self, url: &str) -> Result<Vault, VaultError> {
        if self.keychain.settings.required {
            let reason = "[encryption] of this host's configuration says that its vaults are encrypted. Make an \
                          encrypted one: backstay key init --vault URL"
                .into();
            return Err(VaultError::Url { url: url.into(), reason });
        }
        let vault = self.at_new_place(url)?;
        vault.found(new_record(false)).map(|()| vault)
    }

    /// Makes a new encrypted vault.
    ///
    /// # Errors
    /// If there is one already, or it cannot be made.
    pub fn create_encrypted(
        &self,
        url: &str,
        label: &str,
        first: &NewSlot,
    ) -> Result<(Vault, Keyring), VaultError> {
        let exists = |e| {
            match e {
            VaultError::VaultExists { .. } => VaultError::Url {
                url: url.into(),
                reason: "there is a vault already. One that is not encrypted cannot be encrypted later: \
                         make a new one somewhere else. To one that is, add a slot: backstay key add"
                    .into(),
            },
            e => e,
        }
        };
        let vault = self.at_new_place(url).map_err(exists)?;
        let record = new_record(true);
        // What a killed one left is of no vault.
        let revisions = vault.numbers_to_newest(&Folder::Keys, ObjectKey::Keyring)?;
        let revision = revisions.last().map_or(1, |last| last + 1);
        let made = Keyring::new(record.vault, revision, label, first);
        let (keyring, opened) = made.map_err(|e| vault.locked(e.to_string()))?;
        vault.put_keyring(&keyring)?;
        vault.found(record).map_err(exists)?;
        if let Some(keys) = Keys::of_keyring(&self.keychain, &keyring, opened) {
            vault.take_keys(&self.keychain.keep(keys));
        }
        Ok((vault, keyring))
    }

    /// A place where a vault can be, and none is. Of an object store it is found out first whether it can do what
    /// a vault needs.
    fn at_new_place(&self, url: &str) -> Result<Vault, VaultError> {
        match self.open_whichever(url) {
            Ok(_) => return Err(VaultError::VaultExists { url: url.into() }),
            Err(VaultError::NoVault { .. }) => {}
            Err(e) => return Err(e),
        }
        let vault = self.place(url)?;
        if !vault.is_local() {
            vault.probe()?;
        }
        Ok(vault)
    }

    /// Whether a vault could be made at a URL where none is. Leaves nothing there.
    ///
    /// # Errors
    /// Why not.
    pub fn check_place(&self, url: &str) -> Result<(), VaultError> {
        match VaultPlace::parse(url)? {
            VaultPlace::Directory(root) => {
                let there = root.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
                if !there.is_dir() {
                    let reason = format!("{} is not a directory", there.display());
                    return Err(VaultError::Url { url: url.into(), reason });
                }
                use nix::unistd::{AccessFlags, access};
                access(there, AccessFlags::W_OK | AccessFlags::X_OK)
                    .map_err(|e| VaultError::of_io(url, e.into()))
            }
            VaultPlace::Gateway { .. } => Err(self.known.none_at(url)),
            place @ VaultPlace::Bucket { .. } => self.at(url, place)?.probe(),
        }
    }

    fn place(&self, url: &str) -> Result<Vault, VaultError> {
        let place = VaultPlace::parse(url)?;
        if matches!(place, VaultPlace::Gateway { .. }) {
            let reason =
                "a vault is made where its store is reached directly, not through a gateway".into();
            return Err(VaultError::Url { url: url.into(), reason });
        }
        let vault = self.at(url, place)?;
        if let Some(root) = vault.local_dir() {
            local::make_root(root).map_err(|source| match source.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    VaultError::Denied { object: url.into(), why: OF_DIRECTORY.into() }
                }
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    VaultError::Full { object: url.into() }
                }
                _ => VaultError::Url { url: url.into(), reason: source.to_string() },
            })?;
        }
        Ok(vault)
    }

    /// What is at a place, whether a vault or not. Nothing is asked of it yet.
    fn at(&self, url: &str, place: VaultPlace) -> Result<Vault, VaultError> {
        let refuse_lock = |instead| refuse_lock(url, &self.store, instead);
        let store: Box<dyn Store> = match place {
            VaultPlace::Directory(root) => {
                refuse_lock("A directory has no such thing: use a store that has")?;
                Box::new(InDirectory::at(&root))
            }
            VaultPlace::Bucket { kind, bucket, prefix } => {
                Box::new(InBucket::of(url, (kind, bucket, prefix), &self.store)?)
            }
            VaultPlace::Gateway { hosts } => {
                refuse_lock("Here the gateway puts: set it in the gateway's configuration")?;
                Box::new(BehindGateway::of(url, &hosts, &self.store)?)
            }
        };
        Vault::on(url, store, self)
    }

    /// A vault on any store.
    ///
    /// # Errors
    /// If the runtime's threads cannot be started.
    pub fn on_store(&self, url: &str, store: Arc<dyn ObjectStore>) -> Result<Vault, VaultError> {
        Vault::on(url, Box::new(store), self)
    }
}

fn new_record(encrypted: bool) -> VaultRecord {
    let created_unix_ns = now_unix_ns();
    VaultRecord { vault: uuid::Uuid::new_v4(), created_unix_ns, names: true, encrypted }
}

//! Segments that have arrived and are not in the store yet: a folder of files, durable, bounded.
//!
//! A segment is answered when it is durable *here*; its upload follows. That is safe because of one rule: a
//! recovery point is put only when every segment it names is in the store (`admission::check_point` reads them
//! there). So what a killed gateway had in its folder can delay or fail a cycle, and nothing else: its
//! sectors stay dirty, and when it is started again it finishes its uploads.
//!
//! The folder never has more than its limit: who has no room waits, and what waits is not read from the line.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backstay_host::lock;
use backstay_host::own_dir::own_dir;
use backstay_vault::Vault;
use backstay_vault::VaultError;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};

use backstay_vault::format::key::ObjectKey;

/// What room is counted in.
const UNIT_BYTES: u64 = 4096;
/// The pause after an upload that failed; doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A segment that is here and not in the store.
struct Waiting {
    path: PathBuf,
    len: u64,
    _room: Option<OwnedSemaphorePermit>,
}

/// The folder.
pub struct Spool {
    dir: PathBuf,
    room: Arc<Semaphore>,
    room_units: u64,
    waiting: Mutex<HashMap<ObjectKey, Waiting>>,
    uploads: mpsc::UnboundedSender<ObjectKey>,
    /// Told whenever a segment got to the store.
    moved: Notify,
    next: AtomicU64,
    failed: AtomicU64,
    done: AtomicU64,
    /// Held as long as the folder is ours.
    _lock: nix::fcntl::Flock<File>,
}

/// A file that a segment is received into. Dropped, it is removed.
pub struct Incoming {
    path: PathBuf,
    room: Option<OwnedSemaphorePermit>,
    kept: bool,
}

impl Spool {
    /// Opens the folder: what was not whole goes, what was is uploaded.
    ///
    /// # Errors
    /// If it cannot be used, or another gateway uses it.
    pub fn open(
        dir: &Path,
        limit_bytes: u64,
    ) -> io::Result<(Arc<Self>, mpsc::UnboundedReceiver<ObjectKey>)> {
        for dir in [dir, &dir.join("incoming"), &dir.join("segments")] {
            own_dir(dir)?;
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join("lock"))?;
        let lock = lock::exclusive(lock, Duration::ZERO)?
            .ok_or_else(|| io::Error::other("another gateway uses this folder"))?;
        for left in fs::read_dir(dir.join("incoming"))? {
            fs::remove_file(left?.path())?;
        }
        let room_units = (limit_bytes / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS as u64 / 2);
        let room = Arc::new(Semaphore::new(room_units as usize));
        let (uploads, queue) = mpsc::unbounded_channel();
        let mut waiting = HashMap::new();
        for found in fs::read_dir(dir.join("segments"))? {
            let found = found?;
            let len = found.metadata()?.len();
            let key = found.file_name().to_str().map(|name| name.replace('+', "/"));
            let Some(key) = key.and_then(|key| ObjectKey::parse(&key)) else { continue };
            // More than fits now, if the limit was lowered: it takes what there is.
            let units = units(len).min(room.available_permits() as u64) as u32;
            let room = Arc::clone(&room).try_acquire_many_owned(units).ok();
            waiting.insert(key.clone(), Waiting { path: found.path(), len, _room: room });
            let _ = uploads.send(key);
        }
        if !waiting.is_empty() {
            tracing::info!(
                "{} segments from an earlier run are on their way to the store",
                waiting.len()
            );
        }
        let spool = Self {
            dir: dir.into(),
            room,
            room_units,
            waiting: Mutex::new(waiting),
            uploads,
            moved: Notify::new(),
            next: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            done: AtomicU64::new(0),
            _lock: lock,
        };
        Ok((Arc::new(spool), queue))
    }

    /// Waits for room, then makes a file to receive a segment into; `None` if none of this length fits.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub async fn incoming(&self, len: u64) -> io::Result<Option<(Incoming, File)>> {
        if units(len) > self.room_units {
            return Ok(None);
        }
        let room = Arc::clone(&self.room).acquire_many_owned(units(len) as u32).await;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("incoming").join(number.to_string());
        let file =
            OpenOptions::new().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
        Ok(Some((Incoming { path, room: room.ok(), kept: false }, file)))
    }

    /// Keeps a segment that was received and looked at: durable when this returns, and on its way.
    /// `false` if one of this name is here. Blocks.
    ///
    /// # Errors
    /// If it cannot be made durable.
    pub fn keep(
        &self,
        key: &ObjectKey,
        mut incoming: Incoming,
        file: &File,
        len: u64,
    ) -> io::Result<bool> {
        file.sync_all()?;
        let path = self.path(key);
        // Fails if there is one: nothing is overwritten, here neither.
        match fs::hard_link(&incoming.path, &path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            linked => linked?,
        }
        File::open(self.dir.join("segments"))?.sync_all()?;
        incoming.kept = true;
        let _ = fs::remove_file(&incoming.path);
        let waiting = Waiting { path, len, _room: incoming.room.take() };
        self.waiting().insert(key.clone(), waiting);
        let _ = self.uploads.send(key.clone());
        Ok(true)
    }

    /// A segment that is here, to be read, and its length. It stays readable when its upload removes its name.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open_segment(&self, key: &ObjectKey) -> io::Result<Option<(File, u64)>> {
        let waiting = self.waiting();
        let Some(found) = waiting.get(key) else { return Ok(None) };
        Ok(Some((File::open(&found.path)?, found.len)))
    }

    /// The file of a segment that is here, and its length.
    #[must_use]
    pub fn find(&self, key: &ObjectKey) -> Option<(PathBuf, u64)> {
        self.waiting().get(key).map(|waiting| (waiting.path.clone(), waiting.len))
    }

    /// How many bytes of these segments are here and not in the store.
    #[must_use]
    pub fn waiting_bytes(&self, keys: &[ObjectKey]) -> u64 {
        let waiting = self.waiting();
        keys.iter().filter_map(|key| waiting.get(key)).map(|waiting| waiting.len).sum()
    }

    /// Segments and bytes that are here, uploads that failed, uploads that were done.
    #[must_use]
    pub fn counts(&self) -> (u64, u64, u64, u64) {
        let waiting = self.waiting();
        let bytes = waiting.values().map(|waiting| waiting.len).sum();
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (waiting.len() as u64, bytes, of(&self.failed), of(&self.done))
    }

    /// Waits until some segment got to the store.
    pub async fn moved(&self) {
        self.moved.notified().await;
    }

    /// Uploads what comes through the queue until it ends, again and again where that fails.
    pub async fn upload(
        self: Arc<Self>,
        vault: Vault,
        queue: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<ObjectKey>>>,
    ) {
        loop {
            let next = queue.lock().await.recv().await;
            let Some(key) = next else { return };
            let Some((path, len)) = self.find(&key) else { continue };
            let mut pause = PAUSE;
            loop {
                let (vault, to, from) = (vault.clone(), key.clone(), path.clone());
                let put = tokio::task::spawn_blocking(move || put(&vault, &to, &from, len)).await;
                match put {
                    Ok(Ok(())) => break,
                    Ok(Err(e)) => tracing::warn!("{e}: it is in the cache and tried again"),
                    Err(e) => tracing::error!("{key}: {e}"),
                }
                self.failed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            // In the store first, then gone here: a reader finds it at every instant.
            self.waiting().remove(&key);
            if let Err(e) = fs::remove_file(&path) {
                tracing::warn!(
                    "{}: {e}: it is in the store and goes at the next start",
                    path.display()
                );
            }
            self.done.fetch_add(1, Ordering::Relaxed);
            self.moved.notify_waiters();
        }
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        self.dir.join("segments").join(key.to_string().replace('/', "+"))
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a segment into the store. One that is there stays: the name is used once.
fn put(vault: &Vault, key: &ObjectKey, from: &Path, len: u64) -> Result<(), VaultError> {
    match vault.put_file(key, from) {
        Err(VaultError::Store { source: object_store::Error::AlreadyExists { .. }, .. }) => {
            tracing::debug!("{key}, {len} bytes: it is in the store already");
            Ok(())
        }
        put => put,
    }
}

fn units(len: u64) -> u64 {
    len.div_ceil(UNIT_BYTES).max(1)
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

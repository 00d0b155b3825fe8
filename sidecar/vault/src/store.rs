//! The objects of a vault and their names, over any object store.
//!
//! The API blocks and can be called from any plain thread; a small runtime inside does the network's
//! part. Every object but none is put only if it is absent: nothing is ever overwritten.
//!
//! What a local directory needs beyond that to be durable is in [`crate::local`].

use std::io::ErrorKind;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use backstay_format::{ByteLen, CycleNo, DiskId, Term};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::Runtime;

use crate::error::{In, VaultError};
use crate::format::document::{
    DOCUMENT_BYTES_MAX, DiskRecord, Document, TermRecord, VaultRecord, decode, encode,
};
use crate::format::manifest::{MANIFEST_BYTES_MAX, Manifest, SegmentRef};
use crate::format::segment::SegmentId;
use crate::frame::SealedSegment;
use crate::local::{self, Folders};
use crate::paced::{self, Pace, Unlimited};

/// A vault. Clones share it.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    url: String,
    store: Arc<dyn ObjectStore>,
    /// Of a vault in a local directory.
    folders: Option<Folders>,
    runtime: Runtime,
    fetched_bytes: AtomicU64,
}

pub(crate) const VAULT_OBJECT: &str = "vault.json";

/// The key of a disk's record.
fn disk_key(disk: DiskId) -> String {
    format!("disks/{disk}/disk.json")
}

/// The key of a recovery point.
pub(crate) fn point_key(disk: DiskId, cycle: CycleNo) -> String {
    format!("disks/{disk}/points/{:020}", cycle.0)
}

/// The key of a term.
fn term_key(disk: DiskId, term: Term) -> String {
    format!("disks/{disk}/terms/{:020}", term.0)
}

/// The key of a segment.
pub(crate) fn segment_key(id: SegmentId) -> String {
    let SegmentId { disk, cycle, attempt, number } = id;
    format!("disks/{disk}/segments/{:020}-{attempt:016x}-{number}", cycle.0)
}

impl Vault {
    /// Opens a vault that exists.
    ///
    /// # Errors
    /// If there is none, or it is not of this version.
    pub fn open(url: &str) -> Result<Self, VaultError> {
        let root = local_root(url)?;
        if !root.is_dir() {
            let reason = "there is no vault; check the URL".into();
            return Err(VaultError::Url { url: url.into(), reason });
        }
        let vault = Self::on_directory(url, &root)?;
        vault.document::<VaultRecord>(VAULT_OBJECT)?;
        Ok(vault)
    }

    /// Opens a vault, or makes a new one where there is none.
    ///
    /// # Errors
    /// If it cannot be made, or is not of this version.
    pub fn create_or_open(url: &str) -> Result<Self, VaultError> {
        let root = local_root(url)?;
        local::make_root(&root).map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                VaultError::Denied { object: url.into() }
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                VaultError::Full { object: url.into() }
            }
            _ => VaultError::Url { url: url.into(), reason: source.to_string() },
        })?;
        let vault = Self::on_directory(url, &root)?;
        match vault.document::<VaultRecord>(VAULT_OBJECT) {
            Err(VaultError::NotFound { .. }) => {
                let record = VaultRecord {
                    vault: uuid::Uuid::new_v4(),
                    created_unix_ns: now_unix_ns(),
                    names: true,
                };
                match vault.put_document(VAULT_OBJECT, &record) {
                    // Somebody else made it at the same time.
                    Err(VaultError::Store {
                        source: object_store::Error::AlreadyExists { .. },
                        ..
                    }) => {
                        vault.document::<VaultRecord>(VAULT_OBJECT)?;
                    }
                    put => put?,
                }
            }
            found => {
                found?;
            }
        }
        Ok(vault)
    }

    fn on_directory(url: &str, root: &FsPath) -> Result<Self, VaultError> {
        let store = LocalFileSystem::new_with_prefix(root)
            .map_err(|e| VaultError::of_store(url, e))?
            .with_fsync(true);
        Self::build(url, Arc::new(store), Some(Folders::below(root)))
    }

    /// A vault on any store.
    ///
    /// # Errors
    /// If the runtime's threads cannot be started.
    pub fn on_store(url: &str, store: Arc<dyn ObjectStore>) -> Result<Self, VaultError> {
        Self::build(url, store, None)
    }

    fn build(
        url: &str,
        store: Arc<dyn ObjectStore>,
        folders: Option<Folders>,
    ) -> Result<Self, VaultError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(16)
            .thread_name("vault")
            .build()
            .map_err(|e| VaultError::Url { url: url.into(), reason: e.to_string() })?;
        Ok(Self {
            inner: Arc::new(Inner {
                url: url.into(),
                store,
                folders,
                runtime,
                fetched_bytes: AtomicU64::new(0),
            }),
        })
    }

    /// Finds out whether objects can be put, read back and deleted; leaves nothing behind.
    ///
    /// # Errors
    /// The first of these that cannot be done.
    pub fn probe(&self) -> Result<(), VaultError> {
        let key = format!("probes/{}", uuid::Uuid::new_v4());
        self.put(&key, PutPayload::from_static(b"backstay"))?;
        let read = self.get(&key, 64);
        let path = Path::from(key.as_str());
        let deleted = self.inner.runtime.block_on(self.inner.store.delete(&path));
        match read? {
            read if read == Bytes::from_static(b"backstay") => {
                deleted.map_err(|e| VaultError::of_store(&key, e))
            }
            _ => Err(VaultError::Inconsistent {
                object: key,
                reason: "something else was read back than was put".into(),
            }),
        }
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

    /// The records of all disks, as they were made.
    pub(crate) fn disk_records(&self) -> Result<Vec<DiskRecord>, VaultError> {
        let prefix = Path::from("disks");
        let listed = self.block_on(self.store().list_with_delimiter(Some(&prefix)));
        let listed = listed.map_err(|e| VaultError::of_store("disks", e))?;
        let mut disks = vec![];
        for folder in listed.common_prefixes {
            match self.document::<DiskRecord>(&format!("{folder}/disk.json")) {
                Ok(record) => disks.push(record),
                // A folder whose record was never finished.
                Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(disks)
    }

    pub(crate) fn store(&self) -> &dyn ObjectStore {
        &*self.inner.store
    }

    pub(crate) fn block_on<F: Future>(&self, work: F) -> F::Output {
        self.inner.runtime.block_on(work)
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

    /// The newest term of a disk; the first one is taken by `writer` if there is none.
    ///
    /// # Errors
    /// If the vault cannot be read or written.
    pub fn term_or_first(&self, disk: DiskId, writer: &str) -> Result<TermRecord, VaultError> {
        if let Some(newest) = self.newest_term(disk)? {
            return Ok(newest);
        }
        let first =
            TermRecord { term: Term(1), writer: writer.into(), since_unix_ns: now_unix_ns() };
        match self.put_document(&term_key(disk, first.term), &first) {
            // Somebody else was first: theirs holds.
            Err(VaultError::Store {
                source: object_store::Error::AlreadyExists { .. }, ..
            }) => {}
            put => put?,
        }
        self.document(&term_key(disk, Term(1)))
    }

    /// Takes the next term of a disk: from now on only `writer` commits to it.
    ///
    /// # Errors
    /// If somebody else took it first, or the vault cannot be written.
    pub fn claim_term(&self, disk: DiskId, writer: &str) -> Result<TermRecord, VaultError> {
        let term = self.newest_term(disk)?.map_or(Term(1), |newest| newest.term.next());
        let ours = TermRecord { term, writer: writer.into(), since_unix_ns: now_unix_ns() };
        self.put_document(&term_key(disk, term), &ours)?;
        Ok(ours)
    }

    /// The newest term of a disk.
    ///
    /// # Errors
    /// If the vault cannot be read.
    pub fn newest_term(&self, disk: DiskId) -> Result<Option<TermRecord>, VaultError> {
        let terms = self.numbers(&format!("disks/{disk}/terms"))?;
        terms.last().map(|&term| self.document(&term_key(disk, Term(term)))).transpose()
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
        let manifest = Manifest::decode(&self.get(&key, MANIFEST_BYTES_MAX)?).within(&key)?;
        if (manifest.disk, manifest.cycle) != (disk, cycle) {
            let reason = format!("it is point {} of disk {}", manifest.cycle, manifest.disk);
            return Err(VaultError::Inconsistent { object: key, reason });
        }
        Ok(manifest)
    }

    /// Puts a segment. It is durable when this returns.
    ///
    /// # Errors
    /// If the vault cannot be written.
    pub fn put_segment(&self, segment: SealedSegment) -> Result<SegmentRef, VaultError> {
        self.put_segment_paced(segment, &Unlimited)
    }

    /// Puts a segment no faster than it is let through (see [`crate::paced`]). It is durable when
    /// this returns.
    ///
    /// # Errors
    /// If the vault cannot be written; [`VaultError::Stopped`] if it was given up.
    pub fn put_segment_paced(
        &self,
        segment: SealedSegment,
        pace: &dyn Pace,
    ) -> Result<SegmentRef, VaultError> {
        let id = segment.id;
        let key = segment_key(id);
        let whole = match &self.inner.folders {
            Some(folders) => folders
                .prepare(&key)
                .and_then(|()| {
                    let parts = segment.payload.iter().map(AsRef::as_ref);
                    paced::put(&folders.path(&key), parts, pace)
                })
                .map_err(|e| VaultError::of_io(&key, e))?,
            // Such a store takes it as a whole: the average is right, the line is not even.
            None => {
                let whole = paced::wait_for_all(pace, segment.len);
                if whole {
                    self.put(&key, segment.payload)?;
                }
                whole
            }
        };
        if !whole {
            return Err(VaultError::Stopped { object: key });
        }
        Ok(SegmentRef {
            cycle: id.cycle,
            attempt: id.attempt,
            number: id.number,
            object: ByteLen(segment.len),
            data_sectors: segment.sectors.0,
            zero_sectors: segment.sectors.1,
            index_digest: segment.index_digest,
        })
    }

    /// Removes the segments of an attempt that failed, as far as that is possible.
    ///
    /// Those that the point of their cycle names stay: a writer whose commit failed cannot know
    /// that there is no point. They stay, too, when the vault cannot say.
    pub fn remove_segments(&self, disk: DiskId, segments: &[SegmentRef]) {
        let mut looked_at: Option<(CycleNo, Option<Vec<SegmentRef>>)> = None;
        for segment in segments {
            let named = match &looked_at {
                Some((cycle, named)) if *cycle == segment.cycle => named,
                _ => {
                    let named = match self.manifest(disk, segment.cycle) {
                        Ok(point) => Some(point.segments),
                        Err(VaultError::NotFound { .. }) => Some(vec![]),
                        Err(_) => None,
                    };
                    &looked_at.insert((segment.cycle, named)).1
                }
            };
            let is_this = |of_point: &SegmentRef| {
                (of_point.attempt, of_point.number) == (segment.attempt, segment.number)
            };
            if named.as_ref().is_none_or(|named| named.iter().any(is_this)) {
                continue;
            }
            let key = segment_key(segment_id(disk, segment));
            if let Err(e) = self.delete(&key) {
                tracing::debug!("{key}: {e}: left behind, no point names it");
            }
        }
    }

    pub(crate) fn put_manifest(&self, manifest: &Manifest) -> Result<(), VaultError> {
        self.put(&point_key(manifest.disk, manifest.cycle), manifest.encode().into())
    }

    /// Makes durable the name of an object that is there though its put failed.
    pub(crate) fn settle(&self, key: &str) -> Result<(), VaultError> {
        match &self.inner.folders {
            Some(folders) => folders.settle(key).map_err(|e| VaultError::of_io(key, e)),
            None => Ok(()),
        }
    }

    /// Reads a range of an object.
    pub(crate) fn get_range(&self, key: &str, at: u64, len: u64) -> Result<Bytes, VaultError> {
        // Stores refuse to read nothing.
        if len == 0 {
            return Ok(Bytes::new());
        }
        let path = Path::from(key);
        let got = self.inner.runtime.block_on(self.inner.store.get_range(&path, at..at + len));
        let got = got.map_err(|e| VaultError::of_store(key, e))?;
        if got.len() as u64 != len {
            let reason = format!("{} bytes at {at}, {len} were asked for", got.len());
            return Err(VaultError::Inconsistent { object: key.into(), reason });
        }
        self.inner.fetched_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(got)
    }

    /// Bytes of objects read since it was opened.
    #[must_use]
    pub fn fetched(&self) -> ByteLen {
        ByteLen(self.inner.fetched_bytes.load(Ordering::Relaxed))
    }

    /// The length of an object.
    pub(crate) fn len(&self, key: &str) -> Result<u64, VaultError> {
        let head = self.inner.runtime.block_on(self.inner.store.head(&Path::from(key)));
        Ok(head.map_err(|e| VaultError::of_store(key, e))?.size)
    }

    pub(crate) fn get(&self, key: &str, most: usize) -> Result<Bytes, VaultError> {
        let len = self.len(key)?;
        if len > most as u64 {
            let reason = format!("{len} bytes, {most} at most make sense");
            return Err(VaultError::Inconsistent { object: key.into(), reason });
        }
        self.get_range(key, 0, len)
    }

    /// Puts an object if it is absent, durably.
    pub(crate) fn put(&self, key: &str, payload: PutPayload) -> Result<(), VaultError> {
        if let Some(folders) = &self.inner.folders {
            folders.prepare(key).map_err(|e| VaultError::of_io(key, e))?;
        }
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Path::from(key);
        let put = self.inner.store.put_opts(&path, payload, options);
        self.inner.runtime.block_on(put).map_err(|e| VaultError::of_store(key, e))?;
        Ok(())
    }

    /// Deletes an object. One that is not there is deleted already. In a local directory a power loss
    /// may bring it back until [`Self::settle`] was called.
    pub(crate) fn delete(&self, key: &str) -> Result<(), VaultError> {
        let path = Path::from(key);
        let deleted = self.inner.runtime.block_on(self.inner.store.delete(&path));
        match deleted.map_err(|e| VaultError::of_store(key, e)) {
            Err(VaultError::NotFound { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Deletes objects, with as few requests as the store allows.
    pub(crate) fn delete_all(&self, keys: Vec<String>) -> Result<(), VaultError> {
        let first = keys.first().cloned().unwrap_or_default();
        let paths = keys.into_iter().map(|key| Ok(Path::from(key))).collect::<Vec<_>>();
        let deleted = self.inner.store.delete_stream(futures::stream::iter(paths).boxed());
        let deleted: Vec<_> = self.inner.runtime.block_on(deleted.collect());
        for one in deleted {
            match one.map_err(|e| VaultError::of_store(&first, e)) {
                // Somebody else deleted it.
                Ok(_) | Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The names of the objects directly below a prefix, and their lengths, by name.
    pub(crate) fn listed(&self, prefix: &str) -> Result<Vec<(String, u64)>, VaultError> {
        let path = Path::from(prefix);
        let objects = self.inner.store.list(Some(&path)).try_collect::<Vec<_>>();
        let objects =
            self.inner.runtime.block_on(objects).map_err(|e| VaultError::of_store(prefix, e))?;
        let mut names: Vec<(String, u64)> = objects
            .iter()
            .filter_map(|meta| Some((meta.location.filename()?.to_owned(), meta.size)))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    pub(crate) fn document<D: Document>(&self, key: &str) -> Result<D, VaultError> {
        decode(&self.get(key, DOCUMENT_BYTES_MAX)?).within(key)
    }

    pub(crate) fn put_document<D: Document>(
        &self,
        key: &str,
        document: &D,
    ) -> Result<(), VaultError> {
        self.put(key, encode(document).within(key)?.into())
    }

    /// The names of the folders right below a prefix.
    pub(crate) fn folders(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        let path = Path::from(prefix);
        let listed = self.inner.runtime.block_on(self.inner.store.list_with_delimiter(Some(&path)));
        let listed = listed.map_err(|e| VaultError::of_store(prefix, e))?;
        let names = listed.common_prefixes.iter().filter_map(|folder| folder.filename());
        Ok(names.map(str::to_owned).collect())
    }

    /// The objects below a prefix whose names are numbers, sorted; others are not ours.
    pub(crate) fn numbers(&self, prefix: &str) -> Result<Vec<u64>, VaultError> {
        let mut numbers: Vec<u64> =
            self.listed(prefix)?.iter().filter_map(|(name, _)| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Which segment a name below `segments/` means; `None` for what is not ours.
pub(crate) fn segment_named(disk: DiskId, name: &str) -> Option<SegmentId> {
    let mut parts = name.splitn(3, '-');
    let (cycle, attempt, number) = (parts.next()?, parts.next()?, parts.next()?);
    let id = SegmentId {
        disk,
        cycle: CycleNo(cycle.parse().ok()?),
        attempt: u64::from_str_radix(attempt, 16).ok()?,
        number: number.parse().ok()?,
    };
    // Only what is written the one way we write it.
    segment_key(id).ends_with(&format!("/{name}")).then_some(id)
}

/// Which object a segment reference means.
pub(crate) fn segment_id(disk: DiskId, segment: &SegmentRef) -> SegmentId {
    let SegmentRef { cycle, attempt, number, .. } = *segment;
    SegmentId { disk, cycle, attempt, number }
}

fn local_root(url: &str) -> Result<PathBuf, VaultError> {
    let path = url.strip_prefix("file://").unwrap_or(url);
    if path.starts_with('/') {
        return Ok(path.into());
    }
    let reason = if url.contains("://") && !url.starts_with("file://") {
        "this version reaches vaults in local directories only (file:///path)"
    } else {
        "not a vault URL: use file:///path or an absolute path"
    };
    Err(VaultError::Url { url: url.into(), reason: reason.into() })
}

/// The time, nanoseconds since 1970.
pub(crate) fn now_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

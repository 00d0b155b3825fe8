//! Objects: getting, putting, listing, deleting, over any store.

use std::fmt::Display;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backstay_host::clock;
use backstay_types::{ByteLen, Classified, DiskId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::client::HttpError;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use crate::error::{In, VaultError};
use crate::format::document::{DOCUMENT_BYTES_MAX, Document, Object, decode};
use crate::format::is_whole;
use crate::format::key::{DiskFolder, Folder, ObjectKey};
use crate::prove::PUTS_MAX;
use crate::store::Vault;

/// How often a put is tried that failed because the name was taken, and then it was not.
const CONFLICTS_MAX: u32 = 4;

/// How often something is read that is not as it should be, before that is believed.
const READS_MAX: u32 = 3;
/// How long to wait before it is read again from a store; it doubles.
pub(crate) const READ_PAUSE: Duration = Duration::from_millis(200);

/// What became of a put.
enum Put {
    /// It was done; the store's tag of it.
    Done(Option<String>),
    /// It was done before, and was read back.
    Found,
}

/// Whether an object is what was put.
pub(crate) fn same(there: &[u8], payload: &PutPayload) -> bool {
    there.len() == payload.content_length()
        && payload.iter().flatten().zip(there).all(|(put, there)| put == there)
}

/// What a request of our own to a bucket has met.
pub(crate) fn of_bucket(object: impl Into<String>, e: HttpError) -> VaultError {
    let source = object_store::Error::Generic { store: "S3", source: Box::new(e) };
    VaultError::of_store(object, source)
}

impl Vault {
    /// Makes durable the name of an object that is there though its put failed.
    pub(crate) fn settle(&self, key: &ObjectKey) -> Result<(), VaultError> {
        self.inner.store.settle(key).map_err(|e| VaultError::of_io(key, e))
    }

    /// Reads a range of an object.
    pub(crate) fn get_range(
        &self,
        key: &ObjectKey,
        at: u64,
        len: u64,
    ) -> Result<Bytes, VaultError> {
        // Stores refuse to read nothing.
        if len == 0 {
            return Ok(Bytes::new());
        }
        let path = Path::from(key);
        let got = self
            .inner
            .runtime
            .block_on(self.ask("read a part of", key).get_range(&path, at..at + len));
        let got = got.map_err(|e| VaultError::of_store(key, e))?;
        if got.len() as u64 != len {
            let reason = format!("{} bytes at {at}, {len} were asked for", got.len());
            return Err(VaultError::Inconsistent { object: key.into(), reason });
        }
        self.inner.fetched_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(got)
    }

    /// Reads the last `tail` bytes of an object that should be `len` long, with one request: how long it is,
    /// and the bytes, which mean something if that is `len`.
    pub(crate) fn get_end(
        &self,
        key: &ObjectKey,
        len: u64,
        tail: u64,
    ) -> Result<(u64, Bytes), VaultError> {
        let path = Path::from(key);
        let wanted = len.saturating_sub(tail)..len;
        let range = Some(GetRange::Bounded(wanted.clone()));
        let got = self.inner.runtime.block_on(async {
            let got = self
                .ask("read the end of", key)
                .get_opts(&path, GetOptions { range, ..GetOptions::default() });
            let got = got.await?;
            match (got.meta.size, got.range.clone()) {
                (size, range) if size == len && range == wanted => Ok((size, got.bytes().await?)),
                (size, _) => Ok((size, Bytes::new())),
            }
        });
        match got.map_err(|e| VaultError::of_store(key, e)) {
            Ok((size, bytes)) if size == len && bytes.len() as u64 != wanted.end - wanted.start => {
                let reason =
                    format!("{} bytes at {}, {tail} were asked for", bytes.len(), wanted.start);
                Err(VaultError::Inconsistent { object: key.into(), reason })
            }
            Ok((size, bytes)) => {
                self.inner.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok((size, bytes))
            }
            Err(e @ VaultError::NotFound { .. }) => Err(e),
            // Some stores refuse a range that is not there and do not say how much is.
            Err(e) => match self.len(key)? {
                there if there == len => Err(e),
                there => Ok((there, Bytes::new())),
            },
        }
    }

    /// Bytes of objects read since it was opened.
    #[must_use]
    pub fn fetched(&self) -> ByteLen {
        ByteLen(self.inner.fetched_bytes.load(Ordering::Relaxed))
    }

    /// Requests for objects and for lists since it was opened; a long list counts once.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.inner.requests.load(Ordering::Relaxed)
    }

    /// The store, which is asked for something.
    fn ask(&self, verb: &'static str, key: impl Display) -> &dyn ObjectStore {
        tracing::trace!("{verb} {key}");
        self.inner.requests.fetch_add(1, Ordering::Relaxed);
        self.store()
    }

    /// The length of an object.
    pub(crate) fn len(&self, key: &ObjectKey) -> Result<u64, VaultError> {
        let head = self.inner.runtime.block_on(self.ask("look for", key).head(&Path::from(key)));
        Ok(head.map_err(|e| VaultError::of_store(key, e))?.size)
    }

    /// When the store got an object, by the store's own clock, nanoseconds since 1970. `None` where the clock would
    /// be this host's (directories), or is not told (gateways).
    pub(crate) fn stored_unix_ns(&self, key: &ObjectKey) -> Result<Option<u64>, VaultError> {
        if self.is_local() || self.is_behind_gateway() {
            return Ok(None);
        }
        let head = self.inner.runtime.block_on(self.ask("look for", key).head(&Path::from(key)));
        let at = head.map_err(|e| VaultError::of_store(key, e))?.last_modified;
        Ok(at.timestamp_nanos_opt().and_then(|ns| u64::try_from(ns).ok()).filter(|&ns| ns > 0))
    }

    /// Whether an object is there.
    pub(crate) fn has(&self, key: &ObjectKey) -> Result<bool, VaultError> {
        match self.len(key) {
            Ok(_) => Ok(true),
            Err(VaultError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads a whole object that is not longer than `most`.
    pub(crate) fn get(&self, key: &ObjectKey, most: usize) -> Result<Bytes, VaultError> {
        let path = Path::from(key);
        let got = self.inner.runtime.block_on(async {
            let got = self.ask("read", key).get(&path).await?;
            // The length is looked at before a byte of it is taken.
            if got.meta.size > most as u64 {
                return Ok(Err(got.meta.size));
            }
            got.bytes().await.map(Ok)
        });
        match got.map_err(|e| VaultError::of_store(key, e))? {
            Ok(bytes) => {
                self.inner.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(bytes)
            }
            Err(len) => {
                let reason = format!("{len} bytes, {most} at most make sense");
                Err(VaultError::Inconsistent { object: key.into(), reason })
            }
        }
    }

    /// Whether something is to be read again after so many readings and one more. Waits for that where a line leads
    /// to the store: what it does to bytes may pass.
    pub(crate) fn again(&self, readings: u32) -> bool {
        if self.is_local() {
            return readings == 0;
        }
        if readings + 1 >= READS_MAX {
            return false;
        }
        clock::sleep(self.inner.store.read_pause() * 2u32.pow(readings));
        true
    }

    /// Reads something and judges it. What is damaged, or is not there though it must be, is read again before that is
    /// believed: a line or a cache may have changed it once.
    ///
    /// # Errors
    /// The last reading's.
    pub(crate) fn judged<T>(
        &self,
        must_be_there: bool,
        mut read: impl FnMut() -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        for n in 0.. {
            let done = read();
            let doubted = match &done {
                Err(VaultError::NotFound { .. }) => must_be_there,
                Err(e) => e.is_damage(),
                Ok(_) => false,
            };
            if !doubted || !self.again(n) {
                return done;
            }
            tracing::debug!("read again: {:?}", done.err().map(|e| e.to_string()));
        }
        unreachable!("it ends when it was read often enough")
    }

    /// Puts an object if it is absent, durably, and proves it (see `prove`).
    ///
    /// What is put says who put it, or when: nobody else puts the same bytes. So if the answer was lost, or
    /// a put that was sent again found itself, reading back tells.
    pub(crate) fn put(&self, key: &ObjectKey, payload: PutPayload) -> Result<(), VaultError> {
        for _ in 0..PUTS_MAX {
            let e_tag = match self.put_if_absent(key, &payload)? {
                Put::Found => return Ok(()),
                Put::Done(e_tag) => e_tag,
            };
            if self.has_exactly(key, std::slice::from_ref(&payload), e_tag.as_deref())? {
                return Ok(());
            }
            self.remove_altered(key, &payload)?;
        }
        Err(VaultError::Altered { object: key.into(), tries: PUTS_MAX })
    }

    /// Deletes what this process put a moment ago and is not what it should be. Nobody can have put another there since,
    /// unless the store overwrites: then it is whole, and stays.
    pub(crate) fn remove_altered(
        &self,
        key: &ObjectKey,
        put: &PutPayload,
    ) -> Result<(), VaultError> {
        tracing::warn!("{key}: the store has other bytes than were put; they are put again");
        let there = match self.get(key, 2 * put.content_length() + DOCUMENT_BYTES_MAX) {
            Err(VaultError::NotFound { .. }) => return Ok(()),
            there => there.ok(),
        };
        if there.is_some_and(|there| is_whole(&there)) {
            let reason = "it overwrote an object that it was told to put only if absent; what another writer put is there";
            return Err(VaultError::Unfit { url: self.url().into(), reason: reason.into() });
        }
        self.delete(key)
    }

    fn put_if_absent(&self, key: &ObjectKey, payload: &PutPayload) -> Result<Put, VaultError> {
        self.inner.store.prepare(key).map_err(|e| VaultError::of_io(key, e))?;
        if self.is_local() {
            return self.put_once(key, payload.clone()).map(Put::Done);
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let failed = match self.put_once(key, payload.clone()) {
                Ok(e_tag) => return Ok(Put::Done(e_tag)),
                Err(failed) => failed,
            };
            let VaultError::Store { source, .. } = &failed else { return Err(failed) };
            let exists = matches!(source, object_store::Error::AlreadyExists { .. });
            match self.get(key, payload.content_length()) {
                Ok(there) if same(&there, payload) => return Ok(Put::Found),
                // A conflict with another request for this name, which did not put it either.
                Err(VaultError::NotFound { .. }) if exists && tries < CONFLICTS_MAX => {}
                _ => return Err(failed),
            }
        }
    }

    /// Puts an object if it is absent; the store's tag of it.
    fn put_once(&self, key: &ObjectKey, payload: PutPayload) -> Result<Option<String>, VaultError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Path::from(key);
        let put = self.ask("put", key).put_opts(&path, payload, options);
        let put = self.inner.runtime.block_on(put).map_err(|e| VaultError::of_store(key, e))?;
        Ok(put.e_tag)
    }

    /// Finds out whether what is put can be locked, where that is asked for.
    ///
    /// # Errors
    /// If it cannot, or the store does not answer.
    pub fn check_lock(&self) -> Result<(), VaultError> {
        self.inner.store.check_lock(self)
    }

    /// Deletes an object. One that is not there is deleted already. In a local directory a power loss
    /// may bring it back until [`Self::settle`] was called.
    pub(crate) fn delete(&self, key: &ObjectKey) -> Result<(), VaultError> {
        let path = Path::from(key);
        let deleted = self.inner.runtime.block_on(self.ask("delete", key).delete(&path));
        match deleted.map_err(|e| VaultError::of_store(key, e)) {
            Err(VaultError::NotFound { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Deletes objects, with as few requests as the store allows.
    pub(crate) fn delete_all(
        &self,
        paths: impl IntoIterator<Item = Path>,
    ) -> Result<(), VaultError> {
        let paths: Vec<Path> = paths.into_iter().collect();
        let Some(first) = paths.first().cloned() else { return Ok(()) };
        let paths: Vec<_> = paths.into_iter().map(Ok).collect();
        let deleted =
            self.ask("delete from", &first).delete_stream(futures::stream::iter(paths).boxed());
        let deleted: Vec<_> = self.inner.runtime.block_on(deleted.collect());
        for one in deleted {
            match one.map_err(|e| VaultError::of_store(first.as_ref(), e)) {
                // Somebody else deleted it.
                Ok(_) | Err(VaultError::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Removes what killed puts left in a local directory, where no listing shows it.
    pub(crate) fn sweep_unfinished(&self, disk: DiskId) -> Result<(), VaultError> {
        const DAY: Duration = Duration::from_secs(86_400);
        for folder in DiskFolder::ALL {
            let folder = folder.of(disk);
            let swept = self.inner.store.sweep(&folder, DAY);
            let swept = swept.map_err(|e| VaultError::of_io(&folder, e))?;
            if swept > 0 {
                tracing::info!("{folder}: {swept} unfinished objects removed");
            }
        }
        Ok(())
    }

    /// The objects below a folder, and their lengths, in order; what has no key is not ours.
    pub(crate) fn listed(&self, folder: &Folder) -> Result<Vec<(ObjectKey, u64)>, VaultError> {
        let path = Path::from(folder);
        let objects = self.ask("list", folder).list(Some(&path)).try_collect::<Vec<_>>();
        let objects = self.block_on(objects).map_err(|e| VaultError::of_store(folder, e))?;
        let ours = |meta: &ObjectMeta| Some((ObjectKey::parse(meta.location.as_ref())?, meta.size));
        let mut ours: Vec<_> = objects.iter().filter_map(ours).collect();
        ours.sort_unstable();
        Ok(ours)
    }

    /// The objects below a folder, as two lists show them that are asked for in different ways: what only one of them
    /// shows is there, too. For what must not be overlooked; an answer that a cache gives again is one to the same request.
    pub(crate) fn listed_twice(&self, folder: &Folder) -> Result<Vec<ObjectKey>, VaultError> {
        let mut keys: Vec<_> = self.listed(folder)?.into_iter().map(|(key, _)| key).collect();
        keys.append(&mut self.listed_otherwise(folder)?);
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// The objects below a folder, asked for in another way than usual; none of a directory, whose list is what it has.
    pub(crate) fn listed_otherwise(&self, folder: &Folder) -> Result<Vec<ObjectKey>, VaultError> {
        if self.is_local() || self.is_behind_gateway() {
            return Ok(vec![]);
        }
        // From a name on that is below all of ours.
        let (path, first) = (Path::from(folder), Path::from(format!("{folder}/!")));
        let objects = self.ask("list again", folder).list_with_offset(Some(&path), &first);
        let objects = self.block_on(objects.try_collect::<Vec<_>>());
        let objects = objects.map_err(|e| VaultError::of_store(folder, e))?;
        Ok(objects.iter().filter_map(|meta| ObjectKey::parse(meta.location.as_ref())).collect())
    }

    /// Reads a document, which must say that it is what its key says. The one way to read any.
    pub(crate) fn document<D: Document + Object>(&self, key: &ObjectKey) -> Result<D, VaultError> {
        self.judged(false, || self.document_once(key))
    }

    /// The same of one that a list shows: that it is gone is believed when it was asked for several times.
    pub(crate) fn listed_document<D: Document + Object>(
        &self,
        key: &ObjectKey,
    ) -> Result<D, VaultError> {
        self.judged(true, || self.document_once(key))
    }

    fn document_once<D: Document + Object>(&self, key: &ObjectKey) -> Result<D, VaultError> {
        let bytes = self.get(key, DOCUMENT_BYTES_MAX)?;
        let document = decode(&bytes).within(key)?;
        self.verify_document(key, &bytes)?;
        self.is_at(key, document)
    }

    /// An object, if it is what the key says that it was read from.
    pub(crate) fn is_at<O: Object>(&self, key: &ObjectKey, object: O) -> Result<O, VaultError> {
        let wrong = |reason: String| VaultError::Inconsistent { object: key.into(), reason };
        match object.differs(key) {
            None => Ok(object),
            Some(found) => Err(wrong(format!(
                "it is {found}, copied here from somewhere else. Nothing it says was believed, and nothing was \
                 changed"
            ))),
        }
    }

    pub(crate) fn put_document<D: Document + Object>(
        &self,
        key: &ObjectKey,
        document: &D,
    ) -> Result<(), VaultError> {
        debug_assert_eq!(document.differs(key), None, "{key}");
        self.put(key, self.signed_document(key, document)?.into())
    }

    /// The folders right below a folder; others are not ours.
    pub(crate) fn folders(&self, folder: &Folder) -> Result<Vec<Folder>, VaultError> {
        let path = Path::from(folder);
        let listed = self.ask("list folders of", folder).list_with_delimiter(Some(&path));
        let listed = self.block_on(listed).map_err(|e| VaultError::of_store(folder, e))?;
        Ok(listed.common_prefixes.iter().filter_map(|path| Folder::parse(path.as_ref())).collect())
    }

    /// The numbers of the objects in a folder, in order.
    pub(crate) fn numbers(&self, folder: &Folder) -> Result<Vec<u64>, VaultError> {
        Ok(self.listed(folder)?.iter().filter_map(|(key, _)| key.number()).collect())
    }

    /// As [`Self::numbers`], to the newest. Who writes, and what the ledger says, hang on it, so a store's
    /// list is not believed to end with the newest: what follows is asked for by name.
    pub(crate) fn numbers_to_newest(
        &self,
        folder: &Folder,
        key: impl Fn(u64) -> ObjectKey,
    ) -> Result<Vec<u64>, VaultError> {
        let mut numbers = self.numbers(folder)?;
        while !self.is_local()
            && let Some(next) = numbers.last().copied().unwrap_or(0).checked_add(1)
        {
            if !self.has(&key(next))? {
                break;
            }
            numbers.push(next);
        }
        Ok(numbers)
    }
}

//! Objects: getting, putting, listing, deleting, over any store.

use std::sync::atomic::Ordering;
use std::time::Duration;

use backstay_host::clock;
use backstay_types::{ByteLen, DiskId};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::client::HttpError;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};

use crate::error::{In, VaultError};
use crate::format::document::{DOCUMENT_BYTES_MAX, Document, Object, decode};
use crate::format::is_whole;
use crate::format::key::ObjectKey;
use crate::prove::PUTS_MAX;
use crate::store::Vault;

/// How often a put is tried that failed because the name was taken, and then it was not.
const CONFLICTS_MAX: u32 = 4;

/// How often something is read that is not as it should be, before that is believed.
const READS_MAX: u32 = 3;
/// How long to wait before it is read again from a store; it doubles.
const READ_PAUSE: Duration = Duration::from_millis(200);

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
pub(crate) fn of_bucket(object: &str, e: HttpError) -> VaultError {
    let source = object_store::Error::Generic { store: "S3", source: Box::new(e) };
    VaultError::of_store(object, source)
}

impl Vault {
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
        key: &str,
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
    fn ask(&self, verb: &'static str, key: &str) -> &dyn ObjectStore {
        tracing::trace!("{verb} {key}");
        self.inner.requests.fetch_add(1, Ordering::Relaxed);
        &*self.inner.store
    }

    /// The length of an object.
    pub(crate) fn len(&self, key: &str) -> Result<u64, VaultError> {
        let head = self.inner.runtime.block_on(self.ask("look for", key).head(&Path::from(key)));
        Ok(head.map_err(|e| VaultError::of_store(key, e))?.size)
    }

    /// When the store got an object, by the store's own clock, nanoseconds since 1970. `None` where the clock would
    /// be this host's (directories), or is not told (gateways).
    pub(crate) fn stored_unix_ns(&self, key: &str) -> Result<Option<u64>, VaultError> {
        if self.is_local() || self.is_behind_gateway() {
            return Ok(None);
        }
        let head = self.inner.runtime.block_on(self.ask("look for", key).head(&Path::from(key)));
        let at = head.map_err(|e| VaultError::of_store(key, e))?.last_modified;
        Ok(at.timestamp_nanos_opt().and_then(|ns| u64::try_from(ns).ok()).filter(|&ns| ns > 0))
    }

    /// Whether an object is there.
    pub(crate) fn has(&self, key: &str) -> Result<bool, VaultError> {
        match self.len(key) {
            Ok(_) => Ok(true),
            Err(VaultError::NotFound { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Reads a whole object that is not longer than `most`.
    pub(crate) fn get(&self, key: &str, most: usize) -> Result<Bytes, VaultError> {
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
        if self.inner.renewing.is_some() || self.is_behind_gateway() {
            clock::sleep(READ_PAUSE * 2u32.pow(readings));
        }
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
    pub(crate) fn put(&self, key: &str, payload: PutPayload) -> Result<(), VaultError> {
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
    pub(crate) fn remove_altered(&self, key: &str, put: &PutPayload) -> Result<(), VaultError> {
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

    fn put_if_absent(&self, key: &str, payload: &PutPayload) -> Result<Put, VaultError> {
        if let Some(folders) = &self.inner.folders {
            folders.prepare(key).map_err(|e| VaultError::of_io(key, e))?;
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
    fn put_once(&self, key: &str, payload: PutPayload) -> Result<Option<String>, VaultError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let path = Path::from(key);
        let put = self.ask("put", key).put_opts(&path, payload, options);
        let put = self.inner.runtime.block_on(put).map_err(|e| VaultError::of_store(key, e))?;
        Ok(put.e_tag)
    }

    /// Locks an object that was put in parts, where what is put is locked.
    pub(crate) fn lock_whole(&self, key: &str) -> Result<(), VaultError> {
        let (Some(bucket), Some(lock)) = (self.bucket(), self.inner.settings.object_lock) else {
            return Ok(());
        };
        let at = Path::from(format!("{}/{key}", self.inner.prefix));
        self.block_on(bucket.retain(&at, lock)).map_err(|e| of_bucket(key, e))
    }

    /// Finds out whether what is put can be locked, where that is asked for.
    ///
    /// # Errors
    /// If it cannot, or the store does not answer.
    pub fn check_lock(&self) -> Result<(), VaultError> {
        let (Some(bucket), Some(_)) = (self.bucket(), self.inner.settings.object_lock) else {
            return Ok(());
        };
        self.block_on(bucket.can_lock()).map_err(|e| of_bucket("object lock", e))
    }

    /// Deletes an object. One that is not there is deleted already. In a local directory a power loss
    /// may bring it back until [`Self::settle`] was called.
    pub(crate) fn delete(&self, key: &str) -> Result<(), VaultError> {
        let path = Path::from(key);
        let deleted = self.inner.runtime.block_on(self.ask("delete", key).delete(&path));
        match deleted.map_err(|e| VaultError::of_store(key, e)) {
            Err(VaultError::NotFound { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Deletes objects, with as few requests as the store allows.
    pub(crate) fn delete_all(&self, keys: Vec<String>) -> Result<(), VaultError> {
        let first = keys.first().cloned().unwrap_or_default();
        let paths = keys.into_iter().map(|key| Ok(Path::from(key))).collect::<Vec<_>>();
        let deleted =
            self.ask("delete from", &first).delete_stream(futures::stream::iter(paths).boxed());
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

    /// Removes what killed puts left in a local directory, where no listing shows it.
    pub(crate) fn sweep_unfinished(&self, disk: DiskId) -> Result<(), VaultError> {
        const DAY: Duration = Duration::from_secs(86_400);
        let Some(folders) = &self.inner.folders else { return Ok(()) };
        for folder in
            ["segments", "points", "ledger", "holds", "held", "terms", "handovers", "drills"]
        {
            let folder = format!("disks/{disk}/{folder}");
            let swept = folders.sweep(&folder, DAY).map_err(|e| VaultError::of_io(&folder, e))?;
            if swept > 0 {
                tracing::info!("{folder}: {swept} unfinished objects removed");
            }
        }
        Ok(())
    }

    /// The names of the objects directly below a prefix, and their lengths, by name.
    pub(crate) fn listed(&self, prefix: &str) -> Result<Vec<(String, u64)>, VaultError> {
        let path = Path::from(prefix);
        let objects = self.ask("list", prefix).list(Some(&path)).try_collect::<Vec<_>>();
        let objects =
            self.inner.runtime.block_on(objects).map_err(|e| VaultError::of_store(prefix, e))?;
        let mut names: Vec<(String, u64)> = objects
            .iter()
            .filter_map(|meta| Some((meta.location.filename()?.to_owned(), meta.size)))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The names of the objects directly below a prefix, as two lists show them that are asked for in different ways: what
    /// only one of them shows is there, too. For what must not be overlooked; an answer that a cache gives again is one
    /// to the same request.
    pub(crate) fn listed_twice(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        let mut names: Vec<String> =
            self.listed(prefix)?.into_iter().map(|(name, _)| name).collect();
        names.append(&mut self.listed_otherwise(prefix)?);
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// The names of the objects directly below a prefix, asked for in another way than usual; none of a directory, whose
    /// list is what it has.
    pub(crate) fn listed_otherwise(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        if self.is_local() || self.is_behind_gateway() {
            return Ok(vec![]);
        }
        // From a name on that is below all of ours.
        let (path, first) = (Path::from(prefix), Path::from(format!("{prefix}/!")));
        let objects = self.ask("list again", prefix).list_with_offset(Some(&path), &first);
        let objects = self.block_on(objects.try_collect::<Vec<_>>());
        let objects = objects.map_err(|e| VaultError::of_store(prefix, e))?;
        Ok(objects.iter().filter_map(|meta| Some(meta.location.filename()?.to_owned())).collect())
    }

    /// Reads a document, which must say that it is what its key says. The one way to read any.
    pub(crate) fn document<D: Document + Object>(&self, key: &str) -> Result<D, VaultError> {
        self.judged(false, || self.document_once(key))
    }

    /// The same of one that a list shows: that it is gone is believed when it was asked for several times.
    pub(crate) fn listed_document<D: Document + Object>(&self, key: &str) -> Result<D, VaultError> {
        self.judged(true, || self.document_once(key))
    }

    fn document_once<D: Document + Object>(&self, key: &str) -> Result<D, VaultError> {
        let bytes = self.get(key, DOCUMENT_BYTES_MAX)?;
        let document = decode(&bytes).within(key)?;
        self.verify_document(key, &bytes)?;
        self.is_at(key, document)
    }

    /// An object, if it is what the key says that it was read from.
    pub(crate) fn is_at<O: Object>(&self, key: &str, object: O) -> Result<O, VaultError> {
        let wrong = |reason: String| VaultError::Inconsistent { object: key.into(), reason };
        let typed =
            ObjectKey::parse(key).ok_or_else(|| wrong("no object has such a key".into()))?;
        match object.differs(&typed) {
            None => Ok(object),
            Some(found) => Err(wrong(format!(
                "it is {found}, copied here from somewhere else. Nothing it says was believed, and nothing was \
                 changed"
            ))),
        }
    }

    pub(crate) fn put_document<D: Document + Object>(
        &self,
        key: &str,
        document: &D,
    ) -> Result<(), VaultError> {
        debug_assert_eq!(
            ObjectKey::parse(key).map(|key| document.differs(&key)),
            Some(None),
            "{key}"
        );
        self.put(key, self.signed_document(key, document)?.into())
    }

    /// The names of the folders right below a prefix.
    pub(crate) fn folders(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        let path = Path::from(prefix);
        let listed = self
            .inner
            .runtime
            .block_on(self.ask("list folders of", prefix).list_with_delimiter(Some(&path)));
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

    /// As [`Self::numbers`], to the newest. Who writes, and what the ledger says, hang on it, so a store's
    /// list is not believed to end with the newest: what follows is asked for by name.
    pub(crate) fn numbers_to_newest(
        &self,
        prefix: &str,
        key: impl Fn(u64) -> String,
    ) -> Result<Vec<u64>, VaultError> {
        let mut numbers = self.numbers(prefix)?;
        while !self.is_local() {
            let next = numbers.last().map_or(1, |newest| newest.saturating_add(1));
            if !self.has(&key(next))? {
                break;
            }
            numbers.push(next);
        }
        Ok(numbers)
    }
}

//! A client of an object store that follows its credentials: when the file with them changes, the next request goes out
//! with the new ones.
//!
//! Temporary credentials run out after an hour; a mounted point or a sidecar lives for months. Anyone who renews the file
//! need not know who uses it.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock;
use backstay_host::stamp::{self, Stamp};
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::connect::Connected;
use crate::error::VaultError;

/// From one look at the file to the next, at least.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Connect = dyn Fn() -> std::result::Result<Connected, VaultError> + Send + Sync;

/// The client that holds, and how to make the next one.
pub(crate) struct Renewing {
    connect: Box<Connect>,
    file: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    connected: Connected,
    stamp: Option<Stamp>,
    looked: Instant,
}

impl Renewing {
    /// A client that is made by `connect`, and made again when `file` changes.
    pub fn new(
        file: Option<PathBuf>,
        connect: Box<Connect>,
    ) -> std::result::Result<Self, VaultError> {
        // Before it is read: a change in between is seen at the next look.
        let stamp = file.as_deref().and_then(stamp::of);
        let state = State { connected: connect()?, stamp, looked: clock::monotonic() };
        Ok(Self { connect, file, state: Mutex::new(state) })
    }

    /// The client that holds now.
    pub fn now(&self) -> Connected {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) =
            self.file.as_deref().filter(|_| clock::since(state.looked) >= LOOK_EVERY)
        {
            state.looked = clock::monotonic();
            let found = stamp::of(file);
            if found.is_some() && found != state.stamp {
                state.stamp = found;
                match (self.connect)() {
                    Ok(connected) => {
                        tracing::info!("{}: the credentials were read again", file.display());
                        state.connected = connected;
                    }
                    // It may be half written: the old ones hold until it changes again.
                    Err(e) => tracing::warn!("the credentials were not read again: {e}"),
                }
            }
        }
        state.connected.clone()
    }

    fn store(&self) -> Arc<dyn ObjectStore> {
        self.now().store
    }
}

impl fmt::Debug for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Renewing").field("file", &self.file).finish_non_exhaustive()
    }
}

impl fmt::Display for Renewing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.store())
    }
}

#[async_trait::async_trait]
impl ObjectStore for Renewing {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.store().put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store().put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.store().get_opts(at, options).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store().get_ranges(at, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.store().delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store().list(prefix)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store().list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store().copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::connect::alone;
    use object_store::memory::InMemory;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn the_next_request_has_the_new_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        std::fs::write(&file, b"old").unwrap();
        let made = Arc::new(AtomicU32::new(0));
        let (counted, read) = (Arc::clone(&made), file.clone());
        let connect = move || {
            counted.fetch_add(1, Ordering::Relaxed);
            match std::fs::read(&read).unwrap() == b"half" {
                true => Err(VaultError::Url { url: "x".into(), reason: "half".into() }),
                false => Ok(alone(Arc::new(InMemory::new()))),
            }
        };
        let store = Renewing::new(Some(file.clone()), Box::new(connect)).unwrap();
        let due = || store.state.lock().unwrap().looked -= LOOK_EVERY;
        due();
        let first = store.store();
        assert!(Arc::ptr_eq(&first, &store.store()) && made.load(Ordering::Relaxed) == 1);
        std::fs::write(&file, b"half").unwrap();
        due();
        assert!(Arc::ptr_eq(&first, &store.store()), "what cannot be read changes nothing");
        std::fs::write(&file, b"newer").unwrap();
        due();
        assert!(!Arc::ptr_eq(&first, &store.store()));
        assert_eq!(made.load(Ordering::Relaxed), 3);
    }
}

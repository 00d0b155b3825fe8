//! A store over a directory whose every step is counted, so that at any one of them something else
//! can happen first, or everything can end.

use std::ops::Range;
use std::path::Path as FsPath;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

type Act = Box<dyn FnOnce() + Send>;

/// What happens at one step.
#[derive(Default)]
pub enum At {
    #[default]
    Nothing,
    /// Before this step (of any kind), somebody else does something, from beginning to end.
    Meanwhile(u64, Act),
    /// This change is not made, and nothing works from then on.
    DieBefore(u64),
    /// This change is made, and nothing works from then on; its answer is lost.
    DieAfter(u64),
    /// This list does not show this object, as a list of a directory may if it came meanwhile.
    Miss(u64, &'static str),
}

#[derive(Default)]
struct Plan {
    at: Mutex<At>,
    steps: AtomicU64,
    changes: AtomicU64,
    lists: AtomicU64,
    dead: AtomicBool,
}

/// The store.
#[derive(Clone)]
pub struct Steps {
    store: Arc<LocalFileSystem>,
    plan: Arc<Plan>,
}

impl Steps {
    pub fn on(dir: &FsPath, at: At) -> Self {
        let store = Arc::new(LocalFileSystem::new_with_prefix(dir).unwrap());
        Self { store, plan: Arc::new(Plan { at: Mutex::new(at), ..Plan::default() }) }
    }

    /// Lists so far.
    pub fn lists(&self) -> u64 {
        self.plan.lists.load(Ordering::SeqCst)
    }

    /// Steps and changes so far.
    pub fn counted(&self) -> (u64, u64) {
        (self.plan.steps.load(Ordering::SeqCst), self.plan.changes.load(Ordering::SeqCst))
    }

    fn dead() -> Error {
        Error::Generic { store: "test", source: "killed".into() }
    }

    fn step(&self) -> Result<()> {
        if self.plan.dead.load(Ordering::SeqCst) {
            return Err(Self::dead());
        }
        let step = self.plan.steps.fetch_add(1, Ordering::SeqCst);
        let mut at = self.plan.at.lock().unwrap();
        if matches!(*at, At::Meanwhile(when, _) if when == step)
            && let At::Meanwhile(_, act) = std::mem::take(&mut *at)
        {
            drop(at);
            // On a thread of its own: this one is inside a runtime.
            std::thread::spawn(act).join().unwrap();
        }
        Ok(())
    }

    /// Counts a change; whether it is made, and whether its answer arrives.
    fn change(&self) -> Result<bool> {
        self.step()?;
        let change = self.plan.changes.fetch_add(1, Ordering::SeqCst);
        match *self.plan.at.lock().unwrap() {
            At::DieBefore(when) if when == change => {
                self.plan.dead.store(true, Ordering::SeqCst);
                Err(Self::dead())
            }
            At::DieAfter(when) if when == change => {
                self.plan.dead.store(true, Ordering::SeqCst);
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steps")
    }
}

impl std::fmt::Display for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Steps")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Steps {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let answered = self.change()?;
        let put = self.store.put_opts(at, payload, options).await;
        if answered { put } else { Err(Self::dead()) }
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store.put_multipart_opts(at, options).await
    }
    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.step()?;
        self.store.get_opts(at, options).await
    }
    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.step()?;
        self.store.get_ranges(at, ranges).await
    }
    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        paths
            .then(move |path| {
                let this = this.clone();
                async move {
                    let path = path?;
                    let answered = this.change()?;
                    let one = futures::stream::iter([Ok(path)]).boxed();
                    let mut deleted = this.store.delete_stream(one);
                    match deleted.next().await {
                        Some(deleted) if answered => deleted,
                        _ => Err(Self::dead()),
                    }
                }
            })
            .boxed()
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let list = self.plan.lists.fetch_add(1, Ordering::SeqCst);
        let missed = match *self.plan.at.lock().unwrap() {
            At::Miss(when, object) if when == list => Some(object),
            _ => None,
        };
        match self.step() {
            Ok(()) => {
                let shown = move |object: &Result<ObjectMeta>| {
                    !object.as_ref().is_ok_and(|object| {
                        missed.is_some_and(|missed| object.location.as_ref().ends_with(missed))
                    })
                };
                self.store
                    .list(prefix)
                    .filter(move |object| futures::future::ready(shown(object)))
                    .boxed()
            }
            Err(e) => futures::stream::iter([Err(e)]).boxed(),
        }
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.step()?;
        self.store.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store.copy_opts(from, to, options).await
    }
}

//! A vault's directory as an object store.
//!
//! `object_store` has one, which follows links and leaves modes to the umask; this one is smaller and does
//! neither. The layout is the same, so either reads what the other wrote.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::ops::Range;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};

use super::beneath::{Beneath, Planted, is_staged, split};
use crate::paced::{self, Unlimited};

const STORE: &str = "local directory";
/// Deepest folder that a list goes into; ours are three deep.
const DEPTH_MAX: usize = 16;

/// Objects in a directory.
#[derive(Debug)]
pub(crate) struct Directory {
    beneath: Beneath,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "directory {}", self.beneath.root().display())
    }
}

impl Directory {
    pub fn at(beneath: Beneath) -> Self {
        Self { beneath }
    }

    fn not_done(&self, operation: &str) -> Error {
        Error::NotImplemented { operation: operation.into(), implementer: self.to_string() }
    }
}

#[async_trait]
impl ObjectStore for Directory {
    /// Durable when it returns, except for the names of folders that were there.
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        if opts.mode != PutMode::Create {
            return Err(self.not_done("a put that overwrites"));
        }
        let (beneath, key) = (self.beneath.clone(), location.to_string());
        blocking(location, move || {
            let (folder, name) = split(&key);
            let folder = beneath.make_folder(folder)?;
            paced::put(&folder.at(name), payload.iter().map(Ok), &Unlimited)
        })
        .await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(self.not_done("an upload in parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let (beneath, key) = (self.beneath.clone(), location.to_string());
        let (file, about) = blocking(location, move || beneath.object(&key)).await?;
        let meta = meta(location.clone(), &about);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(range) => range
                .as_range(meta.size)
                .map_err(|source| Error::Generic { store: STORE, source: source.into() })?,
            None => Range { start: 0, end: meta.size },
        };
        let path = self.beneath.root().join(location.as_ref());
        Ok(GetResult {
            payload: GetResultPayload::File(file, path),
            meta,
            range,
            attributes: Default::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let beneath = self.beneath.clone();
        let delete = move |location: Path| {
            let (beneath, key) = (beneath.clone(), location.to_string());
            async move {
                // A link that was planted goes, not what it leads to.
                blocking(&location, move || {
                    let (folder, name) = split(&key);
                    std::fs::remove_file(beneath.folder(folder)?.at(name))
                })
                .await?;
                Ok(location)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (beneath, prefix) = (self.beneath.clone(), prefix.cloned().unwrap_or_default());
        let walked = async move {
            let from = prefix.to_string();
            let walked = blocking(&prefix, move || walk(&beneath, from)).await;
            futures::stream::iter(match walked {
                Ok(found) => found.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(e) => vec![Err(e)],
            })
        };
        futures::stream::once(walked).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let (beneath, prefix) = (self.beneath.clone(), prefix.cloned().unwrap_or_default());
        let from = prefix.to_string();
        let (objects, folders) = blocking(&prefix, move || look(&beneath, &from)).await?;
        let common_prefixes = folders.into_iter().filter_map(|key| Path::parse(key).ok()).collect();
        Ok(ListResult { common_prefixes, objects, extensions: Default::default() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(self.not_done("a copy"))
    }
}

/// All objects below a prefix.
fn walk(beneath: &Beneath, from: String) -> io::Result<Vec<ObjectMeta>> {
    let (mut found, mut next) = (Vec::new(), vec![from]);
    while let Some(folder) = next.pop() {
        if folder.split('/').count() > DEPTH_MAX {
            return Err(io::Error::other(format!("{folder:?} is deeper than {DEPTH_MAX} folders")));
        }
        let (objects, folders) = look(beneath, &folder)?;
        found.extend(objects);
        next.extend(folders);
    }
    Ok(found)
}

/// The objects and the folders right in a folder. One that is not there is empty.
fn look(beneath: &Beneath, folder: &str) -> io::Result<(Vec<ObjectMeta>, Vec<String>)> {
    let (mut objects, mut folders) = (Vec::new(), Vec::new());
    let opened = match beneath.folder(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((objects, folders)),
        opened => opened?,
    };
    for entry in opened.entries()? {
        let entry = entry?;
        // What no key can mean is not ours.
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !is_staged(name)) else { continue };
        let key = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let Ok(location) = Path::parse(&key) else { continue };
        let about = match entry.metadata() {
            // It went meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            about => about?,
        };
        match about.file_type() {
            kind if kind.is_dir() => folders.push(key),
            kind if kind.is_file() => objects.push(meta(location, &about)),
            kind if kind.is_symlink() => return Err(Planted::error("a symbolic link", &key)),
            _ => return Err(Planted::error("no regular file", &key)),
        }
    }
    Ok((objects, folders))
}

fn meta(location: Path, about: &Metadata) -> ObjectMeta {
    let modified = about.modified().unwrap_or(std::time::UNIX_EPOCH);
    ObjectMeta {
        location,
        last_modified: modified.into(),
        size: about.len(),
        e_tag: None,
        version: None,
    }
}

/// Does what waits for a disk where it holds nobody up.
async fn blocking<T: Send + 'static>(
    location: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await?;
    done.map_err(|source| {
        let path = location.to_string();
        match source.kind() {
            io::ErrorKind::NotFound => Error::NotFound { path, source: source.into() },
            io::ErrorKind::AlreadyExists => Error::AlreadyExists { path, source: source.into() },
            _ => Error::Generic { store: STORE, source: source.into() },
        }
    })
}

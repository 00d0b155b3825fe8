//! The gateway as an object store: puts that fail if the object is there, ranges, lists, deletes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, IF_NONE_MATCH, RANGE};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use super::answer::{Answer, STORE, broken, passing, sort};
use super::client::client;
use super::tries::Tries;
use crate::error::VaultError;
use crate::remote::permanent_error::refusal;
use crate::remote::settings::StoreSettings;

/// Longest answer in JSON, in bytes: a page of a list.
const JSON_BYTES_MAX: u64 = 8 << 20;
/// Objects up to this length, and ranges, are fetched as a whole, and again if the line breaks.
const WHOLE_BYTES_MAX: u64 = 64 << 20;

/// A page of a list.
#[derive(Debug, Deserialize)]
struct Page {
    objects: Vec<Listed>,
    #[serde(default)]
    folders: Vec<String>,
    /// Where the next page begins.
    next: Option<String>,
}

/// An object in a list.
#[derive(Debug, Deserialize)]
struct Listed {
    key: String,
    size: u64,
}

/// The client of one gateway.
#[derive(Clone)]
pub(crate) struct GatewayStore {
    pub(super) http: Client,
    /// `https://host:port/v1` of each gateway.
    bases: Arc<[String]>,
    /// Which of them we talk to: another one when it fails.
    at: Arc<AtomicUsize>,
    pub(super) settings: Arc<StoreSettings>,
}

impl GatewayStore {
    pub(super) fn new(
        url: &str,
        hosts: &[String],
        settings: &StoreSettings,
    ) -> std::result::Result<Self, VaultError> {
        let http = client(url, settings)?;
        let bases = hosts.iter().map(|host| format!("https://{host}/v1")).collect();
        let settings = Arc::new(settings.clone());
        Ok(Self { http, bases, at: Arc::default(), settings })
    }

    /// The gateway we talk to now.
    fn base(&self) -> &str {
        &self.bases[self.at.load(Ordering::Relaxed) % self.bases.len()]
    }

    /// Talks to the next one from now on, if there is one.
    pub(super) fn failed(&self) {
        self.at.fetch_add(1, Ordering::Relaxed);
    }

    /// Where an object is. A vault's keys have no character that a URL does not take as it is.
    pub(super) fn url(&self, key: &str) -> String {
        format!("{}/objects/{key}", self.base())
    }

    /// Sends a request until it is answered for good.
    async fn send(&self, key: &str, make: impl Fn() -> RequestBuilder) -> Result<Response> {
        let mut tries = Tries::new(&self.settings);
        loop {
            let sent = make().timeout(self.settings.timeout).send().await;
            let (pause, error) = match sort(key, sent).await {
                Answer::Done(response) => return Ok(response),
                Answer::Final(e) => return Err(e),
                Answer::Again(e) => {
                    self.failed();
                    (tries.failed(), e)
                }
                Answer::Wait(bytes) => (
                    tries.waits(bytes),
                    passing(format!(
                        "the gateway has {bytes} bytes of this point's segments that do not get to \
                         its store"
                    )),
                ),
            };
            let Some(pause) = pause else { return Err(error) };
            tracing::debug!("{key}: tried again: {error}");
            sleep(pause).await;
        }
    }

    /// What the gateway says in JSON.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        what: &str,
        query: &[(&str, &str)],
    ) -> Result<T> {
        let query: Vec<String> =
            query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let query = query.join("&");
        let make = || self.http.get(format!("{}/{what}?{query}", self.base()));
        let bytes = self.whole(what, make, JSON_BYTES_MAX).await?.1;
        serde_json::from_slice(&bytes)
            .map_err(|e| passing(format!("{what}: no answer of a gateway: {e}")))
    }

    /// An answer with its whole body, which is asked for again if the line breaks in it.
    async fn whole(
        &self,
        key: &str,
        make: impl Fn() -> RequestBuilder,
        most: u64,
    ) -> Result<(Response, Bytes)> {
        let mut tries = Tries::new(&self.settings);
        loop {
            let mut response = self.send(key, &make).await?;
            match body(&mut response, most).await {
                Ok(bytes) => return Ok((response, bytes)),
                Err(e) if refusal(&e).is_some() => return Err(e),
                Err(e) => match tries.failed() {
                    Some(pause) => sleep(pause).await,
                    None => return Err(e),
                },
            }
        }
    }

    async fn page(&self, prefix: &str, after: &str, folders: bool) -> Result<Page> {
        let page: Page = self
            .json(
                "list",
                &[
                    ("prefix", prefix),
                    ("after", after),
                    ("folders", if folders { "1" } else { "0" }),
                ],
            )
            .await?;
        // A list that does not go on would never end.
        match &page.next {
            Some(next) if next.as_str() <= after => {
                Err(passing("the gateway's list repeats itself"))
            }
            _ => Ok(page),
        }
    }
}

/// An answer that broke off.
fn cut_off(error: reqwest::Error) -> Error {
    match broken(error) {
        Answer::Again(e) | Answer::Final(e) => e,
        Answer::Done(_) | Answer::Wait(_) => passing("the answer broke off"),
    }
}

/// The body of an answer, of `most` bytes.
async fn body(response: &mut Response, most: u64) -> Result<Bytes> {
    let mut all = vec![];
    while let Some(some) = response.chunk().await.map_err(cut_off)? {
        if (all.len() + some.len()) as u64 > most {
            return Err(passing(format!("the gateway sends more than {most} bytes")));
        }
        all.extend_from_slice(&some);
    }
    Ok(all.into())
}

/// The keys of a page of a list, as any gateway may send it: what the fuzz target reaches.
#[must_use]
pub fn keys_of_page(bytes: &[u8]) -> Option<Vec<String>> {
    let page: Page = serde_json::from_slice(bytes).ok()?;
    let objects = page.objects.iter().map(Listed::meta).collect::<Result<Vec<_>>>().ok()?;
    let folders =
        page.folders.iter().map(|key| listed_key(key)).collect::<Result<Vec<_>, _>>().ok()?;
    let objects = objects.into_iter().map(|meta| meta.location);
    Some(objects.chain(folders).map(|key| key.to_string()).collect())
}

/// A key that a gateway listed. Nothing in a vault has one with other characters.
fn listed_key(key: &str) -> Result<Path> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    match key.bytes().all(known) {
        true => Ok(Path::parse(key)?),
        false => {
            Err(passing(format!("the gateway lists {key:?}, which is not the key of an object")))
        }
    }
}

impl Listed {
    fn meta(&self) -> Result<ObjectMeta> {
        Ok(ObjectMeta {
            location: listed_key(&self.key)?,
            last_modified: Default::default(),
            size: self.size,
            e_tag: None,
            version: None,
        })
    }
}

impl fmt::Debug for GatewayStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayStore").field("bases", &self.bases).finish_non_exhaustive()
    }
}

impl fmt::Display for GatewayStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gateway {}", self.base())
    }
}

/// `bytes a-b/all` of an answer with a range.
fn content_range(response: &Response) -> Option<(Range<u64>, u64)> {
    let text = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, all) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, all): (u64, u64, u64) =
        (first.parse().ok()?, last.parse().ok()?, all.parse().ok()?);
    (first <= last && last < all).then_some((first..last + 1, all))
}

#[async_trait]
impl ObjectStore for GatewayStore {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        // A gateway has no other.
        if !matches!(opts.mode, PutMode::Create) {
            return Err(Error::NotSupported { source: "a gateway overwrites nothing".into() });
        }
        let bytes = Bytes::from(payload);
        let make =
            || self.http.put(self.url(at.as_ref())).header(IF_NONE_MATCH, "*").body(bytes.clone());
        self.send(at.as_ref(), make).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotSupported { source: "a gateway takes objects in one piece".into() })
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let key = at.as_ref();
        let range = match &options.range {
            None => None,
            Some(GetRange::Bounded(range)) if range.start < range.end => {
                Some(format!("bytes={}-{}", range.start, range.end - 1))
            }
            Some(GetRange::Bounded(_)) => {
                return Err(Error::NotSupported { source: "an empty range".into() });
            }
            Some(GetRange::Offset(at)) => Some(format!("bytes={at}-")),
            Some(GetRange::Suffix(len)) => Some(format!("bytes=-{len}")),
        };
        let method = if options.head { Method::HEAD } else { Method::GET };
        let make = || {
            let request = self.http.request(method.clone(), self.url(key));
            match &range {
                Some(range) => request.header(RANGE, range),
                None => request,
            }
        };
        let (response, bytes) = match range.is_some() && !options.head {
            true => {
                let (response, bytes) = self.whole(key, make, WHOLE_BYTES_MAX).await?;
                (response, Some(bytes))
            }
            false => (self.send(key, make).await?, None),
        };
        let len = response.headers().get(CONTENT_LENGTH);
        let len: Option<u64> = len.and_then(|len| len.to_str().ok()?.parse().ok());
        let (range, size) = match (content_range(&response), len) {
            (Some(found), _) => found,
            (None, Some(len)) if range.is_none() => (0..len, len),
            _ => return Err(passing("the gateway's answer does not say how long the object is")),
        };
        let payload = match bytes {
            Some(bytes) if bytes.len() as u64 != range.end - range.start => {
                return Err(passing("the gateway's answer is of another length than it says"));
            }
            Some(bytes) => stream::once(async move { Ok(bytes) }).boxed(),
            None if options.head => stream::empty().boxed(),
            None => response.bytes_stream().map_err(cut_off).boxed(),
        };
        let meta = ObjectMeta {
            location: at.clone(),
            last_modified: Default::default(),
            size,
            e_tag: None,
            version: None,
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |at: Path| {
            let store = store.clone();
            async move {
                let make = || store.http.delete(store.url(at.as_ref()));
                store.send(at.as_ref(), make).await.map(|_| at.clone())
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.map(|prefix| prefix.as_ref().to_owned()).unwrap_or_default();
        let store = self.clone();
        let pages = stream::try_unfold(Some(String::new()), move |after| {
            let (store, prefix) = (store.clone(), prefix.clone());
            async move {
                let Some(after) = after else { return Ok(None) };
                let page = store.page(&prefix, &after, false).await?;
                let objects: Vec<_> = page.objects.iter().map(Listed::meta).collect();
                Ok::<_, Error>(Some((stream::iter(objects), page.next)))
            }
        });
        pages.try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let prefix = prefix.map(Path::as_ref).unwrap_or_default();
        let (mut objects, mut common_prefixes) = (vec![], vec![]);
        let mut after = Some(String::new());
        while let Some(from) = after {
            let page = self.page(prefix, &from, true).await?;
            for object in &page.objects {
                objects.push(object.meta()?);
            }
            for folder in &page.folders {
                common_prefixes.push(listed_key(folder)?);
            }
            after = page.next;
        }
        Ok(ListResult { objects, common_prefixes, extensions: Default::default() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotSupported { source: format!("{STORE}s copy nothing").into() })
    }
}

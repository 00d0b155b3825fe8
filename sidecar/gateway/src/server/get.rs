//! Reading objects: whole, ranges, or only whether they are there.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use backstay_types::ByteLen;
use backstay_vault::format::document::decode;
use backstay_vault::format::group::GroupPoint;
use backstay_vault::format::segment::{FOOTER_BYTES, Footer, HEADER_BYTES};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE};
use hyper::{Method, Request, Response, StatusCode};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStoreExt};

use super::body::{Answer, empty, stream as streamed, text};
use super::request::{Asked, Refused};
use crate::counters::add;
use crate::owners::Ownership;
use crate::pki::Disks;
use crate::rights::Right;
use backstay_vault::format::key::ObjectKey;

/// Most segments of which it is remembered where their indexes are.
const PLACES_MAX: usize = 16_384;
/// Bytes of a file that are read at a time.
const STEP_BYTES: u64 = 256 << 10;

/// Where the indexes of segments begin, by key.
#[derive(Default)]
pub(super) struct IndexPlaces(Mutex<HashMap<String, u64>>);

/// Where an object is.
enum ObjectSource {
    Store,
    /// In the cache: it is on its way.
    Here(Arc<File>),
}

/// Answers GET and HEAD.
pub(super) async fn get<B>(
    asked: &Asked,
    key: &ObjectKey,
    right: Right,
    request: &Request<B>,
) -> Result<Answer, Refused> {
    let name = key.to_string();
    let here = asked.shared.spool.open_segment(key);
    let (place, len) = match here.map_err(|e| Refused::Store(e.to_string()))? {
        Some((file, len)) => (ObjectSource::Here(Arc::new(file)), len),
        None => {
            (ObjectSource::Store, asked.shared.store.head(&Path::from(name.as_str())).await?.size)
        }
    };
    if let (ObjectKey::GroupPoint(..), Disks::Named(_)) = (key, &asked.who.disks) {
        group_has_ours(asked, &name).await?;
    }
    if request.method() == Method::HEAD {
        return Ok(with_len(empty(StatusCode::OK), len));
    }
    let range = match request.headers().get(RANGE) {
        Some(range) => match parse_range(range.to_str().unwrap_or(""), len) {
            Some(range) => Some(range),
            None => return Ok(unsatisfiable(len)),
        },
        None => None,
    };
    if right == Right::IndexOnly {
        let range = range.clone().unwrap_or(0..len);
        let index = index_at(asked, &name, &place, len).await?;
        if range.start < index && range.end > HEADER_BYTES as u64 {
            let reason = "a source reads of a segment its header, index and footer, never its data: \
                          a recovery certificate does";
            return Err(Refused::Forbidden(reason.into()));
        }
    }
    let wanted = range.clone().unwrap_or(0..len);
    let (first, count) = (wanted.start, wanted.end - wanted.start);
    add(&asked.shared.counters.sent_bytes_total, count);
    let body = match place {
        ObjectSource::Here(file) => streamed(read_file(file, wanted)),
        ObjectSource::Store => {
            let options = GetOptions {
                range: (wanted.start < wanted.end).then(|| GetRange::Bounded(wanted.clone())),
                ..GetOptions::default()
            };
            let got = asked.shared.store.get_opts(&Path::from(name.as_str()), options).await?;
            if got.range != wanted {
                return Err(Refused::Store(
                    "the store gives another range than it was asked for".into(),
                ));
            }
            streamed(got.into_stream().map_err(io::Error::other))
        }
    };
    let mut answer = Response::new(body);
    if range.is_some() {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let says = format!("bytes {first}-{}/{len}", first + count - 1);
        if let Ok(says) = HeaderValue::from_str(&says) {
            answer.headers_mut().insert(CONTENT_RANGE, says);
        }
    }
    Ok(with_len(answer, count))
}

fn with_len(mut answer: Answer, len: u64) -> Answer {
    let headers = answer.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer
}

fn unsatisfiable(len: u64) -> Answer {
    let mut answer = text(StatusCode::RANGE_NOT_SATISFIABLE, "no such range");
    if let Ok(says) = HeaderValue::from_str(&format!("bytes */{len}")) {
        answer.headers_mut().insert(CONTENT_RANGE, says);
    }
    answer
}

/// One range of an object, cut to its length; `None` if there is nothing in it.
pub(super) fn parse_range(text: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", suffix) => len.saturating_sub(suffix.parse().ok()?)..len,
        (first, "") => first.parse().ok()?..len,
        (first, last) => {
            let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
            first..last.checked_add(1)?.min(len)
        }
    };
    (range.start < range.end).then_some(range)
}

/// Where the index of a segment begins.
async fn index_at(
    asked: &Asked,
    name: &str,
    place: &ObjectSource,
    len: u64,
) -> Result<u64, Refused> {
    let places = &asked.shared.indexes.0;
    if let Some(at) = places.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Ok(*at);
    }
    let wrong = |reason: String| Refused::Wrong(format!("{name}: {reason}"));
    let Some(at) = len.checked_sub(FOOTER_BYTES as u64) else {
        return Err(wrong("shorter than a footer".into()));
    };
    let footer = match place {
        ObjectSource::Store => asked.shared.store.get_range(&Path::from(name), at..len).await?,
        ObjectSource::Here(file) => {
            let mut pieces = Box::pin(read_file(Arc::clone(file), at..len));
            let mut footer = vec![];
            while let Some(piece) = pieces.next().await {
                footer.extend_from_slice(&piece.map_err(|e| Refused::Store(e.to_string()))?);
            }
            footer.into()
        }
    };
    let footer = Footer::decode(&footer, ByteLen(len)).map_err(|e| wrong(e.to_string()))?;
    let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
    if places.len() >= PLACES_MAX {
        places.clear();
    }
    places.insert(name.into(), footer.index_offset);
    Ok(footer.index_offset)
}

/// A range of a file, step by step.
fn read_file(
    file: Arc<File>,
    range: Range<u64>,
) -> impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, range), |(file, range)| async move {
        if range.start >= range.end {
            return Ok(None);
        }
        let len = (range.end - range.start).min(STEP_BYTES);
        let of = Arc::clone(&file);
        let read = move || {
            let mut step = vec![0; len as usize];
            of.read_exact_at(&mut step, range.start)?;
            Ok::<_, io::Error>(Bytes::from(step))
        };
        let step = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
        Ok(Some((step, (file, range.start + len..range.end))))
    })
}

/// A group point is for those who have a disk in it.
async fn group_has_ours(asked: &Asked, name: &str) -> Result<(), Refused> {
    let bytes = asked.shared.store.get(&Path::from(name)).await?;
    if bytes.meta.size > 64 << 10 {
        return Err(Refused::Wrong(format!("{name} is too long")));
    }
    let bytes = bytes.bytes().await?;
    let point: GroupPoint = decode(&bytes).map_err(|e| Refused::Wrong(format!("{name}: {e}")))?;
    for member in &point.members {
        if asked.standing(member.disk).await? == Ownership::Own {
            return Ok(());
        }
    }
    Err(Refused::Forbidden("none of this certificate's disks is in it".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!(parse_range("bytes=0-9", 100), Some(0..10));
        assert_eq!(parse_range("bytes=90-200", 100), Some(90..100));
        assert_eq!(parse_range("bytes=90-", 100), Some(90..100));
        assert_eq!(parse_range("bytes=-10", 100), Some(90..100));
        assert_eq!(parse_range("bytes=-1000", 100), Some(0..100));
        for wrong in [
            "",
            "bytes=",
            "bytes=-",
            "bytes=100-",
            "bytes=9-0",
            "bytes=-0",
            "items=0-1",
            "bytes=0-1,3-4",
            "bytes=0-18446744073709551615",
        ] {
            assert_eq!(parse_range(wrong, 100), None, "{wrong}");
        }
    }
}

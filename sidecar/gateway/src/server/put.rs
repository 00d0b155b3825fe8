//! Putting objects: looked at, then put where there is none, or refused.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use backstay_vault::admission::{check_segment, own_keys};
use backstay_vault::encrypt::sign::TRAILER_BYTES;
use backstay_vault::format::document::DOCUMENT_BYTES_MAX;
use backstay_vault::format::ledger::LEDGER_BYTES_MAX;
use backstay_vault::format::manifest::MANIFEST_BYTES_MAX;
use backstay_vault::format::segment::{SEGMENT_BYTES_MAX, SegmentId};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, IF_NONE_MATCH};
use hyper::{Request, StatusCode};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio::time::{Instant, timeout_at};

use super::body::{Answer, Pieces, drain, text};
use super::request::{Asked, Refused, blocking};
use crate::admission::Arriving;
use crate::counters::add;
use backstay_vault::format::key::{ObjectKey, Piece};

/// How long a point waits for its segments before its sender is told to ask again.
const WAITS: Duration = Duration::from_secs(20);

/// Answers PUT.
pub(super) async fn put(
    asked: &Asked,
    key: ObjectKey,
    request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let only_absent = header(IF_NONE_MATCH) == Some("*");
    let len: Option<u64> = header(CONTENT_LENGTH).and_then(|len| len.parse().ok());
    let most = match &key {
        ObjectKey::Disk(_, Piece::Segment { .. }) => SEGMENT_BYTES_MAX,
        ObjectKey::Disk(_, Piece::Point(_)) => (MANIFEST_BYTES_MAX + TRAILER_BYTES) as u64,
        ObjectKey::Disk(_, Piece::Ledger(_)) => (LEDGER_BYTES_MAX + TRAILER_BYTES) as u64,
        _ => DOCUMENT_BYTES_MAX as u64,
    };
    let len = match len {
        Some(len) if only_absent && len <= most => len,
        found => {
            drain(&asked.shared, request.into_body()).await;
            return Err(match found {
                Some(len) if len > most => Refused::TooLong,
                _ => Refused::BadRequest(
                    "a PUT must carry If-None-Match: * and its length; nothing is overwritten"
                        .into(),
                ),
            });
        }
    };
    match key.segment() {
        Some(id) => segment(asked, &key, id, len, request).await,
        None => small(asked, key, len, request).await,
    }
}

/// A segment: received into a file, looked at, kept.
async fn segment(
    asked: &Asked,
    key: &ObjectKey,
    id: SegmentId,
    len: u64,
    request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let shared = &asked.shared;
    let there = || Refused::Taken(format!("{key} is there already"));
    let at = Path::from(key);
    // If it does not answer, its upload will see: that the store is away is what the cache is for.
    let is_there = shared.spool.find(key).is_some()
        || matches!(shared.away.look(shared.store.head(&at)).await, Some(Ok(_)));
    if is_there {
        drain(shared, request.into_body()).await;
        return Err(there());
    }
    let _turn = asked.client.upload().await;
    // Nothing is read from the line before there is room.
    let room = shared.spool.incoming(len).await;
    let Some((incoming, file)) = room.map_err(|e| Refused::Store(e.to_string()))? else {
        drain(shared, request.into_body()).await;
        return Err(Refused::TooLong);
    };
    let mut pieces = Pieces::new((shared, &asked.who, &asked.client), request.into_body(), len);
    let mut received = 0;
    let file = Arc::new(file);
    while let Some(piece) = pieces.next().await? {
        received += piece.len() as u64;
        let file = Arc::clone(&file);
        blocking(move || (&*file).write_all(&piece).map_err(|e| Refused::Store(e.to_string())))
            .await?;
    }
    add(&shared.counters.received_bytes_total, received);
    if received != len {
        return Err(Refused::BadRequest(format!("{received} bytes came, {len} were announced")));
    }
    let _check = shared.checks.acquire().await;
    let (of, to) = (Arc::clone(shared), key.clone());
    let kept = blocking(move || {
        check_segment(&of.vault, &file, len, id)?;
        of.spool.keep(&to, incoming, &file, len).map_err(|e| Refused::Store(e.to_string()))
    });
    if !kept.await? {
        return Err(there());
    }
    add(&shared.counters.segments_total, 1);
    Ok(text(StatusCode::CREATED, "kept"))
}

/// Anything else: in memory, looked at, put.
async fn small(
    asked: &Asked,
    key: ObjectKey,
    len: u64,
    request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let shared = &asked.shared;
    let units = (len >> 10) as u32 + 1;
    // What is decoded takes about as much again.
    let _room = shared.buffers.acquire_many(units * 2).await;
    let pieces = Pieces::new((shared, &asked.who, &asked.client), request.into_body(), len);
    let bytes = pieces.whole().await?;
    let is_point = matches!(key, ObjectKey::Disk(_, Piece::Point(_)));
    if is_point {
        segments_are_there(asked, &bytes).await?;
    }
    let (shared, who) = (Arc::clone(shared), Arc::clone(&asked.who));
    let put = blocking(move || {
        let arriving = Arriving {
            vault: &shared.vault,
            owners: &shared.owners,
            who: &who,
            rules: shared.rules(),
        };
        arriving.check(&key, &bytes)?;
        Ok(shared.vault.put_object(&key, bytes)?)
    });
    put.await?;
    if is_point {
        add(&asked.shared.counters.points_total, 1);
    }
    Ok(text(StatusCode::CREATED, "put"))
}

/// Waits until no segment of a point is only here: it is a point only if the store has all of it.
async fn segments_are_there(asked: &Asked, bytes: &Bytes) -> Result<(), Refused> {
    let keys = own_keys(bytes).map_err(|e| Refused::Wrong(e.to_string()))?;
    let spool = &asked.shared.spool;
    let until = Instant::now() + WAITS;
    loop {
        // Registered before the look, so that what moves in between is not missed.
        let moved = spool.moved();
        let mut moved = std::pin::pin!(moved);
        let _ = futures::poll!(moved.as_mut());
        let waiting = spool.waiting_bytes(&keys);
        if waiting == 0 {
            return Ok(());
        }
        if timeout_at(until, moved).await.is_err() {
            return Err(Refused::Wait(waiting));
        }
    }
}

//! Bodies: read with their limits, written as they come.

use std::io;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use super::Shared;
use crate::limits::Client;
use crate::pki::Identity;

/// The body of an answer.
pub(super) type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// Slower than this, in bytes a second, a body is not waited for.
const SLOWEST: u64 = 1024;
/// Most bytes of a body that nobody wants that are read, so that the answer can be.
const DRAINED_MAX: u64 = 64 << 20;

/// Why a body was not read.
#[derive(Debug)]
pub(super) enum BodyError {
    /// It is longer than it may be.
    TooLong,
    /// It does not come, or too slowly.
    Slow,
    /// The line broke, or the certificate is not believed any more.
    Broken(String),
}

/// Reads a body piece by piece.
pub(super) struct Pieces<'a> {
    shared: &'a Shared,
    who: &'a Identity,
    client: &'a Client,
    body: Incoming,
    left: u64,
    deadline: Instant,
}

impl<'a> Pieces<'a> {
    /// Of a body that is `most` bytes long at most.
    pub fn new(
        (shared, who, client): (&'a Shared, &'a Identity, &'a Client),
        body: Incoming,
        most: u64,
    ) -> Self {
        let at_slowest = std::time::Duration::from_secs(most / SLOWEST);
        Self {
            shared,
            who,
            client,
            body,
            left: most,
            deadline: Instant::now() + shared.limits.stall + at_slowest,
        }
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let within = self.deadline.min(Instant::now() + self.shared.limits.stall);
            let frame = match timeout_at(within, self.body.frame()).await {
                Err(_) => return Err(BodyError::Slow),
                Ok(None) => return Ok(None),
                Ok(Some(Err(e))) => return Err(BodyError::Broken(e.to_string())),
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers mean nothing here.
            let Ok(piece) = frame.into_data() else { continue };
            let len = piece.len() as u64;
            self.left = self.left.checked_sub(len).ok_or(BodyError::TooLong)?;
            if !self.shared.tls.still_believes(self.who) {
                return Err(BodyError::Broken("the certificate is revoked or has run out".into()));
            }
            self.client.bytes(len).await;
            return Ok(Some(piece));
        }
    }

    /// All of it.
    pub async fn whole(mut self) -> Result<Bytes, BodyError> {
        let mut all =
            Vec::with_capacity(self.body.size_hint().exact().unwrap_or(0).min(self.left) as usize);
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all.into())
    }
}

/// Reads what nobody wants: who writes reads the answer only afterwards.
pub(super) async fn drain(shared: &Shared, mut body: Incoming) {
    let drained = async {
        let mut read = 0;
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len) as u64;
            if read > DRAINED_MAX {
                break;
            }
        }
    };
    let _ = timeout(shared.limits.stall, drained).await;
}

/// An answer of text.
pub(super) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut text = text.into();
    text.push('\n');
    with(status, "text/plain; charset=utf-8", text.into())
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    answer
}

/// An answer of a kind.
pub(super) fn with(status: StatusCode, kind: &'static str, bytes: Bytes) -> Answer {
    let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// An answer whose body comes as it is read.
pub(super) fn stream(
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> UnsyncBoxBody<Bytes, io::Error> {
    StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync()
}

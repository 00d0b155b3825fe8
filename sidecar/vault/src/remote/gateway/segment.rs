//! Segments: one request each, whose body goes no faster than it is let through.
//!
//! The gateway checks a segment as it arrives and keeps nothing of one that is not whole, so there are no
//! parts to put together. If the line breaks, the segment is sent again: it is in memory anyway.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use object_store::{Error, ObjectStoreExt, PutPayload};
use reqwest::Body;
use reqwest::header::{CONTENT_LENGTH, IF_NONE_MATCH};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};

use super::answer::{Answer, passing, sort};
use super::store::GatewayStore;
use super::tries::Tries;
use crate::paced::{Pace, wait_for_all};

/// Bytes that are let through at a time.
const STEP_BYTES: usize = 256 << 10;

/// What became of one try.
enum Sent {
    Answered(Answer),
    GivenUp,
}

/// Puts a segment; false if it was given up, and nothing is there.
pub(super) fn put(
    store: &GatewayStore,
    runtime: &Runtime,
    key: &str,
    payload: &PutPayload,
    pace: &dyn Pace,
) -> object_store::Result<bool> {
    let mut tries = Tries::new(&store.settings);
    loop {
        let (pause, error) = match send(store, runtime, key, payload, pace) {
            Sent::GivenUp => return Ok(false),
            Sent::Answered(Answer::Done(_)) => return Ok(true),
            Sent::Answered(Answer::Wait(bytes)) => {
                (tries.waits(bytes), passing("the gateway has no room for segments and none comes"))
            }
            Sent::Answered(Answer::Again(e)) => {
                store.failed();
                (tries.failed(), e)
            }
            // The answer to an earlier try was lost: nobody else has this name.
            Sent::Answered(Answer::Final(e @ Error::AlreadyExists { .. })) => {
                let there = runtime.block_on(store.head(&key.into()));
                return match there {
                    Ok(meta) if meta.size == payload.content_length() as u64 => Ok(true),
                    _ => Err(e),
                };
            }
            Sent::Answered(Answer::Final(e)) => return Err(e),
        };
        let Some(pause) = pause else { return Err(error) };
        tracing::debug!("{key}: tried again: {error}");
        runtime.block_on(async { sleep(pause).await });
    }
}

/// One try. What may not stall for longer than a request may take is a step, not the whole.
fn send(
    store: &GatewayStore,
    runtime: &Runtime,
    key: &str,
    payload: &PutPayload,
    pace: &dyn Pace,
) -> Sent {
    let stall: Duration = store.settings.timeout;
    let (mut body, taken) = mpsc::channel::<io::Result<Bytes>>(1);
    let request = store
        .http
        .put(store.url(key))
        .header(IF_NONE_MATCH, "*")
        .header(CONTENT_LENGTH, payload.content_length())
        .body(Body::wrap_stream(taken));
    let answer = runtime.spawn(request.send());
    let stalled = || {
        let stalled = format!("the gateway took no byte for {}", humantime::format_duration(stall));
        Sent::Answered(Answer::Again(passing(stalled)))
    };
    'all: for bytes in payload {
        let mut bytes = bytes.clone();
        while !bytes.is_empty() {
            let step = bytes.split_to(bytes.len().min(STEP_BYTES));
            if !wait_for_all(pace, step.len() as u64) {
                answer.abort();
                return Sent::GivenUp;
            }
            match runtime.block_on(async { timeout(stall, body.send(Ok(step))).await }) {
                Ok(Ok(())) => {}
                // The request ended before its body: the answer says why.
                Ok(Err(_)) => break 'all,
                Err(_) => {
                    answer.abort();
                    return stalled();
                }
            }
        }
    }
    drop(body);
    let abort = answer.abort_handle();
    match runtime.block_on(async { timeout(stall, answer).await }) {
        Ok(Ok(sent)) => Sent::Answered(runtime.block_on(sort(key, sent))),
        Ok(Err(e)) => Sent::Answered(Answer::Again(passing(e))),
        Err(_) => {
            abort.abort();
            stalled()
        }
    }
}

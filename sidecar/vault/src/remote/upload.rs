//! Segments in parts.
//!
//! The parts are slices of the segment, which is in memory anyway: nothing is copied, and at most
//! [`StoreSettings::parts_parallel`](super::StoreSettings::parts_parallel) of them are under way. A part
//! waits until its bytes are let through, so a limit on bandwidth holds from part to part.
//!
//! An object appears when its upload is completed, as a whole. A segment's name is used once, so it needs
//! no condition. What a killed process leaves is no object and no listing shows it: docs/reference/stores.md says
//! what removes it.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload, PutResult};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::paced::{Pace, wait_for_all};

/// Cuts a payload into parts of one length; the last one may be shorter.
pub(crate) fn parts(payload: &PutPayload, part_bytes: u64) -> Vec<PutPayload> {
    let part_bytes = part_bytes.max(1) as usize;
    let (mut parts, mut part, mut len) = (vec![], Vec::<Bytes>::new(), 0);
    for bytes in payload {
        let mut bytes = bytes.clone();
        while !bytes.is_empty() {
            let some = bytes.split_to(bytes.len().min(part_bytes - len));
            len += some.len();
            part.push(some);
            if len == part_bytes {
                parts.push(std::mem::take(&mut part).into_iter().collect());
                len = 0;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part.into_iter().collect());
    }
    parts
}

/// Puts an object in parts; the store's tag of it. `None` if it was given up, and nothing is there.
pub(crate) fn put_parts(
    (runtime, store): (&Runtime, &dyn ObjectStore),
    at: &Path,
    parts: Vec<PutPayload>,
    parallel: usize,
    pace: &dyn Pace,
) -> object_store::Result<Option<PutResult>> {
    let mut upload = runtime.block_on(store.put_multipart(at))?;
    let put = send(runtime, &mut *upload, parts, parallel.max(1), pace);
    let done = match put {
        Ok(true) => runtime.block_on(upload.complete()).map(Some),
        other => other.map(|_| None),
    };
    if !matches!(done, Ok(Some(_)))
        && let Err(e) = runtime.block_on(upload.abort())
    {
        tracing::debug!("{at}: an unfinished upload is left behind: {e}");
    }
    done
}

fn send(
    runtime: &Runtime,
    upload: &mut dyn MultipartUpload,
    parts: Vec<PutPayload>,
    parallel: usize,
    pace: &dyn Pace,
) -> object_store::Result<bool> {
    let mut under_way = JoinSet::new();
    let next = |under_way: &mut JoinSet<object_store::Result<()>>| match runtime
        .block_on(under_way.join_next())
    {
        Some(done) => done.map_err(|e| object_store::Error::JoinError { source: e })?,
        None => Ok(()),
    };
    for part in parts {
        while under_way.len() >= parallel {
            next(&mut under_way)?;
        }
        if !wait_for_all(pace, part.content_length() as u64) {
            return Ok(false);
        }
        under_way.spawn_on(upload.put_part(part), runtime.handle());
    }
    while !under_way.is_empty() {
        next(&mut under_way)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_equal_and_lose_nothing(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            part_bytes in 1u64..30,
        ) {
            let all = pieces.concat();
            let payload: PutPayload = pieces.into_iter().map(Bytes::from).collect();
            let parts = parts(&payload, part_bytes);
            let lens: Vec<u64> = parts.iter().map(|part| part.content_length() as u64).collect();
            if let Some((last, before)) = lens.split_last() {
                prop_assert!(before.iter().all(|len| *len == part_bytes));
                prop_assert!((1..=part_bytes).contains(last));
            }
            let joined: Vec<u8> = parts.iter().flatten().flatten().copied().collect();
            prop_assert_eq!(joined, all);
        }
    }
}

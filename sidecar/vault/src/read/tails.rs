//! How long the ends of segments are that a reader of indexes needs: with it, one request is enough.
//!
//! Only a hint, kept in memory by who put the segment. Whatever is read by it is checked as if there were none.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::format::segment::SegmentId;

/// Most hints that are kept: some 2 MiB.
const TAILS_MAX: usize = 16_384;

/// Bytes from where its index begins to a segment's end.
#[derive(Default)]
pub(crate) struct Tails(Mutex<HashMap<SegmentId, u64>>);

impl Tails {
    pub fn get(&self, id: SegmentId) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    pub fn put(&self, id: SegmentId, bytes: u64) {
        let mut tails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tails.len() >= TAILS_MAX {
            tails.clear();
        }
        tails.insert(id, bytes);
    }
}

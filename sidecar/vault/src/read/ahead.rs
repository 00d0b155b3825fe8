//! The indexes of a point's segments, read ahead by a few threads.
//!
//! An index costs some round trips to the store; one after the other, they would stop anyone who works
//! through the segments at the beginning of each.

use std::thread;

use backstay_types::{ByteLen, DiskId};
use crossbeam_channel::{Receiver, bounded};

use super::read_index;
use crate::error::VaultError;
use crate::format::manifest::{Manifest, SegmentRef};
use crate::format::segment::Index;
use crate::store::Vault;

/// Threads that read ahead. Each has at most one index in hand, which bounds the memory (an index is
/// some 100 KiB, 64 MiB at most).
const READERS: usize = 4;

type Read = Result<Index, VaultError>;

/// The indexes of a point's segments, newest first.
pub(crate) struct Indexes {
    vault: Vault,
    disk: DiskId,
    size: ByteLen,
    /// Those that nobody reads yet, oldest first.
    left: Vec<SegmentRef>,
    /// The reader of the n-th index from the newest is n modulo their number.
    readers: Vec<Receiver<Read>>,
    /// Indexes taken so far.
    taken: usize,
}

impl Indexes {
    /// The indexes of a point.
    pub fn new(vault: &Vault, point: &Manifest) -> Self {
        Self::of(vault, point.disk, point.size, &point.segments)
    }

    /// The indexes of some segments.
    pub fn of(vault: &Vault, disk: DiskId, size: ByteLen, segments: &[SegmentRef]) -> Self {
        let left = segments.to_vec();
        Self { vault: vault.clone(), disk, size, left, readers: vec![], taken: 0 }
    }

    /// The next one; `None` after the oldest. To be called until there is no more or it failed.
    pub fn next(&mut self) -> Option<Read> {
        if self.readers.is_empty() {
            let readers = READERS.min(self.left.len());
            if readers < 2 {
                let segment = self.left.pop()?;
                return Some(read_index(&self.vault, self.disk, self.size, &segment));
            }
            self.readers = (0..readers).map(|reader| self.start(reader, readers)).collect();
            self.left.clear();
        }
        // Its reader went after its last one.
        let read = self.readers[self.taken % self.readers.len()].recv().ok();
        self.taken += 1;
        read
    }

    /// Starts the reader of every `step`-th index from the `first` newest on. It ends when nobody
    /// takes them any more.
    fn start(&self, first: usize, step: usize) -> Receiver<Read> {
        let (found, taken) = bounded(0);
        let (vault, disk, size) = (self.vault.clone(), self.disk, self.size);
        let segments: Vec<SegmentRef> =
            self.left.iter().rev().skip(first).step_by(step).copied().collect();
        let read = move || {
            for segment in segments {
                let index = read_index(&vault, disk, size, &segment);
                if found.send(index).is_err() {
                    break;
                }
            }
        };
        if let Err(source) = thread::Builder::new().name("index".into()).spawn(read) {
            // Told to anyone who asks for it, from a channel that has room for it.
            let (failed, told) = bounded(1);
            let what = "starting a thread".into();
            let _ = failed.send(Err(VaultError::Target { what, source }));
            return told;
        }
        taken
    }
}

//! The reader's end of the pipeline.

use backstay_types::SectorRange;
use backstay_vault::frame::Chunk;
use crossbeam_channel::{Receiver, Sender};

use super::{Part, Trouble};
use crate::error::CycleError;

/// Takes chunks from the reader; gives it empty ones, and none once something has failed.
pub struct Feed<'a> {
    full: Sender<Chunk>,
    spare: Receiver<Chunk>,
    parts: Sender<Part>,
    trouble: &'a Trouble<'a>,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        full: Sender<Chunk>,
        spare: Receiver<Chunk>,
        parts: Sender<Part>,
        trouble: &'a Trouble<'a>,
    ) -> Self {
        Self { full, spare, parts, trouble }
    }

    /// An empty chunk; waits until there is one.
    ///
    /// # Errors
    /// If a later stage has failed, or the cycle was told to stop.
    pub fn chunk(&self) -> Result<Chunk, CycleError> {
        if self.trouble.is_over() {
            return Err(CycleError::Stopped);
        }
        self.spare.recv().map_err(|_| CycleError::Broken("no chunks"))
    }

    /// Ships a chunk.
    ///
    /// # Errors
    /// If the next stage is gone.
    pub fn send(&self, chunk: Chunk) -> Result<(), CycleError> {
        self.full.send(chunk).map_err(|_| CycleError::Broken("no compressor"))
    }

    /// Ships a run of zeroes.
    ///
    /// # Errors
    /// If the next stage is gone.
    pub fn zero(&self, range: SectorRange) -> Result<(), CycleError> {
        self.parts.send(Part::Zero(range)).map_err(|_| CycleError::Broken("no assembler"))
    }
}

//! The superblock file: reading it, and writing its next generation.

use std::io;

use backstay_format::superblock::{SLOT_BYTES, SLOTS, Superblock};

use crate::TrackError;
use crate::env::{Env, StateFile};
use crate::error::Doing;

pub(crate) const FILE: &str = "super";

/// The superblock as it is on disk now.
pub(crate) struct Meta<F> {
    file: F,
    current: Superblock,
}

impl<F: StateFile> Meta<F> {
    /// Reads the newest whole superblock; `None` for a new disk.
    pub fn open<E: Env<File = F>>(env: &E) -> Result<Option<Self>, TrackError> {
        let Some(file) = env.open(FILE).doing("opening the superblock")? else {
            return Ok(None);
        };
        let len =
            file.len_bytes().doing("reading the superblock")?.min((SLOT_BYTES * SLOTS) as u64);
        let mut bytes = vec![0; len as usize];
        file.read_at(&mut bytes, 0).doing("reading the superblock")?;
        let current = Superblock::newest(&bytes).map_err(TrackError::Superblock)?;
        Ok(Some(Self { file, current }))
    }

    /// Makes the first superblock.
    pub fn create<E: Env<File = F>>(env: &E, first: Superblock) -> Result<Self, TrackError> {
        let mut content = vec![0; SLOT_BYTES * SLOTS];
        let at = first.slot() * SLOT_BYTES;
        content[at..at + SLOT_BYTES].copy_from_slice(&first.encode());
        let file = env.create(FILE, &content).doing("making the superblock")?;
        Ok(Self { file, current: first })
    }

    /// The superblock that is durable.
    pub fn get(&self) -> &Superblock {
        &self.current
    }

    /// Writes a changed superblock durably. If that fails, the old one stays valid.
    pub fn change(&mut self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let mut next = self.current.clone();
        change(&mut next);
        next.generation = self.current.generation + 1;
        self.file.write_durable(&next.encode(), (next.slot() * SLOT_BYTES) as u64)?;
        self.current = next;
        Ok(())
    }
}

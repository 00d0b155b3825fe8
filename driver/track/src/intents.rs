//! Write intents: a durable note that a region may change, made before its first change (I1).
//!
//! The fast path loads one bit. The first write to a region in an epoch joins a group commit. If no
//! commit is running, the writer becomes the leader: it writes the blocks of all waiting writers, with
//! one durable write per run of blocks. The other writers wait for the leader.

use std::io;
use std::ops::Range;

use backstay_format::intents::{
    BLOCK_BYTES, BLOCK_MAP_BYTES, BLOCK_REGIONS, HEADER_BYTES, IntentHeader, block_of,
    block_offset, encode_block,
};
use backstay_format::superblock::Geometry;
use backstay_types::{DiskId, EpochNo, Region};

use crate::bitmap::RegionBits;
use crate::env::{Env, StateFile};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, lock};

/// Words of region bits in one block.
const BLOCK_WORDS: usize = BLOCK_MAP_BYTES / 8;
/// Limit of blocks in one durable write (32 KiB).
const RUN_BLOCKS_MAX: usize = 64;

/// The intents of one epoch.
pub(crate) struct Intents<F> {
    epoch: EpochNo,
    /// Regions whose intent is durable.
    durable: RegionBits,
    file: F,
    commit: Mutex<Commit>,
    round_done: Condvar,
    commits: AtomicU64,
}

/// The input of the next group commit.
struct Commit {
    /// All regions requested so far, as the bits of the blocks.
    asked: Box<[u64]>,
    /// Blocks with requested regions that are not durable yet. No duplicates, any order.
    blocks: Vec<u32>,
    /// The leader's own copy of `blocks` while it writes; swapped, never reallocated.
    writing: Vec<u32>,
    /// The bytes of one run of blocks.
    run: Vec<u8>,
    /// The round that a new request joins.
    round: u64,
    /// Whether a leader is writing the previous round.
    leading: bool,
    /// The last round that was written.
    done: u64,
    /// Set once a durable write has failed. No intent of this epoch can be made after that.
    failed: Option<io::ErrorKind>,
}

impl<F: StateFile> Intents<F> {
    /// Makes the file of an epoch, with intents for the `declared` regions. It is durable on return.
    pub fn create<E: Env<File = F>>(
        env: &E,
        name: &str,
        disk: DiskId,
        epoch: EpochNo,
        geometry: Geometry,
        declared: &RegionBits,
    ) -> io::Result<Self> {
        let regions = geometry.regions();
        let blocks = regions.div_ceil(BLOCK_REGIONS) as usize;
        let durable = RegionBits::new(blocks as u32 * BLOCK_REGIONS);
        let mut asked = vec![0u64; blocks * BLOCK_WORDS].into_boxed_slice();
        for region in declared.runs().flatten() {
            asked[region as usize / 64] |= 1 << (region % 64);
            durable.set(region);
        }
        let mut content = vec![0u8; IntentHeader::file_bytes(regions) as usize];
        content[..HEADER_BYTES].copy_from_slice(&IntentHeader { disk, epoch, regions }.encode());
        for block in 0..blocks {
            if asked[block * BLOCK_WORDS..][..BLOCK_WORDS].iter().any(|&w| w != 0) {
                let at = block_offset(block as u32) as usize;
                content[at..at + BLOCK_BYTES].copy_from_slice(&block_bytes(
                    epoch,
                    &asked,
                    block as u32,
                ));
            }
        }
        let file = env.create(name, &content)?;
        Ok(Self {
            epoch,
            durable,
            file,
            commit: Mutex::new(Commit {
                asked,
                blocks: Vec::with_capacity(blocks),
                writing: Vec::with_capacity(blocks),
                run: Vec::with_capacity(RUN_BLOCKS_MAX * BLOCK_BYTES),
                round: 1,
                leading: false,
                done: 0,
                failed: None,
            }),
            round_done: Condvar::new(),
            commits: AtomicU64::new(0),
        })
    }

    /// Whether every region has a durable intent.
    pub fn has_all(&self, regions: Range<u32>) -> bool {
        self.durable.has_all(regions)
    }

    /// Number of group commits.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Makes the intents of regions durable, and waits for that.
    ///
    /// # Errors
    /// If the state directory cannot be written. Every later call for a region without an intent then
    /// fails at once.
    pub fn declare(&self, regions: Range<u32>) -> io::Result<()> {
        let mut commit = lock(&self.commit);
        if self.has_all(regions.clone()) {
            return Ok(());
        }
        for region in regions {
            let (word, bit) = (region as usize / 64, 1 << (region % 64));
            if !self.durable.has(region) {
                commit.asked[word] |= bit;
                let block = block_of(Region(region));
                // Regions come in order, so usually this is the last block.
                if commit.blocks.last() != Some(&block) && !commit.blocks.contains(&block) {
                    commit.blocks.push(block);
                }
            }
        }
        let mine = commit.round;
        loop {
            if let Some(kind) = commit.failed {
                return Err(kind.into());
            }
            if commit.done >= mine {
                return Ok(());
            }
            if commit.leading {
                commit =
                    self.round_done.wait(commit).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            }
            commit.leading = true;
            commit = self.lead_round(commit);
            self.round_done.notify_all();
        }
    }

    /// Writes all requested blocks. Releases the lock during the writes.
    fn lead_round<'a>(
        &'a self,
        mut commit: crate::sync::MutexGuard<'a, Commit>,
    ) -> crate::sync::MutexGuard<'a, Commit> {
        let round = commit.round;
        commit.round += 1;
        let state = &mut *commit;
        std::mem::swap(&mut state.blocks, &mut state.writing);
        let mut writing = std::mem::take(&mut state.writing);
        let mut run = std::mem::take(&mut state.run);
        writing.sort_unstable();
        let mut next = 0;
        while next < writing.len() && commit.failed.is_none() {
            let first = writing[next];
            run.clear();
            while next < writing.len()
                && u64::from(writing[next]) == u64::from(first) + (run.len() / BLOCK_BYTES) as u64
                && run.len() < RUN_BLOCKS_MAX * BLOCK_BYTES
            {
                run.extend_from_slice(&block_bytes(self.epoch, &commit.asked, writing[next]));
                next += 1;
            }
            drop(commit);
            let written = self.file.write_durable(&run, block_offset(first));
            commit = lock(&self.commit);
            match written {
                Ok(()) => self.publish(first, &run),
                Err(e) => commit.failed = Some(e.kind()),
            }
        }
        writing.clear();
        commit.writing = writing;
        commit.run = run;
        commit.leading = false;
        commit.done = round;
        self.commits.fetch_add(1, Ordering::Relaxed);
        commit
    }

    /// Marks exactly those regions as durable whose bits were in the written bytes.
    fn publish(&self, first: u32, run: &[u8]) {
        for (i, block) in run.chunks_exact(BLOCK_BYTES).enumerate() {
            let base = (first + i as u32) * BLOCK_REGIONS;
            for (byte, bits) in block[BLOCK_BYTES - BLOCK_MAP_BYTES..].iter().enumerate() {
                (0..8)
                    .filter(|bit| bits & (1 << bit) != 0)
                    .for_each(|bit| self.durable.set(base + byte as u32 * 8 + bit));
            }
        }
    }
}

fn block_bytes(epoch: EpochNo, asked: &[u64], block: u32) -> [u8; BLOCK_BYTES] {
    let mut map = [0u8; BLOCK_MAP_BYTES];
    let words = &asked[block as usize * BLOCK_WORDS..][..BLOCK_WORDS];
    for (bytes, word) in map.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    encode_block(epoch, &map)
}

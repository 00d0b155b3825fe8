//! Writers whose every block says who wrote it and when, and the log of what was acknowledged.
//!
//! Each writer owns blocks of its own and writes them one at a time: `(block, sequence)`. For any
//! instant its log says which sequence a block must hold at least (acknowledged before) and at most
//! (begun before). That is the oracle for recovery points and for crashes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fastrand::Rng;

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;

/// A write: which, when it was begun, when it was acknowledged (never, if it failed).
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// The block.
    pub block: u64,
    /// The writer's sequence number; it is in the block.
    pub sequence: u64,
    /// Nanoseconds since 1970.
    pub begun_ns: u64,
    /// Nanoseconds since 1970.
    pub acked_ns: Option<u64>,
}

/// What a writer did.
#[derive(Debug, Default)]
pub struct Log {
    /// Every write, in order.
    pub writes: Vec<Write>,
    /// Sequence of the last write that a successful fsync covered; 0 before the first.
    pub flushed: u64,
    /// Whether it ended because the disk was gone.
    pub disk_gone: bool,
}

/// Ends writers when it is dropped, also by a panic of the test that started them.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The wall clock.
pub fn now_ns() -> u64 {
    backstay_host::clock::now_unix_ns()
}

/// Opens a disk past the page cache.
pub fn open_direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A page-aligned block, as direct I/O wants it.
#[repr(C, align(4096))]
pub struct Block(pub [u8; BLOCK_BYTES]);

/// Fills a block with its stamp: every 16 bytes say block and sequence.
pub fn stamp(block: u64, sequence: u64) -> Box<Block> {
    let mut out = Box::new(Block([0; BLOCK_BYTES]));
    for part in out.0.chunks_exact_mut(16) {
        part[..8].copy_from_slice(&(block ^ 0xB10C).to_le_bytes());
        part[8..].copy_from_slice(&sequence.to_le_bytes());
    }
    out
}

/// The sequence in a block: 0 if never written.
///
/// # Errors
/// If it is no whole stamp of this block.
pub fn read_stamp(block: u64, bytes: &[u8]) -> Result<u64, String> {
    if bytes.iter().all(|&b| b == 0) {
        return Ok(0);
    }
    let sequence = u64::from_le_bytes(bytes[8..16].try_into().map_err(|_| "short block")?);
    if bytes == stamp(block, sequence).0 {
        Ok(sequence)
    } else {
        Err(format!("block {block} is torn or of another place (sequence {sequence})"))
    }
}

/// Writes random blocks of its own until told to stop or the disk is gone. Flushes now and then.
pub fn write_until(
    stop: &AtomicBool,
    disk: &File,
    blocks: std::ops::Range<u64>,
    first_sequence: u64,
    seed: u64,
) -> Log {
    let mut rng = Rng::with_seed(seed);
    let mut log = Log::default();
    let mut sequence = first_sequence;
    // Half of the writes go to a tenth of the blocks, as guests do.
    let hot = blocks.start + (blocks.end - blocks.start) / 10;
    while !stop.load(Ordering::Relaxed) {
        sequence += 1;
        let end = if rng.bool() { hot.max(blocks.start + 1) } else { blocks.end };
        let block = rng.u64(blocks.start..end);
        let content = stamp(block, sequence);
        let begun_ns = now_ns();
        let done = disk.write_all_at(&content.0, block * BLOCK_BYTES as u64);
        let acked_ns = done.is_ok().then(now_ns);
        log.writes.push(Write { block, sequence, begun_ns, acked_ns });
        if done.is_err() {
            log.disk_gone = true;
            return log;
        }
        if rng.u32(0..64) == 0 {
            if disk.sync_data().is_err() {
                log.disk_gone = true;
                return log;
            }
            log.flushed = sequence;
        }
    }
    log
}

/// Checks every block of an image against what a log says it must hold at an instant.
///
/// # Errors
/// The first block that holds something older than acknowledged, newer than begun, or torn.
pub fn check_at(
    log: &[Write],
    blocks: std::ops::Range<u64>,
    image: &File,
    at_ns: u64,
) -> Result<(), String> {
    let mut least = std::collections::HashMap::new();
    let mut most = std::collections::HashMap::new();
    for write in log {
        if write.acked_ns.is_some_and(|acked| acked < at_ns) {
            least.insert(write.block, write.sequence);
        }
        if write.begun_ns < at_ns {
            most.insert(write.block, write.sequence);
        }
    }
    for block in blocks {
        let bytes = super::host::read_at(image, block * BLOCK_BYTES as u64, BLOCK_BYTES);
        let there = read_stamp(block, &bytes)?;
        let (min, max) = (least.get(&block).unwrap_or(&0), most.get(&block).unwrap_or(&0));
        if there < *min || there > *max {
            return Err(format!(
                "block {block} holds sequence {there}; it must hold {min} (acknowledged before \
                 the cut) to {max} (begun before it)"
            ));
        }
    }
    Ok(())
}

/// Checks a disk after a crash: nothing flushed is lost, nothing is torn or newer than written.
///
/// # Errors
/// The first block that breaks this.
pub fn check_flushed(log: &Log, blocks: std::ops::Range<u64>, disk: &File) -> Result<(), String> {
    let mut least = std::collections::HashMap::new();
    let mut most = std::collections::HashMap::new();
    for write in &log.writes {
        // A write that failed with its disk promises nothing, whatever was flushed later.
        if write.sequence <= log.flushed && write.acked_ns.is_some() {
            least.insert(write.block, write.sequence);
        }
        most.insert(write.block, write.sequence);
    }
    for block in blocks {
        let mut bytes = Box::new(Block([0; BLOCK_BYTES]));
        disk.read_exact_at(&mut bytes.0, block * BLOCK_BYTES as u64)
            .map_err(|e| format!("block {block}: {e}"))?;
        let there = read_stamp(block, &bytes.0)?;
        let (min, max) = (least.get(&block).unwrap_or(&0), most.get(&block).unwrap_or(&u64::MAX));
        if there < *min || there > *max {
            return Err(format!("block {block} holds {there}, flushed {min}, last written {max}"));
        }
    }
    Ok(())
}

//! Pages of the point that were fetched, in a file of bounded size. docs/explanation/format.md has it field by field.
//!
//! Nothing is ever synced. Each page's checksum is compared whenever it is read, so what a power loss has
//! torn, or a slot that had another block then, is a page that is not there.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use backstay_types::{ByteLen, PointId};

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Sectors of a page.
pub(crate) const PAGE_SECTORS: u64 = 8;
/// Pages of a slot.
const PAGES: usize = 16;
const SLOT_BYTES: u64 = (PAGES * PAGE_BYTES) as u64;
const SHARDS: usize = 16;
/// Most bytes of a cache: what is remembered of 64 GiB takes some 100 MiB of memory.
const BYTES_MAX: u64 = 64 << 30;

const MAGIC: &[u8; 8] = b"BSTYCACH";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 96;

pub(crate) struct Cache {
    data: File,
    map: File,
    shards: Vec<Mutex<Shard>>,
    used: AtomicU64,
    /// Its disk is full or failing: nothing more is cached.
    off: AtomicBool,
}

#[derive(Default)]
struct Shard {
    /// Where a block is.
    slots_of: HashMap<u64, usize>,
    slots: Vec<Slot>,
    /// The next one to look at for one that may go.
    hand: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// Its block, unless no page is valid.
    block: u64,
    valid: u16,
    /// Read since the hand passed.
    used: bool,
    sums: [u32; PAGES],
}

impl Slot {
    const EMPTY: Self = Self { block: 0, valid: 0, used: false, sums: [0; PAGES] };
}

impl Cache {
    /// Opens the cache of a point in a directory; one of another point or size is emptied.
    pub fn open(dir: &Path, point: PointId, limit: ByteLen) -> io::Result<Self> {
        let open = |name: &str| {
            let mut how = OpenOptions::new();
            how.read(true).write(true).create(true).truncate(false).mode(0o600);
            how.open(dir.join(name))
        };
        let (data, map) = (open("cache.data")?, open("cache.map")?);
        let slots = (limit.0.min(BYTES_MAX) / SLOT_BYTES) as usize / SHARDS * SHARDS;
        let head = head(point, slots as u32);
        let mut bytes = vec![0; HEAD_BYTES + slots * RECORD_BYTES];
        let whole = map.read_exact_at(&mut bytes, 0).is_ok() && bytes[..HEAD_BYTES] == head;
        if !whole {
            data.set_len(0)?;
            map.set_len(0)?;
            bytes.fill(0);
            map.write_all_at(&head, 0)?;
        }
        map.set_len(bytes.len() as u64)?;
        data.set_len(slots as u64 * SLOT_BYTES)?;
        let mut used = 0;
        let mut shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::default()).collect();
        for (number, record) in bytes[HEAD_BYTES..].chunks_exact(RECORD_BYTES).enumerate() {
            let shard = &mut shards[number % SHARDS];
            let at = shard.slots.len();
            let slot = decode(record)
                // Only where it would be looked for, and once.
                .filter(|slot| slot.block as usize % SHARDS == number % SHARDS)
                .filter(|slot| !shard.slots_of.contains_key(&slot.block));
            if let Some(slot) = slot.filter(|slot| slot.valid != 0) {
                shard.slots_of.insert(slot.block, at);
                used += u64::from(slot.valid.count_ones()) * PAGE_BYTES as u64;
            }
            shard.slots.push(slot.unwrap_or(Slot::EMPTY));
        }
        Ok(Self {
            data,
            map,
            shards: shards.into_iter().map(Mutex::new).collect(),
            used: AtomicU64::new(used),
            off: AtomicBool::new(false),
        })
    }

    /// Bytes in it.
    pub fn used(&self) -> ByteLen {
        ByteLen(self.used.load(Ordering::Relaxed))
    }

    /// The most there may be.
    pub fn limit(&self) -> ByteLen {
        let slots: usize = self.shards.iter().map(|shard| lock(shard).slots.len()).sum();
        ByteLen(slots as u64 * SLOT_BYTES)
    }

    /// Whether a page is in it.
    pub fn has(&self, page: u64) -> bool {
        let (block, bit) = place(page);
        let shard = self.shard(block);
        shard.slots_of.get(&block).is_some_and(|&at| shard.slots[at].valid & bit != 0)
    }

    /// Reads a page; false if it is not there.
    pub fn read(&self, page: u64, out: &mut [u8]) -> bool {
        let (block, bit) = place(page);
        let mut shard = self.shard(block);
        let Some(&at) = shard.slots_of.get(&block) else { return false };
        let slot = &mut shard.slots[at];
        if slot.valid & bit == 0 {
            return false;
        }
        slot.used = true;
        let number = page as usize % PAGES;
        let read = self.data.read_exact_at(out, self.at(block, at, number));
        if read.is_ok() && sum(page, out) == slot.sums[number] {
            return true;
        }
        tracing::debug!("page {page} of the cache is damaged: fetched again");
        slot.valid &= !bit;
        self.used.fetch_sub(PAGE_BYTES as u64, Ordering::Relaxed);
        false
    }

    /// Keeps a page, in place of what was not read for long.
    pub fn put(&self, page: u64, bytes: &[u8]) {
        if self.off.load(Ordering::Relaxed) {
            return;
        }
        let (block, bit) = place(page);
        let mut shard = self.shard(block);
        let Some(at) = shard.slot_for(block, &self.used) else { return };
        let number = page as usize % PAGES;
        let slot = &mut shard.slots[at];
        let mut next = *slot;
        next.sums[number] = sum(page, bytes);
        next.valid |= bit;
        let record_at = HEAD_BYTES + self.number(block, at) * RECORD_BYTES;
        let put = self
            .data
            .write_all_at(bytes, self.at(block, at, number))
            .and_then(|()| self.map.write_all_at(&encode(&next), record_at as u64));
        if let Err(e) = put {
            tracing::warn!("the cache cannot be written ({e}): nothing more is cached");
            self.off.store(true, Ordering::Relaxed);
            return;
        }
        if slot.valid & bit == 0 {
            self.used.fetch_add(PAGE_BYTES as u64, Ordering::Relaxed);
        }
        *slot = next;
    }

    fn shard(&self, block: u64) -> MutexGuard<'_, Shard> {
        lock(&self.shards[block as usize % SHARDS])
    }

    /// The number of a shard's slot among all.
    fn number(&self, block: u64, slot: usize) -> usize {
        slot * SHARDS + block as usize % SHARDS
    }

    fn at(&self, block: u64, slot: usize, page: usize) -> u64 {
        self.number(block, slot) as u64 * SLOT_BYTES + (page * PAGE_BYTES) as u64
    }
}

impl Shard {
    /// The slot of a block, a free one, or one whose block goes.
    fn slot_for(&mut self, block: u64, used: &AtomicU64) -> Option<usize> {
        if let Some(&at) = self.slots_of.get(&block) {
            return Some(at);
        }
        let at = loop {
            let (at, slots) = (self.hand, self.slots.len());
            let slot = self.slots.get_mut(at)?;
            self.hand = (at + 1) % slots;
            // A second chance for what was read since.
            if slot.valid == 0 || !std::mem::take(&mut slot.used) {
                break at;
            }
        };
        let old = std::mem::replace(&mut self.slots[at], Slot { block, ..Slot::EMPTY });
        if self.slots_of.get(&old.block) == Some(&at) {
            self.slots_of.remove(&old.block);
        }
        used.fetch_sub(u64::from(old.valid.count_ones()) * PAGE_BYTES as u64, Ordering::Relaxed);
        self.slots_of.insert(block, at);
        Some(at)
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn place(page: u64) -> (u64, u16) {
    (page / PAGES as u64, 1 << (page % PAGES as u64))
}

/// The checksum of a page, which is of this page only.
fn sum(page: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), bytes)
}

fn head(point: PointId, slots: u32) -> [u8; HEAD_BYTES] {
    let mut out = [0; HEAD_BYTES];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[12..16].copy_from_slice(&slots.to_le_bytes());
    out[16..32].copy_from_slice(&point.to_bytes());
    let crc = crc32c::crc32c(&out[..HEAD_BYTES - 4]);
    out[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn encode(slot: &Slot) -> [u8; RECORD_BYTES] {
    let mut out = [0; RECORD_BYTES];
    out[..8].copy_from_slice(&slot.block.to_le_bytes());
    out[8..10].copy_from_slice(&slot.valid.to_le_bytes());
    for (bytes, sum) in out[16..80].chunks_exact_mut(4).zip(slot.sums) {
        bytes.copy_from_slice(&sum.to_le_bytes());
    }
    let crc = crc32c::crc32c(&out[..RECORD_BYTES - 4]);
    out[RECORD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
    out
}

fn decode(record: &[u8]) -> Option<Slot> {
    let number =
        |at: usize| record.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    if record.len() != RECORD_BYTES
        || number(RECORD_BYTES - 4)? != crc32c::crc32c(&record[..RECORD_BYTES - 4])
    {
        return None;
    }
    let mut sums = [0; PAGES];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = number(16 + 4 * i)?;
    }
    let block = u64::from(number(0)?) | u64::from(number(4)?) << 32;
    Some(Slot { block, valid: (number(8)? & 0xFFFF) as u16, used: false, sums })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        fastrand::Rng::with_seed(page).fill(&mut bytes);
        bytes
    }

    fn point(id: u8) -> PointId {
        PointId::from_bytes([id; 16])
    }

    /// Whatever is found is right; how many pages are.
    fn check(cache: &Cache, pages: u64) -> u64 {
        let mut out = vec![0; PAGE_BYTES];
        let mut found = 0;
        for page in 0..pages {
            if cache.read(page, &mut out) {
                assert!(out == content(page), "page {page}");
                found += 1;
            }
        }
        found
    }

    #[test]
    fn it_is_bounded_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let limit = ByteLen(4 << 20);
        let cache = Cache::open(dir.path(), point(1), limit).unwrap();
        assert_eq!(cache.limit(), limit);
        (0..4000).for_each(|page| cache.put(page, &content(page)));
        let found = check(&cache, 4000);
        assert_eq!(found, 1024);
        assert_eq!(cache.used(), limit);
        let again = Cache::open(dir.path(), point(1), limit).unwrap();
        assert_eq!((check(&again, 4000), again.used()), (found, limit));
        assert_eq!(check(&Cache::open(dir.path(), point(2), limit).unwrap(), 4000), 0);
        let none = Cache::open(dir.path(), point(1), ByteLen(0)).unwrap();
        none.put(5, &content(5));
        assert_eq!(check(&none, 10), 0);
    }

    /// Any of the two files as it was at another time, damaged, or zero: right pages or none.
    #[test]
    fn torn_files_cost_pages_only() {
        let dir = tempfile::tempdir().unwrap();
        let limit = ByteLen(2 << 20);
        let cache = Cache::open(dir.path(), point(1), limit).unwrap();
        (0..500).for_each(|page| cache.put(page, &content(page)));
        let paths = ["cache.data", "cache.map"].map(|name| dir.path().join(name));
        let old = paths.clone().map(|path| std::fs::read(path).unwrap());
        (300..1300).for_each(|page| cache.put(page, &content(page)));
        let new = paths.clone().map(|path| std::fs::read(path).unwrap());
        let mut rng = fastrand::Rng::with_seed(4);
        for round in 0..40 {
            for (file, path) in paths.iter().enumerate() {
                // Each sector from either time.
                let mut bytes = old[file].clone();
                for (to, from) in bytes.chunks_mut(512).zip(new[file].chunks(512)) {
                    match rng.u8(0..50) {
                        0 => to.fill(0),
                        1 => rng.fill(to),
                        n if n % 2 == 0 => to.copy_from_slice(from),
                        _ => {}
                    }
                }
                // The header is written once and never again.
                if file == 1 && round > 0 {
                    bytes[..HEAD_BYTES].copy_from_slice(&new[file][..HEAD_BYTES]);
                }
                std::fs::write(path, bytes).unwrap();
            }
            let cache = Cache::open(dir.path(), point(1), limit).unwrap();
            check(&cache, 1300);
            (0..200).for_each(|page| cache.put(page * 7, &content(page * 7)));
            check(&cache, 1400);
        }
    }
}

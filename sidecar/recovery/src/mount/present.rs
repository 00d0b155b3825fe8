//! Which sectors are in the overlay, in memory: a bit a sector where anything is, and one number below
//! which everything is.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use backstay_types::SectorRange;

use super::map::{CHUNK_SECTORS, CHUNK_WORDS, Words};

/// Locks over the chunks, so that readers seldom meet.
const SHARDS: u64 = 64;

type Shard = RwLock<HashMap<u64, Box<Words>>>;

pub(crate) struct Present {
    shards: Vec<Shard>,
    whole_to: AtomicU64,
    /// Chunks with bits that are not in the map on disk.
    dirty: Mutex<HashSet<u64>>,
    /// Bits set from `whole_to` on, about: growth of `whole_to` does not look at each.
    bits: AtomicU64,
    /// What is here is not sure any more.
    broken: AtomicBool,
}

impl Present {
    pub fn new(whole_to: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            whole_to: AtomicU64::new(whole_to),
            dirty: Mutex::default(),
            bits: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        }
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Takes the mark back to what is durable, after a failed sync; from then on nothing is written.
    pub fn lower_whole_to(&self, sector: u64) {
        self.broken.store(true, Ordering::Release);
        self.whole_to.fetch_min(sector, Ordering::AcqRel);
    }

    pub fn whole_to(&self) -> u64 {
        self.whole_to.load(Ordering::Acquire)
    }

    /// Sectors in the overlay.
    pub fn count(&self) -> u64 {
        self.whole_to() + self.bits.load(Ordering::Relaxed)
    }

    /// Whether all sectors of a run are in the overlay.
    pub fn has(&self, run: SectorRange) -> bool {
        run.end.0 <= self.whole_to() || self.runs(run, false).is_empty()
    }

    /// The runs inside `run` that are in the overlay, or that are not.
    pub fn runs(&self, run: SectorRange, wanted: bool) -> Vec<SectorRange> {
        let whole = self.whole_to().clamp(run.start.0, run.end.0);
        let mut out: Vec<SectorRange> = vec![];
        let mut add = |from: u64, to: u64| match out.last_mut() {
            Some(last) if last.end.0 == from => last.end.0 = to,
            _ => out.push(SectorRange::new(from, to)),
        };
        if wanted && whole > run.start.0 {
            add(run.start.0, whole);
        }
        for piece in SectorRange::new(whole, run.end.0).split_at_multiples(CHUNK_SECTORS) {
            let number = piece.start.0 / CHUNK_SECTORS;
            let shard = self.shard(number).read().unwrap_or_else(PoisonError::into_inner);
            let Some(words) = shard.get(&number) else {
                if !wanted {
                    add(piece.start.0, piece.end.0);
                }
                continue;
            };
            let base = number * CHUNK_SECTORS;
            let mut at = piece.start.0;
            while at < piece.end.0 {
                let (word, bit) = word_of(at - base);
                // The run of equal bits from here to the word's end.
                let bits = words[word] >> bit;
                let is_set = bits & 1 == 1;
                let same = if is_set { bits.trailing_ones() } else { bits.trailing_zeros() };
                let end = (at + u64::from(same.min(64 - bit))).min(piece.end.0);
                if is_set == wanted {
                    add(at, end);
                }
                at = end;
            }
        }
        out
    }

    /// Says that sectors are in the overlay.
    pub fn set(&self, run: SectorRange) {
        let whole = self.whole_to().clamp(run.start.0, run.end.0);
        for piece in SectorRange::new(whole, run.end.0).split_at_multiples(CHUNK_SECTORS) {
            let number = piece.start.0 / CHUNK_SECTORS;
            let mut added = 0;
            {
                let mut shard = self.shard(number).write().unwrap_or_else(PoisonError::into_inner);
                let words = shard.entry(number).or_insert_with(|| Box::new([0; CHUNK_WORDS]));
                let base = number * CHUNK_SECTORS;
                let mut at = piece.start.0;
                while at < piece.end.0 {
                    let (word, bit) = word_of(at - base);
                    let n = (64 - u64::from(bit)).min(piece.end.0 - at);
                    let mask = (u64::MAX >> (64 - n)) << bit;
                    added += u64::from((mask & !words[word]).count_ones());
                    words[word] |= mask;
                    at += n;
                }
            }
            if added > 0 {
                self.bits.fetch_add(added, Ordering::Relaxed);
                self.dirty.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            }
        }
    }

    /// Says that everything below a sector is in the overlay. Bits below it are forgotten.
    pub fn set_whole_to(&self, sector: u64) {
        let before = self.whole_to();
        self.whole_to.store(sector, Ordering::Release);
        let mut forgotten = 0;
        for piece in SectorRange::new(before, sector).split_at_multiples(CHUNK_SECTORS) {
            let number = piece.start.0 / CHUNK_SECTORS;
            let mut shard = self.shard(number).write().unwrap_or_else(PoisonError::into_inner);
            let Some(words) = shard.get_mut(&number) else { continue };
            let base = number * CHUNK_SECTORS;
            for at in piece.as_range() {
                let (word, bit) = word_of(at - base);
                forgotten += words[word] >> bit & 1;
                words[word] &= !(1 << bit);
            }
            if (number + 1) * CHUNK_SECTORS <= sector {
                shard.remove(&number);
                self.dirty.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
            }
        }
        self.bits.fetch_sub(forgotten, Ordering::Relaxed);
    }

    /// Takes the chunks whose bits are not in the map on disk, with their bits as they are now.
    pub fn take_dirty(&self) -> Vec<(u64, Box<Words>)> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let mut numbers: Vec<u64> = dirty.drain().collect();
        drop(dirty);
        numbers.sort_unstable();
        let words = |number: u64| {
            let shard = self.shard(number).read().unwrap_or_else(PoisonError::into_inner);
            Some((number, shard.get(&number)?.clone()))
        };
        numbers.into_iter().filter_map(words).collect()
    }

    /// Puts back what [`Self::take_dirty`] took and could not be written.
    pub fn put_back(&self, chunks: impl IntoIterator<Item = u64>) {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).extend(chunks);
    }

    /// Replaces the bits of a chunk by what the map on disk says.
    pub fn load(&self, number: u64, words: &Words) {
        let ones = |words: &Words| words.iter().map(|w| u64::from(w.count_ones())).sum::<u64>();
        let mut words = *words;
        let base = number * CHUNK_SECTORS;
        for at in base..self.whole_to().clamp(base, base + CHUNK_SECTORS) {
            let (word, bit) = word_of(at - base);
            words[word] &= !(1 << bit);
        }
        let mut shard = self.shard(number).write().unwrap_or_else(PoisonError::into_inner);
        let before = shard.insert(number, Box::new(words));
        self.bits.fetch_add(ones(&words), Ordering::Relaxed);
        self.bits.fetch_sub(before.map_or(0, |before| ones(&before)), Ordering::Relaxed);
    }

    fn shard(&self, chunk: u64) -> &Shard {
        &self.shards[(chunk % SHARDS) as usize]
    }
}

/// Word and bit of the n-th sector of a chunk.
fn word_of(sector: u64) -> (usize, u32) {
    ((sector / 64) as usize, (sector % 64) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_what_was_set() {
        let present = Present::new(0);
        let run = SectorRange::new;
        present.set(run(10, 75));
        present.set(run(CHUNK_SECTORS - 1, CHUNK_SECTORS + 1));
        assert_eq!(present.runs(run(0, 100), true), [run(10, 75)]);
        assert_eq!(present.runs(run(0, 100), false), [run(0, 10), run(75, 100)]);
        assert!(present.has(run(64, 75)) && !present.has(run(64, 76)));
        assert_eq!(present.count(), 67);
        present.set_whole_to(70);
        assert_eq!(present.runs(run(0, 100), true), [run(0, 75)]);
        assert_eq!(present.count(), 75 + 2);
        present.set(run(5, 80));
        assert_eq!(present.count(), 80 + 2);
        let dirty: Vec<u64> = present.take_dirty().into_iter().map(|(number, _)| number).collect();
        assert_eq!(dirty, [0, 1]);
        present.set_whole_to(2 * CHUNK_SECTORS);
        assert_eq!(present.count(), 2 * CHUNK_SECTORS);
    }
}

//! Sets of sectors: what must move, what arrived, what was written already.
//!
//! Sectors are kept in chunks of 32,768 (one page of a bitmap): a chunk is absent, full, or 4 KiB
//! of bits. So a whole 16 TiB disk is a million small entries, and scattered sectors cost what the
//! driver's own bitmap costs.

use std::collections::BTreeMap;

use backstay_format::SectorRange;

/// Sectors in a chunk.
const CHUNK_SECTORS: u64 = 32_768;
/// Words in a chunk.
const CHUNK_WORDS: usize = 512;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunk {
    Full,
    Bits(Box<[u64; CHUNK_WORDS]>),
}

impl Chunk {
    fn word(&self, word: usize) -> u64 {
        match self {
            Self::Full => u64::MAX,
            Self::Bits(bits) => bits[word],
        }
    }
}

/// A set of sectors.
#[derive(Debug, Default, Clone)]
pub struct SectorSet {
    chunks: BTreeMap<u64, Chunk>,
    count: u64,
}

/// Which of two sets has what the other lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The set asked.
    Left,
    /// The other one.
    Right,
}

impl SectorSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sectors in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a run; returns how many of its sectors were new.
    pub fn insert(&mut self, range: SectorRange) -> u64 {
        let before = self.count;
        for piece in range.split_at_multiples(CHUNK_SECTORS) {
            let number = piece.start.0 / CHUNK_SECTORS;
            if piece.sectors() == CHUNK_SECTORS {
                let had = self.chunks.insert(number, Chunk::Full);
                self.count += CHUNK_SECTORS - had.as_ref().map_or(0, chunk_count);
                continue;
            }
            for part in piece.split_at_multiples(64) {
                let word = (part.start.0 % CHUNK_SECTORS / 64) as usize;
                self.insert_word(number, word, mask(part));
            }
        }
        self.count - before
    }

    /// Adds a word of a bitmap: bit `i` is sector `64 word + i`.
    pub fn insert_bits(&mut self, word: u64, bits: u64) {
        let (number, word) = (word / CHUNK_WORDS as u64, (word % CHUNK_WORDS as u64) as usize);
        self.insert_word(number, word, bits);
    }

    fn insert_word(&mut self, number: u64, word: usize, bits: u64) {
        if bits == 0 {
            return;
        }
        let chunk =
            self.chunks.entry(number).or_insert_with(|| Chunk::Bits(Box::new([0; CHUNK_WORDS])));
        if let Chunk::Bits(words) = chunk {
            self.count += u64::from((bits & !words[word]).count_ones());
            words[word] |= bits;
            // Only the last word to fill a chunk can make it full.
            if words[word] == u64::MAX && words.iter().all(|&w| w == u64::MAX) {
                *chunk = Chunk::Full;
            }
        }
    }

    /// Whether a sector is in the set.
    #[must_use]
    pub fn contains(&self, sector: u64) -> bool {
        self.word(sector / 64) & (1 << (sector % 64)) != 0
    }

    fn word(&self, word: u64) -> u64 {
        self.chunks
            .get(&(word / CHUNK_WORDS as u64))
            .map_or(0, |chunk| chunk.word((word % CHUNK_WORDS as u64) as usize))
    }

    /// The runs of a range that are (or are not) in the set.
    #[must_use]
    pub fn runs_within(&self, range: SectorRange, wanted: bool) -> Vec<SectorRange> {
        let mut runs: Vec<SectorRange> = vec![];
        let mut add = |run: SectorRange| match runs.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => runs.push(run),
        };
        for piece in range.split_at_multiples(CHUNK_SECTORS) {
            match self.chunks.get(&(piece.start.0 / CHUNK_SECTORS)) {
                None if wanted => {}
                None => add(piece),
                Some(Chunk::Full) if wanted => add(piece),
                Some(Chunk::Full) => {}
                Some(chunk) => {
                    for part in piece.split_at_multiples(64) {
                        let word = chunk.word((part.start.0 % CHUNK_SECTORS / 64) as usize);
                        let bits = if wanted { word } else { !word } & mask(part);
                        for_each_run(bits, |from, to| {
                            let base = part.start.0 / 64 * 64;
                            add(SectorRange::new(base + from, base + to));
                        });
                    }
                }
            }
        }
        runs
    }

    /// All runs of the set, in order, chunk by chunk: a run never crosses a chunk.
    pub fn runs(&self) -> impl Iterator<Item = SectorRange> {
        self.chunks.keys().flat_map(|number| {
            let start = number * CHUNK_SECTORS;
            self.runs_within(SectorRange::new(start, start + CHUNK_SECTORS), true)
        })
    }

    /// The first run that only one of two sets has.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(SectorRange, Side)> {
        let mut numbers: Vec<u64> =
            self.chunks.keys().chain(other.chunks.keys()).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            let (left, right) = (self.chunks.get(&number), other.chunks.get(&number));
            if left == right {
                continue;
            }
            for word in 0..CHUNK_WORDS {
                let of = |chunk: Option<&Chunk>| chunk.map_or(0, |chunk| chunk.word(word));
                let (left, right) = (of(left), of(right));
                if left == right {
                    continue;
                }
                let first = (left ^ right).trailing_zeros();
                let side = if left & (1 << first) != 0 { Side::Left } else { Side::Right };
                let only = if side == Side::Left { left & !right } else { right & !left };
                let len = (!(only >> first)).trailing_zeros().min(64 - first);
                let start = number * CHUNK_SECTORS + word as u64 * 64 + u64::from(first);
                return Some((SectorRange::new(start, start + u64::from(len)), side));
            }
        }
        None
    }

    /// A digest of the set: BLAKE3 over its runs, joined up, as pairs of little-endian numbers
    /// (first sector, sector after the last).
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut put = |run: SectorRange| {
            hasher.update(&run.start.0.to_le_bytes());
            hasher.update(&run.end.0.to_le_bytes());
        };
        let mut last: Option<SectorRange> = None;
        for run in self.runs() {
            last = Some(match last {
                Some(open) if open.end == run.start => {
                    SectorRange { start: open.start, end: run.end }
                }
                Some(open) => {
                    put(open);
                    run
                }
                None => run,
            });
        }
        last.into_iter().for_each(put);
        *hasher.finalize().as_bytes()
    }
}

fn chunk_count(chunk: &Chunk) -> u64 {
    match chunk {
        Chunk::Full => CHUNK_SECTORS,
        Chunk::Bits(words) => words.iter().map(|w| u64::from(w.count_ones())).sum(),
    }
}

/// The bits of a run that lies in one word.
fn mask(part: SectorRange) -> u64 {
    let ones = if part.sectors() == 64 { u64::MAX } else { (1 << part.sectors()) - 1 };
    ones << (part.start.0 % 64)
}

/// Calls for each run of ones with its first bit and the bit after its last.
fn for_each_run(mut bits: u64, mut each: impl FnMut(u64, u64)) {
    let mut base = 0;
    while bits != 0 {
        let skip = u64::from(bits.trailing_zeros());
        bits >>= skip;
        let len = u64::from((!bits).trailing_zeros()).min(64 - base - skip);
        each(base + skip, base + skip + len);
        base += skip + len;
        bits = if len == 64 { 0 } else { bits >> len };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0u64..100_000, 0u64..40_000), 0..20)
    }

    fn both(ranges: &[(u64, u64)]) -> (SectorSet, BTreeSet<u64>) {
        let (mut set, mut plain) = (SectorSet::new(), BTreeSet::new());
        for &(start, len) in ranges {
            let before = plain.len();
            plain.extend(start..start + len);
            let fresh = set.insert(SectorRange::new(start, start + len));
            assert_eq!(fresh as usize, plain.len() - before);
        }
        (set, plain)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_plain_set(a in ranges(), b in ranges()) {
            let ((left, plain), (right, other)) = (both(&a), both(&b));
            prop_assert_eq!(left.count() as usize, plain.len());
            let listed: BTreeSet<u64> = left.runs().flat_map(|r| r.as_range()).collect();
            prop_assert_eq!(&listed, &plain);
            let window = SectorRange::new(5_000, 70_001);
            let missing: BTreeSet<u64> =
                left.runs_within(window, false).iter().flat_map(|r| r.as_range()).collect();
            let expected: BTreeSet<u64> =
                window.as_range().filter(|s| !plain.contains(s)).collect();
            prop_assert_eq!(missing, expected);
            let first = plain.symmetric_difference(&other).next().copied();
            let found = left.first_difference(&right);
            prop_assert_eq!(found.map(|(range, _)| range.start.0), first);
            if let Some((range, side)) = found {
                for s in range.as_range() {
                    prop_assert_eq!(plain.contains(&s), side == Side::Left);
                    prop_assert_eq!(other.contains(&s), side == Side::Right);
                }
            }
            prop_assert_eq!(left.digest() == right.digest(), plain == other);
        }
    }

    #[test]
    fn a_whole_large_disk_is_small() {
        let mut set = SectorSet::new();
        set.insert(SectorRange::new(0, 1 << 35));
        assert_eq!(set.count(), 1 << 35);
        assert!(set.chunks.values().all(|chunk| *chunk == Chunk::Full));
    }
}

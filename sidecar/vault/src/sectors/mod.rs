//! Sets of sectors: what must move, what arrived, what was written already.
//!
//! Sectors are kept in chunks of 32,768 (one page of a bitmap). Full chunks are runs of chunks, so a
//! whole disk of any size is one entry; partial ones hold runs, or bits when there are many runs. So
//! a set costs what it holds, never what the disk could hold.

mod chunk;
mod newest;

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use backstay_types::SectorRange;

pub use newest::NewestWins;

use chunk::{CHUNK_SECTORS, Chunk, for_each_run};

/// A set of sectors.
#[derive(Debug, Default, Clone)]
pub struct SectorSet {
    /// Runs of full chunks: number of the first, number after the last. They do not touch.
    full: BTreeMap<u64, u64>,
    /// Chunks that are neither empty nor full, by number.
    partial: BTreeMap<u64, Chunk>,
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

/// What a stretch of a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stretch<'a> {
    Empty,
    Full,
    /// Within one chunk.
    Partial(&'a Chunk),
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
        let (first, last) = (range.start.0.div_ceil(CHUNK_SECTORS), range.end.0 / CHUNK_SECTORS);
        if first < last {
            let (start, end) = (first * CHUNK_SECTORS, last * CHUNK_SECTORS);
            self.insert_part(SectorRange::new(range.start.0, start));
            self.insert_full(first, last);
            self.insert_part(SectorRange::new(end, range.end.0));
        } else {
            for piece in range.split_at_multiples(CHUNK_SECTORS) {
                self.insert_part(piece);
            }
        }
        self.count - before
    }

    /// Adds a word of a bitmap: bit `i` is sector `64 word + i`.
    pub fn insert_bits(&mut self, word: u64, bits: u64) {
        for_each_run(bits, |from, to| {
            self.insert_part(SectorRange::new(word * 64 + from, word * 64 + to));
        });
    }

    /// Adds a run within one chunk.
    fn insert_part(&mut self, part: SectorRange) {
        if part.is_empty() {
            return;
        }
        let number = part.start.0 / CHUNK_SECTORS;
        if self.full_run(number).is_some() {
            return;
        }
        let base = number * CHUNK_SECTORS;
        let chunk = self.partial.entry(number).or_default();
        // Both are less than a chunk's sectors, which fit.
        let new = chunk.insert((part.start.0 - base) as u16, (part.end.0 - 1 - base) as u16);
        self.count += new;
        if new > 0 && chunk.is_full() {
            // Which takes the chunk's sectors away and adds them again.
            self.insert_full(number, number + 1);
        }
    }

    /// Adds whole chunks.
    fn insert_full(&mut self, first: u64, last: u64) {
        let inside: Vec<u64> = self.partial.range(first..last).map(|(&number, _)| number).collect();
        for number in inside {
            self.count -= self.partial.remove(&number).map_or(0, |chunk| chunk.count());
        }
        let (mut start, mut end, mut had) = (first, last, 0);
        while let Some((&from, &to)) =
            self.full.range(..=last).next_back().filter(|(_, to)| **to >= first)
        {
            had += to.min(last).saturating_sub(from.max(first));
            (start, end) = (start.min(from), end.max(to));
            self.full.remove(&from);
        }
        self.full.insert(start, end);
        self.count += (last - first - had) * CHUNK_SECTORS;
    }

    /// The run of full chunks that a chunk is in.
    fn full_run(&self, number: u64) -> Option<(u64, u64)> {
        let (&from, &to) = self.full.range(..=number).next_back()?;
        (number < to).then_some((from, to))
    }

    /// What starts at a sector, and the sector after its end, which is at most `end`.
    fn stretch(&self, at: u64, end: u64) -> (Stretch<'_>, u64) {
        let number = at / CHUNK_SECTORS;
        if let Some((_, to)) = self.full_run(number) {
            return (Stretch::Full, (to * CHUNK_SECTORS).min(end));
        }
        if let Some(chunk) = self.partial.get(&number) {
            return (Stretch::Partial(chunk), ((number + 1) * CHUNK_SECTORS).min(end));
        }
        let full = self.full.range(number..).next().map(|(&number, _)| number);
        let after = (Excluded(number), Unbounded);
        let partial = self.partial.range(after).next().map(|(&number, _)| number);
        let next = full.into_iter().chain(partial).min().map_or(end, |n| n * CHUNK_SECTORS);
        (Stretch::Empty, next.min(end))
    }

    /// Whether a sector is in the set.
    #[must_use]
    pub fn contains(&self, sector: u64) -> bool {
        !self.runs_within(SectorRange::new(sector, sector + 1), true).is_empty()
    }

    /// The runs of a range that are (or are not) in the set.
    #[must_use]
    pub fn runs_within(&self, range: SectorRange, wanted: bool) -> Vec<SectorRange> {
        let mut runs: Vec<SectorRange> = vec![];
        let mut add = |from: u64, to: u64| match runs.last_mut() {
            _ if from >= to => {}
            Some(last) if last.end.0 == from => last.end.0 = to,
            _ => runs.push(SectorRange::new(from, to)),
        };
        let (mut at, last) = (range.start.0, range.end.0);
        while at < last {
            let (stretch, end) = self.stretch(at, last);
            match stretch {
                Stretch::Full if wanted => add(at, end),
                Stretch::Empty if !wanted => add(at, end),
                Stretch::Full | Stretch::Empty => {}
                Stretch::Partial(chunk) => {
                    let base = at / CHUNK_SECTORS * CHUNK_SECTORS;
                    let mut gap = at;
                    chunk.for_each_run(at - base, end - base, |from, to| {
                        if wanted {
                            add(base + from, base + to)
                        } else {
                            add(gap, base + from)
                        }
                        gap = base + to;
                    });
                    if !wanted {
                        add(gap, end);
                    }
                }
            }
            at = end;
        }
        runs
    }

    /// All runs of the set, in order, chunk by chunk: a run never crosses a chunk.
    pub fn runs(&self) -> impl Iterator<Item = SectorRange> {
        let end = self.end();
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < end {
                let start = at;
                let chunk_end = (at / CHUNK_SECTORS + 1) * CHUNK_SECTORS;
                let (stretch, stop) = self.stretch(start, end);
                match stretch {
                    Stretch::Empty => at = stop,
                    Stretch::Full => {
                        at = chunk_end;
                        return Some(vec![SectorRange::new(start, chunk_end)]);
                    }
                    Stretch::Partial(_) => {
                        at = chunk_end;
                        return Some(self.runs_within(SectorRange::new(start, chunk_end), true));
                    }
                }
            }
            None
        })
        .flatten()
    }

    /// The end of the last chunk that holds anything.
    fn end(&self) -> u64 {
        let full = self.full.last_key_value().map_or(0, |(_, &to)| to);
        let partial = self.partial.last_key_value().map_or(0, |(&number, _)| number + 1);
        full.max(partial) * CHUNK_SECTORS
    }

    /// The first run that only one of two sets has.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<(SectorRange, Side)> {
        let last = self.end().max(other.end());
        let mut at = 0;
        while at < last {
            let (left, left_end) = self.stretch(at, last);
            let (right, right_end) = other.stretch(at, last);
            let end = left_end.min(right_end);
            if left != right {
                let window = SectorRange::new(at, end);
                let runs = (self.runs_within(window, true), other.runs_within(window, true));
                if let Some(found) = first_difference(&runs.0, &runs.1) {
                    return Some(found);
                }
            }
            at = end;
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
        let (mut at, end) = (0, self.end());
        while at < end {
            let (_, stop) = self.stretch(at, end);
            for run in self.runs_within(SectorRange::new(at, stop), true) {
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
            at = stop;
        }
        last.into_iter().for_each(put);
        *hasher.finalize().as_bytes()
    }
}

/// The first run that only one of two lists of joined-up runs has.
fn first_difference(left: &[SectorRange], right: &[SectorRange]) -> Option<(SectorRange, Side)> {
    let at = left.iter().zip(right).take_while(|(l, r)| l == r).count();
    let only = |run: SectorRange, side, until: u64| {
        Some((SectorRange::new(run.start.0, run.end.0.min(until)), side))
    };
    match (left.get(at).copied(), right.get(at).copied()) {
        (None, None) => None,
        (Some(l), None) => only(l, Side::Left, u64::MAX),
        (None, Some(r)) => only(r, Side::Right, u64::MAX),
        (Some(l), Some(r)) if l.start < r.start => only(l, Side::Left, r.start.0),
        (Some(l), Some(r)) if r.start < l.start => only(r, Side::Right, l.start.0),
        // They start together; the longer one has the rest, up to where the other begins again.
        (Some(l), Some(r)) if l.end > r.end => {
            let again = right.get(at + 1).map_or(u64::MAX, |next| next.start.0);
            only(SectorRange { start: r.end, end: l.end }, Side::Left, again)
        }
        (Some(l), Some(r)) => {
            let again = left.get(at + 1).map_or(u64::MAX, |next| next.start.0);
            only(SectorRange { start: l.end, end: r.end }, Side::Right, again)
        }
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

    fn dense() -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0u64..36_000, 0u64..20), 0..1_500)
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
        fn behaves_like_a_plain_set(
            a in prop_oneof![ranges(), dense()],
            b in prop_oneof![ranges(), dense()],
        ) {
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
        assert_eq!((set.full.len(), set.partial.len()), (1, 0));
        // However it came to be whole.
        let mut pieces = SectorSet::new();
        for piece in SectorRange::new(0, 1 << 20).split_at_multiples(513).collect::<Vec<_>>() {
            pieces.insert(piece);
        }
        assert_eq!((pieces.full.len(), pieces.partial.len()), (1, 0));
        assert_eq!(pieces.count(), 1 << 20);
    }

    /// The digest stands in manifests, so it must not change with how sets are kept.
    #[test]
    fn a_digest_does_not_depend_on_how_a_set_is_kept() {
        let mut expected = blake3::Hasher::new();
        let (mut words, mut runs) = (SectorSet::new(), SectorSet::new());
        // Dense enough for bits in the first chunk, runs in the others, one across two chunks.
        let mut wanted: Vec<SectorRange> =
            (0..2_000).map(|i| SectorRange::new(i * 16, i * 16 + 5)).collect();
        wanted.push(SectorRange::new(32_700, 32_900));
        wanted.push(SectorRange::new(65_536, 131_072));
        for &run in wanted.iter().rev() {
            runs.insert(run);
        }
        for run in &wanted {
            expected.update(&run.start.0.to_le_bytes());
            expected.update(&run.end.0.to_le_bytes());
        }
        for word in 0..131_072 / 64 {
            let bits = (0..64).filter(|i| runs.contains(word * 64 + i)).map(|i| 1u64 << i).sum();
            words.insert_bits(word, bits);
        }
        assert_eq!(runs.digest(), *expected.finalize().as_bytes());
        assert_eq!(words.digest(), runs.digest());
        assert_eq!(words.first_difference(&runs), None);
        assert_eq!(words.count(), runs.count());
    }
}

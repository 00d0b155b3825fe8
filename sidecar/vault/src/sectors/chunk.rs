//! A chunk that is neither empty nor full: a few runs, or bits when there are many.
//!
//! Runs cost 4 bytes each, so scattered sectors of a large disk stay cheap, anyone who chose them; from
//! [`RUNS_MAX`] runs on, 4 KiB of bits are smaller and faster.

/// Sectors in a chunk: one page of a bitmap.
pub(super) const CHUNK_SECTORS: u64 = 32_768;
const WORDS: usize = 512;
/// Most runs kept as such.
const RUNS_MAX: usize = 256;

/// Part of a chunk's sectors, counted from the chunk's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Chunk {
    /// First and last sector of each run, in order; runs do not touch.
    Runs(Vec<(u16, u16)>),
    /// A bit for each sector.
    Bits(Box<[u64; WORDS]>),
}

impl Default for Chunk {
    fn default() -> Self {
        Self::Runs(vec![])
    }
}

impl Chunk {
    /// Adds the sectors from `first` to `last`; returns how many were new.
    pub fn insert(&mut self, first: u16, last: u16) -> u64 {
        match self {
            Self::Bits(bits) => insert_bits(bits, first, last),
            Self::Runs(runs) => {
                let new = insert_run(runs, first, last);
                if runs.len() > RUNS_MAX {
                    let mut bits = Box::new([0; WORDS]);
                    for &(first, last) in runs.iter() {
                        insert_bits(&mut bits, first, last);
                    }
                    *self = Self::Bits(bits);
                }
                new
            }
        }
    }

    /// Whether every sector is there.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Runs(runs) => {
                matches!(runs[..], [(0, last)] if u64::from(last) + 1 == CHUNK_SECTORS)
            }
            Self::Bits(bits) => bits.iter().all(|&word| word == u64::MAX),
        }
    }

    /// Sectors there.
    pub fn count(&self) -> u64 {
        match self {
            Self::Runs(runs) => runs.iter().map(|&run| len(run)).sum(),
            Self::Bits(bits) => bits.iter().map(|word| u64::from(word.count_ones())).sum(),
        }
    }

    /// Calls for each run within `from..to` with its first sector and the one after its last. Runs
    /// that touch may come in pieces.
    pub fn for_each_run(&self, from: u64, to: u64, mut each: impl FnMut(u64, u64)) {
        match self {
            Self::Runs(runs) => {
                let at = runs.partition_point(|&(_, last)| u64::from(last) < from);
                for &(first, last) in runs[at..].iter().take_while(|run| u64::from(run.0) < to) {
                    each(u64::from(first).max(from), (u64::from(last) + 1).min(to));
                }
            }
            Self::Bits(bits) => {
                for word in from / 64..to.div_ceil(64) {
                    let base = word * 64;
                    let low = u64::MAX << from.saturating_sub(base);
                    let high = u64::MAX >> (base + 64).saturating_sub(to);
                    for_each_run(bits[word as usize] & low & high, |a, b| each(base + a, base + b));
                }
            }
        }
    }
}

fn len((first, last): (u16, u16)) -> u64 {
    u64::from(last) - u64::from(first) + 1
}

/// Adds a run, joined with all it touches.
fn insert_run(runs: &mut Vec<(u16, u16)>, first: u16, last: u16) -> u64 {
    let from = runs.partition_point(|run| u32::from(run.1) + 1 < first.into());
    let to = runs.partition_point(|run| u32::from(run.0) <= u32::from(last) + 1);
    let touched = &runs[from..to];
    let had: u64 = touched.iter().map(|&run| len(run)).sum();
    let joined = match (touched.first(), touched.last()) {
        (Some(a), Some(b)) => (first.min(a.0), last.max(b.1)),
        _ => (first, last),
    };
    if to == from + 1 {
        runs[from] = joined;
    } else {
        runs.splice(from..to, [joined]);
    }
    len(joined) - had
}

fn insert_bits(bits: &mut [u64; WORDS], first: u16, last: u16) -> u64 {
    let (from, to) = (usize::from(first / 64), usize::from(last / 64));
    let mut new = 0;
    for (word, held) in bits.iter_mut().enumerate().take(to + 1).skip(from) {
        let low = if word == from { u64::MAX << (first % 64) } else { u64::MAX };
        let high = if word == to { u64::MAX >> (63 - last % 64) } else { u64::MAX };
        new += u64::from((low & high & !*held).count_ones());
        *held |= low & high;
    }
    new
}

/// Calls for each run of ones with its first bit and the bit after its last.
pub(super) fn for_each_run(mut bits: u64, mut each: impl FnMut(u64, u64)) {
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

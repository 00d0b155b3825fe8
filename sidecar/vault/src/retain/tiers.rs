//! Which segments to merge: a pure function of a list, so that its bounds can be tested by the
//! thousand.
//!
//! A *run* is what one attempt at a cycle, or one merge, put: entries that follow each other in the
//! list. Runs fall into tiers by their size, each eight times the one below; many runs of low tiers
//! become one of a higher. So a list has O(log) runs and each byte is rewritten O(log) times. The
//! oldest run, usually the whole disk, is merged in only when enough of it is dead.

use std::ops::Range;

use crate::format::manifest::SegmentRef;

/// Runs of one tier that make one of the next.
pub const FAN: usize = 8;
/// Bytes below which a run is of the lowest tier.
const UNIT_BYTES: u64 = 1 << 20;

/// What one attempt or one merge put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which entries of the list.
    pub entries: Range<usize>,
    /// Bytes of their objects.
    pub bytes: u64,
    /// Sectors they hold as data.
    pub data_sectors: u64,
    /// Sectors they say are zero.
    pub zero_sectors: u64,
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// Merge all runs from this one on.
    From(usize),
    /// Merge from this one on; or everything, if the runs before it hold more than half as many
    /// sectors of data that are dead as are alive. Only the indexes can tell: zeroes are over them.
    FromOrAll(usize),
}

/// The runs of a list.
#[must_use]
pub fn runs(list: &[SegmentRef]) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![];
    let mut of = None;
    for (i, entry) in list.iter().enumerate() {
        let this = Some((entry.cycle, entry.attempt));
        match runs.last_mut().filter(|_| of == this) {
            Some(run) => {
                run.entries.end = i + 1;
                run.bytes = run.bytes.saturating_add(entry.object.0);
                run.data_sectors = run.data_sectors.saturating_add(entry.data_sectors);
                run.zero_sectors = run.zero_sectors.saturating_add(entry.zero_sectors);
            }
            None => runs.push(Run {
                entries: i..i + 1,
                bytes: entry.object.0,
                data_sectors: entry.data_sectors,
                zero_sectors: entry.zero_sectors,
            }),
        }
        of = this;
    }
    runs
}

/// A run's tier.
#[must_use]
pub fn tier(bytes: u64) -> usize {
    match bytes / UNIT_BYTES {
        0 => 0,
        units => 1 + units.ilog(FAN as u64) as usize,
    }
}

/// Most runs that a list has after what is due was merged, the oldest one of them not counted in the
/// highest tier.
#[must_use]
pub fn runs_max(highest_tier: usize) -> usize {
    1 + FAN * (highest_tier + 1)
}

/// What is due for these runs of a disk of so many sectors.
#[must_use]
pub fn due(runs: &[Run], disk_sectors: u64) -> Due {
    let Some(base) = runs.first() else { return Due::Nothing };
    // A first cycle ships what is written meanwhile once more: in one run, and twice.
    if base.data_sectors > disk_sectors.saturating_add(disk_sectors / 4) {
        return Due::From(0);
    }
    let Some(second) = runs.get(1) else { return Due::Nothing };
    // What is newer than the base: sectors of data, as if none were there twice.
    let data: u64 = runs[1..].iter().fold(0, |sum, run| sum.saturating_add(run.data_sectors));
    if second.data_sectors > base.data_sectors / 2 || data > base.data_sectors {
        return Due::From(0);
    }
    let mut from = tiers_due(runs);
    // They may be the same few sectors again and again: merged first, they show what they are.
    let since = data - second.data_sectors;
    if data > base.data_sectors / 2 && since > base.data_sectors / 4 && runs.len() > 2 {
        from = Some(1);
    }
    let hidden = runs[1..].iter().fold(data, |sum, run| sum.saturating_add(run.zero_sectors));
    match from {
        None => Due::Nothing,
        Some(from) if hidden > base.data_sectors / 2 => Due::FromOrAll(from),
        Some(from) => Due::From(from),
    }
}

/// Where to merge from so that no suffix of low tiers has too many runs.
fn tiers_due(runs: &[Run]) -> Option<usize> {
    let mut sizes: Vec<u64> = runs[1..].iter().map(|run| run.bytes).collect();
    let mut from = None;
    let mut limit = 0;
    while limit <= sizes.iter().map(|&bytes| tier(bytes)).max()? {
        let suffix = sizes.iter().rev().take_while(|&&bytes| tier(bytes) <= limit).count();
        if suffix >= FAN * (limit + 1) {
            let at = sizes.len() - suffix;
            // What it becomes, at most; that may make a higher tier due.
            let merged = sizes.drain(at..).fold(0, u64::saturating_add);
            sizes.push(merged);
            from = Some(at + 1);
        }
        limit += 1;
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::bounds::Bounds;
    use backstay_types::{ByteLen, CycleNo};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn run(at: usize, mib: u64) -> Run {
        let data_sectors = mib * 2048;
        Run { entries: at..at + 1, bytes: mib * MIB, data_sectors, zero_sectors: 0 }
    }

    fn of(sizes: &[u64]) -> Vec<Run> {
        sizes.iter().enumerate().map(|(at, &mib)| run(at, mib)).collect()
    }

    #[test]
    fn entries_of_one_attempt_are_one_run() {
        let entry = |cycle, attempt, number| SegmentRef {
            cycle: CycleNo(cycle),
            attempt,
            number,
            object: ByteLen(10),
            data_sectors: 3,
            zero_sectors: 4,
            bounds: Bounds::UNKNOWN,
            index_digest: [0; 32],
        };
        let list = [entry(1, 9, 0), entry(1, 9, 1), entry(2, 9, 0), entry(2, 8, 0)];
        let runs = runs(&list);
        let entries: Vec<_> = runs.iter().map(|run| run.entries.clone()).collect();
        assert_eq!(entries, [0..2, 2..3, 3..4]);
        assert_eq!((runs[0].bytes, runs[0].data_sectors, runs[0].zero_sectors), (20, 6, 8));
    }

    #[test]
    fn eight_small_runs_become_one() {
        let disk = 1 << 30;
        let mut sizes = vec![100_000; 1];
        sizes.extend([0; 7]);
        assert_eq!(due(&of(&sizes), disk), Due::Nothing);
        sizes.push(0);
        assert_eq!(due(&of(&sizes), disk), Due::From(1));
        // 512 MiB below, then seven of 64 MiB, then eight that together become the eighth.
        let mut sizes = vec![100_000, 4096];
        sizes.extend([2; 15]);
        assert_eq!(due(&of(&sizes), disk), Due::Nothing);
        sizes.push(2);
        assert_eq!(due(&of(&sizes), disk), Due::From(2));
    }

    #[test]
    fn the_base_is_merged_when_much_of_it_is_dead() {
        let disk = 1 << 30;
        assert_eq!(due(&of(&[100, 51]), disk), Due::From(0));
        assert_eq!(due(&of(&[100, 50]), disk), Due::Nothing);
        // Perhaps the same sectors: first these.
        assert_eq!(due(&of(&[100, 24, 27]), disk), Due::FromOrAll(1));
        assert_eq!(due(&of(&[100, 24, 24]), disk), Due::Nothing);
        // So much that the list would be more than twice the disk.
        assert_eq!(due(&of(&[100, 24, 77]), disk), Due::From(0));
        // Merged, they were the same indeed: nothing to do.
        assert_eq!(due(&of(&[100, 49, 1]), disk), Due::Nothing);
        // A first cycle that shipped much of the disk twice.
        assert_eq!(due(&of(&[100]), 100 * 2048), Due::Nothing);
        assert_eq!(due(&of(&[126]), 100 * 2048), Due::From(0));
        assert_eq!(due(&[], 8), Due::Nothing);
    }

    #[test]
    fn zeroes_are_looked_into_when_a_merge_is_due_anyway() {
        let mut runs = of(&[100_000, 1, 1, 1, 1, 1, 1, 1]);
        runs[3].zero_sectors = 1 << 40;
        assert_eq!(due(&runs, 1 << 50), Due::Nothing);
        runs.extend(of(&[1; 16]));
        assert!(matches!(due(&runs, 1 << 50), Due::FromOrAll(_)));
    }

    proptest! {
        /// However runs come, with a merge each time one is due: few runs, and every byte is
        /// rewritten a bounded number of times.
        #[test]
        fn runs_and_rewrites_stay_bounded(sizes in prop::collection::vec(
            prop_oneof![Just(0u64), 1u64..8, 8u64..64, 64u64..4096], 1..400)
        ) {
            // So large that nothing is ever dead.
            let mut list = vec![1u64 << 30];
            let (mut came, mut rewritten, mut highest) = (0u64, 0u64, 0usize);
            for size in sizes {
                list.push(size);
                came += size.max(1);
                highest = highest.max(tier(size * MIB));
                if let Due::From(from) | Due::FromOrAll(from) = due(&of(&list), u64::MAX) {
                    prop_assert!(from >= 1);
                    let merged: u64 = list.drain(from..).sum();
                    rewritten += merged;
                    highest = highest.max(tier(merged * MIB));
                    list.push(merged);
                }
                prop_assert!(list.len() <= runs_max(highest), "{} runs, tier {}", list.len(), highest);
                // Once for each tier, and a little for what is there already.
                prop_assert!(rewritten <= came * (highest as u64 + 1) * 2, "{rewritten} of {came}");
            }
        }

        /// However runs come and whatever of them is the same again: a list holds at most twice what
        /// its oldest run holds.
        #[test]
        fn a_list_stays_below_twice_its_oldest_run(
            disk in 100u64..10_000,
            came in prop::collection::vec((1u64..10_000, 0u64..100), 1..200),
        ) {
            let mut list = vec![disk];
            for (size, same_percent) in came {
                list.push(size.min(disk));
                if let Due::From(from) | Due::FromOrAll(from) = due(&of(&list), disk * 2048) {
                    let merged: u64 = list.drain(from..).sum();
                    // At least the largest of them, at most the disk.
                    let once = merged - merged * same_percent / 100;
                    list.push(if from == 0 { disk } else { once.clamp(1, disk) });
                }
                let newer: u64 = list[1..].iter().sum();
                prop_assert!(newer <= list[0], "{newer} over {}", list[0]);
            }
        }

        /// Whatever the numbers say, nothing overflows and what is due exists.
        #[test]
        fn any_numbers(all in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..40),
                       disk: u64) {
            let runs: Vec<Run> = all.iter().enumerate().map(|(at, &(bytes, data, zero))| Run {
                entries: at..at + 1, bytes, data_sectors: data, zero_sectors: zero,
            }).collect();
            if let Due::From(from) | Due::FromOrAll(from) = due(&runs, disk) {
                prop_assert!(from < runs.len());
            }
        }
    }
}

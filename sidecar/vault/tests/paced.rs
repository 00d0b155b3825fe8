//! What is put through a paced vault is let through first, every byte of it, and no more.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_types::SectorRange;
use backstay_vault::{Pace, VaultError};
use common::Lab;

/// Lets 1,000 bytes through at a time, and gives up after a number of them.
struct Counter {
    left: AtomicU64,
}

impl Pace for Counter {
    fn let_through(&self, want: u64) -> Option<u64> {
        let some = want.min(1_000).min(self.left.load(Ordering::SeqCst));
        self.left.fetch_sub(some, Ordering::SeqCst);
        (some > 0).then_some(some)
    }
}

const ENOUGH: u64 = 1 << 40;

#[test]
fn all_bytes_of_segments_are_let_through() {
    let lab = Lab::new(4 << 20);
    let counter = Arc::new(Counter { left: AtomicU64::new(ENOUGH) });
    let vault = lab.vault.clone().paced(Arc::<Counter>::clone(&counter));
    let mut content = vec![0; 4 << 20];
    fastrand::Rng::with_seed(3).fill(&mut content);
    let runs = [SectorRange::new(0, 8192)];
    let put = common::ship(&vault, lab.disk, backstay_types::CycleNo(1), &content, &runs).unwrap();
    let bytes: u64 = put.iter().map(|segment| segment.object.0).sum();
    assert!(bytes > 4 << 20);
    assert_eq!(ENOUGH - counter.left.load(Ordering::SeqCst), bytes);
    // The handle it was made of is as before.
    lab.ship(1, &content, &runs);
    assert_eq!(ENOUGH - counter.left.load(Ordering::SeqCst), bytes);
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let lab = Lab::new(1 << 20);
    let before = lab.objects();
    let vault = lab.vault.clone().paced(Arc::new(Counter { left: AtomicU64::new(300_000) }));
    let mut content = vec![0; 1 << 20];
    fastrand::Rng::with_seed(4).fill(&mut content);
    let runs = [SectorRange::new(0, 2048)];
    let put = common::ship(&vault, lab.disk, backstay_types::CycleNo(1), &content, &runs);
    assert!(matches!(put, Err(VaultError::Stopped { .. })), "{put:?}");
    assert_eq!(lab.objects(), before);
}

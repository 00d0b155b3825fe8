//! A point handed on in order is the point.

mod common;

use std::io;

use backstay_types::{ByteLen, Classified, CycleNo};
use backstay_vault::read::ordered::{InOrder, in_order, in_rounds};
use backstay_vault::{Manifest, Vault, VaultError};
use common::{Lab, content, rewrite, some_runs};

#[derive(Default)]
struct Taken {
    bytes: Vec<u8>,
    room: Option<usize>,
}

impl InOrder for Taken {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        match self.room.is_some_and(|room| self.bytes.len() > room) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }
    fn zero(&mut self, len: ByteLen) -> io::Result<()> {
        self.data(&vec![0; len.0 as usize])
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

fn taken(vault: &Vault, point: &Manifest, runs_max: usize) -> Result<Vec<u8>, VaultError> {
    let mut taken = Taken::default();
    in_rounds(vault, point, &mut taken, 3, &|_, _| {}, runs_max)?;
    Ok(taken.bytes)
}

fn history(size: u64, seed: u64) -> (Lab, Vec<Manifest>, Vec<Vec<u8>>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let lab = Lab::new(size);
    let mut now = content(&mut rng, size);
    let mut points = vec![lab.cycle(None, &now, &[lab.whole()]).unwrap()];
    let mut then = vec![now.clone()];
    for _ in 0..4 {
        let runs = some_runs(&mut rng, lab.whole().end.0);
        rewrite(&mut rng, &mut now, &runs);
        points.push(lab.cycle(points.last(), &now, &runs).unwrap());
        then.push(now.clone());
    }
    (lab, points, then)
}

#[test]
fn every_point_in_order_whatever_fits_into_the_map() {
    for (seed, size) in [(1, 5 << 20), (2, (9 << 20) + 777), (3, 513), (4, 1)] {
        let (lab, points, then) = history(size, seed);
        for (point, then) in points.iter().zip(&then) {
            for runs_max in [2, 7, 1 << 20] {
                let taken = taken(&lab.vault, point, runs_max).unwrap();
                assert!(taken == *then, "point {}, seed {seed}, {runs_max} runs", point.cycle);
            }
        }
    }
}

/// Anyone who takes it and goes away ends it; nobody is left waiting.
#[test]
fn a_taker_that_fails_ends_it() {
    let (lab, points, then) = history(24 << 20, 5);
    let mut short = Taken { room: Some(9 << 20), ..Taken::default() };
    let failed = in_order(&lab.vault, &points[4], &mut short, 2, &|_, _| {}).unwrap_err();
    assert!(matches!(failed, VaultError::Target { .. }), "{failed}");
    assert!(then[4].starts_with(&short.bytes));
}

/// What is damaged is never handed on: a prefix of the disk, then an error.
#[test]
fn damage_ends_it_before_it_is_seen() {
    let (lab, points, then) = history(8 << 20, 6);
    let segments =
        lab.objects().into_iter().filter(|path| path.to_string_lossy().contains("/segments/"));
    for path in segments {
        let whole = std::fs::read(&path).unwrap();
        let mut bad = whole.clone();
        bad[100] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let mut taken = Taken::default();
        match in_order(&lab.vault, &points[4], &mut taken, 2, &|_, _| {}) {
            // That frame may not be needed any more.
            Ok(()) => assert!(taken.bytes == then[4]),
            Err(e) => assert!(e.is_damage() && then[4].starts_with(&taken.bytes), "{e}"),
        }
        std::fs::write(&path, whole).unwrap();
    }
    assert_eq!(lab.vault.points(lab.disk).unwrap().last(), Some(&CycleNo(5)));
}

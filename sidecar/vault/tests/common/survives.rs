//! Fuzz targets as ordinary tests; also for the crates above this one, each with its own corpus.

use std::path::Path;

/// Mutations of each file; `BACKSTAY_TEST_LONG` makes a hundred times as many.
const MUTATIONS: u64 = 2_000;

fn mutated(seed: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.usize(1..5) {
        let at = rng.usize(..bytes.len().max(1));
        match rng.u8(..5) {
            _ if bytes.is_empty() => bytes.push(rng.u8(..)),
            0 => bytes[at] ^= 1 << rng.u8(..8),
            1 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][rng.usize(..5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, rng.u8(..)),
            _ => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = rng.u8(..)),
        }
    }
    bytes
}

/// Runs a fuzz target over its corpus, the crate's golden files, and mutations of both.
pub fn survives(name: &str, target: fn(&[u8])) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let count = match std::env::var_os("BACKSTAY_TEST_LONG") {
        Some(_) => MUTATIONS * 100,
        None => MUTATIONS,
    };
    for folder in [here.join("fuzz/corpus").join(name), here.join("tests/golden")] {
        let entries = std::fs::read_dir(&folder).unwrap().collect::<Vec<_>>();
        assert!(!entries.is_empty(), "nothing in {}", folder.display());
        for entry in entries {
            let path = entry.unwrap().path();
            let seed = std::fs::read(&path).unwrap();
            target(&seed);
            let mut rng = fastrand::Rng::with_seed(seed.len() as u64);
            for n in 0..count {
                let bytes = mutated(&seed, &mut rng);
                let done = std::panic::catch_unwind(|| target(&bytes));
                assert!(done.is_ok(), "{name}: mutation {n} of {}", path.display());
            }
        }
    }
}

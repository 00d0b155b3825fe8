//! The fuzz targets as an ordinary test: over their corpus, the golden files, and mutations of
//! both from a fixed seed. Needs no nightly compiler; `cargo fuzz` goes deeper where there is one.

#[path = "../fuzz/entry.rs"]
mod entry;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Mutations of each file; `BACKSTAY_TEST_LONG` makes a hundred times as many.
const MUTATIONS: u64 = 2_000;

/// xorshift64*: enough for choosing places and bytes.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }
}

/// Bytes that are often right where a parser is wrong.
const EDGES: [u8; 6] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF];

fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.roll(4) {
        let at = dice.roll(bytes.len());
        // Mostly near the front: that is where the fields are.
        let at = if dice.roll(4) == 0 { at } else { at.min(dice.roll(256)) };
        match dice.roll(6) {
            _ if bytes.is_empty() => bytes.push(dice.roll(256) as u8),
            0 => bytes[at] ^= 1 << dice.roll(8),
            1 => bytes[at] = EDGES[dice.roll(EDGES.len())],
            2 => bytes[at] = dice.roll(256) as u8,
            3 => bytes.truncate(at),
            4 => bytes.insert(at, dice.roll(256) as u8),
            _ => {
                let run = bytes[at..].len().min(dice.roll(16) + 1);
                let edge = EDGES[dice.roll(EDGES.len())];
                bytes[at..at + run].fill(edge);
            }
        }
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

fn survives(name: &str, target: entry::Target) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seeds = files(&here.join("fuzz/corpus").join(name));
    assert!(!seeds.is_empty(), "no corpus for {name}");
    seeds.extend(files(&here.join("tests/golden")));
    let long = std::env::var_os("BACKSTAY_TEST_LONG").is_some();
    let count = if long { MUTATIONS * 100 } else { MUTATIONS };
    for (file, seed) in seeds {
        target(&seed);
        let mut dice = Dice(0xB5_7A7 ^ seed.len() as u64);
        for n in 0..count {
            let mut bytes = seed.clone();
            mutate(&mut bytes, &mut dice);
            let done = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
            assert!(done.is_ok(), "target {name}, mutation {n} of {file}");
        }
    }
}

#[test]
fn superblock() {
    survives("superblock", entry::superblock);
}

#[test]
fn intents() {
    survives("intents", entry::intents);
}

#[test]
fn preserved() {
    survives("preserved", entry::preserved);
}

#[test]
fn bitmap() {
    survives("bitmap", entry::bitmap);
}

#[test]
fn control() {
    survives("control", entry::control);
}

#[test]
fn fingerprint() {
    survives("fingerprint", entry::fingerprint);
}

#[test]
fn every_target_has_a_corpus_and_a_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    for (name, target) in entry::TARGETS {
        assert!(fuzz.join("fuzz_targets").join(format!("{name}.rs")).exists(), "{name}");
        assert!(fuzz.join("corpus").join(name).exists(), "{name}");
        target(&[]);
    }
}

//! What sealing costs one core, beside compressing: `cargo run --release -p backstay-vault --example sealing
//! FILE VAULT-DIR`. The same file goes into two new vaults, one of them encrypted, round after round.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_types::{CycleNo, DiskId, SectorRange};
use backstay_vault::encrypt::NewSlot;
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::{Vault, Vaults};

const ROUNDS: usize = 5;
const MIB: f64 = 1024.0 * 1024.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(root)) = (arguments.next(), arguments.next()) else {
        return Err("usage: sealing FILE VAULT-DIR".into());
    };
    let file = File::open(&path)?;
    let sectors = file.metadata()?.len() / 512;
    let (mut plain, mut sealed) = (vec![], vec![]);
    for round in 0..ROUNDS {
        for encrypted in [round % 2 == 0, round % 2 != 0] {
            let dir = Path::new(&root).join(format!("{round}-{encrypted}"));
            let url = dir.to_string_lossy().into_owned();
            let vault = match encrypted {
                true => {
                    let slot = NewSlot::KeyFile(vec![1; 64].into());
                    Vaults::default().create_encrypted(&url, "", &slot)?.0
                }
                false => Vaults::default().create(&url)?,
            };
            let (compressing, putting, stored) = ship(&vault, &file, sectors)?;
            let mib = stored as f64 / MIB;
            println!(
                "{}: compressing {:6.0} MiB/s of the disk; putting {:6.0} MiB/s of segments; {mib:.0} MiB",
                if encrypted { "sealed" } else { "plain " },
                sectors as f64 * 512.0 / MIB / compressing.as_secs_f64(),
                mib / putting.as_secs_f64(),
            );
            if encrypted { &mut sealed } else { &mut plain }.push(compressing + putting);
            std::fs::remove_dir_all(&dir)?;
        }
    }
    let median = |mut all: Vec<Duration>| {
        all.sort_unstable();
        all[all.len() / 2].as_secs_f64()
    };
    let (plain, sealed) = (median(plain), median(sealed));
    println!(
        "medians of {ROUNDS}: plain {plain:.3} s, sealed {sealed:.3} s: {:+.1} % on one core",
        (sealed / plain - 1.0) * 100.0
    );
    Ok(())
}

/// Ships the file; what compressing and what putting took, and how many bytes were put.
fn ship(
    vault: &Vault,
    file: &File,
    sectors: u64,
) -> Result<(Duration, Duration, u64), Box<dyn std::error::Error>> {
    let (disk, cycle) = (DiskId::random(), CycleNo(1));
    let mut compressor = Compressor::new(1)?;
    let (mut chunk, mut bytes) = (Chunk::with_room(), vec![0; 256 << 10]);
    let (mut compressing, mut putting, mut stored) = (Duration::ZERO, Duration::ZERO, 0);
    let mut number = 0;
    let mut builder = SegmentBuilder::new(disk, cycle, 1, number);
    for piece in SectorRange::new(0, sectors).split_at_multiples(512) {
        let bytes = &mut bytes[..piece.bytes().0 as usize];
        file.read_exact_at(bytes, piece.start.byte_offset().0)?;
        let began = Instant::now();
        chunk.push(piece, bytes);
        builder.push(compressor.seal(&mut chunk)?);
        compressing += began.elapsed();
        if builder.stored_bytes() >= 32 << 20 || piece.end.0 == sectors {
            number += 1;
            let next = SegmentBuilder::new(disk, cycle, 1, number);
            let full = std::mem::replace(&mut builder, next).finish(&mut compressor)?;
            let began = Instant::now();
            stored += vault.put_segment(full)?.object.0;
            putting += began.elapsed();
        }
    }
    Ok((compressing, putting, stored))
}

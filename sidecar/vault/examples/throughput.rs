//! How fast one core takes a file through the shipping path's middle, and a vault gives it back:
//! `cargo run --release -p backstay-vault --example throughput FILE VAULT-DIR`.

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use backstay_types::{ByteLen, CycleNo, DiskId, SectorRange, Term};
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::read::{FileTarget, restore, verify_point};
use backstay_vault::{
    Base, Consistency, CycleKind, DiskRecord, Pass, PointMeta, SectorSet, Vaults, verify_cycle,
};

const MIB: f64 = 1024.0 * 1024.0;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(root)) = (arguments.next(), arguments.next()) else {
        return Err("usage: throughput FILE VAULT-DIR".into());
    };
    let file = File::open(&path)?;
    let size = ByteLen(file.metadata()?.len());
    let (whole, disk, cycle) = (SectorRange::whole(size), DiskId::random(), CycleNo(1));
    let vault = Vaults::default().create(&root)?;
    vault.create_disk(&DiskRecord {
        disk,
        name: "throughput".parse()?,
        size_bytes: size,
        sector_bytes: 512,
        created_unix_ns: 0,
    })?;
    vault.term_or_first(disk, "throughput")?;
    let mut compressor = Compressor::new(1)?;
    let mut chunk = Chunk::with_room();
    let mut bytes = vec![0; 256 << 10];
    let (mut number, mut sealing) = (0, 0.0);
    let mut builder = SegmentBuilder::new(disk, cycle, 1, number);
    let mut segments = vec![];
    let started = Instant::now();
    for piece in whole.split_at_multiples(512) {
        let at = piece.start.byte_offset().0;
        let there = (size.0 - at).min(bytes.len() as u64) as usize;
        file.read_exact_at(&mut bytes[..there], at)?;
        let len = piece.bytes().0 as usize;
        bytes[there..len].fill(0);
        let began = Instant::now();
        chunk.push(piece, &bytes[..len]);
        builder.push(compressor.seal(&mut chunk)?);
        sealing += began.elapsed().as_secs_f64();
        if builder.stored_bytes() >= 32 << 20 {
            number += 1;
            let next = SegmentBuilder::new(disk, cycle, 1, number);
            let full = std::mem::replace(&mut builder, next);
            segments.push(vault.put_segment(full.finish(&mut compressor)?)?);
        }
    }
    segments.push(vault.put_segment(builder.finish(&mut compressor)?)?);
    let all = started.elapsed().as_secs_f64();
    let mib = size.0 as f64 / MIB;
    let stored = segments.iter().map(|s| s.object.0).sum::<u64>() as f64 / MIB;
    println!("{mib:.0} MiB became {stored:.0} MiB");
    println!("zero detection, checksums, zstd -1, one core: {:.0} MiB/s", mib / sealing);
    println!("with reading and durable puts, one thread:    {:.0} MiB/s", mib / all);
    let timed = Instant::now();
    let mut must_move = SectorSet::new();
    must_move.insert(whole);
    let verified = verify_cycle(&vault, disk, size, cycle, vec![Pass { must_move, segments }])?;
    let point = vault.commit(
        verified,
        PointMeta {
            term: Term(1),
            predecessor: None,
            base: Base::Nothing { continues: None },
            kind: CycleKind::Initial,
            point: backstay_types::PointId::random(),
            consistency: Consistency::Crash,
            cut_unix_ns: 1,
            written: ByteLen(0),
        },
    )?;
    println!("verify the cycle and commit:                  {:.0?}", timed.elapsed());
    let timed = Instant::now();
    verify_point(&vault, disk, cycle, 2, &|_, _| {})?;
    println!("verify, two threads: {:.0} MiB/s", mib / timed.elapsed().as_secs_f64());
    let out = std::path::Path::new(&root).with_extension("restored");
    let timed = Instant::now();
    restore(&vault, &point, &FileTarget::open(&out, size)?, 2, &|_, _| {})?;
    println!("restore, two threads, synced: {:.0} MiB/s", mib / timed.elapsed().as_secs_f64());
    Ok(())
}

//! How fast a vault is looked after, and with how much memory: a disk that churns at random, three
//! points kept, maintenance after each cycle.
//!
//! ```text
//! cargo run --release -p backstay-vault --example upkeep -- DIRECTORY [MIB] [CYCLES]
//! ```

#![allow(
    clippy::disallowed_methods,
    reason = "a test: real time, and files as others would move them"
)]

use std::error::Error;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use backstay_types::{ByteLen, CycleNo, DiskId, SectorRange, Term};
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::retain::{Policy, Time, maintain};
use backstay_vault::{
    Base, Consistency, CycleKind, DiskRecord, Manifest, Pass, PointMeta, SectorSet, SegmentRef,
    Vault, Vaults, verify_cycle,
};

/// Sectors of a frame.
const FRAME: u64 = 512;
const SEGMENT_BYTES: u64 = 32 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("which directory?")?;
    let mut number = |or: u64| args.next().map_or(Ok(or), |arg| arg.parse());
    let (mib, cycles) = (number(1024)?, number(60)?);
    let (vault, disk) = (Vaults::default().create(&dir)?, DiskId::random());
    let size = ByteLen(mib << 20);
    vault.create_disk(&DiskRecord {
        disk,
        name: "upkeep".parse()?,
        size_bytes: size,
        sector_bytes: 512,
        created_unix_ns: 1,
    })?;
    vault.term_or_first(disk, "example")?;
    let policy = Policy {
        keep: Some("last 3".parse()?),
        thorough: true,
        merge: true,
        segment_bytes: SEGMENT_BYTES,
        zstd_level: 1,
    };
    let mut rng = fastrand::Rng::with_seed(1);
    let mut before: Option<Manifest> = None;
    let (mut shipped, mut merged, mut most, mut longest) = (0u64, 0u64, 0u64, 0);
    let (mut shipping, mut upkeep) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..cycles {
        let from = Instant::now();
        let whole = SectorRange::whole(size);
        let runs: Vec<SectorRange> = match before {
            None => whole.split_at_multiples(FRAME).collect(),
            // A sixteenth of the disk, in runs of 64 KiB.
            Some(_) => {
                let mut set = SectorSet::new();
                for _ in 0..mib {
                    let at = rng.u64(..whole.end.0 / 128) * 128;
                    set.insert(SectorRange::new(at, at + 128));
                }
                set.runs()
                    .flat_map(|run| run.split_at_multiples(FRAME).collect::<Vec<_>>())
                    .collect()
            }
        };
        let point = cycle(&vault, disk, size, before.as_ref(), &runs, &mut rng)?;
        shipping += from.elapsed();
        shipped += point.own_segments().map(|segment| segment.object.0).sum::<u64>();
        longest = longest.max(point.segments.len());
        before = Some(point);
        let from = Instant::now();
        let report =
            maintain(&vault, disk, &policy, &Time::peek(dir.as_ref()), &AtomicBool::new(false))?;
        upkeep += from.elapsed();
        merged += report.merged.bytes;
        most = most.max(report.collected.kept_bytes + report.merged.bytes);
    }
    println!("shipped    {} MiB in {shipping:.1?}", shipped >> 20);
    println!("merged     {} MiB in {upkeep:.1?}, deleting and collecting included", merged >> 20);
    println!("rewritten  {:.2} bytes for each byte shipped", merged as f64 / shipped as f64);
    println!("vault      {} MiB at most, disk {mib} MiB", most >> 20);
    println!("segments   {longest} at most for one point");
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("memory     {}", peak.trim_start_matches("VmHWM:").trim());
    Ok(())
}

fn cycle(
    vault: &Vault,
    disk: DiskId,
    size: ByteLen,
    before: Option<&Manifest>,
    runs: &[SectorRange],
    rng: &mut fastrand::Rng,
) -> Result<Manifest, Box<dyn Error>> {
    let cycle = before.map_or(CycleNo(1), |point| point.cycle.next());
    let attempt = rng.u64(..);
    let mut compressor = Compressor::new(1)?;
    let mut builder = SegmentBuilder::new(disk, cycle, attempt, 0);
    let (mut segments, mut must_move): (Vec<SegmentRef>, _) = (vec![], SectorSet::new());
    let mut bytes = vec![0; FRAME as usize * 512];
    let mut chunk = Chunk::with_room();
    for run in runs {
        let bytes = &mut bytes[..run.bytes().0 as usize];
        // About half of it compresses away.
        for block in bytes.chunks_mut(512) {
            rng.fill(&mut block[..256]);
        }
        if chunk.room() < bytes.len() {
            builder.push(compressor.seal(&mut chunk)?);
        }
        chunk.push(*run, bytes);
        must_move.insert(*run);
        if builder.stored_bytes() > SEGMENT_BYTES {
            let next = SegmentBuilder::new(disk, cycle, attempt, segments.len() as u32 + 1);
            let full = std::mem::replace(&mut builder, next).finish(&mut compressor)?;
            segments.push(vault.put_segment(full)?);
        }
    }
    builder.push(compressor.seal(&mut chunk)?);
    segments.push(vault.put_segment(builder.finish(&mut compressor)?)?);
    let passes = vec![Pass { must_move, segments }];
    let meta = PointMeta {
        term: Term(1),
        predecessor: before.cloned(),
        base: if before.is_some() { Base::Newest } else { Base::Nothing { continues: None } },
        kind: if before.is_some() { CycleKind::Delta } else { CycleKind::Initial },
        point: backstay_types::PointId::random(),
        consistency: Consistency::Crash,
        cut_unix_ns: cycle.0,
        written: ByteLen(0),
    };
    Ok(vault.commit(verify_cycle(vault, disk, size, cycle, passes)?, meta)?)
}

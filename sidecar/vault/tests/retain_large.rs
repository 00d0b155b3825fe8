//! A disk of several windows: merging goes through it piece by piece, and runs that cross from one
//! piece to the next come out whole.

mod common;

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, SectorRange};
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::read::{RestoreTarget, restore, verify_points};
use backstay_vault::{Manifest, Pass, SectorSet, Vault, verify_cycle};
use common::history::{room, run};
use common::{meta, record};

/// 64 GiB, in sectors.
const WINDOW: u64 = 64 << 21;
/// Three windows and a bit, and not whole sectors.
const SIZE: u64 = (3 * WINDOW + 4321) * 512 + 77;

/// Sectors that are not zero; and what a restore writes.
#[derive(Default)]
struct Sparse(Mutex<BTreeMap<u64, [u8; 512]>>);

impl RestoreTarget for Sparse {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        assert!(offset.0.is_multiple_of(512));
        for (i, sector) in data.chunks(512).enumerate() {
            let mut whole = [0; 512];
            whole[..sector.len()].copy_from_slice(sector);
            let at = offset.0 / 512 + i as u64;
            let mut held = self.0.lock().unwrap();
            assert!(held.insert(at, whole).is_none(), "sector {at} is written twice");
        }
        Ok(())
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let (from, to) = (offset.0 / 512, (offset.0 + len.0).div_ceil(512));
        assert!(self.0.lock().unwrap().range(from..to).next().is_none(), "written, then zeroed");
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn name(&self) -> String {
        "a sparse map".into()
    }
}

fn zero(builder: &mut SegmentBuilder, from: u64, to: u64) {
    if from < to {
        builder.push_zero(SectorRange::new(from, to));
    }
}

type Disk = BTreeMap<u64, [u8; 512]>;

/// Ships these runs of a sparse disk as one segment and commits them.
fn commit(
    vault: &Vault,
    disk: DiskId,
    before: Option<&Manifest>,
    now: &Disk,
    runs: &[SectorRange],
) -> Manifest {
    let cycle = before.map_or(CycleNo(1), |point| point.cycle.next());
    let mut compressor = Compressor::new(1).unwrap();
    let mut builder = SegmentBuilder::new(disk, cycle, fastrand::u64(..), 0);
    let mut chunk = Chunk::with_room();
    let mut must_move = SectorSet::new();
    for run in runs {
        must_move.insert(*run);
        let mut zero_from = run.start.0;
        for (&at, sector) in now.range(run.as_range()) {
            zero(&mut builder, zero_from, at);
            if chunk.room() < 512 {
                builder.push(compressor.seal(&mut chunk).unwrap());
            }
            chunk.push(SectorRange::new(at, at + 1), sector);
            zero_from = at + 1;
        }
        zero(&mut builder, zero_from, run.end.0);
    }
    builder.push(compressor.seal(&mut chunk).unwrap());
    let segments = vec![vault.put_segment(builder.finish(&mut compressor).unwrap()).unwrap()];
    let pass = Pass { must_move, segments };
    let verified = verify_cycle(vault, disk, ByteLen(SIZE), cycle, vec![pass]).unwrap();
    vault.commit(verified, meta(before)).unwrap()
}

#[test]
fn merging_goes_over_the_edges_of_its_windows() {
    let (_dir, vault) = room();
    let disk = DiskId::random();
    vault.create_disk(&record(disk, ByteLen(SIZE))).unwrap();
    vault.term_or_first(disk, "test").unwrap();
    let whole = SectorRange::whole(ByteLen(SIZE));
    let mut rng = fastrand::Rng::with_seed(5);
    let mut now = Disk::new();
    let mut point = commit(&vault, disk, None, &now, &[whole]);
    let mut merges = 0;
    for cycle in 2..30 {
        // Around each edge, at the very end, and anywhere; some of it to zeroes, some of it long.
        let mut runs = vec![];
        for edge in 1..=3 {
            let at = edge * WINDOW;
            runs.push(SectorRange::new(at - rng.u64(1..200), at + rng.u64(1..200)));
        }
        runs.push(SectorRange::new(whole.end.0 - 5, whole.end.0));
        if cycle % 7 == 0 {
            runs = vec![SectorRange::new(rng.u64(..WINDOW), 2 * WINDOW + rng.u64(..100))];
        }
        for run in &runs {
            let keep: Vec<u64> = now.range(run.as_range()).map(|(&at, _)| at).collect();
            now.retain(|at, _| keep.binary_search(at).is_err());
            for at in run.as_range().take(300) {
                if rng.u8(..3) == 0 {
                    continue;
                }
                let mut sector = [0; 512];
                rng.fill(&mut sector);
                if at + 1 == whole.end.0 {
                    sector[77..].fill(0);
                }
                now.insert(at, sector);
            }
        }
        point = commit(&vault, disk, Some(&point), &now, &runs);
        merges += u64::from(run(&vault, disk, "last 2").unwrap().merged.replaced > 0);
        let target = Sparse::default();
        restore(&vault, &point, &target, 2, &|_, _| {}).unwrap();
        assert!(target.0.into_inner().unwrap() == now, "cycle {cycle}");
    }
    assert!(merges >= 3, "{merges} merges");
    let points = vault.points(disk).unwrap();
    verify_points(&vault, disk, &points, 2, &|_, _| {}).unwrap();
}

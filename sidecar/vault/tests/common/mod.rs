//! A disk in memory, the way it ships into a vault, and what a restore makes of it again.
#![allow(dead_code, reason = "each test file uses its part of this")]

pub mod history;
pub mod steps;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, SectorRange};
use backstay_vault::frame::{Chunk, Compressor, SegmentBuilder};
use backstay_vault::read::{RestoreTarget, restore};
use backstay_vault::{
    Base, Consistency, CycleKind, DiskRecord, Manifest, Pass, PointMeta, SectorSet, SegmentRef,
    Vault, VaultError, Vaults, verify_cycle,
};

pub use steps::{At, Steps};

/// A vault in a directory of its own, with one disk in it.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub vault: Vault,
    pub disk: DiskId,
    pub size: ByteLen,
}

impl Lab {
    pub fn new(size: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vaults::default().create(dir.path().to_str().unwrap()).unwrap();
        Self::with(dir, vault, size)
    }

    pub fn with(dir: tempfile::TempDir, vault: Vault, size: u64) -> Self {
        let (disk, size) = (DiskId::random(), ByteLen(size));
        vault.create_disk(&record(disk, size)).unwrap();
        vault.term_or_first(disk, "test").unwrap();
        Self { dir, vault, disk, size }
    }

    pub fn whole(&self) -> SectorRange {
        SectorRange::whole(self.size)
    }

    pub fn ship(&self, cycle: u64, content: &[u8], runs: &[SectorRange]) -> Vec<SegmentRef> {
        ship(&self.vault, self.disk, CycleNo(cycle), content, runs).unwrap()
    }

    /// One whole cycle with one pass: ship, verify, commit.
    pub fn cycle(
        &self,
        before: Option<&Manifest>,
        content: &[u8],
        runs: &[SectorRange],
    ) -> Result<Manifest, VaultError> {
        let cycle = before.map_or(CycleNo(1), |point| point.cycle.next());
        let segments = ship(&self.vault, self.disk, cycle, content, runs)?;
        let pass = Pass { must_move: set(runs), segments };
        let verified = verify_cycle(&self.vault, self.disk, self.size, cycle, vec![pass])?;
        self.vault.commit(verified, meta(before))
    }

    /// A whole cycle shipped in frames of up to 512 sectors, as the sidecar ships long runs.
    pub fn cycle_in_frames(
        &self,
        before: Option<&Manifest>,
        content: &[u8],
        runs: &[SectorRange],
    ) -> Manifest {
        let cycle = before.map_or(CycleNo(1), |point| point.cycle.next());
        let segments = ship_in(&self.vault, self.disk, cycle, content, runs, 512).unwrap();
        let pass = Pass { must_move: set(runs), segments };
        let verified = verify_cycle(&self.vault, self.disk, self.size, cycle, vec![pass]).unwrap();
        self.vault.commit(verified, meta(before)).unwrap()
    }

    pub fn restored(&self, cycle: CycleNo) -> Result<Vec<u8>, VaultError> {
        let point = self.vault.manifest(self.disk, cycle)?;
        let target = Memory::new(point.size);
        restore(&self.vault, &point, &target, 3, &|_, _| {})?;
        Ok(target.bytes())
    }

    /// Every object of the vault, by path.
    pub fn objects(&self) -> Vec<PathBuf> {
        let mut found = vec![];
        walk(self.dir.path(), &mut found);
        // What is no object yet, and the reserve.
        found.retain(|path| !path.to_string_lossy().contains('#'));
        found.sort();
        found
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

pub fn record(disk: DiskId, size: ByteLen) -> DiskRecord {
    DiskRecord {
        disk,
        name: "lab".parse().unwrap(),
        size_bytes: size,
        sector_bytes: 512,
        created_unix_ns: 1,
    }
}

pub fn meta(before: Option<&Manifest>) -> PointMeta {
    PointMeta {
        term: backstay_types::Term(1),
        predecessor: before.cloned(),
        base: if before.is_some() { Base::Newest } else { Base::Nothing { continues: None } },
        kind: if before.is_some() { CycleKind::Delta } else { CycleKind::Initial },
        point: backstay_types::PointId::random(),
        consistency: Consistency::Crash,
        cut_unix_ns: before.map_or(1_000, |point| point.cut_unix_ns + 1),
        written: ByteLen(0),
    }
}

pub fn set(runs: &[SectorRange]) -> SectorSet {
    let mut set = SectorSet::new();
    for &run in runs {
        set.insert(run);
    }
    set
}

/// Puts the runs of a disk as small segments of one attempt.
pub fn ship(
    vault: &Vault,
    disk: DiskId,
    cycle: CycleNo,
    content: &[u8],
    runs: &[SectorRange],
) -> Result<Vec<SegmentRef>, VaultError> {
    ship_in(vault, disk, cycle, content, runs, 64)
}

/// The same in frames of up to `frame` sectors.
pub fn ship_in(
    vault: &Vault,
    disk: DiskId,
    cycle: CycleNo,
    content: &[u8],
    runs: &[SectorRange],
    frame: u64,
) -> Result<Vec<SegmentRef>, VaultError> {
    let attempt = fastrand::u64(..);
    let mut compressor = Compressor::new(1).unwrap();
    let mut builder = SegmentBuilder::new(disk, cycle, attempt, 0);
    let mut chunk = Chunk::with_room();
    let mut put = vec![];
    for &run in runs {
        for piece in run.split_at_multiples(frame) {
            let mut bytes = vec![0; piece.bytes().0 as usize];
            let at = piece.start.byte_offset().0 as usize;
            let there = bytes.len().min(content.len() - at);
            bytes[..there].copy_from_slice(&content[at..at + there]);
            if chunk.room() < bytes.len() {
                builder.push(compressor.seal(&mut chunk).unwrap());
            }
            chunk.push(piece, &bytes);
            if builder.stored_bytes() > 512 << 10 {
                let next = SegmentBuilder::new(disk, cycle, attempt, put.len() as u32 + 1);
                let full = std::mem::replace(&mut builder, next);
                put.push(vault.put_segment(full.finish(&mut compressor).unwrap())?);
            }
        }
    }
    builder.push(compressor.seal(&mut chunk).unwrap());
    if !builder.is_empty() {
        put.push(vault.put_segment(builder.finish(&mut compressor).unwrap())?);
    }
    Ok(put)
}

/// A restore target in memory that starts full of what must not be left: 0xEE.
pub struct Memory(Mutex<Vec<u8>>);

impl Memory {
    pub fn new(size: ByteLen) -> Self {
        Self(Mutex::new(vec![0xEE; size.0 as usize]))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl RestoreTarget for Memory {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let at = offset.0 as usize;
        self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        let at = offset.0 as usize;
        self.0.lock().unwrap()[at..at + len.0 as usize].fill(0);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

/// A disk's content: stretches of text, noise and zeroes.
pub fn content(rng: &mut fastrand::Rng, size: u64) -> Vec<u8> {
    let mut out = vec![0; size as usize];
    let mut at = 0;
    while at < out.len() {
        let len = rng.usize(1..200_000).min(out.len() - at);
        match rng.u8(..3) {
            0 => rng.fill(&mut out[at..at + len]),
            1 => out[at..at + len].iter_mut().for_each(|b| *b = rng.u8(b'a'..b'e')),
            _ => {}
        }
        at += len;
    }
    out
}

/// Runs in order that do not touch.
pub fn some_runs(rng: &mut fastrand::Rng, sectors: u64) -> Vec<SectorRange> {
    let (mut at, mut runs) = (0, vec![]);
    loop {
        at += rng.u64(1..400);
        let end = (at + rng.u64(1..700)).min(sectors);
        if at >= sectors {
            return runs;
        }
        runs.push(SectorRange::new(at, end));
        at = end + 1;
    }
}

/// Changes the bytes of these runs.
pub fn rewrite(rng: &mut fastrand::Rng, content: &mut [u8], runs: &[SectorRange]) {
    for run in runs {
        let from = run.start.byte_offset().0 as usize;
        let to = (run.end.byte_offset().0 as usize).min(content.len());
        if rng.u8(..4) == 0 {
            content[from..to].fill(0);
        } else {
            rng.fill(&mut content[from..to]);
        }
    }
}

//! A disk full of data, laid into a vault without there being a disk: each frame is one and the same, at
//! another place. The objects are small, as the data is alike; their indexes are those of a real disk.

use std::error::Error;

use backstay_types::{ByteLen, CycleNo, DiskId, PointId, SectorRange, Term};
use backstay_vault::frame::{Chunk, Compressor, EncodedFrame, SegmentBuilder};
use backstay_vault::{
    Base, Consistency, CycleKind, DiskRecord, Manifest, Pass, PointMeta, SectorSet, SegmentRef,
    Vault, verify_cycle,
};

/// Sectors of a frame: 256 KiB.
pub const FRAME: u64 = 512;

/// A disk that is laid into a vault.
pub struct Laid {
    pub vault: Vault,
    pub disk: DiskId,
    pub size: ByteLen,
    compressor: Compressor,
    newest: Option<Manifest>,
}

impl Laid {
    /// A disk of this name.
    pub fn new(vault: Vault, name: &str, size: ByteLen) -> Result<Self, Box<dyn Error>> {
        let disk = DiskId::random();
        let name: backstay_types::DiskName = name.parse()?;
        let record = DiskRecord {
            disk,
            name: name.clone(),
            size_bytes: size,
            sector_bytes: 512,
            created_unix_ns: 1,
        };
        vault.create_disk(&record)?;
        vault.claim_name(&name, disk)?;
        vault.term_or_first(disk, "test")?;
        Ok(Self { vault, disk, size, compressor: Compressor::new(1)?, newest: None })
    }

    /// A frame at the start of the disk, all of one byte.
    fn frame(&mut self, sectors: u64, byte: u8) -> Result<EncodedFrame, Box<dyn Error>> {
        let mut chunk = Chunk::with_room();
        let run = SectorRange::new(0, sectors);
        chunk.push(run, &vec![byte; run.bytes().0 as usize]);
        Ok(self.compressor.seal(&mut chunk)?)
    }

    /// The first point: every sector is data, in this many segments in the order of the disk.
    pub fn full(&mut self, segments: u64, byte: u8) -> Result<(), Box<dyn Error>> {
        let frame = self.frame(FRAME, byte)?;
        let (frames, cycle) = (self.size.0 / 512 / FRAME, CycleNo(1));
        let mut put = vec![];
        for number in 0..segments {
            let mut builder = SegmentBuilder::new(self.disk, cycle, 1, number as u32);
            for at in number * frames / segments..(number + 1) * frames / segments {
                builder.push(frame.further(at * FRAME));
            }
            put.push(self.vault.put_segment(builder.finish(&mut self.compressor)?)?);
        }
        let mut moved = SectorSet::new();
        moved.insert(SectorRange::whole(self.size));
        self.commit(cycle, put, moved)
    }

    /// The next point: pages of 4 KiB that begin at these sectors, in ascending order, are of one byte.
    pub fn write(&mut self, places: &[u64], byte: u8) -> Result<(), Box<dyn Error>> {
        let cycle = self.newest.as_ref().map_or(CycleNo(1), |point| point.cycle.next());
        let frame = self.frame(8, byte)?;
        let mut builder = SegmentBuilder::new(self.disk, cycle, 1, 0);
        let mut moved = SectorSet::new();
        for &place in places {
            builder.push(frame.further(place));
            moved.insert(SectorRange::new(place, place + 8));
        }
        let put = vec![self.vault.put_segment(builder.finish(&mut self.compressor)?)?];
        self.commit(cycle, put, moved)
    }

    /// The next point: these runs of pages have what `read` says.
    #[allow(dead_code, reason = "not every user of this has an image")]
    pub fn write_all(
        &mut self,
        pages: &[(u64, u64)],
        mut read: impl FnMut(SectorRange, &mut [u8]) -> std::io::Result<()>,
    ) -> Result<(), Box<dyn Error>> {
        let cycle = self.newest.as_ref().map_or(CycleNo(1), |point| point.cycle.next());
        let mut builder = SegmentBuilder::new(self.disk, cycle, 1, 0);
        let (mut put, mut moved) = (vec![], SectorSet::new());
        let mut chunk = Chunk::with_room();
        for run in pages.iter().map(|&(from, to)| SectorRange::new(from * 8, to * 8)) {
            moved.insert(run);
            for part in run.split_at_multiples(FRAME) {
                let mut bytes = vec![0; part.bytes().0 as usize];
                read(part, &mut bytes)?;
                chunk.push(part, &bytes);
                builder.push(self.compressor.seal(&mut chunk)?);
            }
            if builder.stored_bytes() > 32 << 20 {
                let next = SegmentBuilder::new(self.disk, cycle, 1, put.len() as u32 + 1);
                let full = std::mem::replace(&mut builder, next);
                put.push(self.vault.put_segment(full.finish(&mut self.compressor)?)?);
            }
        }
        if !builder.is_empty() {
            put.push(self.vault.put_segment(builder.finish(&mut self.compressor)?)?);
        }
        self.commit(cycle, put, moved)
    }

    fn commit(
        &mut self,
        cycle: CycleNo,
        segments: Vec<SegmentRef>,
        must_move: SectorSet,
    ) -> Result<(), Box<dyn Error>> {
        let passes = vec![Pass { must_move, segments }];
        let verified = verify_cycle(&self.vault, self.disk, self.size, cycle, passes)?;
        let is_first = self.newest.is_none();
        let meta = PointMeta {
            term: Term(1),
            predecessor: self.newest.take(),
            base: if is_first { Base::Nothing { continues: None } } else { Base::Newest },
            kind: if is_first { CycleKind::Initial } else { CycleKind::Delta },
            point: PointId::random(),
            consistency: Consistency::Crash,
            cut_unix_ns: cycle.0 * 1_000_000_000,
            written: ByteLen(0),
        };
        self.newest = Some(self.vault.commit(verified, meta)?);
        Ok(())
    }
}

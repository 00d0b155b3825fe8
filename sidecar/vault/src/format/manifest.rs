//! The manifest: a recovery point exists exactly when its manifest exists (I5).
//!
//! It names every segment that the point needs, oldest first, so that reading a point never has to
//! walk through the points before it; where segments overlap, the later one holds.

use std::collections::HashMap;

use backstay_format::FormatError;
use backstay_format::superblock::Geometry;
use backstay_types::{ByteLen, CycleNo, DiskId, PointId, Term};

use super::bounds::Bounds;
use super::document::Object;
use super::key::{ObjectKey, Piece};
use super::segment::SegmentId;
use super::{Reader, checked, seal};
use crate::encrypt::sign::content;

const WHAT: &str = "recovery point";
const MAGIC: &[u8; 8] = b"BSTYPONT";
const VERSION: u32 = 1;
/// Bytes of one segment's entry.
pub(super) const SEGMENT_BYTES: usize = 80;
/// Bytes before the entries.
const HEAD_BYTES: usize = 196;
/// Most segments in a manifest.
pub const SEGMENTS_MAX: usize = 1 << 20;
/// What [`Manifest::peek`] wants.
pub(crate) const PEEK_BYTES: usize = 104;
/// Longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: usize = HEAD_BYTES + SEGMENTS_MAX * SEGMENT_BYTES + 4;

/// What kind of cycle made a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CycleKind {
    /// The first: the whole disk.
    Initial = 1,
    /// What changed since the point before.
    Delta = 2,
    /// The whole disk again.
    Resync = 3,
}

/// What a point promises to the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As if the power had gone at the cut.
    Crash = 1,
    /// The application was quiet at the cut.
    Application = 2,
}

/// A segment as a manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SegmentRef {
    /// The cycle that made it.
    pub cycle: CycleNo,
    /// The attempt at that cycle.
    pub attempt: u64,
    /// Its number in the attempt.
    pub number: u32,
    /// The object's length.
    pub object: ByteLen,
    /// Sectors it holds as data.
    pub data_sectors: u64,
    /// Sectors it says are zero.
    pub zero_sectors: u64,
    /// Which part of the disk it may hold sectors of.
    #[serde(default)]
    pub bounds: Bounds,
    /// BLAKE3 of its index.
    pub index_digest: [u8; 32],
}

impl SegmentRef {
    /// Which segment of a disk it means.
    #[must_use]
    pub const fn id(&self, disk: DiskId) -> SegmentId {
        SegmentId { disk, cycle: self.cycle, attempt: self.attempt, number: self.number }
    }

    /// Appends its entry.
    pub(crate) fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.cycle.0.to_le_bytes());
        out.extend_from_slice(&self.attempt.to_le_bytes());
        out.extend_from_slice(&self.object.0.to_le_bytes());
        out.extend_from_slice(&self.data_sectors.to_le_bytes());
        out.extend_from_slice(&self.zero_sectors.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.bounds.to_bytes());
        out.extend_from_slice(&self.index_digest);
    }

    /// Reads an entry of something made by cycle `last` at the latest.
    pub(super) fn read(
        r: &mut Reader<'_>,
        what: &'static str,
        last: CycleNo,
    ) -> Result<Self, FormatError> {
        let (cycle, attempt) = (CycleNo(r.u64()?), r.u64()?);
        let object = ByteLen(r.u64()?);
        let (data_sectors, zero_sectors) = (r.u64()?, r.u64()?);
        let number = r.u32()?;
        let bounds = Bounds::from_bytes(r.array()?);
        let index_digest = r.array()?;
        if cycle.0 == 0 || cycle > last {
            return Err(FormatError::Bounds { what, field: "segment's cycle", value: cycle.0 });
        }
        Ok(Self {
            cycle,
            attempt,
            number,
            object,
            data_sectors,
            zero_sectors,
            bounds,
            index_digest,
        })
    }
}

/// A recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The disk.
    pub disk: DiskId,
    /// The disk's size at the cut.
    pub size: ByteLen,
    /// The point's identity.
    pub point: PointId,
    /// Its cycle.
    pub cycle: CycleNo,
    /// The term of its writer.
    pub term: Term,
    /// The point before, if there is one.
    pub predecessor: Option<(CycleNo, PointId)>,
    /// What kind of cycle made it.
    pub kind: CycleKind,
    /// What it promises.
    pub consistency: Consistency,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// When it was committed, nanoseconds since 1970.
    pub committed_unix_ns: u64,
    /// Bytes the guest wrote from the cut before to this one.
    pub written: ByteLen,
    /// Sectors that had to move.
    pub moved_sectors: u64,
    /// Digest of the set of these sectors (see `SectorSet::digest`).
    pub moved_digest: [u8; 32],
    /// Every segment the point needs; later ones hold over earlier ones.
    pub segments: Vec<SegmentRef>,
}

impl Object for Manifest {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::Disk(self.disk, Piece::Point(self.cycle));
        (!same).then(|| format!("recovery point {} of disk {}", self.cycle, self.disk))
    }
}

impl Manifest {
    /// The segments this cycle added.
    pub fn own_segments(&self) -> impl Iterator<Item = &SegmentRef> {
        self.segments.iter().filter(|segment| segment.cycle == self.cycle)
    }

    /// The manifest's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.segments.len() * SEGMENT_BYTES + 4);
        let (before, before_point) =
            self.predecessor.map_or((0, [0; 16]), |(cycle, point)| (cycle.0, point.to_bytes()));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, self.consistency as u8, 0, 0]);
        out.extend_from_slice(&self.disk.to_bytes());
        out.extend_from_slice(&self.point.to_bytes());
        out.extend_from_slice(&before_point);
        for number in [
            self.size.0,
            self.cycle.0,
            self.term.0,
            before,
            self.cut_unix_ns,
            self.committed_unix_ns,
            self.written.0,
            self.moved_sectors,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.moved_digest);
        out.extend_from_slice(&(self.segments.len() as u32).to_le_bytes());
        out.resize(HEAD_BYTES, 0);
        self.segments.iter().for_each(|segment| segment.encode_into(&mut out));
        seal(out)
    }

    /// Disk, cycle and cut of a manifest of which only the first [`PEEK_BYTES`] are there: nothing says that they
    /// are undamaged, so anyone who chooses a manifest by them reads it as a whole afterwards.
    pub(crate) fn peek(head: &[u8]) -> Result<(DiskId, CycleNo, u64), FormatError> {
        let mut r = Reader::new(WHAT, head);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        r.take(4)?;
        let disk = DiskId::from_bytes(r.array()?);
        r.take(40)?;
        let cycle = CycleNo(r.u64()?);
        r.take(16)?;
        Ok((disk, cycle, r.u64()?))
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// Anything but a whole manifest of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        // Who signed it, if anybody, is not this format's business: see `Vault::manifest`.
        let bytes = content(bytes);
        let mut r = Reader::new(WHAT, bytes);
        r.magic(MAGIC)?;
        let mut r = Reader::new(WHAT, checked(WHAT, bytes)?);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
        let kind = match r.u8()? {
            1 => CycleKind::Initial,
            2 => CycleKind::Delta,
            3 => CycleKind::Resync,
            other => return Err(bounds("kind", other.into())),
        };
        let consistency = match r.u8()? {
            1 => Consistency::Crash,
            2 => Consistency::Application,
            other => return Err(bounds("consistency", other.into())),
        };
        r.take(2)?;
        let disk = DiskId::from_bytes(r.array()?);
        let point = PointId::from_bytes(r.array()?);
        let before_point = PointId::from_bytes(r.array()?);
        let size = ByteLen(r.u64()?);
        if size.0 == 0 || size > Geometry::SIZE_MAX {
            return Err(bounds("size_bytes", size.0));
        }
        let cycle = CycleNo(r.u64()?);
        let term = Term(r.u64()?);
        let before = CycleNo(r.u64()?);
        if cycle.0 == 0 || before >= cycle {
            return Err(bounds("cycle", cycle.0));
        }
        let (cut_unix_ns, committed_unix_ns) = (r.u64()?, r.u64()?);
        let (written, moved_sectors) = (ByteLen(r.u64()?), r.u64()?);
        let moved_digest = r.array()?;
        let count = r.u32()? as usize;
        if count > SEGMENTS_MAX {
            return Err(bounds("segments", count as u64));
        }
        r.take(HEAD_BYTES - r.at)?;
        let need = HEAD_BYTES + count * SEGMENT_BYTES + 4;
        if bytes.len() != need {
            return Err(FormatError::Short { what: WHAT, have: bytes.len(), need });
        }
        let mut segments = Vec::with_capacity(count);
        for _ in 0..count {
            segments.push(SegmentRef::read(&mut r, WHAT, cycle)?);
        }
        in_order(&segments).map_err(|cycle| bounds("cycle of a segment out of order", cycle.0))?;
        Ok(Self {
            disk,
            size,
            point,
            cycle,
            term,
            predecessor: (before.0 != 0).then_some((before, before_point)),
            kind,
            consistency,
            cut_unix_ns,
            committed_unix_ns,
            written,
            moved_sectors,
            moved_digest,
            segments,
        })
    }
}

/// A list is oldest first: cycles do not go down, the segments of one attempt are numbered upwards, and none is
/// there twice. Another order would be another disk. The cycle of the first that is not so.
fn in_order(segments: &[SegmentRef]) -> Result<(), CycleNo> {
    let mut attempts: HashMap<(CycleNo, u64), u32> = HashMap::new();
    let mut newest = CycleNo(0);
    for segment in segments {
        let before = attempts.insert((segment.cycle, segment.attempt), segment.number);
        if segment.cycle < newest || before.is_some_and(|before| before >= segment.number) {
            return Err(segment.cycle);
        }
        newest = segment.cycle;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_types::SectorRange;
    use proptest::prelude::*;

    fn sample() -> Manifest {
        let segment = |number| SegmentRef {
            cycle: CycleNo(2),
            attempt: 0x1122_3344_5566_7788,
            number,
            object: ByteLen(4_000_000),
            data_sectors: 8_000,
            zero_sectors: 192,
            bounds: Bounds::UNKNOWN,
            index_digest: [number as u8 + 1; 32],
        };
        Manifest {
            disk: DiskId::from_bytes([7; 16]),
            size: ByteLen(1 << 30),
            point: PointId::from_bytes([9; 16]),
            cycle: CycleNo(3),
            term: Term(1),
            predecessor: Some((CycleNo(2), PointId::from_bytes([8; 16]))),
            kind: CycleKind::Delta,
            consistency: Consistency::Crash,
            cut_unix_ns: 1_700_000_000_000_000_001,
            committed_unix_ns: 1_700_000_000_000_000_002,
            written: ByteLen(12_345),
            moved_sectors: 24,
            moved_digest: [5; 32],
            segments: vec![segment(0), segment(1)],
        }
    }

    #[test]
    fn round_trip_and_golden() {
        let bytes = sample().encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), sample());
        assert_eq!(bytes, include_bytes!("../../tests/golden/point.bin"));
    }

    #[test]
    fn round_trip_and_golden_with_bounds() {
        let mut point = sample();
        for (segment, run) in point.segments.iter_mut().zip([(0, 8_192), (10_000, 2_000_000)]) {
            segment.bounds = Bounds::around(SectorRange::new(run.0, run.1));
        }
        let bytes = point.encode();
        assert_eq!(Manifest::decode(&bytes).unwrap(), point);
        assert_eq!(bytes, include_bytes!("../../tests/golden/point-bounds.bin"));
    }

    #[test]
    fn a_head_tells_whose_and_when() {
        let (point, bytes) = (sample(), sample().encode());
        let peeked = Manifest::peek(&bytes[..PEEK_BYTES]).unwrap();
        assert_eq!(peeked, (point.disk, point.cycle, point.cut_unix_ns));
        for cut in 0..PEEK_BYTES {
            assert!(Manifest::peek(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        let bytes = seal(bytes[..bytes.len() - 4].to_vec());
        assert!(matches!(Manifest::decode(&bytes), Err(FormatError::Version { found: 2, .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_point_or_an_error(bytes: Vec<u8>) {
            let _ = (Manifest::decode(&bytes), Manifest::peek(&bytes));
            // Also with a fitting checksum, so that the fields are reached.
            let mut marked = MAGIC.to_vec();
            marked.extend_from_slice(&VERSION.to_le_bytes());
            marked.extend(bytes);
            let _ = Manifest::decode(&seal(marked));
        }

        #[test]
        fn any_flip_is_seen(at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = sample().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(Manifest::decode(&bytes).is_err());
        }

        #[test]
        fn any_cut_is_seen(len: prop::sample::Index) {
            let bytes = sample().encode();
            prop_assert!(Manifest::decode(&bytes[..len.index(bytes.len())]).is_err());
        }
    }
}

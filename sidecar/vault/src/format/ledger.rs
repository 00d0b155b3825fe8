//! The ledger: which of a disk's points are kept, and which segments were merged into which.
//!
//! One small state, replaced by putting its next revision. It is what makes deleting safe: an object
//! below `points/` that the ledger does not know is nobody's (see docs/explanation/format-vault.md).

use backstay_format::FormatError;
use backstay_types::{CycleNo, DiskId, PointId};

use super::document::Object;
use super::key::{ObjectKey, Piece};
use super::manifest::{SEGMENT_BYTES, SEGMENTS_MAX, SegmentRef};
use super::{Reader, checked, seal};
use crate::encrypt::sign::content;

const WHAT: &str = "ledger";
const MAGIC: &[u8; 8] = b"BSTYLEDG";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 80;
const POINT_BYTES: usize = 40;
const MERGE_BYTES: usize = 64;
/// Merged segments may be newer than the horizon, which follows only now and then.
const ANY: CycleNo = CycleNo(u64::MAX);
/// Most points in a ledger.
pub const POINTS_MAX: usize = 1 << 20;
/// Most merges in a ledger.
pub const MERGES_MAX: usize = 1024;
/// Longest ledger, in bytes.
pub const LEDGER_BYTES_MAX: usize = HEAD_BYTES
    + POINTS_MAX * POINT_BYTES
    + MERGES_MAX * MERGE_BYTES
    + SEGMENTS_MAX * SEGMENT_BYTES
    + 4;

/// Whether a point stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Kept = 1,
    /// It goes as soon as nothing holds it; it never becomes kept again.
    Retired = 2,
}

/// A point, as the ledger knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerPoint {
    /// Its cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
    /// The instant it shows, nanoseconds since 1970.
    pub cut_unix_ns: u64,
    /// Whether it stays.
    pub fate: Fate,
}

/// Segments that stand for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The first entry replaced: cycle, attempt, number.
    pub first: (CycleNo, u64, u32),
    /// Entries replaced, the first one counted.
    pub count: u32,
    /// BLAKE3 of these entries.
    pub digest: [u8; 32],
    /// What stands for them.
    pub segments: Vec<SegmentRef>,
}

/// What maintenance decided about a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    /// The disk.
    pub disk: DiskId,
    /// Which state this is, from 1.
    pub revision: u64,
    /// The newest point's cycle when this was written.
    pub horizon: CycleNo,
    /// When it was written, nanoseconds since 1970.
    pub written_unix_ns: u64,
    /// Who wrote it: random, new for each put.
    pub writer: [u8; 16],
    /// Points up to the horizon, by cycle.
    pub points: Vec<LedgerPoint>,
    /// Merges that the newest point does not show yet.
    pub merges: Vec<Merge>,
}

/// A digest of entries, as merges name them.
#[must_use]
pub fn digest_of(entries: &[SegmentRef]) -> [u8; 32] {
    let mut bytes = Vec::with_capacity(entries.len() * SEGMENT_BYTES);
    entries.iter().for_each(|entry| entry.encode_into(&mut bytes));
    *blake3::hash(&bytes).as_bytes()
}

impl Merge {
    /// A merge of these entries.
    #[must_use]
    pub fn of(entries: &[SegmentRef], segments: Vec<SegmentRef>) -> Option<Self> {
        let first = entries.first()?;
        Some(Self {
            first: (first.cycle, first.attempt, first.number),
            count: u32::try_from(entries.len()).ok()?,
            digest: digest_of(entries),
            segments,
        })
    }

    /// Where its entries stand in a list, if they do, one after the other.
    #[must_use]
    pub fn place_in(&self, list: &[SegmentRef]) -> Option<std::ops::Range<usize>> {
        let is_first = |e: &SegmentRef| (e.cycle, e.attempt, e.number) == self.first;
        let at = list.iter().position(is_first)?;
        let run = at..at.checked_add(self.count as usize)?;
        (digest_of(list.get(run.clone())?) == self.digest).then_some(run)
    }
}

impl Object for Ledger {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = *key == ObjectKey::Disk(self.disk, Piece::Ledger(self.revision));
        (!same).then(|| format!("revision {} of the ledger of disk {}", self.revision, self.disk))
    }
}

impl Ledger {
    /// A list of segments with the merges applied that fit it, and which did.
    #[must_use]
    pub fn merged(&self, list: &[SegmentRef]) -> (Vec<SegmentRef>, Vec<bool>) {
        let mut list = list.to_vec();
        let apply = |merge: &Merge| match merge.place_in(&list) {
            Some(run) => {
                list.splice(run, merge.segments.iter().copied());
                true
            }
            None => false,
        };
        let fit = self.merges.iter().map(apply).collect();
        (list, fit)
    }

    /// What it says about a point: `None` if that is beyond its horizon.
    #[must_use]
    pub fn fate(&self, cycle: CycleNo, point: PointId) -> Option<Option<Fate>> {
        if cycle > self.horizon {
            return None;
        }
        Some(self.point(cycle).filter(|known| known.point == point).map(|known| known.fate))
    }

    /// The point of a cycle.
    #[must_use]
    pub fn point(&self, cycle: CycleNo) -> Option<&LedgerPoint> {
        let at = self.points.binary_search_by_key(&cycle, |point| point.cycle).ok()?;
        self.points.get(at)
    }

    /// The ledger's bytes.
    ///
    /// # Errors
    /// If it is longer than a reader would accept.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let segments: usize = self.merges.iter().map(|merge| merge.segments.len()).sum();
        for (field, count, most) in [
            ("points", self.points.len(), POINTS_MAX),
            ("merges", self.merges.len(), MERGES_MAX),
            ("merged segments", segments, SEGMENTS_MAX),
        ] {
            if count > most {
                return Err(FormatError::Bounds { what: WHAT, field, value: count as u64 });
            }
        }
        let mut out = Vec::with_capacity(HEAD_BYTES + self.points.len() * POINT_BYTES + 4);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.disk.to_bytes());
        for number in [self.revision, self.horizon.0, self.written_unix_ns] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.writer);
        out.extend_from_slice(&(self.points.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.merges.len() as u32).to_le_bytes());
        for point in &self.points {
            out.extend_from_slice(&point.cycle.0.to_le_bytes());
            out.extend_from_slice(&point.point.to_bytes());
            out.extend_from_slice(&point.cut_unix_ns.to_le_bytes());
            out.extend_from_slice(&(point.fate as u32).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
        }
        for merge in &self.merges {
            let (cycle, attempt, number) = merge.first;
            out.extend_from_slice(&cycle.0.to_le_bytes());
            out.extend_from_slice(&attempt.to_le_bytes());
            out.extend_from_slice(&number.to_le_bytes());
            out.extend_from_slice(&merge.count.to_le_bytes());
            out.extend_from_slice(&merge.digest);
            out.extend_from_slice(&(merge.segments.len() as u32).to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            merge.segments.iter().for_each(|segment| segment.encode_into(&mut out));
        }
        Ok(seal(out))
    }

    /// Reads a ledger.
    ///
    /// # Errors
    /// Anything but a whole ledger of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes = content(bytes);
        Reader::new(WHAT, bytes).magic(MAGIC)?;
        let body = checked(WHAT, bytes)?;
        let mut r = Reader::new(WHAT, body);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        r.take(4)?;
        let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
        let disk = DiskId::from_bytes(r.array()?);
        let (revision, horizon, written_unix_ns) = (r.u64()?, CycleNo(r.u64()?), r.u64()?);
        if revision == 0 {
            return Err(bounds("revision", revision));
        }
        let writer = r.array()?;
        let (points, merges) = (r.u32()? as usize, r.u32()? as usize);
        if points > POINTS_MAX {
            return Err(bounds("points", points as u64));
        }
        if merges > MERGES_MAX {
            return Err(bounds("merges", merges as u64));
        }
        let points = (0..points).map(|_| point(&mut r, horizon)).collect::<Result<Vec<_>, _>>()?;
        if let Some(pair) = points.windows(2).find(|pair| pair[0].cycle >= pair[1].cycle) {
            return Err(bounds("cycle, which is out of order,", pair[1].cycle.0));
        }
        let mut room = SEGMENTS_MAX;
        let merges = (0..merges).map(|_| merge(&mut r, &mut room)).collect::<Result<_, _>>()?;
        if r.at != body.len() {
            return Err(bounds("length", bytes.len() as u64));
        }
        Ok(Self { disk, revision, horizon, written_unix_ns, writer, points, merges })
    }
}

fn point(r: &mut Reader<'_>, horizon: CycleNo) -> Result<LedgerPoint, FormatError> {
    let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
    let cycle = CycleNo(r.u64()?);
    if cycle.0 == 0 || cycle > horizon {
        return Err(bounds("point's cycle", cycle.0));
    }
    let (point, cut_unix_ns) = (PointId::from_bytes(r.array()?), r.u64()?);
    let fate = match r.u32()? {
        1 => Fate::Kept,
        2 => Fate::Retired,
        other => return Err(bounds("fate", other.into())),
    };
    r.take(4)?;
    Ok(LedgerPoint { cycle, point, cut_unix_ns, fate })
}

fn merge(r: &mut Reader<'_>, room: &mut usize) -> Result<Merge, FormatError> {
    let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
    let first = (CycleNo(r.u64()?), r.u64()?, r.u32()?);
    let count = r.u32()?;
    if count == 0 || count as usize > SEGMENTS_MAX {
        return Err(bounds("entries replaced", count.into()));
    }
    let digest = r.array()?;
    let segments = r.u32()?;
    r.take(4)?;
    *room = match room.checked_sub(segments as usize) {
        Some(room) if segments > 0 => room,
        _ => return Err(bounds("merged segments", segments.into())),
    };
    let segments =
        (0..segments).map(|_| SegmentRef::read(r, WHAT, ANY)).collect::<Result<_, _>>()?;
    Ok(Merge { first, count, digest, segments })
}

#[cfg(test)]
mod tests {
    use super::super::bounds::Bounds;
    use super::*;
    use backstay_types::ByteLen;
    use proptest::prelude::*;

    fn segment(cycle: u64, number: u32) -> SegmentRef {
        SegmentRef {
            cycle: CycleNo(cycle),
            attempt: cycle * 7,
            number,
            object: ByteLen(4_000_000),
            data_sectors: 8_000,
            zero_sectors: 192,
            bounds: Bounds::UNKNOWN,
            index_digest: [number as u8 + 1; 32],
        }
    }

    fn sample() -> Ledger {
        let point = |cycle, fate| LedgerPoint {
            cycle: CycleNo(cycle),
            point: PointId::from_bytes([cycle as u8; 16]),
            cut_unix_ns: 1_700_000_000_000_000_000 + cycle,
            fate,
        };
        let old = [segment(2, 0), segment(2, 1), segment(3, 0)];
        Ledger {
            disk: DiskId::from_bytes([7; 16]),
            revision: 4,
            horizon: CycleNo(9),
            written_unix_ns: 1_700_000_000_000_000_099,
            writer: [5; 16],
            points: vec![point(1, Fate::Retired), point(8, Fate::Kept), point(9, Fate::Kept)],
            merges: vec![Merge::of(&old, vec![segment(3, 7)]).unwrap()],
        }
    }

    #[test]
    fn round_trip_and_golden() {
        let bytes = sample().encode().unwrap();
        assert_eq!(Ledger::decode(&bytes).unwrap(), sample());
        assert_eq!(bytes, include_bytes!("../../tests/golden/ledger.bin"));
    }

    #[test]
    fn a_merge_replaces_its_entries_where_they_stand_together_and_nowhere_else() {
        let ledger = sample();
        let s = segment;
        let (list, fit) = ledger.merged(&[s(1, 0), s(2, 0), s(2, 1), s(3, 0), s(4, 0)]);
        assert_eq!((list, fit), (vec![s(1, 0), s(3, 7), s(4, 0)], vec![true]));
        for other in [
            vec![],
            vec![s(2, 0), s(2, 1)],
            vec![s(2, 0), s(2, 1), s(4, 0), s(3, 0)],
            vec![s(2, 0), SegmentRef { data_sectors: 1, ..s(2, 1) }, s(3, 0)],
        ] {
            assert_eq!(ledger.merged(&other), (other.clone(), vec![false]));
        }
    }

    #[test]
    fn what_is_not_known_up_to_the_horizon_is_nobodys() {
        let ledger = sample();
        let id = |cycle: u8| PointId::from_bytes([cycle; 16]);
        assert_eq!(ledger.fate(CycleNo(10), id(1)), None);
        assert_eq!(ledger.fate(CycleNo(9), id(9)), Some(Some(Fate::Kept)));
        assert_eq!(ledger.fate(CycleNo(9), id(1)), Some(None));
        assert_eq!(ledger.fate(CycleNo(5), id(5)), Some(None));
        assert_eq!(ledger.fate(CycleNo(1), id(1)), Some(Some(Fate::Retired)));
    }

    #[test]
    fn disorder_and_another_version_are_refused() {
        let mut ledger = sample();
        ledger.points.swap(0, 1);
        assert!(Ledger::decode(&ledger.encode().unwrap()).is_err());
        let mut bytes = sample().encode().unwrap();
        bytes[8] = 2;
        let bytes = seal(bytes[..bytes.len() - 4].to_vec());
        assert!(matches!(Ledger::decode(&bytes), Err(FormatError::Version { found: 2, .. })));
    }

    proptest! {
        /// With the right magic and checksum, so that every field is reached.
        #[test]
        fn any_bytes_are_a_ledger_or_an_error(bytes: Vec<u8>) {
            let _ = Ledger::decode(&bytes);
            let mut marked = MAGIC.to_vec();
            marked.extend_from_slice(&VERSION.to_le_bytes());
            marked.extend(bytes);
            let _ = Ledger::decode(&seal(marked));
        }

        #[test]
        fn any_flip_is_seen(at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = sample().encode().unwrap();
            let place = at.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(Ledger::decode(&bytes).is_err());
        }
    }
}

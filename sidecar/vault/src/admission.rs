//! The receiver's side of I6 and I7: what arrives is checked before anybody can take it for a recovery point.
//!
//! A writer verifies its own cycle before it commits ([`crate::commit`]). Who stands between writers and the
//! vault believes none of them: [`check_segment`] looks at a segment before it is kept, [`check_point`] at a
//! point before its manifest is put. Both need nothing but the bytes and the vault.

use std::fs::File;
use std::os::unix::fs::FileExt;

use backstay_format::FormatError;
use backstay_format::superblock::Geometry;
use backstay_types::{Class, Classified, CycleNo, DiskId, SECTOR_BYTES, SectorRange};

use crate::encrypt::sign::content;
use crate::error::{In, VaultError};
use crate::format::key::{ObjectKey, Piece};
use crate::format::ledger::Ledger;
use crate::format::manifest::{CycleKind, Manifest, SegmentRef};
use crate::format::segment::{
    Codec, FOOTER_BYTES, Footer, HEADER_BYTES, Index, SEGMENT_BYTES_MAX, SegmentId, decode_header,
};
use crate::format::term::TermRecord;
use crate::read::{read_footer, read_index, verify_segment};
use crate::sectors::SectorSet;
use crate::store::Vault;

/// Bytes that are looked at at a time.
const STEP_BYTES: usize = 256 << 10;

/// Why something is not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Somebody else was first: its place is taken, or its term is over.
    #[error("{0}")]
    Late(String),
    /// It is not what it should be. Made again, it may be.
    #[error("{0}")]
    Wrong(String),
    /// The vault cannot say.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl Classified for NotTaken {
    fn class(&self) -> Class {
        match self {
            Self::Late(_) => Class::Refused,
            Self::Wrong(_) => Class::Damaged,
            Self::Vault(e) => e.class(),
        }
    }
}

/// What a point must obey that its bytes alone do not say.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The time, nanoseconds since 1970.
    pub now_unix_ns: u64,
    /// How far a writer's clock may be ahead of ours, in nanoseconds.
    pub skew_ns: u64,
    /// Whether every sector's checksum is compared, after decompression; otherwise the indexes are enough,
    /// after [`check_segment`] compared what is stored.
    pub content: bool,
}

/// Checks a segment, all of it but what only opening and decompressing show: header, footer, index, their
/// bounds, that it is the one it is said to be, and the checksum of each frame as it is stored; of one that
/// is sealed, the digest of its index and the checksum of all frames. That needs no key.
///
/// # Errors
/// [`VaultError::Damaged`] or [`VaultError::Inconsistent`]; or the file cannot be read.
pub fn check_segment(
    vault: &Vault,
    file: &File,
    len: u64,
    id: SegmentId,
) -> Result<(), VaultError> {
    let key = id.key();
    let of_io = |e| VaultError::of_io(&key, e);
    let wrong = |reason: String| VaultError::Inconsistent { object: String::from(&key), reason };
    if !((HEADER_BYTES + FOOTER_BYTES) as u64..=SEGMENT_BYTES_MAX).contains(&len) {
        return Err(wrong(format!("{len} bytes are no segment")));
    }
    let (mut header, mut footer) = ([0; HEADER_BYTES], [0; FOOTER_BYTES]);
    file.read_exact_at(&mut header, 0).map_err(of_io)?;
    file.read_exact_at(&mut footer, len - FOOTER_BYTES as u64).map_err(of_io)?;
    let footer = Footer::decode(&footer, backstay_types::ByteLen(len)).within(&key)?;
    let (of_header, sealed) = decode_header(&header).within(&key)?;
    if of_header != id || footer.id != id {
        return Err(wrong("it is another segment".into()));
    }
    if sealed.is_some() != footer.sealed || footer.sealed != vault.is_encrypted() {
        return Err(wrong("it is encrypted and the vault is not, or the other way round".into()));
    }
    let mut stored = vec![0; footer.index_stored_len as usize];
    file.read_exact_at(&mut stored, footer.index_offset).map_err(of_io)?;
    if footer.sealed {
        if *blake3::hash(&stored).as_bytes() != footer.index_digest {
            return Err(wrong("its index does not have the digest in its footer".into()));
        }
        let (mut crc, mut at) = (0, HEADER_BYTES as u64);
        let mut step = vec![0; STEP_BYTES];
        while at < footer.index_offset {
            let some = (footer.index_offset - at).min(STEP_BYTES as u64) as usize;
            file.read_exact_at(&mut step[..some], at).map_err(of_io)?;
            crc = crc32c::crc32c_append(crc, &step[..some]);
            at += some as u64;
        }
        return match crc == footer.frames_crc {
            true => Ok(()),
            false => Err(wrong("its frames do not have the checksum in its footer".into())),
        };
    }
    let raw = match footer.index_codec {
        Codec::Raw => stored,
        Codec::Zstd => zstd::bulk::decompress(&stored, footer.index_raw_len as usize)
            .map_err(|e| wrong(format!("its index cannot be decompressed: {e}")))?,
    };
    // How large the disk is, its point says.
    let index =
        Index::decode(&raw, &footer, SectorRange::whole(Geometry::SIZE_MAX)).within(&key)?;
    let mut frame = vec![];
    for entry in &index.frames {
        frame.resize(entry.stored_len as usize, 0);
        file.read_exact_at(&mut frame, entry.offset).map_err(of_io)?;
        if crc32c::crc32c(&frame) != entry.stored_crc {
            return Err(wrong(format!("the frame at {} does not have its checksum", entry.offset)));
        }
    }
    Ok(())
}

/// Checks a point before it is put: that it is the next one, of the newest term, at a time that can be, over
/// the list it goes on from; that each of its new segments is there and whole; and that they hold, sector
/// by sector, what it says had to move (I7).
///
/// # Errors
/// [`NotTaken`]: then it must not be put.
pub fn check_point(
    vault: &Vault,
    (disk, cycle): (DiskId, CycleNo),
    bytes: &[u8],
    rules: Rules,
) -> Result<Manifest, NotTaken> {
    let key = Piece::Point(cycle).of(disk);
    vault.check_arriving(&key, bytes)?;
    let point = Manifest::decode(content(bytes)).within(&key)?;
    if (point.disk, point.cycle) != (disk, cycle) {
        let reason = format!("it is point {} of disk {}", point.cycle, point.disk);
        return Err(NotTaken::Wrong(reason));
    }
    let Some(term) = vault.newest_term(disk)? else {
        return Err(NotTaken::Wrong("the disk has no term: nobody writes it".into()));
    };
    if term.term != point.term {
        let (ours, newest, writer) = (point.term, term.term, &term.writer);
        return Err(NotTaken::Late(format!(
            "term {ours} of this disk is not its newest: term {newest} belongs to {writer}"
        )));
    }
    let newest = match vault.points(disk)?.last() {
        Some(&newest) => Some(vault.manifest(disk, newest)?),
        None => None,
    };
    // Where points were deleted behind our back, a full copy begins again beyond them.
    let last = match &newest {
        Some(newest) => Some(newest.cycle),
        None => vault.highest_known(disk)?,
    };
    let next = last.map_or(CycleNo(1), CycleNo::next);
    if cycle < next {
        return Err(NotTaken::Late(format!("recovery point {cycle} is there, or was")));
    }
    if cycle > next {
        return Err(NotTaken::Wrong(format!("the next recovery point is {next}, not {cycle}")));
    }
    let before = before(vault, &point, &term, newest.as_ref())?;
    check_times(&point, before.as_ref(), rules)?;
    let moved = check_segments(vault, &point, rules)?;
    check_list(vault, &point, before.as_ref(), newest.as_ref(), moved.as_ref())?;
    Ok(point)
}

/// The point that this one goes on from, as it must name it.
fn before(
    vault: &Vault,
    point: &Manifest,
    term: &TermRecord,
    newest: Option<&Manifest>,
) -> Result<Option<Manifest>, NotTaken> {
    let wrong = |reason: &str| Err(NotTaken::Wrong(reason.into()));
    let is_first = newest.is_some_and(|newest| newest.term < point.term);
    let told = term.from.filter(|_| is_first);
    if let Some(from) = told.filter(|from| point.predecessor == Some((from.cycle, from.point))) {
        let before = vault.manifest(point.disk, from.cycle)?;
        return match before.point == from.point {
            true => Ok(Some(before)),
            false => wrong("the point that its term goes on from is gone"),
        };
    }
    if told.is_some() && point.kind == CycleKind::Delta {
        return wrong("it does not go on from the point that its term goes on from");
    }
    match newest {
        Some(newest) if newest.term > point.term => wrong("a later term has a point already"),
        newest if newest.map(|newest| (newest.cycle, newest.point)) == point.predecessor => {
            Ok(newest.cloned())
        }
        _ => wrong("it does not name the newest point as the one before it"),
    }
}

/// No back-dating, and no dating ahead: which points are kept, and for how long, depends on their times.
fn check_times(point: &Manifest, before: Option<&Manifest>, rules: Rules) -> Result<(), NotTaken> {
    let latest = rules.now_unix_ns.saturating_add(rules.skew_ns);
    let wrong = |what: &str| {
        Err(NotTaken::Wrong(format!("{what}: set the source's clock, and keep it with NTP")))
    };
    if point.cut_unix_ns > latest || point.committed_unix_ns > latest {
        return wrong("its time lies in the future of the gateway's clock");
    }
    match before {
        Some(before) if point.cut_unix_ns < before.cut_unix_ns => {
            wrong("its time is before that of the point it follows")
        }
        _ => Ok(()),
    }
}

/// I7: the sectors that its new segments hold are those that it says had to move. Which they are, only who
/// can open the vault sees; without its key, that each segment is there, of its length and with its index.
fn check_segments(
    vault: &Vault,
    point: &Manifest,
    rules: Rules,
) -> Result<Option<SectorSet>, NotTaken> {
    let missing = |e| match e {
        VaultError::NotFound { object } => {
            NotTaken::Wrong(format!("{object}, which it names, is not there"))
        }
        e => e.into(),
    };
    if vault.is_encrypted() && (vault.is_write_only() || vault.keys().is_err()) {
        for segment in point.own_segments() {
            read_footer(vault, point.disk, segment).map_err(missing)?;
        }
        return Ok(None);
    }
    let mut moved = SectorSet::new();
    for segment in point.own_segments() {
        let index = read_index(vault, point.disk, point.size, segment).map_err(missing)?;
        for extent in &index.extents {
            moved.insert(extent.range);
        }
        if rules.content {
            verify_segment(vault, point.disk, point.size, segment, |_| ())?;
        }
    }
    if (moved.count(), moved.digest()) != (point.moved_sectors, point.moved_digest) {
        return Err(NotTaken::Wrong(format!(
            "its segments hold {} sectors, and not the {} that it says had to move: nothing of it \
             was committed",
            moved.count(),
            point.moved_sectors
        )));
    }
    Ok(Some(moved))
}

/// The list of segments: that of the point before, then its own; or its own alone, if they are the whole
/// disk.
fn check_list(
    vault: &Vault,
    point: &Manifest,
    before: Option<&Manifest>,
    newest: Option<&Manifest>,
    moved: Option<&SectorSet>,
) -> Result<(), NotTaken> {
    let wrong = |reason: String| Err(NotTaken::Wrong(reason));
    let is_own = |segment: &SegmentRef| segment.cycle == point.cycle;
    let inherited = point.segments.iter().position(is_own).unwrap_or(point.segments.len());
    let (inherited, own) = point.segments.split_at(inherited);
    let mut names: Vec<_> = own.iter().map(|segment| (segment.attempt, segment.number)).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != own.len() || !own.iter().all(is_own) {
        return wrong("its own segments are not the last of its list, each once".into());
    }
    let missed = |range| moved.and_then(|moved| moved.runs_within(range, false).first().copied());
    let must_have_moved = |range: SectorRange| match missed(range) {
        None => Ok(()),
        Some(range) => {
            wrong(format!("{range} did not move, and no earlier point stands in for it"))
        }
    };
    if inherited.is_empty() {
        return match point.kind {
            CycleKind::Delta => wrong("a delta that lays over nothing".into()),
            _ => must_have_moved(SectorRange::whole(point.size)),
        };
    }
    let Some(before) = before.filter(|_| point.kind != CycleKind::Initial) else {
        return wrong("it lays over something, and there is nothing before it".into());
    };
    if before.size > point.size {
        return wrong(format!(
            "the disk became smaller: {} bytes, {} before",
            point.size, before.size
        ));
    }
    if before.size < point.size {
        let end = SectorRange::whole(point.size).end.0;
        must_have_moved(SectorRange::new(before.size.0 / SECTOR_BYTES, end))?;
    }
    let ledger = vault.ledger(point.disk)?;
    if newest.is_some_and(|newest| newest.point != before.point) {
        // An old list comes back: as it stands, and no merge may be in force.
        let merges = ledger.is_some_and(|ledger| !ledger.merges.is_empty());
        return match !merges && inherited == before.segments {
            true => Ok(()),
            false => {
                wrong("it does not have the list of the point that its term goes on from".into())
            }
        };
    }
    match is_list_after(&before.segments, ledger.as_ref(), inherited) {
        true => Ok(()),
        false => wrong("its list is not that of the point before it".into()),
    }
}

/// Whether a list is one with the first merges of the ledger applied, however many: the ledger may have gone
/// on since the writer read it.
fn is_list_after(list: &[SegmentRef], ledger: Option<&Ledger>, found: &[SegmentRef]) -> bool {
    let mut list = list.to_vec();
    let mut merges = ledger.map(|ledger| ledger.merges.iter()).unwrap_or_default();
    loop {
        if list == found {
            return true;
        }
        let Some(merge) = merges.next() else { return false };
        if let Some(run) = merge.place_in(&list) {
            list.splice(run, merge.segments.iter().copied());
        }
    }
}

/// Which objects the new segments of a point are.
///
/// # Errors
/// If it is no point.
pub fn own_keys(bytes: &[u8]) -> Result<Vec<ObjectKey>, FormatError> {
    let point = Manifest::decode(content(bytes))?;
    let key = |segment: &SegmentRef| segment.id(point.disk).key();
    Ok(point.own_segments().map(key).collect())
}

/// A ledger as it arrives, its signature not looked at.
///
/// # Errors
/// If it is none.
pub fn ledger(bytes: &[u8]) -> Result<Ledger, FormatError> {
    Ledger::decode(content(bytes))
}

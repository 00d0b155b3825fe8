//! The fuzz targets' bodies: one function a format, given any bytes.
//!
//! Both `cargo fuzz` (fuzz_targets/) and the ordinary test `fuzz_corpus` call them. Each reads the
//! bytes as they are, and once more with magic and checksum put right, so that a mutation reaches
//! the checks behind the checksum instead of ending at it. What is accepted must keep its promises
//! and survive being written and read again.

use backstay_format::bitmap::BitmapHeader;
use backstay_format::control::{self, Request, Response};
use backstay_format::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use backstay_format::intents::{self, Block, IntentHeader};
use backstay_format::preserved::{self, PreservedHeader, Record};
use backstay_format::superblock::{Geometry, LIVE_MAX, SLOT_BYTES, Superblock};
use backstay_types::{DiskId, EpochNo, SectorRange};

/// A target: reads any bytes, panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("superblock", superblock),
    ("intents", intents),
    ("preserved", preserved),
    ("bitmap", bitmap),
    ("control", control),
    ("fingerprint", fingerprint),
];

/// The bytes, cut or padded to a block with this magic, and the checksum in its last four bytes.
fn sealed<const N: usize>(data: &[u8], magic: &[u8; 8]) -> [u8; N] {
    let mut block = [0; N];
    let len = data.len().min(N);
    block[..len].copy_from_slice(&data[..len]);
    block[..8].copy_from_slice(magic);
    let crc = crc32c::crc32c(&block[..N - 4]);
    block[N - 4..].copy_from_slice(&crc.to_le_bytes());
    block
}

fn number(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}

/// The fingerprint of a backing.
pub fn fingerprint(data: &[u8]) {
    let _ = Fingerprint::decode(data);
    let block: [u8; FINGERPRINT_BYTES] = sealed(data, b"BSTYFPRT");
    let Ok(one) = Fingerprint::decode(&block) else { return };
    assert_eq!(one.difference(&one, false), None);
    // Counters without a number of their attachment are none.
    assert_eq!(Fingerprint::decode(&one.encode()), Ok(one));
}

/// The superblock: one slot, and the newest of two.
pub fn superblock(data: &[u8]) {
    let _ = Superblock::newest(data);
    let _ = Superblock::decode(data);
    let slot: [u8; SLOT_BYTES] = sealed(data, b"BSTYSUPR");
    let Ok(one) = Superblock::decode(&slot) else { return };
    assert!(one.live.len() <= LIVE_MAX);
    assert!(one.geometry.size.0 > 0 && one.geometry.size <= Geometry::SIZE_MAX);
    let (regions, sectors) = (u64::from(one.geometry.regions()), one.geometry.sectors());
    assert!(regions << one.geometry.region_shift >= sectors);
    assert!((regions - 1) << one.geometry.region_shift < sectors);
    assert!(one.slot() < 2);
    assert_eq!(Superblock::decode(&one.encode()).as_ref(), Ok(&one));
    let mut file = [slot, [0; SLOT_BYTES]].concat();
    assert_eq!(Superblock::newest(&file), Ok(one.clone()), "an unwritten slot leaves the other");
    let older = Superblock { generation: one.generation.wrapping_sub(1), ..one.clone() };
    file[SLOT_BYTES..].copy_from_slice(&older.encode());
    let newest = Superblock::newest(&file);
    assert_eq!(newest, Ok(if one.generation == 0 { older } else { one }));
}

/// The intent map: header, blocks, and what a whole file makes dirty.
pub fn intents(data: &[u8]) {
    let _ = IntentHeader::decode(data);
    let header: [u8; intents::HEADER_BYTES] = sealed(data, b"BSTYINTM");
    let _ = IntentHeader::decode(&header);

    // A file of a disk with some regions: header as it should be, blocks as given.
    let regions = (number(data, 0) % 20_000) as u32 + 1;
    let (disk, epoch) = (DiskId::from_bytes([3; 16]), EpochNo(number(data, 4) % 4));
    let mut file = IntentHeader { disk, epoch, regions }.encode().to_vec();
    file.resize(IntentHeader::file_bytes(regions) as usize, 0);
    let blocks = data.get(8..).unwrap_or_default();
    let len = blocks.len().min(file.len() - intents::HEADER_BYTES);
    file[intents::HEADER_BYTES..][..len].copy_from_slice(&blocks[..len]);
    let mut dirty = vec![];
    let found = intents::read_all(&file, disk, epoch, regions, |region| dirty.push(region.0));
    let found = found.unwrap_or_else(|e| panic!("a whole header was refused: {e}"));
    assert_eq!(found.regions, dirty.len() as u64);
    assert!(dirty.iter().all(|&region| region < regions), "a region outside the disk");
    assert!(dirty.windows(2).all(|pair| pair[0] < pair[1]), "each region once, in order");
    for (i, chunk) in file[intents::HEADER_BYTES..].chunks_exact(intents::BLOCK_BYTES).enumerate() {
        let Some(block) = chunk.first_chunk() else { continue };
        let first = i as u32 * intents::BLOCK_REGIONS;
        let here = dirty.iter().filter(|&&r| r / intents::BLOCK_REGIONS == i as u32).count() as u32;
        match intents::decode_block(epoch, block) {
            Block::Unwritten => assert_eq!(here, 0),
            Block::Damaged => assert_eq!(here, intents::BLOCK_REGIONS.min(regions - first)),
            Block::Intents(map) => {
                let again = intents::encode_block(epoch, map);
                assert_eq!(intents::decode_block(epoch, &again), Block::Intents(map));
            }
        }
    }
    // Cut anywhere: an error or less, never more than the disk has.
    let cut = (number(data, 2) % (file.len() as u64 + 1)) as usize;
    let short = intents::read_all(&file[..cut], disk, epoch, regions, |_| {});
    assert_eq!(short.is_ok(), cut == file.len());
}

/// Preserved blocks: header, records, a log of records.
pub fn preserved(data: &[u8]) {
    let _ = PreservedHeader::decode(data);
    let header: [u8; preserved::HEADER_BYTES] = sealed(data, b"BSTYPRES");
    if let Ok(header) = PreservedHeader::decode(&header) {
        assert_eq!(PreservedHeader::decode(&header.encode()), Ok(header));
    }
    let (epoch, disk) = (EpochNo(number(data, 16)), SectorRange::new(0, number(data, 40)));
    let record: [u8; preserved::RECORD_BYTES] = sealed(data, b"BSTYPREC");
    if let Ok(record) = Record::decode(&record, epoch, disk) {
        assert!(!record.range.is_empty() && record.range.end <= disk.end);
        assert!(record.range.sectors() <= preserved::RECORD_SECTORS_MAX);
        let mut again = [0; preserved::RECORD_BYTES];
        record.encode_into(&mut again);
        assert_eq!(Record::decode(&again, epoch, disk), Ok(record));
    }
    // A log is read record by record; each step goes on and the last one ends it.
    let (mut at, disk) = (0, SectorRange::new(0, 1 << 20));
    while let Ok(record) = Record::decode(&data[at..], EpochNo(2), disk) {
        let end = at + Record::bytes(record.range.sectors()) as usize;
        let Some(content) = data.get(at + preserved::RECORD_BYTES..end) else { break };
        let _ = record.check_data(content);
        at = end;
    }
}

/// The header of a bitmap file.
pub fn bitmap(data: &[u8]) {
    let _ = BitmapHeader::decode(data);
    let header: [u8; backstay_format::bitmap::HEADER_BYTES] = sealed(data, b"BSTYBITS");
    let Ok(header) = BitmapHeader::decode(&header) else { return };
    assert_eq!(BitmapHeader::decode(&header.encode()), Ok(header));
}

/// Control messages: header, then either kind of body.
pub fn control(data: &[u8]) {
    if let Ok((len, crc)) = control::FRAMING.decode_header(data) {
        assert!(len <= control::BODY_BYTES_MAX);
        if let Some(body) = data[control::HEADER_BYTES..].get(..len) {
            let _ = control::FRAMING.decode_body::<Request>(body, crc);
            let _ = control::FRAMING.decode_body::<Response>(body, crc);
        }
    }
    // What follows a header, as the body of a message whose header fits it.
    let body = data.get(control::HEADER_BYTES..).unwrap_or(data);
    let body = &body[..body.len().min(control::BODY_BYTES_MAX)];
    let crc = crc32c::crc32c(body);
    if let Ok(ask) = control::FRAMING.decode_body::<Request>(body, crc) {
        round_trip(&ask);
    }
    if let Ok(answer) = control::FRAMING.decode_body::<Response>(body, crc) {
        round_trip(&answer);
    }
}

fn round_trip<T>(message: &T)
where
    T: serde::Serialize + for<'a> serde::Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    // Fields that were left out are written as null, so it may have become too long.
    let Ok(bytes) = control::FRAMING.encode(message) else { return };
    let (len, crc) = control::FRAMING.decode_header(&bytes).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(len, bytes.len() - control::HEADER_BYTES);
    assert_eq!(
        control::FRAMING.decode_body(&bytes[control::HEADER_BYTES..], crc).as_ref(),
        Ok(message)
    );
}

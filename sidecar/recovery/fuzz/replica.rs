//! What the fuzz targets of a replica's files do, shared with the tests that run them over corpus and
//! golden files: any bytes are a file or an error, and what is accepted keeps its promises.

use std::convert::Infallible;

use backstay_recovery::replica::ReplicaRecord;
use backstay_recovery::replica::log::{LogHeader, Record, read};
use backstay_recovery::replica::record::LogRef;
use backstay_recovery::replica::set;
use backstay_types::{ByteLen, CycleNo, DiskId, PointId, SectorRange};
use backstay_vault::format::document::encode;

/// A target: reads any bytes, panics if a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by name.
#[allow(dead_code, reason = "cargo-fuzz calls them one by one")]
pub const TARGETS: [(&str, Target); 3] =
    [("redo_log", redo_log), ("sector_set", sector_set), ("replica_record", replica_record)];

/// A disk that is not a multiple of sectors.
const SIZE: ByteLen = ByteLen((1 << 20) + 300);

/// The log that the corpus holds.
pub fn header() -> LogHeader {
    LogHeader {
        disk: DiskId::from_bytes([1; 16]),
        cycle: CycleNo(7),
        point: PointId::from_bytes([2; 16]),
    }
}

/// A redo log: as it is, and with checksums of headers that fit.
pub fn redo_log(data: &[u8]) {
    log(data);
    let mut sealed = data.to_vec();
    for (at, len) in std::iter::once((0, 64)).chain((64..).step_by(32).map(|at| (at, 32))) {
        let Some(block) = sealed.get_mut(at..at + len) else { break };
        let crc = crc32c::crc32c(&block[..len - 4]);
        block[len - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    log(&sealed);
    if let Some(head) = data.first_chunk::<32>()
        && let Ok(record) = Record::decode(head, SIZE)
    {
        assert_eq!(record.encode(), *head);
        assert!(record.offset.0 + record.len.0 <= SIZE.0);
    }
}

fn log(bytes: &[u8]) {
    let (mut records, mut end) = (0, 64);
    let whole =
        LogRef { file: "redo-1".into(), bytes: bytes.len() as u64, records: 0, digest: "".into() };
    // Without the right digest it is never accepted; what is handed on before is right by itself.
    let accepted = read(bytes, &header(), &whole, SIZE, |record, data| {
        records += 1;
        end += 32 + data.len();
        assert!(record.offset.0 + record.len.0 <= SIZE.0);
        assert!(!record.data || data.len() as u64 == record.len.0);
        assert!(end <= bytes.len());
        Ok::<_, Infallible>(())
    });
    assert!(accepted.is_err());
}

/// A set of sectors.
pub fn sector_set(data: &[u8]) {
    let whole = SectorRange::whole(SIZE);
    if let Ok(read) = set::read(data, whole) {
        let mut written = vec![];
        set::write(&read, &mut written).unwrap();
        let mut expected = data.to_vec();
        // Reserved: ignored when read.
        expected[12..16].fill(0);
        assert_eq!(written, expected);
        assert!(read.count() <= whole.sectors());
    }
}

/// `replica.json`.
pub fn replica_record(data: &[u8]) {
    if let Ok(record) = ReplicaRecord::decode(data) {
        let again = encode(&record).and_then(|bytes| ReplicaRecord::decode(&bytes));
        assert_eq!(again, Ok(record));
    }
}

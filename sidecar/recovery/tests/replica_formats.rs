//! The files of a replica: golden bytes, every bit flipped, any bytes at all.
//!
//! A golden file that differs means that a replica of an earlier Backstay is no longer read as it was
//! meant. `BACKSTAY_GOLDEN_WRITE=1` writes them again; then look at what changed.

#[path = "../fuzz/replica.rs"]
mod entry;
#[path = "../../vault/tests/common/survives.rs"]
mod survives;

use std::path::Path;

use backstay_recovery::replica::log::{LogError, Record, read};
use backstay_recovery::replica::record::{LogRef, SetRef, TargetRecord};
use backstay_recovery::replica::{PointRef, ReplicaRecord, ReplicaState, Seed, set};
use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, PointId, SectorRange, Term};
use backstay_vault::SectorSet;
use backstay_vault::format::document::encode;
use survives::survives;

const SIZE: ByteLen = ByteLen((1 << 20) + 300);

fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BACKSTAY_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(golden == bytes, "{name}: what is written now differs from the golden file");
    golden
}

/// A log with data, zeroes, and the disk's last part of a sector.
fn log() -> (Vec<u8>, LogRef) {
    let data: Vec<u8> = (0..700u32).map(|n| n as u8).collect();
    let record = |offset, data: &[u8]| Record {
        offset: ByteOffset(offset),
        len: ByteLen(data.len() as u64),
        data: true,
        crc: crc32c::crc32c(data),
    };
    let mut bytes = entry::header().encode().to_vec();
    let mut digest = blake3::Hasher::new();
    digest.update(&bytes);
    let zeroes = Record { offset: ByteOffset(1 << 19), len: ByteLen(1 << 18), data: false, crc: 0 };
    let records: [(Record, &[u8]); 3] = [
        (record(512, &data[..512]), &data[..512]),
        (zeroes, &[]),
        (record(1 << 20, &data[400..]), &data[400..]),
    ];
    for (record, data) in records {
        digest.update(&record.encode());
        bytes.extend(record.encode());
        bytes.extend(data);
    }
    let digest = digest.finalize().to_hex().to_string();
    let log = LogRef { file: "redo-1".into(), bytes: bytes.len() as u64, records: 3, digest };
    (bytes, log)
}

fn read_log(bytes: &[u8], log: &LogRef) -> Result<Vec<Record>, String> {
    let mut records = vec![];
    let done = read(bytes, &entry::header(), log, SIZE, |record, _| {
        records.push(*record);
        Ok::<_, ()>(())
    });
    match done {
        Ok(()) => Ok(records),
        Err(LogError::Format(e)) => Err(e.to_string()),
        Err(e) => panic!("{e:?}"),
    }
}

#[test]
fn a_log_is_what_was_written_or_refused() {
    let (bytes, log) = log();
    let mut bytes = golden("redo-log.bin", &bytes);
    assert_eq!(read_log(&bytes, &log).unwrap().len(), 3);
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(read_log(&bytes, &log).is_err(), "bit {bit} flipped and not seen");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    for len in 0..bytes.len() {
        assert!(read_log(&bytes[..len], &log).is_err(), "cut to {len}");
        let shorter = LogRef { bytes: len as u64, ..log.clone() };
        assert!(read_log(&bytes, &shorter).is_err(), "said to have {len}");
    }
    // What comes after its end is not looked at: the file may be longer.
    bytes.extend([7; 100]);
    assert_eq!(read_log(&bytes, &log).unwrap().len(), 3);
}

#[test]
fn a_set_is_what_was_written_or_refused() {
    let mut sectors = SectorSet::new();
    let runs = [(0, 1), (5, 600), (2000, 2049)];
    runs.iter().for_each(|&(start, end)| {
        sectors.insert(SectorRange::new(start, end));
    });
    let mut bytes = vec![];
    set::write(&sectors, &mut bytes).unwrap();
    let bytes = golden("sector-set.bin", &bytes);
    let whole = SectorRange::whole(SIZE);
    assert_eq!(set::read(&bytes[..], whole).unwrap().first_difference(&sectors), None);
    for len in 0..bytes.len() {
        let read = set::read(&bytes[..len], whole);
        // A whole number of runs is a set; which one it has to be, its digest says.
        assert_eq!(read.is_ok(), len >= 16 && len % 16 == 0, "cut to {len}");
    }
    assert!(set::read(&bytes[..], SectorRange::new(0, 2048)).is_err(), "outside the disk");
}

fn records() -> Vec<(&'static str, ReplicaRecord)> {
    let point = |cycle: u64| PointRef {
        cycle: CycleNo(cycle),
        point: PointId::from_bytes([cycle as u8; 16]),
        term: Term(2),
        size_bytes: SIZE,
        cut_unix_ns: 1_700_000_000_000_000_000 + cycle,
    };
    let (_, log) = log();
    let file = SetRef { file: "sectors-3".into(), digest: "ab".repeat(32) };
    let (from, to) = (Some(point(6)), point(7));
    let standings = [
        ("at", ReplicaState::At { point: to, mtime_unix_ns: 1_700_000_000_000_000_001 }),
        ("ready", ReplicaState::Ready { from, to, log: log.clone() }),
        ("applying", ReplicaState::Applying { from: None, to, log }),
        (
            "but",
            ReplicaState::Partial { point: point(6), sectors: file, toward: Some(to), seen: 3 },
        ),
        ("seeding", ReplicaState::Seeding { to, how: Seed::Compare, seen: 12 }),
        ("taken-over", ReplicaState::TakenOver { point: to }),
    ];
    let record = |standing| ReplicaRecord {
        replica: "11111111-2222-4333-8444-555555555555".parse().unwrap(),
        disk: DiskId::from_bytes([1; 16]),
        name: "db".parse().unwrap(),
        vault: "file:///mnt/vault".into(),
        target: TargetRecord {
            path: "/srv/standby.img".into(),
            identity: "0123456789abcdef0123456789abcdef".into(),
            device: false,
        },
        standing,
    };
    standings.into_iter().map(|(name, standing)| (name, record(standing))).collect()
}

#[test]
fn records_come_back() {
    for (name, record) in records() {
        let bytes = golden(&format!("replica-{name}.json"), &encode(&record).unwrap());
        assert_eq!(ReplicaRecord::decode(&bytes).unwrap(), record);
        for len in 0..bytes.len() {
            assert!(ReplicaRecord::decode(&bytes[..len]).is_err());
        }
    }
}

#[test]
fn a_record_names_no_file_outside_its_folder() {
    for (_, record) in records() {
        for file in ["../redo-1", "/etc/passwd", "redo-", "redo-1/../../x", "", "super", "redo-x"] {
            let mut record = record.clone();
            match &mut record.standing {
                ReplicaState::Ready { log, .. } | ReplicaState::Applying { log, .. } => {
                    log.file = file.into()
                }
                ReplicaState::Partial { sectors, .. } => sectors.file = file.into(),
                _ => continue,
            }
            assert!(ReplicaRecord::decode(&encode(&record).unwrap()).is_err(), "{file:?}");
        }
    }
}

/// The fuzz targets as an ordinary test: corpus, golden files, and mutations of both.
#[test]
fn any_bytes_are_a_file_or_an_error() {
    for (name, target) in entry::TARGETS {
        survives(name, target);
    }
}

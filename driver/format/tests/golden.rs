//! Golden files: the bytes of every state format and control message, as version 1 writes them.
//!
//! A difference here means that state written by an earlier Backstay is no longer read as it was
//! meant: raise the format's version and keep reading the old one, or undo the change. For a new
//! format or version run the tests once with `BACKSTAY_GOLDEN_WRITE=1` and look at what changed.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use backstay_format::FormatError;
use backstay_format::bitmap::BitmapHeader;
use backstay_format::control::{
    self, ControlError, Counters, CutMode, CutReply, DriverStatus, ErrorCode, FoundState,
    IoTrouble, Noted, OpenCut, Request, Response, Untracked,
};
use backstay_format::fingerprint::{Fingerprint, WriteCounters};
use backstay_format::intents::{self, BLOCK_MAP_BYTES, IntentHeader};
use backstay_format::mark::{MARK_BYTES, Mark, Tracked};
use backstay_format::preserved::{PreservedHeader, RECORD_BYTES, Record};
use backstay_format::superblock::{
    BackingId, Base, CleanStop, Geometry, Resync, SLOT_BYTES, Superblock,
};
use backstay_format::unfinished::{UnfinishedRestore, Writer};
use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, EpochNo, PointId, SectorRange};

/// The golden file of this name; made of `bytes` first if asked for.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("BACKSTAY_GOLDEN_WRITE").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let golden = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if golden != bytes {
        let at = golden.iter().zip(bytes).position(|(a, b)| a != b);
        let at = at.unwrap_or(golden.len().min(bytes.len()));
        panic!(
            "{name}: what is written now differs from the golden file from byte {at} on \
             ({} bytes now, {} in the file)",
            bytes.len(),
            golden.len()
        );
    }
    golden
}

/// The golden file of this name, which an earlier version wrote and nobody writes any more.
fn golden_of_before(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Flips every bit of some bytes in turn; `read` must see each.
fn every_bit_flip_is_seen<T: Debug>(bytes: &[u8], read: impl Fn(&[u8]) -> Result<T, FormatError>) {
    let mut bytes = bytes.to_vec();
    read(&bytes).expect("the golden bytes are fine");
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Ok(read) = read(&bytes) {
            panic!("bit {bit} flipped and not seen: {read:?}");
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

fn id(byte: u8) -> DiskId {
    DiskId::from_bytes(std::array::from_fn(|i| byte + i as u8))
}

fn base() -> Base {
    Base {
        vault_disk: id(0x40),
        cycle: CycleNo(41),
        point: PointId::from_bytes(std::array::from_fn(|i| 0x60 + i as u8)),
    }
}

fn superblocks() -> [Superblock; 2] {
    let full = Superblock {
        generation: 12,
        disk: id(0x10),
        geometry: Geometry::of_size(ByteLen((1 << 40) + 300)),
        boot_id: std::array::from_fn(|i| 0x80 + i as u8),
        clean: Some(CleanStop {
            bitmap_crc: 0xA1B2_C3D4,
            bitmap_len: 4096 + 16 * 3,
            backing_mtime_ns: 1_700_000_000_123_456_789,
            fingerprint_crc: 0,
        }),
        live: vec![EpochNo(4), EpochNo(5), EpochNo(6), EpochNo(0x0102_0304_0506_0708)],
        resync: Some(Resync::BackingChanged),
        base: Some(base()),
        announced: vec![Base { cycle: CycleNo(42), ..base() }],
        coarse: false,
        resync_no: 6,
        growing_to: None,
        backing: None,
    };
    let least = Superblock {
        generation: 13,
        clean: None,
        live: vec![EpochNo(7)],
        resync: None,
        base: None,
        announced: vec![],
        resync_no: 0,
        ..full.clone()
    };
    [full, least]
}

/// The superblock of a disk whose commits had no known outcome, and which went down with its machine.
fn unsure() -> Superblock {
    let [full, _] = superblocks();
    let point = |n: u8| PointId::from_bytes([n; 16]);
    let announced = |n: u8| Base { cycle: CycleNo(42), point: point(n), ..base() };
    Superblock {
        announced: vec![announced(1), announced(2), announced(3)],
        coarse: true,
        resync: Some(Resync::Unproven),
        growing_to: Some(ByteLen(3 << 40)),
        backing: Some(BackingId(std::array::from_fn(|i| 0xA0 + i as u8))),
        ..full
    }
}

#[test]
fn fingerprint() {
    let full = Fingerprint {
        size: ByteLen((1 << 40) + 300),
        changed_ns: 1_700_000_000_123_456_789,
        below_written_ns: 1_700_000_000_123_456_788,
        boot_id: std::array::from_fn(|i| 0x80 + i as u8),
        counters: Some(WriteCounters {
            diskseq: 21,
            writes: 22,
            written_sectors: 23,
            discards: 24,
            discarded_sectors: 25,
        }),
        samples: std::array::from_fn(|i| 0xA0 + i as u8),
    };
    let file = golden("fingerprint.bin", &full.encode());
    assert_eq!(Fingerprint::decode(&file), Ok(full));
    every_bit_flip_is_seen(&file, Fingerprint::decode);
    let none = Fingerprint { counters: None, ..full };
    assert_eq!(Fingerprint::decode(&none.encode()), Ok(none));
}

#[test]
fn superblock() {
    let ([full, least], unsure) = (superblocks(), unsure());
    let bytes = [full.encode(), least.encode(), unsure.encode()].concat();
    let file = golden("superblock-2.bin", &bytes);
    for (slot, written) in file.chunks(SLOT_BYTES).zip([&full, &least, &unsure]) {
        assert_eq!(Superblock::decode(slot).as_ref(), Ok(written));
        every_bit_flip_is_seen(slot, Superblock::decode);
    }
    assert_eq!(Superblock::newest(&file), Ok(least));
    // A disk never grows to what it is, or to less.
    let stuck = Superblock { growing_to: Some(unsure.geometry.size), ..unsure };
    assert!(matches!(
        Superblock::decode(&stuck.encode()),
        Err(FormatError::Bounds { field: "growing_to", .. })
    ));
}

/// Version 1: one announced point, in another place.
#[test]
fn superblock_of_version_1() {
    let [full, least] = superblocks();
    let file = golden_of_before("superblock.bin");
    assert_eq!(Superblock::decode(&file).as_ref(), Ok(&full));
    assert_eq!(Superblock::newest(&file), Ok(least));
    every_bit_flip_is_seen(&file[..SLOT_BYTES], Superblock::decode);
    // The fields that came with growth and moves: zero before, and zero means none.
    let growing = Superblock {
        growing_to: Some(ByteLen(3 << 40)),
        backing: Some(BackingId(std::array::from_fn(|i| 0xA0 + i as u8))),
        ..full
    };
    let file = golden_of_before("superblock-growing.bin");
    assert_eq!(Superblock::decode(&file).as_ref(), Ok(&growing));
    every_bit_flip_is_seen(&file, Superblock::decode);
}

#[test]
fn marks() {
    let all = Mark { disk: id(0x10), generation: 12, tracked: Tracked::All };
    let not_all = Mark { tracked: Tracked::NotAll, ..all };
    let file = golden("mark.bin", &[all.encode(), not_all.encode()].concat());
    for (bytes, mark) in file.chunks(MARK_BYTES).zip([all, not_all]) {
        assert_eq!(Mark::decode(bytes), Ok(mark));
        every_bit_flip_is_seen(bytes, Mark::decode);
    }
}

#[test]
fn intent_map() {
    // Two blocks: the first written, with regions 0, 9 and the block's last; the second not.
    let (disk, epoch, regions) = (id(0x10), EpochNo(7), 5001);
    let mut map = [0; BLOCK_MAP_BYTES];
    (map[0], map[1], map[BLOCK_MAP_BYTES - 1]) = (1, 2, 0x80);
    let mut bytes = IntentHeader { disk, epoch, regions }.encode().to_vec();
    bytes.extend_from_slice(&intents::encode_block(epoch, &map));
    bytes.resize(IntentHeader::file_bytes(regions) as usize, 0);
    let file = golden("intents.bin", &bytes);
    let mut dirty = vec![];
    let found = intents::read_all(&file, disk, epoch, regions, |region| dirty.push(region.0));
    assert_eq!(found.map(|found| (found.regions, found.damaged_blocks)), Ok((3, 0)));
    assert_eq!(dirty, [0, 9, 3967]);
    every_bit_flip_is_seen(&file[..intents::HEADER_BYTES], IntentHeader::decode);
    // A flip in a block is no error: it makes every region of the block dirty.
    for bit in intents::HEADER_BYTES * 8..file.len() * 8 {
        let mut torn = file.clone();
        torn[bit / 8] ^= 1 << (bit % 8);
        let found = intents::read_all(&torn, disk, epoch, regions, |_| {}).unwrap();
        assert_eq!(found.damaged_blocks, 1, "bit {bit}");
    }
}

#[test]
fn preserved_blocks() {
    let (disk, epoch) = (SectorRange::new(0, 1 << 31), EpochNo(7));
    let header = PreservedHeader { disk: id(0x10), epoch };
    let content: Vec<u8> = (0..1024).map(|i| (i % 251) as u8).collect();
    let record = Record {
        epoch,
        range: SectorRange::new(0x1234_5678, 0x1234_567A),
        data_crc: crc32c::crc32c(&content),
    };
    let mut head = [0; RECORD_BYTES];
    record.encode_into(&mut head);
    let file = golden("preserved.bin", &[&header.encode()[..], &head, &content].concat());
    assert_eq!(PreservedHeader::decode(&file), Ok(header));
    let (header, rest) = file.split_at(4096);
    let (head, content) = rest.split_at(RECORD_BYTES);
    assert_eq!(Record::decode(head, epoch, disk), Ok(record));
    every_bit_flip_is_seen(header, PreservedHeader::decode);
    every_bit_flip_is_seen(head, |bytes| Record::decode(bytes, epoch, disk));
    every_bit_flip_is_seen(content, |bytes| record.check_data(bytes));
}

#[test]
fn bitmap() {
    let header = BitmapHeader {
        disk: id(0x10),
        epoch: EpochNo(7),
        boot_id: std::array::from_fn(|i| 0x80 + i as u8),
        sectors: (1 << 31) + 1,
    };
    let file = golden("bitmap.bin", &header.encode());
    assert_eq!(BitmapHeader::decode(&file), Ok(header));
    every_bit_flip_is_seen(&file, BitmapHeader::decode);
}

fn requests() -> Vec<Request> {
    let epoch = EpochNo(7);
    vec![
        Request::Status,
        Request::Lease { client: "sidecar of host db1, process 4711".into() },
        Request::Cut { mode: CutMode::PointInTime },
        Request::Cut { mode: CutMode::Fuzzy },
        Request::Seal { epoch },
        Request::Release { epoch, base: base() },
        Request::FoldBack { epoch },
        Request::Announce { point: base() },
        Request::RequireResync { reason: Resync::Asked },
        Request::SetLimits { change_log: ByteLen(20 << 30) },
        Request::Stop,
        Request::PrepareCut,
        Request::CutAndHold { hold_ns: 200_000_000 },
        Request::Thaw { epoch },
    ]
}

fn status() -> DriverStatus {
    DriverStatus {
        name: "db1".parse().unwrap(),
        disk: id(0x10),
        pid: 4711,
        backing: "/srv/db1.img".into(),
        served: "/run/backstay/db1/mnt/disk".into(),
        size: ByteLen(1 << 40),
        found: FoundState::SameBoot,
        started_unix_ns: 1_700_000_000_000_000_001,
        engine: "direct".into(),
        epoch: EpochNo(8),
        open_cut: Some(OpenCut {
            epoch: EpochNo(7),
            cut_unix_ns: 1_700_000_000_000_000_002,
            dirty_sectors: 88,
            lost: None,
        }),
        lease: Some("sidecar".into()),
        base: Some(base()),
        announced: None,
        announced_before: vec![],
        coarse: false,
        untracked: None,
        io_trouble: None,
        io_waits: None,
        resync: None,
        resync_no: 3,
        lost_point_in_time: Some("the change log reached its limit".into()),
        dirty_sectors: 99,
        change_log_limit: ByteLen(1 << 39),
        change_log_used: ByteLen(4096),
        counters: Counters {
            reads: 1,
            read_bytes: 2,
            writes: 3,
            written_bytes: 4,
            flushes: 5,
            discards: 6,
            discarded_bytes: 7,
            io_errors: 8,
            intent_commits: 9,
            preserved_sectors: 10,
            cuts: 11,
            cut_held_ns_last: 12,
            cut_held_ns_max: 13,
        },
        warning: Some("in words".into()),
        backing_fault: None,
        hands_out_backing: false,
        takes_deadlines: false,
        sector_bytes: None,
    }
}

fn responses() -> Vec<Response> {
    let runtime = |name: &str| PathBuf::from("/run/backstay/db1").join(name);
    let cut = CutReply {
        epoch: EpochNo(7),
        mode: CutMode::PointInTime,
        cut_unix_ns: 1_700_000_000_000_000_002,
        held_ns: 81_000,
        whole_disk: None,
        dirty_sectors: 88,
        written: ByteLen(1 << 20),
        dirty: runtime("dirty-7"),
        preserved: Some(runtime("preserved-7")),
        shipped: Some(runtime("shipped-7")),
        log: Some("/var/lib/backstay/db1/log-7".into()),
    };
    let fuzzy = CutReply {
        mode: CutMode::Fuzzy,
        whole_disk: Some(Resync::NeverShipped),
        preserved: None,
        shipped: None,
        log: None,
        ..cut.clone()
    };
    vec![
        Response::Status(Box::new(status())),
        Response::Leased { status: Box::new(status()) },
        Response::Cut(Box::new(cut)),
        Response::Cut(Box::new(fuzzy)),
        Response::Sealed { log_end: ByteOffset(9216), lost: None },
        Response::Sealed { log_end: ByteOffset(4096), lost: Some("disk full".into()) },
        Response::Done,
        Response::Error(ControlError { code: ErrorCode::Busy, message: "by another".into() }),
        Response::Thawed { in_force: true, held_ns: 1_500_000 },
    ]
}

/// A driver in trouble: the fields that came later and are left out while all is well.
fn troubled() -> DriverStatus {
    DriverStatus {
        announced: Some(Base { cycle: CycleNo(43), ..base() }),
        announced_before: vec![Base { cycle: CycleNo(42), ..base() }],
        coarse: true,
        untracked: Some(Untracked {
            since_unix_ns: 1_700_000_000_000_000_003,
            error: "read-only file system".into(),
            noted: Noted::Backing,
        }),
        io_waits: None,
        io_trouble: Some(IoTrouble {
            what: "write".into(),
            errno: 28,
            at_unix_ns: 1_700_000_000_000_000_004,
            reads: 1,
            writes: 202,
            flushes: 3,
        }),
        ..status()
    }
}

#[test]
fn control_status_of_a_driver_in_trouble() {
    let answer = Response::Status(Box::new(troubled()));
    let file = golden("control-trouble.bin", &control::FRAMING.encode(&answer).unwrap());
    assert_eq!(receive::<Response>(&mut &file[..]), Ok(answer));
}

/// What came with the descriptor of the backing.
fn backing_responses() -> Vec<Response> {
    let fault = control::BackingFault {
        kind: control::BackingFaultKind::Replaced,
        since_unix_ns: 1_700_000_000_000_000_003,
        message: "in words".into(),
    };
    let status = DriverStatus {
        backing_fault: Some(fault),
        hands_out_backing: true,
        takes_deadlines: true,
        sector_bytes: Some(4096),
        ..status()
    };
    vec![
        Response::Status(Box::new(status)),
        Response::Backing { handed: true, served_on: 51 },
        Response::Backing { handed: false, served_on: 51 },
    ]
}

#[test]
fn control_backing() {
    conversation("control-backing-requests.bin", &[Request::OpenBacking]);
    conversation("control-backing-responses.bin", &backing_responses());
    // An older driver says nothing of deadlines; it is given none.
    let file = golden_of_before("control-backing-responses-without-deadlines.bin");
    match receive::<Response>(&mut &file[..]) {
        Ok(Response::Status(status)) => {
            assert!(status.hands_out_backing && !status.takes_deadlines);
        }
        other => panic!("{other:?}"),
    }
}

/// Reads one message from the front of a stream, as a socket's reader does.
fn receive<T: for<'a> serde::Deserialize<'a>>(stream: &mut &[u8]) -> Result<T, FormatError> {
    let (len, crc) = control::FRAMING.decode_header(stream)?;
    let (what, have) = ("stream", stream.len());
    let end = control::HEADER_BYTES + len;
    let body = stream.get(control::HEADER_BYTES..end).ok_or(FormatError::Short {
        what,
        have,
        need: end,
    })?;
    *stream = &stream[end..];
    control::FRAMING.decode_body(body, crc)
}

fn conversation<T>(name: &str, messages: &[T])
where
    T: serde::Serialize + for<'a> serde::Deserialize<'a> + PartialEq + Debug,
{
    let bytes: Vec<Vec<u8>> =
        messages.iter().map(|m| control::FRAMING.encode(m).unwrap()).collect();
    let file = golden(name, &bytes.concat());
    let mut stream = &file[..];
    for message in messages {
        assert_eq!(receive::<T>(&mut stream).as_ref(), Ok(message));
    }
    assert!(stream.is_empty());
    for message in bytes {
        every_bit_flip_is_seen(&message, |mut bytes| receive::<T>(&mut bytes));
    }
}

#[test]
fn control_requests() {
    conversation("control-requests.bin", &requests());
}

#[test]
fn control_responses() {
    conversation("control-responses.bin", &responses());
}

#[test]
fn control_of_growth() {
    let asked = [Request::Grow { size: Some(ByteLen(2 << 40)) }, Request::Grow { size: None }];
    conversation("control-grow-requests.bin", &asked);
    let answered = [Response::Grown { from: ByteLen(1 << 40), to: ByteLen(2 << 40) }];
    conversation("control-grow-responses.bin", &answered);
}

#[test]
fn control_of_an_end_under_users() {
    conversation("control-abort-request.bin", &[Request::Abort]);
}

#[test]
fn unknown_versions_are_refused_by_name() {
    // The version is looked at after the checksum, so a newer one must be sealed to be seen.
    let sealed = |mut bytes: Vec<u8>, version: u8| {
        bytes[8] = version;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let newer = |bytes: Vec<u8>| sealed(bytes, 2);
    let version = |result: Result<(), FormatError>| match result {
        Err(FormatError::Version { found: 2, known: 1, .. }) => {}
        other => panic!("{other:?}"),
    };
    let [full, _] = superblocks();
    for unknown in [0, 3] {
        assert!(matches!(
            Superblock::decode(&sealed(full.encode().to_vec(), unknown)),
            Err(FormatError::Version { known: 2, .. })
        ));
    }
    let (disk, epoch) = (id(1), EpochNo(1));
    let header = IntentHeader { disk, epoch, regions: 9 }.encode();
    version(IntentHeader::decode(&newer(header.to_vec())).map(drop));
    let header = PreservedHeader { disk, epoch }.encode();
    version(PreservedHeader::decode(&newer(header.to_vec())).map(drop));
    let header = BitmapHeader { disk, epoch, boot_id: [0; 16], sectors: 1 }.encode();
    version(BitmapHeader::decode(&newer(header.to_vec())).map(drop));
    let mut message = control::FRAMING.encode(&Request::Status).unwrap();
    message[8] = 2;
    version(control::FRAMING.decode_header(&message).map(drop));
}

#[test]
fn the_mark_of_an_unfinished_restore() {
    let mark = UnfinishedRestore {
        writer: Writer::Restore,
        disk: id(0x10),
        name: "db".parse().unwrap(),
        cycle: CycleNo(17),
        point: PointId::from_bytes(std::array::from_fn(|i| 0x80 + i as u8)),
        size: ByteLen(64 << 20),
        started_unix_ns: 1_700_000_000_000_000_000,
    };
    let bytes = golden("unfinished-restore.bin", &mark.encode());
    assert_eq!(UnfinishedRestore::decode(&bytes).unwrap(), mark);
    every_bit_flip_is_seen(&bytes, UnfinishedRestore::decode);
    for writer in [Writer::Replica, Writer::Move, Writer::Other(9)] {
        let mark = UnfinishedRestore { writer, ..mark.clone() };
        assert_eq!(UnfinishedRestore::decode(&mark.encode()).unwrap(), mark);
    }
    assert!(UnfinishedRestore::is_mark(&bytes) && !UnfinishedRestore::is_mark(&[0; 512]));
}

//! What holds for any value and for any bytes, by generated examples.

use backstay_format::bitmap::{BitmapHeader, PAGE_SECTORS};
use backstay_format::control::{self, Request, Response};
use backstay_format::intents::{self, BLOCK_BYTES, BLOCK_MAP_BYTES, Block, IntentHeader};
use backstay_format::preserved::{PreservedHeader, RECORD_BYTES, RECORD_SECTORS_MAX, Record};
use backstay_format::superblock::{
    ANNOUNCED_MAX, BackingId, Base, CleanStop, Geometry, LIVE_MAX, Resync, Superblock,
};
use backstay_types::{
    ByteLen, ByteOffset, CycleNo, DiskId, DiskName, EpochNo, PointId, Region, Sector, SectorRange,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn disk_id() -> impl Strategy<Value = DiskId> {
    any::<[u8; 16]>().prop_map(DiskId::from_bytes)
}

fn resync() -> impl Strategy<Value = Resync> {
    use Resync::{
        Asked, BackingChanged, ChangeLogDamaged, NeverShipped, NoMemory, StateUnwritable, Unproven,
    };
    prop::sample::select(vec![
        Unproven,
        NeverShipped,
        ChangeLogDamaged,
        StateUnwritable,
        BackingChanged,
        NoMemory,
        Asked,
    ])
}

fn base() -> impl Strategy<Value = Base> {
    (disk_id(), 1u64.., any::<[u8; 16]>()).prop_map(|(vault_disk, cycle, point)| Base {
        vault_disk,
        cycle: CycleNo(cycle),
        point: PointId::from_bytes(point),
    })
}

fn geometry() -> impl Strategy<Value = Geometry> {
    // As many bytes as regions of that size may have.
    (6u8..=20).prop_flat_map(|region_shift| {
        let most = (Geometry::REGIONS_MAX * 512) << region_shift;
        (1..=most.min(Geometry::SIZE_MAX.0))
            .prop_map(move |size| Geometry { size: ByteLen(size), region_shift })
    })
}

fn superblock() -> impl Strategy<Value = Superblock> {
    let clean = any::<(u32, u64, u64, u32)>().prop_map(
        |(bitmap_crc, bitmap_len, backing_mtime_ns, fingerprint_crc)| CleanStop {
            bitmap_crc,
            bitmap_len,
            backing_mtime_ns,
            fingerprint_crc,
        },
    );
    (
        (any::<u64>(), disk_id(), geometry(), any::<[u8; 16]>()),
        (prop::option::of(clean), vec(any::<u64>().prop_map(EpochNo), 0..=LIVE_MAX)),
        (prop::option::of(resync()), any::<u64>()),
        (prop::option::of(base()), vec(base(), 0..=ANNOUNCED_MAX)),
    )
        .prop_map(|(fixed, (clean, live), (resync, resync_no), (base, announced))| {
            let (generation, disk, geometry, boot_id) = fixed;
            // The other fields are derived, so that every case has some of them.
            let more = geometry.with_size(ByteLen(geometry.size.0 + generation % 4096)).ok();
            let growing_to = more.map(|g| g.size).filter(|&size| size > geometry.size);
            let backing = (generation % 3 != 0).then_some(BackingId(boot_id));
            let backing = backing.filter(|id| id.0 != [0; 16]);
            Superblock {
                generation,
                disk,
                geometry,
                boot_id,
                clean,
                live,
                resync,
                base,
                announced,
                coarse: generation % 2 == 1,
                resync_no,
                growing_to,
                backing,
            }
        })
}

fn request() -> impl Strategy<Value = Request> {
    use control::CutMode::{Fuzzy, PointInTime};
    let epoch = || any::<u64>().prop_map(EpochNo);
    prop_oneof![
        Just(Request::Status),
        Just(Request::Stop),
        Just(Request::Abort),
        any::<String>().prop_map(|client| Request::Lease { client }),
        prop::sample::select(vec![PointInTime, Fuzzy]).prop_map(|mode| Request::Cut { mode }),
        Just(Request::PrepareCut),
        Just(Request::OpenBacking),
        any::<u64>().prop_map(|hold_ns| Request::CutAndHold { hold_ns }),
        epoch().prop_map(|epoch| Request::Thaw { epoch }),
        epoch().prop_map(|epoch| Request::Seal { epoch }),
        (epoch(), base()).prop_map(|(epoch, base)| Request::Release { epoch, base }),
        epoch().prop_map(|epoch| Request::FoldBack { epoch }),
        base().prop_map(|point| Request::Announce { point }),
        resync().prop_map(|reason| Request::RequireResync { reason }),
        any::<u64>().prop_map(|n| Request::SetLimits { change_log: ByteLen(n) }),
        prop::option::of(any::<u64>().prop_map(ByteLen)).prop_map(|size| Request::Grow { size }),
    ]
}

/// Flips one bit; a property says what must come of it.
fn flipped(bytes: &[u8], bit: prop::sample::Index) -> Vec<u8> {
    let (mut bytes, bit) = (bytes.to_vec(), bit.index(bytes.len() * 8));
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_a_fingerprint_or_an_error(mut bytes in vec(any::<u8>(), 0..5000), whole: bool) {
        if whole && bytes.len() >= 4096 {
            bytes[..8].copy_from_slice(b"BSTYFPRT");
        }
        let _ = backstay_format::fingerprint::Fingerprint::decode(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn superblocks_come_back(one in superblock(), bit: prop::sample::Index) {
        let bytes = one.encode();
        prop_assert_eq!(Superblock::decode(&bytes), Ok(one));
        prop_assert!(Superblock::decode(&flipped(&bytes, bit)).is_err());
    }

    #[test]
    fn the_newest_whole_slot_holds(one in superblock(), tear in 0usize..4096, fill: u8) {
        // The next generation goes to the other slot; torn anywhere, the file says the old or it.
        let next = Superblock { generation: one.generation.wrapping_add(1), ..one.clone() };
        let mut file = vec![0u8; 8192];
        file[one.slot() * 4096..][..4096].copy_from_slice(&one.encode());
        let (at, bytes) = (next.slot() * 4096, next.encode());
        prop_assert_ne!(one.slot(), next.slot());
        file[at..][..4096].fill(fill);
        file[at..][..tear].copy_from_slice(&bytes[..tear]);
        let found = Superblock::newest(&file).unwrap();
        prop_assert!(found == one || found == next);
        file[at..][..4096].copy_from_slice(&bytes);
        let newest = if one.generation == u64::MAX { one } else { next };
        prop_assert_eq!(Superblock::newest(&file), Ok(newest));
    }

    #[test]
    fn regions_tile_the_disk(geometry in geometry(), pick: prop::sample::Index) {
        let (regions, sectors) = (geometry.regions(), geometry.sectors());
        let region = Region(pick.index(regions as usize) as u32);
        let run = geometry.region_sectors(region);
        prop_assert!(!run.is_empty() && run.end.0 <= sectors);
        prop_assert_eq!(run.regions(geometry.region_shift), region.0..region.0 + 1);
        let last = geometry.region_sectors(Region(regions - 1));
        prop_assert_eq!(last.end.0, sectors);
        prop_assert_eq!(SectorRange::new(0, sectors).regions(geometry.region_shift), 0..regions);
    }

    #[test]
    fn disks_beyond_the_bounds_are_refused(mut one in superblock(), more in 1u64..1 << 20) {
        // Found by the property above: small regions on a large disk have numbers over 32 bits.
        let most = (Geometry::REGIONS_MAX * 512) << one.geometry.region_shift;
        one.geometry.size.0 = most.min(Geometry::SIZE_MAX.0) + more;
        prop_assert!(Superblock::decode(&one.encode()).is_err());
    }

    #[test]
    fn intents_come_back(
        disk in disk_id(),
        epoch: u64,
        regions in 1u32..20_000,
        picks in vec(any::<prop::sample::Index>(), 0..50),
        bit: prop::sample::Index,
    ) {
        let epoch = EpochNo(epoch);
        let header = IntentHeader { disk, epoch, regions }.encode();
        prop_assert_eq!(IntentHeader::decode(&header), Ok(IntentHeader { disk, epoch, regions }));
        prop_assert!(IntentHeader::decode(&flipped(&header, bit)).is_err());
        let mut want: Vec<u32> = picks.iter().map(|p| p.index(regions as usize) as u32).collect();
        want.sort_unstable();
        want.dedup();
        let mut file = header.to_vec();
        file.resize(IntentHeader::file_bytes(regions) as usize, 0);
        for block in 0..regions.div_ceil(intents::BLOCK_REGIONS) {
            let mut map = [0; BLOCK_MAP_BYTES];
            let here = want.iter().filter(|&&r| intents::block_of(Region(r)) == block);
            here.map(|r| r % intents::BLOCK_REGIONS)
                .for_each(|i| map[i as usize / 8] |= 1 << (i % 8));
            if map != [0; BLOCK_MAP_BYTES] {
                let at = intents::block_offset(block) as usize;
                file[at..at + BLOCK_BYTES].copy_from_slice(&intents::encode_block(epoch, &map));
            }
        }
        let mut got = vec![];
        let found = intents::read_all(&file, disk, epoch, regions, |region| got.push(region.0));
        prop_assert_eq!(found.unwrap().damaged_blocks, 0);
        prop_assert_eq!(&got, &want);
        // Damage adds regions and never hides one (I1).
        let at = intents::HEADER_BYTES;
        let damaged = [&file[..at], &flipped(&file[at..], bit)].concat();
        got.clear();
        let found = intents::read_all(&damaged, disk, epoch, regions, |region| got.push(region.0));
        prop_assert_eq!(found.unwrap().damaged_blocks, 1);
        prop_assert!(want.iter().all(|region| got.contains(region)));
    }

    /// A disk that grew reads its older intents; one that has fewer regions than a map does
    /// not believe it.
    #[test]
    fn intents_of_a_smaller_disk_are_read(regions in 1u32..20_000, more in 1u32..20_000) {
        let (disk, epoch) = (DiskId::from_bytes([3; 16]), EpochNo(1));
        let mut file = IntentHeader { disk, epoch, regions }.encode().to_vec();
        let mut map = [0; BLOCK_MAP_BYTES];
        map[0] = 1;
        file.extend_from_slice(&intents::encode_block(epoch, &map));
        file.resize(IntentHeader::file_bytes(regions) as usize, 0);
        let mut got = vec![];
        let found = intents::read_all(&file, disk, epoch, regions + more, |r| got.push(r.0));
        prop_assert_eq!((found.unwrap().damaged_blocks, &got[..]), (0, &[0][..]));
        if regions > 1 {
            let larger = intents::read_all(&file, disk, epoch, regions - 1, |_| ());
            prop_assert!(larger.is_err());
        }
    }

    #[test]
    fn torn_intent_blocks_hide_nothing(
        old in any::<[u64; 62]>(),
        more in any::<[u64; 62]>(),
        tear in 1..BLOCK_BYTES,
        epoch in 1u64..,
    ) {
        // A block is only ever overwritten by one with more bits. Torn, it is damaged or as good
        // as the old one.
        let bytes = |words: [u64; 62]| -> [u8; BLOCK_MAP_BYTES] {
            words.map(u64::to_le_bytes).concat().try_into().unwrap()
        };
        let both = std::array::from_fn(|i| old[i] | more[i]);
        let epoch = EpochNo(epoch);
        let old = intents::encode_block(epoch, &bytes(old));
        let new = intents::encode_block(epoch, &bytes(both));
        let mut torn = new;
        torn[tear..].copy_from_slice(&old[tear..]);
        match intents::decode_block(epoch, &torn) {
            Block::Damaged => {}
            _ => prop_assert!(torn == old || torn == new),
        }
    }

    #[test]
    fn preserved_records_come_back(
        (epoch, data_crc) in any::<(u64, u32)>(),
        start in 0u64..1 << 41,
        sectors in 1..=RECORD_SECTORS_MAX,
        beyond in 0u64..1000,
        bit: prop::sample::Index,
    ) {
        let (epoch, range) = (EpochNo(epoch), SectorRange::new(start, start + sectors));
        let record = Record { epoch, range, data_crc };
        let mut bytes = [0xEE; RECORD_BYTES];
        record.encode_into(&mut bytes);
        let disk = SectorRange::new(0, start + sectors + beyond);
        prop_assert_eq!(Record::decode(&bytes, epoch, disk), Ok(record));
        prop_assert!(Record::decode(&flipped(&bytes, bit), epoch, disk).is_err());
        prop_assert!(Record::decode(&bytes, epoch, SectorRange::new(0, range.end.0 - 1)).is_err());
        prop_assert!(Record::decode(&bytes, EpochNo(epoch.0.wrapping_add(1)), disk).is_err());
    }

    #[test]
    fn small_headers_come_back(
        disk in disk_id(),
        (epoch, sectors) in any::<(u64, u64)>(),
        boot_id: [u8; 16],
        bit: prop::sample::Index,
    ) {
        let epoch = EpochNo(epoch);
        let header = PreservedHeader { disk, epoch };
        prop_assert_eq!(PreservedHeader::decode(&header.encode()), Ok(header));
        prop_assert!(PreservedHeader::decode(&flipped(&header.encode(), bit)).is_err());
        let header = BitmapHeader { disk, epoch, boot_id, sectors };
        prop_assert_eq!(BitmapHeader::decode(&header.encode()), Ok(header));
        prop_assert!(BitmapHeader::decode(&flipped(&header.encode(), bit)).is_err());
    }

    #[test]
    fn bitmap_files_hold_every_sector(sectors in 0..=Geometry::SIZE_MAX.0 / 512) {
        let bytes = BitmapHeader::file_bytes(sectors) - 4096;
        prop_assert!(bytes >= BitmapHeader::words(sectors) * 8);
        prop_assert!(bytes * 8 >= sectors && bytes * 8 < sectors + PAGE_SECTORS);
    }

    #[test]
    fn requests_come_back(ask in request(), bit: prop::sample::Index) {
        let bytes = control::FRAMING.encode(&ask).unwrap();
        let (len, crc) = control::FRAMING.decode_header(&bytes).unwrap();
        let body = &bytes[control::HEADER_BYTES..];
        prop_assert_eq!(len, body.len());
        prop_assert_eq!(control::FRAMING.decode_body::<Request>(body, crc), Ok(ask));
        prop_assert!(control::FRAMING.decode_body::<Request>(&flipped(body, bit), crc).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..9000), regions: u32, crc: u32) {
        let _ = Superblock::newest(&bytes);
        let _ = IntentHeader::decode(&bytes);
        let _ = intents::read_all(&bytes, DiskId::from_bytes([3; 16]), EpochNo(1), regions, |_| {});
        let _ = PreservedHeader::decode(&bytes);
        let _ = Record::decode(&bytes, EpochNo(1), SectorRange::new(0, regions.into()));
        let _ = BitmapHeader::decode(&bytes);
        let _ = control::FRAMING.decode_header(&bytes);
        let _ = control::FRAMING.decode_body::<Request>(&bytes, crc);
        let _ = control::FRAMING.decode_body::<Response>(&bytes, crc32c::crc32c(&bytes));
        if let Some(block) = bytes.first_chunk() {
            let _ = intents::decode_block(EpochNo(1), block);
        }
    }

    #[test]
    fn names_are_safe_in_paths_and_come_back(text in ".{0,70}") {
        if let Ok(name) = text.parse::<DiskName>() {
            prop_assert_eq!(name.as_str(), &text);
            let path = std::path::Path::new("/a").join(name.as_str());
            prop_assert_eq!(path.components().count(), 3);
            prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
            prop_assert!(!text.starts_with(['.', '-']));
        }
    }

    #[test]
    fn runs_cover_exactly_their_bytes(offset in 0u64..1 << 50, len in 1u64..1 << 30) {
        let run = SectorRange::covering(ByteOffset(offset), ByteLen(len));
        prop_assert_eq!(run.start, Sector::holding(ByteOffset(offset)));
        prop_assert_eq!(run.end.0 - 1, (offset + len - 1) / 512);
        prop_assert!(run.bytes().0 < len + 1024);
    }

    #[test]
    fn pieces_are_the_run(start in 0u64..10_000, len in 0u64..10_000, step in 1u64..3000) {
        let run = SectorRange::new(start, start + len);
        let mut at = start;
        for piece in run.split_at_multiples(step) {
            prop_assert_eq!(piece.start.0, at);
            prop_assert!(!piece.is_empty() && piece.start.0 / step == (piece.end.0 - 1) / step);
            at = piece.end.0;
        }
        prop_assert_eq!(at, run.end.0);
    }
}

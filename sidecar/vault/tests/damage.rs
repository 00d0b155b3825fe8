//! One flipped bit anywhere in a vault is found by verify, and restore writes nothing wrong (I6).

mod common;

use std::path::Path;

use backstay_types::Classified as _;
use backstay_types::{ByteLen, ByteOffset, CycleNo, SectorRange};
use backstay_vault::read::survey::{Reading, Survey, survey};
use backstay_vault::read::{FileTarget, RestoreTarget, restore, verify_points};
use backstay_vault::{Manifest, VaultError, Vaults};
use common::{Lab, Memory, content, rewrite};

const SIZE: u64 = 1 << 20;

fn two_points() -> (Lab, Vec<u8>, Manifest) {
    let mut rng = fastrand::Rng::with_seed(1);
    let lab = Lab::new(SIZE);
    let mut now = content(&mut rng, SIZE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let runs = [SectorRange::new(10, 300), SectorRange::new(900, 901)];
    rewrite(&mut rng, &mut now, &runs);
    let point = lab.cycle(Some(&first), &now, &runs).unwrap();
    (lab, now, point)
}

/// What every byte a restore wrote must be: the right one.
fn nothing_wrong_is_written(lab: &Lab, now: &[u8]) {
    let Ok(point) = lab.vault.manifest(lab.disk, CycleNo(2)) else { return };
    let target = Memory::new(lab.size);
    let result = restore(&lab.vault, &point, &target, 2, &|_, _| {});
    let there = target.bytes();
    match result {
        Ok(()) => assert!(there == now, "a restore that succeeded is wrong"),
        Err(_) => {
            let wrong = there.iter().zip(now).position(|(t, n)| t != n && *t != 0xEE);
            assert_eq!(wrong, None, "a byte was written that is not the disk's");
        }
    }
}

fn flip(path: &Path, at: usize, bit: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1 << bit;
    std::fs::write(path, bytes).unwrap();
}

fn kind(path: &Path) -> &'static str {
    let text = path.to_str().unwrap();
    ["segments", "points"].into_iter().find(|kind| text.contains(kind)).unwrap_or("document")
}

/// Not every bit of a zstd stream matters, and what is digested is the index, not the stream.
fn in_compressed_index(path: &Path, at: usize) -> bool {
    let bytes = std::fs::read(path).unwrap();
    let Some(footer) = bytes.len().checked_sub(128) else { return false };
    let start = u64::from_le_bytes(bytes[footer + 48..footer + 56].try_into().unwrap());
    kind(path) == "segments" && (start as usize..footer).contains(&at)
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (lab, now, _) = two_points();
    let mut rng = fastrand::Rng::with_seed(2);
    let verify = || verify_points(&lab.vault, lab.disk, &[CycleNo(1), CycleNo(2)], 2, &|_, _| {});
    verify().unwrap();
    for path in lab.objects() {
        if kind(&path) == "document" {
            continue;
        }
        let len = std::fs::read(&path).unwrap().len();
        // The ends, where headers and footers are, and places in between.
        let ends = (0..len.min(200)).chain(len.saturating_sub(200)..len);
        let between = (0..60).map(|_| rng.usize(..len)).collect::<Vec<_>>();
        for at in ends.chain(between) {
            let bit = rng.u8(..8);
            flip(&path, at, bit);
            let found = verify();
            nothing_wrong_is_written(&lab, &now);
            flip(&path, at, bit);
            match found {
                Err(e) => assert!(!e.may_pass(), "{e}"),
                // Decompresses to the same index, byte for byte: its digest says so.
                Ok(_) if in_compressed_index(&path, at) => {}
                Ok(_) => panic!("bit {bit} of byte {at} of {len} of {}", path.display()),
            }
        }
    }
    verify().unwrap();
}

#[test]
fn a_flipped_bit_in_a_document_is_found() {
    let (lab, ..) = two_points();
    let url = lab.dir.path().to_str().unwrap().to_owned();
    for path in lab.objects().iter().filter(|path| kind(path) == "document") {
        for at in 0..std::fs::read(path).unwrap().len() {
            flip(path, at, (at % 8) as u8);
            let read = Vaults::default()
                .open(&url)
                .and_then(|v| v.disk(lab.disk).map(|_| v))
                .and_then(|v| v.newest_term(lab.disk));
            flip(path, at, (at % 8) as u8);
            assert!(read.is_err(), "byte {at} of {}", path.display());
        }
    }
}

#[test]
fn a_cut_object_is_damaged_not_unreachable() {
    let (lab, now, _) = two_points();
    for path in lab.objects() {
        if kind(&path) == "document" {
            continue;
        }
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 1, 50, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            let found =
                verify_points(&lab.vault, lab.disk, &[CycleNo(1), CycleNo(2)], 2, &|_, _| {})
                    .unwrap_err();
            nothing_wrong_is_written(&lab, &now);
            assert!(!found.may_pass(), "{len} bytes left: {found}");
        }
        std::fs::write(&path, whole).unwrap();
    }
}

/// A target that is full fails the restore with its own error, and ends it.
#[test]
fn a_target_that_fails_ends_the_restore() {
    struct Full(std::sync::atomic::AtomicU64);
    impl RestoreTarget for Full {
        fn write_at(&self, _: &[u8], _: ByteOffset) -> std::io::Result<()> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn zero(&self, _: ByteOffset, _: ByteLen) -> std::io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> std::io::Result<()> {
            panic!("synced though it failed")
        }
        fn name(&self) -> String {
            "full".into()
        }
    }
    let (lab, _, point) = two_points();
    let target = Full(0.into());
    let error = restore(&lab.vault, &point, &target, 2, &|_, _| {}).unwrap_err();
    match error {
        VaultError::Target { source, .. } => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        }
        other => panic!("{other}"),
    }
    assert!(target.0.into_inner() <= 2, "one write a thread");
}

#[test]
fn a_segment_in_place_of_another_is_found() {
    let (lab, now, point) = two_points();
    let segments: Vec<_> =
        lab.objects().into_iter().filter(|path| kind(path) == "segments").collect();
    assert!(point.segments.len() >= 2);
    let kept = std::fs::read(&segments[0]).unwrap();
    std::fs::copy(&segments[1], &segments[0]).unwrap();
    assert!(verify_points(&lab.vault, lab.disk, &[CycleNo(1), CycleNo(2)], 2, &|_, _| {}).is_err());
    nothing_wrong_is_written(&lab, &now);
    std::fs::remove_file(&segments[0]).unwrap();
    let gone =
        verify_points(&lab.vault, lab.disk, &[CycleNo(1), CycleNo(2)], 2, &|_, _| {}).unwrap_err();
    assert!(matches!(gone, VaultError::NotFound { .. }), "{gone}");
    std::fs::write(&segments[0], kept).unwrap();
}

fn surveyed(lab: &Lab, cycles: &[CycleNo]) -> Survey {
    let how = Reading {
        threads: 2,
        progress: &|_, _| {},
        skip: &std::collections::BTreeSet::new(),
        done: &|_, _| true,
    };
    survey(&lab.vault, lab.disk, cycles, &how).unwrap()
}

/// What is damaged in one point is found, and what the others have is not called damaged with it; one that is
/// gone although nobody retired it is missed.
#[test]
fn a_survey_goes_on_past_damage() {
    let (lab, _, _) = two_points();
    let both = [CycleNo(1), CycleNo(2)];
    assert!(surveyed(&lab, &both).damaged.is_empty());
    let mut points: Vec<_> =
        lab.objects().into_iter().filter(|path| kind(path) == "points").collect();
    points.sort();
    flip(&points[0], 60, 1);
    assert!(surveyed(&lab, &both).damaged.into_keys().eq([CycleNo(1)]));
    std::fs::remove_file(&points[0]).unwrap();
    assert_eq!(lab.vault.missing_points(lab.disk).unwrap(), [CycleNo(1)]);
}

/// A list whose checksum fits and whose segments are in another order is another disk.
#[test]
fn segments_out_of_order_are_refused() {
    let (lab, _, point) = two_points();
    let mut wrong = point.clone();
    wrong.segments.reverse();
    assert!(wrong.segments != point.segments);
    let path = lab.objects().into_iter().filter(|path| kind(path) == "points").max().unwrap();
    std::fs::write(&path, wrong.encode()).unwrap();
    let read = lab.vault.manifest(lab.disk, CycleNo(2)).unwrap_err();
    assert!(read.is_damage() && read.to_string().contains("order"), "{read}");
    let found = surveyed(&lab, &[CycleNo(2)]).damaged;
    assert!(found[&CycleNo(2)].to_string().contains("order"), "{found:?}");
    let image = tempfile::NamedTempFile::new().unwrap();
    let target = FileTarget::open(image.path(), wrong.size).unwrap();
    assert!(restore(&lab.vault, &wrong, &target, 2, &|_, _| {}).unwrap_err().is_damage());
}

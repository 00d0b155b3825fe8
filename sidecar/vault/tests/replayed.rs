//! Objects that are whole, but not where they belong: an old point under a newer name or in another disk's folder, a
//! deleted one put again, names that lead out of the vault, and objects that unpack to more than they say.

mod common;

use std::fs;
use std::path::PathBuf;

use backstay_types::CycleNo;
use backstay_vault::read::verify_point;
use backstay_vault::{SegmentRef, VaultError, Vaults};
use common::{Lab, content, rewrite};

const SIZE: u64 = 1 << 20;

fn folder(lab: &Lab) -> PathBuf {
    lab.dir.path().join("disks").join(lab.disk.to_string())
}

fn point(lab: &Lab, cycle: u64) -> PathBuf {
    folder(lab).join(format!("points/{cycle:020}"))
}

/// Two points of a disk.
fn lab(seed: u64) -> (Lab, Vec<Vec<u8>>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let lab = Lab::new(SIZE);
    let mut now = content(&mut rng, SIZE);
    let first = lab.cycle(None, &now, &[lab.whole()]).unwrap();
    let mut contents = vec![now.clone()];
    rewrite(&mut rng, &mut now, &[lab.whole()]);
    lab.cycle(Some(&first), &now, &[lab.whole()]).unwrap();
    contents.push(now);
    (lab, contents)
}

#[test]
fn an_old_point_under_a_newer_name_is_refused() {
    let (lab, contents) = lab(1);
    fs::copy(point(&lab, 1), point(&lab, 3)).unwrap();
    assert!(lab.vault.manifest(lab.disk, CycleNo(3)).is_err());
    assert!(lab.restored(CycleNo(3)).is_err());
    fs::copy(point(&lab, 1), point(&lab, 2)).unwrap();
    assert!(lab.restored(CycleNo(2)).is_err(), "in place of the newer one");
    assert!(lab.restored(CycleNo(1)).unwrap() == contents[0]);
}

#[test]
fn what_belongs_to_another_disk_is_refused() {
    let (ours, contents) = lab(2);
    let (theirs, _) = lab(3);
    // Everything they have, put into our disk's folder, with a point in place of ours.
    for entry in fs::read_dir(folder(&theirs).join("segments")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder(&ours).join("segments").join(entry.file_name())).unwrap();
    }
    fs::copy(point(&theirs, 2), point(&ours, 2)).unwrap();
    assert!(ours.vault.manifest(ours.disk, CycleNo(2)).is_err());
    assert!(ours.restored(CycleNo(1)).unwrap() == contents[0]);
}

/// Segments of the same disk, swapped under each other's names, and of the same cycle of another vault.
#[test]
fn swapped_segments_are_found() {
    let (lab, _) = lab(4);
    let mut segments: Vec<PathBuf> =
        fs::read_dir(folder(&lab).join("segments")).unwrap().map(|e| e.unwrap().path()).collect();
    segments.sort();
    let (first, second) = (fs::read(&segments[0]).unwrap(), fs::read(&segments[1]).unwrap());
    fs::write(&segments[0], second).unwrap();
    fs::write(&segments[1], first).unwrap();
    for cycle in [1, 2] {
        assert!(lab.restored(CycleNo(cycle)).is_err());
        assert!(verify_point(&lab.vault, lab.disk, CycleNo(cycle), 1, &|_, _| {}).is_err());
    }
}

/// The next cycle of a source names its predecessor, and cycles only go on: an old point that was put back
/// under its own name is that old point, never the newest.
#[test]
fn an_old_point_put_back_is_not_the_newest() {
    let (lab, contents) = lab(5);
    let old = fs::read(point(&lab, 1)).unwrap();
    fs::remove_file(point(&lab, 1)).unwrap();
    fs::write(point(&lab, 1), old).unwrap();
    assert_eq!(lab.vault.points(lab.disk).unwrap().last(), Some(&CycleNo(2)));
    assert!(lab.restored(CycleNo(2)).unwrap() == contents[1]);
}

/// A disk's record that names a folder outside.
#[test]
fn a_name_in_a_document_is_no_way_out() {
    let (lab, _) = lab(6);
    let path = folder(&lab).join("disk.json");
    let text = fs::read_to_string(&path).unwrap();
    let start = text.find("\"name\": \"").unwrap() + 9;
    let end = start + text[start..].find('"').unwrap();
    for name in ["../../etc", "/etc", "..", "a/b", "a\\u0000b", "-rf"] {
        let forged = format!("{}{name}{}", &text[..start], &text[end..]);
        // With a checksum that fits: anyone who forges it can compute it.
        let mut document: serde_json::Value = serde_json::from_str(&forged).unwrap();
        document["crc32c"] = crc32c::crc32c(document["body"].to_string().as_bytes()).into();
        fs::write(&path, document.to_string()).unwrap();
        let vault = Vaults::default().open(lab.dir.path().to_str().unwrap()).unwrap();
        let error = vault.disk(lab.disk).unwrap_err();
        assert!(matches!(error, VaultError::Damaged { .. }), "{name}: {error}");
    }
}

/// zstd makes four gigabytes of a few kilobytes: an index that says it is small, and is not, and one that says
/// it is huge.
#[test]
fn an_index_that_unpacks_to_more_than_it_says_is_refused() {
    let (lab, _) = lab(7);
    let manifest = lab.vault.manifest(lab.disk, CycleNo(2)).unwrap();
    let SegmentRef { cycle, attempt, number, .. } = manifest.segments[0];
    let name = format!("segments/{:020}-{attempt:016x}-{number}", cycle.0);
    let path = folder(&lab).join(name);
    let whole = fs::read(&path).unwrap();
    let footer = whole.len() - 128;
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 19).unwrap();
    // Of the length that the point says, or nobody would look into it.
    let at = footer - bomb.len();
    for raw_len in [None, Some(u32::MAX), Some(256 << 20), Some(64 << 20)] {
        let mut forged = whole.clone();
        forged[at..footer].copy_from_slice(&bomb);
        let end = &mut forged[footer..];
        end[48..56].copy_from_slice(&(at as u64).to_le_bytes());
        end[56..60].copy_from_slice(&(bomb.len() as u32).to_le_bytes());
        if let Some(len) = raw_len {
            end[60..64].copy_from_slice(&u32::to_le_bytes(len));
        }
        let crc = crc32c::crc32c(&end[..124]);
        end[124..].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, forged).unwrap();
        let before = peak_kib();
        assert!(lab.restored(CycleNo(2)).is_err());
        assert!(peak_kib() - before < 100 << 10, "it took {} KiB", peak_kib() - before);
    }
}

/// The most memory this process ever had.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

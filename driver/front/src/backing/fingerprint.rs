//! Taking the fingerprint of a backing: its times, its kernel's counters, samples of its content.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use backstay_format::fingerprint::{Fingerprint, WriteCounters};
use backstay_host::stack::{self, Ground};
use backstay_types::ByteLen;

/// What is read at the start and at the end of a disk: labels, partition tables, superblocks.
const ENDS_BYTES: u64 = 1 << 20;
/// The same of a partition.
const PARTITION_BYTES: u64 = 128 << 10;
/// Where btrfs keeps its second superblock.
const BTRFS_MIRROR: u64 = 64 << 20;
/// Samples all over the disk, and bytes of one.
const SAMPLES: u64 = 256;
const SAMPLE_BYTES: u64 = 4096;
/// Most partitions that are looked at.
const PARTITIONS_MAX: usize = 128;

/// Takes the fingerprint of a backing, of which everything is durable.
pub(super) fn take(
    file: &File,
    device: bool,
    size: ByteLen,
    boot_id: [u8; 16],
) -> io::Result<Fingerprint> {
    let meta = file.metadata()?;
    let samples = samples(file, size.0)?;
    Ok(Fingerprint {
        size,
        changed_ns: if device { 0 } else { nanoseconds(meta.ctime(), meta.ctime_nsec()) },
        below_written_ns: if device { below_written(file) } else { 0 },
        boot_id,
        counters: if device { counters(meta.rdev()) } else { None },
        samples,
    })
}

fn nanoseconds(seconds: i64, more: i64) -> u64 {
    (seconds as u64).saturating_mul(1_000_000_000).saturating_add(more as u64)
}

/// When the file that a device stands on was written last; 0 if there is none that can be reached.
fn below_written(device: &File) -> u64 {
    let layers = stack::resolve(device, Path::new("")).unwrap_or_default();
    let files = layers.iter().filter(|layer| matches!(layer.ground, Ground::File { .. }));
    files
        .filter_map(|layer| {
            let meta = fs::metadata(&layer.path).ok()?;
            let same = Ground::of_metadata(&meta) == layer.ground;
            same.then(|| nanoseconds(meta.mtime(), meta.mtime_nsec()))
        })
        .fold(0, u64::max)
}

/// What the kernel counted of a device (Documentation/block/stat.rst), if it counts.
fn counters(number: u64) -> Option<WriteCounters> {
    let dir = stack::sysfs_dir(number).ok()?;
    let whole = if dir.join("partition").exists() { dir.parent()? } else { &dir };
    let diskseq = fs::read_to_string(whole.join("diskseq")).ok()?.trim().parse().ok()?;
    let counts = fs::read_to_string(whole.join("queue/iostats")).ok()?.trim() == "1";
    let stat = fs::read_to_string(dir.join("stat")).ok()?;
    let fields: Vec<u64> = stat.split_whitespace().map_while(|f| f.parse().ok()).collect();
    let at = |n: usize| fields.get(n).copied().unwrap_or_default();
    (counts && diskseq != 0 && fields.len() >= 11).then(|| WriteCounters {
        diskseq,
        writes: at(4),
        written_sectors: at(6),
        discards: at(11),
        discarded_sectors: at(13),
    })
}

/// The digest of the areas that are looked at, each with its place.
fn samples(file: &File, size: u64) -> io::Result<[u8; 32]> {
    let mut head = vec![0; ENDS_BYTES.min(size) as usize];
    read(file, 0, &mut head);
    let mut areas =
        vec![(size.saturating_sub(ENDS_BYTES), ENDS_BYTES), (BTRFS_MIRROR, SAMPLE_BYTES)];
    for (start, end) in partitions(&head) {
        areas.push((start, PARTITION_BYTES));
        areas.push((end.saturating_sub(PARTITION_BYTES), PARTITION_BYTES));
    }
    let step = (size / SAMPLES).next_multiple_of(SAMPLE_BYTES);
    areas.extend((0..SAMPLES).map(|n| (n.saturating_mul(step), SAMPLE_BYTES)));
    let mut digest = blake3::Hasher::new();
    digest.update(&head);
    let mut buffer = vec![];
    for (start, len) in areas {
        let len = len.min(size.saturating_sub(start));
        if len == 0 {
            continue;
        }
        buffer.resize(len as usize, 0);
        digest.update(&start.to_le_bytes());
        digest.update(&len.to_le_bytes());
        // What cannot be read is a property of the disk as well.
        match read(file, start, &mut buffer) {
            true => digest.update(&buffer),
            false => digest.update(b"unreadable"),
        };
    }
    Ok(*digest.finalize().as_bytes())
}

fn read(file: &File, at: u64, buffer: &mut [u8]) -> bool {
    let done = file.read_exact_at(buffer, at);
    if done.is_err() {
        buffer.fill(0);
    }
    done.is_ok()
}

/// Partitions that the first bytes of a disk tell of, as bytes: start and end. Whatever is in them, they are
/// only places to look at.
fn partitions(head: &[u8]) -> Vec<(u64, u64)> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    for sector in [512usize, 4096] {
        if head.get(sector..sector + 8) != Some(b"EFI PART") {
            continue;
        }
        let first = u64_at(sector + 72).unwrap_or_default().saturating_mul(sector as u64);
        let entry_bytes = u32_at(sector + 84).unwrap_or_default() as usize;
        if first >= head.len() as u64 || !(128..=4096).contains(&entry_bytes) {
            return vec![];
        }
        let entries = head[first as usize..].chunks_exact(entry_bytes).take(PARTITIONS_MAX);
        return entries
            .filter(|entry| entry[..16] != [0; 16])
            .map(|entry| {
                let at =
                    |n: usize| u64::from_le_bytes(entry[n..n + 8].try_into().unwrap_or_default());
                let bytes = |lba: u64| lba.saturating_mul(sector as u64);
                (bytes(at(32)), bytes(at(40).saturating_add(1)))
            })
            .collect();
    }
    if head.get(510..512) != Some(&[0x55, 0xAA]) {
        return vec![];
    }
    let entry = |n: usize| {
        let at = 446 + 16 * n;
        let (start, sectors) = (u32_at(at + 8)?, u32_at(at + 12)?);
        let bytes = |sectors: u64| sectors * 512;
        let start = u64::from(start);
        (head[at + 4] != 0 && head[at + 4] != 0xEE)
            .then(|| (bytes(start), bytes(start + u64::from(sectors))))
    };
    (0..4).filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_inside_a_partition_is_looked_at() {
        let file = tempfile::tempfile().unwrap();
        let size = 3 << 30;
        file.set_len(size).unwrap();
        let mut table = [0u8; 512];
        table[446 + 4] = 0x83;
        // Far from the ends and from every sample.
        let start = (SAMPLE_BYTES * 3 + (1 << 30)) / 512;
        table[446 + 8..446 + 12].copy_from_slice(&(start as u32).to_le_bytes());
        table[446 + 12..446 + 16].copy_from_slice(&204_800u32.to_le_bytes());
        table[510..].copy_from_slice(&[0x55, 0xAA]);
        file.write_all_at(&table, 0).unwrap();
        let before = samples(&file, size).unwrap();
        assert_eq!(samples(&file, size).unwrap(), before);
        file.write_all_at(b"mounted once more", start * 512 + 1024).unwrap();
        assert_ne!(samples(&file, size).unwrap(), before);
        assert_ne!(samples(&file, size - 4096).unwrap(), before);
    }

    #[test]
    fn any_head_tells_places_only() {
        let mut rng = fastrand::Rng::with_seed(7);
        for round in 0..300 {
            let mut head = vec![0; rng.usize(0..10_000)];
            rng.fill(&mut head);
            if head.len() > 5000 {
                let at = if round % 2 == 0 { 512 } else { 4096 };
                head[at..at + 8].copy_from_slice(b"EFI PART");
                head[at + 73..at + 80].fill(0);
                head[at + 84..at + 88].copy_from_slice(&128u32.to_le_bytes());
            }
            assert!(partitions(&head).len() <= PARTITIONS_MAX);
        }
        assert!(partitions(&[]).is_empty());
    }
}

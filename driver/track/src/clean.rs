//! The bitmap that a clean stop saves, so that the next start is exact even after a reboot.
//!
//! The file `clean` has a 4 KiB header in the bitmap format, then one entry of 16 bytes per non-zero word:
//! word number, bits. The superblock records its checksum and length. Only that record makes the stop a
//! clean one.

use backstay_format::bitmap::{BitmapHeader, HEADER_BYTES};
use backstay_format::fingerprint::{FINGERPRINT_BYTES, Fingerprint};
use backstay_format::superblock::{CleanStop, Geometry};
use backstay_types::DiskId;

use crate::env::{Env, StateFile};
use crate::epoch::Epoch;
use crate::error::Doing;
use crate::{Backing, TrackError};

pub(crate) const FILE: &str = "clean";
pub(crate) const FINGERPRINT: &str = "fingerprint";
const ENTRY_BYTES: usize = 16;
/// Size of one read or write, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// Saves the dirty bitmap.
pub(crate) fn save<E: Env, B: Backing>(
    env: &E,
    backing: &B,
    disk: DiskId,
    epoch: &Epoch<E>,
) -> Result<CleanStop, TrackError> {
    let sectors = epoch.dirty.geometry().sectors();
    let header = BitmapHeader { disk, epoch: epoch.no, boot_id: env.boot_id(), sectors };
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + ENTRY_BYTES);
    chunk.extend_from_slice(&header.encode());
    let file = env.create_scratch(FILE, &[]).doing("saving the bitmap")?;
    let (mut crc, mut len, mut trouble) = (0, 0u64, Ok(()));
    let mut put = |chunk: &mut Vec<u8>| {
        crc = crc32c::crc32c_append(crc, chunk);
        if trouble.is_ok() {
            trouble = file.write_at(chunk, len);
        }
        len += chunk.len() as u64;
        chunk.clear();
    };
    epoch.dirty.for_each_word(|word, bits| {
        chunk.extend_from_slice(&word.to_le_bytes());
        chunk.extend_from_slice(&bits.to_le_bytes());
        if chunk.len() >= CHUNK_BYTES {
            put(&mut chunk);
        }
    });
    put(&mut chunk);
    trouble.doing("saving the bitmap")?;
    env.make_durable(&file, FILE).doing("saving the bitmap")?;
    let backing_mtime_ns = backing
        .mtime_unix_ns()
        .map_err(|source| TrackError::Backing { doing: "reading its time", source })?;
    let fingerprint_crc = save_fingerprint(env, backing)?;
    Ok(CleanStop { bitmap_crc: crc, bitmap_len: len, backing_mtime_ns, fingerprint_crc })
}

/// Saves the fingerprint of the backing. Returns the checksum of the file.
pub(crate) fn save_fingerprint<E: Env, B: Backing>(
    env: &E,
    backing: &B,
) -> Result<u32, TrackError> {
    let Some(fingerprint) = backing.fingerprint(env.boot_id(), backing.size()).map_err(examined)?
    else {
        return Ok(0);
    };
    let bytes = fingerprint.encode();
    let file = env.create_scratch(FINGERPRINT, &bytes).doing("saving the backing's fingerprint")?;
    env.make_durable(&file, FINGERPRINT).doing("saving the backing's fingerprint")?;
    Ok(crc32c::crc32c(&bytes))
}

/// The evidence that the backing was changed since the clean stop, if there is any.
pub(crate) fn difference<E: Env, B: Backing>(
    env: &E,
    backing: &B,
    stop: CleanStop,
) -> Result<Option<&'static str>, TrackError> {
    const LOST: &str = "what it was like at the clean stop was not kept";
    let mtime = backing.mtime_unix_ns().map_err(examined)?;
    if stop.backing_mtime_ns != 0 && mtime != stop.backing_mtime_ns {
        return Ok(Some("the time of its last write is another one"));
    }
    // Earlier versions saved no fingerprint.
    if stop.fingerprint_crc == 0 {
        return Ok(None);
    }
    let Some(file) = env.open(FINGERPRINT).doing("opening the backing's fingerprint")? else {
        return Ok(Some(LOST));
    };
    let len = file.len_bytes().doing("reading the backing's fingerprint")?;
    let mut bytes = vec![0; len.min(FINGERPRINT_BYTES as u64) as usize];
    file.read_at(&mut bytes, 0).doing("reading the backing's fingerprint")?;
    let was = match Fingerprint::decode(&bytes) {
        Ok(was) if crc32c::crc32c(&bytes) == stop.fingerprint_crc => was,
        _ => return Ok(Some(LOST)),
    };
    if backing.size() < was.size {
        return Ok(Some("it is shorter"));
    }
    let now = backing.fingerprint(env.boot_id(), was.size).map_err(examined)?;
    Ok(now.and_then(|now| was.difference(&now, backing.size() > was.size)))
}

fn examined(source: std::io::Error) -> TrackError {
    TrackError::Backing { doing: "finding out whether it was changed", source }
}

/// Reads a saved bitmap, word by word. Returns `false` if the file is not the one that was saved.
pub(crate) fn load<E: Env>(
    env: &E,
    disk: DiskId,
    geometry: Geometry,
    stop: CleanStop,
    mut each: impl FnMut(u64, u64),
) -> Result<bool, TrackError> {
    let Some(file) = env.open(FILE).doing("opening the saved bitmap")? else {
        return Ok(false);
    };
    let fits = file.len_bytes().doing("reading the saved bitmap")? == stop.bitmap_len
        && stop.bitmap_len >= HEADER_BYTES as u64
        && (stop.bitmap_len - HEADER_BYTES as u64).is_multiple_of(ENTRY_BYTES as u64);
    if !fits {
        return Ok(false);
    }
    // Read the file twice: use nothing before the checksum of the whole file is verified.
    let mut crc = 0;
    read_chunks(&file, 0, stop.bitmap_len, |chunk| crc = crc32c::crc32c_append(crc, chunk))?;
    let mut header = vec![0; HEADER_BYTES];
    file.read_at(&mut header, 0).doing("reading the saved bitmap")?;
    let Ok(header) = BitmapHeader::decode(&header) else {
        return Ok(false);
    };
    if crc != stop.bitmap_crc || header.disk != disk || header.sectors != geometry.sectors() {
        return Ok(false);
    }
    let words = BitmapHeader::words(geometry.sectors());
    read_chunks(&file, HEADER_BYTES as u64, stop.bitmap_len, |chunk| {
        for entry in chunk.chunks_exact(ENTRY_BYTES) {
            let number =
                |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap_or_default());
            if number(0) < words {
                each(number(0), number(8));
            }
        }
    })?;
    Ok(true)
}

fn read_chunks<F: StateFile>(
    file: &F,
    mut at: u64,
    end: u64,
    mut each: impl FnMut(&[u8]),
) -> Result<(), TrackError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    while at < end {
        let n = (end - at).min(CHUNK_BYTES as u64) as usize;
        file.read_at(&mut chunk[..n], at).doing("reading the saved bitmap")?;
        each(&chunk[..n]);
        at += n as u64;
    }
    Ok(())
}

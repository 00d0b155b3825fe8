//! Copying a whole backing to another one: sparse, durable, and read back.
//!
//! What is copied is checksummed as it is read; when all of it is durable on the other side, that is
//! read again, past what the page cache remembers of the copy, and compared. Where the source has
//! holes the copy must read as zeroes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use backstay_format::unfinished::UnfinishedRestore;
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset, Class, Classified};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::{AnyBacking, Seek, half_written};

/// Bytes copied and checksummed as one.
const PIECE_BYTES: u64 = 1 << 20;

/// What a copy is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Copying.
    Copying,
    /// Reading the copy back.
    Comparing,
}

/// Told how far a copy is: the step, bytes of the disk done, bytes of the disk.
pub type Progress<'a> = &'a dyn Fn(Step, u64, u64);

/// Why a copy is not to be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A side could not be read or written.
    #[error("{doing} at byte {at}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Where.
        at: u64,
        /// What the system answered.
        source: io::Error,
    },
    /// What was read back is not what was written.
    #[error(
        "the copy differs from its source between bytes {at} and {end}; do not use it, and look at \
         the device it is on"
    )]
    Differs {
        /// Where the piece that differs begins.
        at: u64,
        /// Where it ends.
        end: u64,
    },
}

impl Classified for CopyError {
    fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => source.class(),
            Self::Differs { .. } => Class::Person,
        }
    }
}

/// A piece that holds data, and its checksum.
struct CopiedBlock {
    at: u64,
    len: u32,
    digest: [u8; 16],
}

/// Copies the first `size` bytes of one backing to another and reads them back. `is_empty`: the copy
/// reads as zeroes everywhere, so holes need no writing. Until all else is right, the first block holds `mark`.
/// Returns the bytes of data copied.
///
/// # Errors
/// If a side fails, or what was read back differs.
pub fn copy(
    from: &AnyBacking,
    to: &AnyBacking,
    path: &Path,
    size: ByteLen,
    is_empty: bool,
    mark: &UnfinishedRestore,
    progress: Progress<'_>,
) -> Result<u64, CopyError> {
    let mut pieces = vec![];
    let mut buffer = vec![0; PIECE_BYTES as usize];
    let first = half_written::first_block(size);
    let mut block = vec![0; first as usize];
    from.read_at(&mut block, ByteOffset(0)).map_err(failed("reading the backing", 0))?;
    half_written::mark(to, mark, first).map_err(failed("marking the copy", 0))?;
    let mut copied = first;
    each_extent(from, first..size.0, |at, end, data| {
        if !data {
            if !is_empty {
                to.zero(ByteOffset(at), ByteLen(end - at))
                    .map_err(failed("zeroing the copy", at))?;
            }
            progress(Step::Copying, end, size.0);
            return Ok(());
        }
        for at in (at..end).step_by(PIECE_BYTES as usize) {
            let len = (end - at).min(PIECE_BYTES) as usize;
            let piece = &mut buffer[..len];
            from.read_at(piece, ByteOffset(at)).map_err(failed("reading the backing", at))?;
            pieces.push(CopiedBlock { at, len: len as u32, digest: digest(piece) });
            to.write_at(piece, ByteOffset(at)).map_err(failed("writing the copy", at))?;
            copied += len as u64;
            progress(Step::Copying, at + len as u64, size.0);
        }
        Ok(())
    })?;
    to.sync().map_err(failed("making the copy durable", 0))?;
    forget_cached(path);
    compare(to, first, size, &pieces, &mut buffer, progress)?;
    half_written::finish(to, &block).map_err(failed("writing the first block of the copy", 0))?;
    forget_cached(path);
    let read = &mut buffer[..block.len()];
    to.read_at(read, ByteOffset(0)).map_err(failed("reading the copy back", 0))?;
    match *read == *block {
        true => Ok(copied),
        false => Err(CopyError::Differs { at: 0, end: first }),
    }
}

fn compare(
    copy: &AnyBacking,
    first: u64,
    size: ByteLen,
    pieces: &[CopiedBlock],
    buffer: &mut [u8],
    progress: Progress<'_>,
) -> Result<(), CopyError> {
    let mut at = first;
    for piece in pieces {
        must_be_zero(copy, at, piece.at, buffer, progress, size)?;
        let read = &mut buffer[..piece.len as usize];
        copy.read_at(read, ByteOffset(piece.at))
            .map_err(failed("reading the copy back", piece.at))?;
        at = piece.at + u64::from(piece.len);
        if digest(read) != piece.digest {
            return Err(CopyError::Differs { at: piece.at, end: at });
        }
        progress(Step::Comparing, at, size.0);
    }
    must_be_zero(copy, at, size.0, buffer, progress, size)
}

/// A range of the copy that is a hole of the source.
fn must_be_zero(
    copy: &AnyBacking,
    from: u64,
    to: u64,
    buffer: &mut [u8],
    progress: Progress<'_>,
    size: ByteLen,
) -> Result<(), CopyError> {
    let mut at = from;
    while at < to {
        let data = match copy.seek(ByteOffset(at), Seek::Data) {
            Ok(data) => data.0.min(to),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => to,
            Err(e) => return Err(failed("looking for holes of the copy", at)(e)),
        };
        at = data;
        if at < to {
            let len = (to - at).min(PIECE_BYTES);
            let read = &mut buffer[..len as usize];
            copy.read_at(read, ByteOffset(at)).map_err(failed("reading the copy back", at))?;
            if read.iter().any(|&byte| byte != 0) {
                return Err(CopyError::Differs { at, end: at + len });
            }
            at += len;
        }
        progress(Step::Comparing, at, size.0);
    }
    Ok(())
}

/// Calls with every stretch of data or hole, in order.
fn each_extent(
    of: &AnyBacking,
    within: Range<u64>,
    mut each: impl FnMut(u64, u64, bool) -> Result<(), CopyError>,
) -> Result<(), CopyError> {
    let (mut at, size) = (within.start, within.end);
    while at < size {
        let find = |from: u64, what| match of.seek(ByteOffset(from), what) {
            Ok(found) => Ok(found.0.min(size)),
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(size),
            Err(e) => Err(failed("looking for holes of the backing", from)(e)),
        };
        let data = find(at, Seek::Data)?;
        if data > at {
            each(at, data, false)?;
        }
        if data < size {
            let hole = find(data, Seek::Hole)?;
            each(data, hole, true)?;
            at = hole;
        } else {
            at = data;
        }
    }
    Ok(())
}

fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    out
}

/// Asks the kernel to read from the disk what is read next. If it will not, the comparison still
/// compares, only with what memory says.
fn forget_cached(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

fn failed(doing: &'static str, at: u64) -> impl FnOnce(io::Error) -> CopyError {
    move |source| CopyError::Io { doing, at, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::{Engine, open};
    use std::os::unix::fs::{FileExt, MetadataExt};

    const SIZE: u64 = (20 << 20) + 100;

    fn mark() -> UnfinishedRestore {
        UnfinishedRestore {
            writer: backstay_format::unfinished::Writer::Move,
            disk: backstay_types::DiskId::from_bytes([1; 16]),
            name: "d".parse().unwrap(),
            cycle: backstay_types::CycleNo(0),
            point: backstay_types::PointId::from_bytes([0; 16]),
            size: ByteLen(SIZE),
            started_unix_ns: 1,
        }
    }

    fn source(dir: &Path) -> AnyBacking {
        let file = File::create(dir.join("from")).unwrap();
        file.set_len(SIZE).unwrap();
        let mut noise = vec![0; 3 << 20];
        fastrand::Rng::with_seed(3).fill(&mut noise);
        file.write_all_at(&noise, 5 << 20).unwrap();
        file.write_all_at(&noise[..50], SIZE - 50).unwrap();
        open(&dir.join("from"), Engine::Buffered).unwrap()
    }

    #[test]
    fn a_copy_is_equal_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let from = source(dir.path());
        let path = dir.path().join("to");
        File::create(&path).unwrap().set_len(SIZE).unwrap();
        let to = open(&path, Engine::Buffered).unwrap();
        let copied = copy(&from, &to, &path, ByteLen(SIZE), true, &mark(), &|_, _, _| ()).unwrap();
        assert!(copied < 4 << 20, "{copied}");
        assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 5 << 20);
        let content = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert!(content("from") == content("to"));
    }

    #[test]
    fn what_was_there_before_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let from = source(dir.path());
        let path = dir.path().join("to");
        std::fs::write(&path, vec![0xEE; SIZE as usize]).unwrap();
        let to = open(&path, Engine::Buffered).unwrap();
        copy(&from, &to, &path, ByteLen(SIZE), false, &mark(), &|_, _, _| ()).unwrap();
        let content = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        assert!(content("from") == content("to"));
    }

    /// A copy that is spoiled between writing and reading back, in data or in a hole, is seen.
    #[test]
    fn a_copy_that_differs_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let from = source(dir.path());
        for spoiled in [6 << 20, 10 << 20, SIZE - 1] {
            let path = dir.path().join(format!("to{spoiled}"));
            File::create(&path).unwrap().set_len(SIZE).unwrap();
            let to = open(&path, Engine::Buffered).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            let spoil = |step, done, _| {
                // The last thing before the comparison.
                if step == Step::Copying && done == SIZE {
                    file.write_all_at(&[0x55], spoiled).unwrap();
                }
            };
            let error = copy(&from, &to, &path, ByteLen(SIZE), true, &mark(), &spoil).unwrap_err();
            assert!(
                matches!(error, CopyError::Differs { at, end } if at <= spoiled && spoiled < end)
            );
        }
    }
}

//! Files and devices that hold only a part of a disk: marked in their first block until all else is right.
//!
//! Order of what lasts: the mark, in place of the first block; everything else; the rest of the first block; its
//! first 512 bytes, where the mark is. A crash at any step leaves the mark or the whole.

use std::io;
use std::path::Path;

use backstay_format::unfinished::{MARK_BYTES, UnfinishedRestore, Writer};
use backstay_track::Backing;
use backstay_types::{ByteLen, ByteOffset};

use super::{AnyBacking, OpenError};

/// What the mark stands in place of. Most file systems are known by what is in it.
pub const FIRST_BLOCK_BYTES: u64 = 4096;

/// How much of a disk of this size is written last. One that is too small for the mark is not marked.
#[must_use]
pub fn first_block(size: ByteLen) -> u64 {
    if size.0 < MARK_BYTES as u64 { 0 } else { size.0.min(FIRST_BLOCK_BYTES) }
}

/// Marks a target that is about to be written. The mark is durable on return.
///
/// # Errors
/// What the file or device answered.
pub fn mark(on: &(impl Backing + ?Sized), mark: &UnfinishedRestore, first: u64) -> io::Result<()> {
    if first == 0 {
        return Ok(());
    }
    let mut block = vec![0; first as usize];
    block[..MARK_BYTES].copy_from_slice(&mark.encode());
    on.write_at(&block, ByteOffset(0))?;
    on.sync()
}

/// Replaces the mark with the first block, once everything else is written. It is durable on return.
///
/// # Errors
/// What the file or device answered.
pub fn finish(on: &(impl Backing + ?Sized), block: &[u8]) -> io::Result<()> {
    on.sync()?;
    if block.is_empty() {
        return Ok(());
    }
    // A device may write a block in parts, so the mark is overwritten last.
    if block.len() > MARK_BYTES {
        on.write_at(&block[MARK_BYTES..], ByteOffset(MARK_BYTES as u64))?;
        on.sync()?;
    }
    on.write_at(&block[..MARK_BYTES], ByteOffset(0))?;
    on.sync()
}

/// Whether something carries the mark, damaged or not.
///
/// # Errors
/// If it cannot be read.
pub fn is_marked(on: &(impl Backing + ?Sized)) -> io::Result<bool> {
    Ok(first_bytes(on)?.is_some_and(|first| UnfinishedRestore::is_mark(&first)))
}

fn first_bytes(on: &(impl Backing + ?Sized)) -> io::Result<Option<[u8; MARK_BYTES]>> {
    let mut first = [0; MARK_BYTES];
    if on.size().0 < MARK_BYTES as u64 {
        return Ok(None);
    }
    on.read_at(&mut first, ByteOffset(0))?;
    Ok(Some(first))
}

/// The extension of a file while a restore or an export writes it.
pub const PART_EXTENSION: &str = "backstay-part";

/// Whether a file is the unfinished result of a restore or an export.
#[must_use]
pub fn is_part(path: &Path) -> bool {
    let real = std::fs::canonicalize(path);
    let is = |path: &Path| path.extension().is_some_and(|end| end == PART_EXTENSION);
    is(path) || real.is_ok_and(|real| is(&real))
}

/// Why a backing must not be served, if it contains only a part of a disk.
///
/// # Errors
/// If it cannot be read.
pub fn unfinished(path: &Path, backing: &AnyBacking) -> Result<Option<String>, OpenError> {
    let first = first_bytes(backing);
    let first = first.map_err(|source| OpenError::Io { path: path.into(), source })?;
    let Some(first) = first.filter(|first| UnfinishedRestore::is_mark(first)) else {
        return Ok(None);
    };
    let (of, doing) = match UnfinishedRestore::decode(&first) {
        Ok(mark) => {
            let (name, cycle) = (&mark.name, mark.cycle);
            let point = format!("recovery point {cycle} of disk {name}");
            match mark.writer {
                Writer::Restore | Writer::Other(_) => (
                    point,
                    "a restore to it was not finished. Run \"backstay restore\" to it again"
                        .to_owned(),
                ),
                Writer::Replica => (
                    point,
                    format!(
                        "replica {name} was being brought to that point. Go on with \"backstay replica {name}\", or, \
                         of a failback, with \"backstay failback {name}\""
                    ),
                ),
                Writer::Move => (
                    format!("disk {name}"),
                    format!(
                        "moving the disk there was not finished. Run \"backstay move {name}\" to it again"
                    ),
                ),
            }
        }
        Err(e) => (
            format!("an unknown recovery point ({e})"),
            "a restore to it was not finished. Run \"backstay restore\" to it again".to_owned(),
        ),
    };
    Ok(Some(format!(
        "{} holds only a part of {of}: {doing}. If it was overwritten since, remove the mark by zeroing its \
         first 512 bytes",
        path.display()
    )))
}

//! The redo log: what a point makes of the one before, checked, on this host (docs/explanation/format.md).
//!
//! It is written by several threads, like a target of a restore, and read front to back: once to
//! check all of it, then once more to apply it. Record headers are digested in the order of the file,
//! and each has the checksum of its data, so the digest that `replica.json` names covers everything.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_format::FormatError;
use backstay_types::{ByteLen, ByteOffset, CycleNo, DiskId, PointId};
use backstay_vault::format::segment::FRAME_BYTES_MAX;
use backstay_vault::read::RestoreTarget;

use super::record::{LogRef, PointRef, hex};

const WHAT: &str = "redo log";
const MAGIC: &[u8; 8] = b"BSTYREDO";
const RECORD_MAGIC: &[u8; 4] = b"REDO";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;

/// What a log leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogHeader {
    /// The disk in the vault.
    pub disk: DiskId,
    /// The point's cycle.
    pub cycle: CycleNo,
    /// Its identity.
    pub point: PointId,
}

/// A change of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Where.
    pub offset: ByteOffset,
    /// How much.
    pub len: ByteLen,
    /// Whether data follows; else it is zeroes.
    pub data: bool,
    /// The checksum of the data.
    pub crc: u32,
}

/// Why a log cannot be used.
#[derive(Debug)]
pub enum LogError<E> {
    /// It is not what was written.
    Format(FormatError),
    /// It cannot be read.
    Io(io::Error),
    /// What was done with a record failed.
    Apply(E),
}

impl<E> From<FormatError> for LogError<E> {
    fn from(e: FormatError) -> Self {
        Self::Format(e)
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn check_crc(bytes: &[u8]) -> Result<(), FormatError> {
    let (covered, stored) = bytes.split_at(bytes.len() - 4);
    let (computed, stored) = (crc32c::crc32c(covered), u32::from_le_bytes(field(stored, 0)));
    match computed == stored {
        true => Ok(()),
        false => Err(FormatError::Checksum { what: WHAT, computed, stored }),
    }
}

impl LogHeader {
    /// Of a disk's point.
    #[must_use]
    pub fn of(disk: DiskId, point: &PointRef) -> Self {
        Self { disk, cycle: point.cycle, point: point.point }
    }

    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[16..32].copy_from_slice(&self.disk.to_bytes());
        out[32..40].copy_from_slice(&self.cycle.0.to_le_bytes());
        out[40..56].copy_from_slice(&self.point.to_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// Anything but a whole header of a known version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, FormatError> {
        if &bytes[..8] != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        check_crc(bytes)?;
        let found = u32::from_le_bytes(field(bytes, 8));
        if found != VERSION {
            return Err(FormatError::Version { what: WHAT, found, known: VERSION });
        }
        Ok(Self {
            disk: DiskId::from_bytes(field(bytes, 16)),
            cycle: CycleNo(u64::from_le_bytes(field(bytes, 32))),
            point: PointId::from_bytes(field(bytes, 40)),
        })
    }
}

impl Record {
    /// Its header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[..4].copy_from_slice(RECORD_MAGIC);
        out[4..8].copy_from_slice(&u32::from(self.data).to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.len.0.to_le_bytes());
        out[24..28].copy_from_slice(&self.crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..28]);
        out[28..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header of a record for a disk of `size` bytes.
    ///
    /// # Errors
    /// Anything but a whole header whose range is inside the disk.
    pub fn decode(bytes: &[u8; RECORD_BYTES], size: ByteLen) -> Result<Self, FormatError> {
        let bounds = |field, value| FormatError::Bounds { what: WHAT, field, value };
        if &bytes[..4] != RECORD_MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        check_crc(bytes)?;
        let data = match u32::from_le_bytes(field(bytes, 4)) {
            0 => false,
            1 => true,
            other => return Err(bounds("kind", other.into())),
        };
        let (offset, len) =
            (u64::from_le_bytes(field(bytes, 8)), u64::from_le_bytes(field(bytes, 16)));
        if len == 0 || data && len > FRAME_BYTES_MAX as u64 {
            return Err(bounds("bytes", len));
        }
        if offset.checked_add(len).is_none_or(|end| end > size.0) {
            return Err(bounds("first byte", offset));
        }
        let crc = u32::from_le_bytes(field(bytes, 24));
        Ok(Self { offset: ByteOffset(offset), len: ByteLen(len), data, crc })
    }
}

/// Goes through a log: `header` and `log` are what it has to be, for a disk of `size` bytes. Each record is
/// checked before it is handed on; that the log is all there is known at the end only.
///
/// # Errors
/// If it is not that log, cannot be read, or `each` fails.
pub fn read<E>(
    input: impl Read,
    header: &LogHeader,
    log: &LogRef,
    size: ByteLen,
    mut each: impl FnMut(&Record, &[u8]) -> Result<(), E>,
) -> Result<(), LogError<E>> {
    let wrong = |field, value| FormatError::Bounds { what: WHAT, field, value };
    let mut input = input.take(log.bytes);
    let mut digest = blake3::Hasher::new();
    let mut bytes = [0; HEADER_BYTES];
    take(&mut input, &mut bytes)?;
    if LogHeader::decode(&bytes)? != *header {
        return Err(
            FormatError::Text { what: WHAT, reason: "it leads to another point".into() }.into()
        );
    }
    digest.update(&bytes);
    let mut data = Vec::with_capacity(FRAME_BYTES_MAX);
    let mut records = 0;
    while input.limit() > 0 {
        let mut bytes = [0; RECORD_BYTES];
        take(&mut input, &mut bytes)?;
        let record = Record::decode(&bytes, size)?;
        digest.update(&bytes);
        data.resize(if record.data { record.len.0 as usize } else { 0 }, 0);
        take(&mut input, &mut data)?;
        let computed = if record.data { crc32c::crc32c(&data) } else { 0 };
        if computed != record.crc {
            let stored = record.crc;
            return Err(FormatError::Checksum { what: WHAT, computed, stored }.into());
        }
        records += 1;
        each(&record, &data).map_err(LogError::Apply)?;
    }
    if records != log.records {
        return Err(wrong("number of records", records).into());
    }
    if hex(digest.finalize().as_bytes()) != log.digest {
        return Err(FormatError::Text { what: WHAT, reason: "its digest differs".into() }.into());
    }
    Ok(())
}

fn take<E>(input: &mut impl Read, buffer: &mut [u8]) -> Result<(), LogError<E>> {
    input.read_exact(buffer).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            LogError::Format(FormatError::Text { what: WHAT, reason: "it ends too early".into() })
        }
        _ => LogError::Io(e),
    })
}

/// A log to be read.
pub(super) fn open(dir: &Path, log: &LogRef) -> io::Result<BufReader<File>> {
    Ok(BufReader::with_capacity(1 << 20, File::open(dir.join(&log.file))?))
}

/// A log that is being written.
pub(super) struct LogWriter {
    path: PathBuf,
    file: File,
    limit: ByteLen,
    inner: Mutex<Inner>,
}

struct Inner {
    len: u64,
    records: u64,
    digest: blake3::Hasher,
    /// It would have become longer than it may.
    over: bool,
}

impl LogWriter {
    /// Begins a log of at most `limit` bytes in a new file.
    pub fn create(dir: &Path, file: &str, header: &LogHeader, limit: ByteLen) -> io::Result<Self> {
        let path = dir.join(file);
        let mut options = OpenOptions::new();
        let file = options.create_new(true).write(true).mode(0o600).open(&path)?;
        let bytes = header.encode();
        file.write_all_at(&bytes, 0)?;
        let mut digest = blake3::Hasher::new();
        digest.update(&bytes);
        let inner = Inner { len: HEADER_BYTES as u64, records: 0, digest, over: false };
        Ok(Self { path, file, limit, inner: Mutex::new(inner) })
    }

    /// Whether more should have gone into it than it may hold.
    pub fn is_over(&self) -> bool {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).over
    }

    /// Ends it; durable when this returns.
    pub fn finish(self, name: &str) -> io::Result<LogRef> {
        self.sync()?;
        let inner = self.inner.into_inner().unwrap_or_else(PoisonError::into_inner);
        let digest = hex(inner.digest.finalize().as_bytes());
        Ok(LogRef { file: name.into(), bytes: inner.len, records: inner.records, digest })
    }

    fn append(&self, record: &Record, data: &[u8]) -> io::Result<()> {
        let header = record.encode();
        let at = {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let len = inner.len + (RECORD_BYTES + data.len()) as u64;
            if len > self.limit.0 {
                inner.over = true;
                return Err(io::Error::other("the redo log would be longer than it may be"));
            }
            inner.digest.update(&header);
            inner.records += 1;
            std::mem::replace(&mut inner.len, len)
        };
        // Each thread has its own part of the file.
        self.file.write_all_at(&header, at)?;
        self.file.write_all_at(data, at + RECORD_BYTES as u64)
    }
}

impl RestoreTarget for LogWriter {
    fn write_at(&self, data: &[u8], offset: ByteOffset) -> io::Result<()> {
        let (len, crc) = (ByteLen(data.len() as u64), crc32c::crc32c(data));
        self.append(&Record { offset, len, data: true, crc }, data)
    }

    fn zero(&self, offset: ByteOffset, len: ByteLen) -> io::Result<()> {
        self.append(&Record { offset, len, data: false, crc: 0 }, &[])
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        File::open(dir)?.sync_all()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}

//! A set of sectors in a file: what a target may hold anything in (docs/explanation/format.md).

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use backstay_format::FormatError;
use backstay_types::{Class, Classified, SectorRange};
use backstay_vault::SectorSet;

use super::record::{SetRef, hex};

const WHAT: &str = "set of sectors";
const MAGIC: &[u8; 8] = b"BSTYSECS";
const VERSION: u32 = 1;

/// Why a set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It is not what was written.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Classified for SetError {
    fn class(&self) -> Class {
        match self {
            Self::Format(e) => e.class(),
            Self::Io(e) => e.class(),
        }
    }
}

/// Writes a set.
///
/// # Errors
/// What the system answered.
pub fn write(set: &SectorSet, to: &mut impl Write) -> io::Result<()> {
    to.write_all(MAGIC)?;
    to.write_all(&VERSION.to_le_bytes())?;
    to.write_all(&[0; 4])?;
    let mut put = |run: SectorRange| {
        to.write_all(&run.start.0.to_le_bytes())?;
        to.write_all(&run.end.0.to_le_bytes())
    };
    let mut open: Option<SectorRange> = None;
    for run in set.runs() {
        open = match open {
            Some(last) if last.end == run.start => Some(SectorRange { start: last.start, ..run }),
            Some(last) => {
                put(last)?;
                Some(run)
            }
            None => Some(run),
        };
    }
    open.map_or(Ok(()), put)
}

/// Reads a set of a disk that is `whole`.
///
/// # Errors
/// Anything but a whole set of sectors of that disk.
pub fn read(mut from: impl Read, whole: SectorRange) -> Result<SectorSet, SetError> {
    let mut head = [0; 16];
    from.read_exact(&mut head)?;
    if &head[..8] != MAGIC {
        return Err(FormatError::Magic { what: WHAT }.into());
    }
    let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
    if found != VERSION {
        return Err(FormatError::Version { what: WHAT, found, known: VERSION }.into());
    }
    let (mut set, mut last) = (SectorSet::new(), None);
    loop {
        let mut run = [0; 16];
        match from.read(&mut run[..1])? {
            0 => return Ok(set),
            _ => from.read_exact(&mut run[1..])?,
        }
        let number =
            |at: usize| run[at..at + 8].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
        let (start, end) = (number(0), number(8));
        let in_order = last.is_none_or(|last| last < start);
        if !in_order || start >= end || end > whole.end.0 {
            return Err(FormatError::Bounds { what: WHAT, field: "run", value: start }.into());
        }
        set.insert(SectorRange::new(start, end));
        last = Some(end);
    }
}

struct Digesting<T>(T, blake3::Hasher);

impl<T: Write> Write for Digesting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.0.write(bytes)?;
        self.1.update(&bytes[..n]);
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Puts a set into a new file of a folder, durably.
pub(super) fn save(set: &SectorSet, dir: &Path, name: &str) -> io::Result<SetRef> {
    let mut options = OpenOptions::new();
    let file = options.create_new(true).write(true).mode(0o600).open(dir.join(name))?;
    let mut to = BufWriter::new(Digesting(file, blake3::Hasher::new()));
    write(set, &mut to)?;
    let Digesting(file, digest) = to.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    File::open(dir)?.sync_all()?;
    Ok(SetRef { file: name.into(), digest: hex(digest.finalize().as_bytes()) })
}

/// The set in a file of a folder, which must be the one that was saved.
pub(super) fn load(dir: &Path, set: &SetRef, whole: SectorRange) -> Result<SectorSet, SetError> {
    let path = dir.join(&set.file);
    let mut digest = blake3::Hasher::new();
    digest.update_reader(File::open(&path)?)?;
    if hex(digest.finalize().as_bytes()) != set.digest {
        return Err(FormatError::Text { what: WHAT, reason: "its digest differs".into() }.into());
    }
    read(BufReader::new(File::open(&path)?), whole)
}

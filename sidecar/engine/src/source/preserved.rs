//! The preserved blocks of a closed epoch: one pass over the log after the seal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backstay_format::FormatError;
use backstay_format::preserved::{HEADER_BYTES, PreservedHeader, RECORD_BYTES, Record};
use backstay_types::{ByteOffset, DiskId, EpochNo, SectorRange};

/// Bytes read at a time; longer than the longest record.
const WINDOW_BYTES: usize = 1 << 20;

/// Why the log could not be read.
#[derive(Debug)]
pub enum LogError {
    /// The system refused.
    Io(io::Error),
    /// It is not what the driver said it is.
    Format(FormatError),
}

impl From<io::Error> for LogError {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl From<FormatError> for LogError {
    fn from(e: FormatError) -> Self {
        Self::Format(e)
    }
}

/// Calls with every record's sectors and their old content, checked.
///
/// # Errors
/// Any record that is torn, damaged, or of another epoch; the first error of `each`.
pub fn for_each_record<E: From<LogError>>(
    path: &Path,
    disk: DiskId,
    epoch: EpochNo,
    sectors: SectorRange,
    end: ByteOffset,
    mut each: impl FnMut(SectorRange, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let file = File::open(path).map_err(LogError::from)?;
    let mut header = vec![0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0).map_err(LogError::from)?;
    let header = PreservedHeader::decode(&header).map_err(LogError::from)?;
    if header != (PreservedHeader { disk, epoch }) {
        let (what, reason) = ("preserved blocks", "of another disk or epoch".into());
        return Err(LogError::from(FormatError::Text { what, reason }).into());
    }
    let mut window = vec![0; WINDOW_BYTES];
    let mut at = HEADER_BYTES as u64;
    while at < end.0 {
        let len = (end.0 - at).min(WINDOW_BYTES as u64) as usize;
        file.read_exact_at(&mut window[..len], at).map_err(LogError::from)?;
        let mut used = 0;
        while used < len {
            let rest = &window[used..len];
            // A record cut by the window's end is read with the next one.
            if rest.len() < RECORD_BYTES && used > 0 {
                break;
            }
            let record = Record::decode(rest, epoch, sectors).map_err(LogError::from)?;
            let bytes = Record::bytes(record.range.sectors()) as usize;
            let Some(data) = rest.get(RECORD_BYTES..bytes) else {
                if used > 0 {
                    break;
                }
                let (what, have) = ("preserved block record", rest.len());
                return Err(LogError::from(FormatError::Short { what, have, need: bytes }).into());
            };
            record.check_data(data).map_err(LogError::from)?;
            each(record.range, data)?;
            used += bytes;
        }
        at += used as u64;
    }
    Ok(())
}

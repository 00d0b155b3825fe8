//! Small JSON records in files: what a program remembers, replaced as a whole.
//!
//! A record that is missing and a record that cannot be read are different things: the first says that
//! nothing was remembered, the second says nothing at all. So [`load`] keeps them apart.

use backstay_types::{Class, Classified, class};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::{self, Durability};

/// Largest record that is read, in bytes. Ours are a few KiB.
pub const BYTES_MAX: u64 = 16 << 20;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// The file does not hold this kind of record.
    #[error("{} is damaged or is not this kind of record: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Classified for RecordError {
    fn class(&self) -> Class {
        match self {
            Self::Io { source, .. } => source.class(),
            Self::Damaged { .. } => Class::Damaged,
        }
    }
}

impl From<RecordError> for io::Error {
    fn from(e: RecordError) -> Self {
        let kind = match &e {
            RecordError::Io { source, .. } => source.kind(),
            RecordError::Damaged { .. } => io::ErrorKind::InvalidData,
        };
        class::as_io(kind, e)
    }
}

/// Reads a record; `None` if there is no such file.
///
/// # Errors
/// If the file cannot be read, is larger than [`BYTES_MAX`], or holds something else.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    let damaged = |reason| RecordError::Damaged { path: path.into(), reason };
    let Some(bytes) = read(path, BYTES_MAX)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| damaged(e.to_string()))
}

/// Reads a record that is only shown, or of which all is found out again: one that cannot be read is
/// said in the log and is then as good as none. Where anything is decided by a record, [`load`] it.
#[must_use]
pub fn load_shown<T: DeserializeOwned>(path: &Path) -> Option<T> {
    load(path).unwrap_or_else(|e| {
        tracing::warn!("{e}; it is not used");
        None
    })
}

/// The content of a file of at most so many bytes; `None` if there is no such file.
///
/// # Errors
/// If it cannot be read, or is longer.
pub fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, RecordError> {
    let failed = |source| RecordError::Io { path: path.into(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = vec![];
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("it has more than {bytes_max} bytes");
        return Err(RecordError::Damaged { path: path.into(), reason });
    }
    Ok(Some(bytes))
}

/// Replaces a record.
///
/// # Errors
/// If the folder cannot be written. The old record is then untouched.
pub fn save<T: Serialize>(
    path: &Path,
    record: &T,
    durability: Durability,
) -> Result<(), RecordError> {
    let failed = |source| RecordError::Io { path: path.into(), source };
    let bytes = serde_json::to_vec_pretty(record).map_err(|e| failed(io::Error::other(e)))?;
    atomic::replace(path, &bytes, durability).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_damaged_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        assert!(load::<Vec<u32>>(&path).unwrap().is_none());
        save(&path, &vec![1, 2], Durability::Durable).unwrap();
        assert_eq!(load::<Vec<u32>>(&path).unwrap(), Some(vec![1, 2]));
        fs::write(&path, b"[1, ").unwrap();
        let error = load::<Vec<u32>>(&path).unwrap_err();
        assert!(matches!(error, RecordError::Damaged { .. }), "{error}");
        fs::File::create(&path).unwrap().set_len(BYTES_MAX + 1).unwrap();
        assert!(matches!(load::<Vec<u32>>(&path), Err(RecordError::Damaged { .. })));
        assert!(matches!(load::<u32>(dir.path()), Err(RecordError::Io { .. })));
        assert_eq!(load_shown::<u32>(dir.path()), None);
    }
}

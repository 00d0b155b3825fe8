//! Whether a backing is for this process alone, whatever way others could reach it.

use std::path::Path;

use backstay_format::unfinished::{MARK_BYTES, UnfinishedRestore};
use backstay_host::in_use::{self, InUseError};
use backstay_track::Backing;
use backstay_types::ByteOffset;

use super::{AnyBacking, OpenError};

/// Refuses a file or device that anybody else uses. Who is about to be gone is waited for.
///
/// # Errors
/// [`OpenError::InUse`] with everybody who uses it.
pub fn refuse_users(path: &Path) -> Result<(), OpenError> {
    Ok(in_use::refuse(path)?)
}

/// Why a backing must not be served, if it holds only a part of a recovery point.
///
/// # Errors
/// If it cannot be read.
pub fn unfinished(path: &Path, backing: &AnyBacking) -> Result<Option<String>, OpenError> {
    let mut first = [0; MARK_BYTES];
    if backing.size().0 < MARK_BYTES as u64 {
        return Ok(None);
    }
    let read = backing.read_at(&mut first, ByteOffset(0));
    read.map_err(|source| OpenError::Io { path: path.into(), source })?;
    if !UnfinishedRestore::is_mark(&first) {
        return Ok(None);
    }
    let of = match UnfinishedRestore::decode(&first) {
        Ok(mark) => format!("recovery point {} of disk {}", mark.cycle, mark.name),
        Err(e) => format!("an unknown recovery point ({e})"),
    };
    Ok(Some(format!(
        "{} holds only a part of {of}: a restore to it was not finished. Run \"backstay restore\" to it \
         again. If it was overwritten since, remove the mark by zeroing its first 512 bytes",
        path.display()
    )))
}

impl From<InUseError> for OpenError {
    fn from(error: InUseError) -> Self {
        match error {
            InUseError::InUse(users) => Self::InUse(users),
            InUseError::Unknown { path, source } => Self::Io { path, source },
        }
    }
}

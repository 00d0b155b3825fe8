//! Whether a backing is for this process alone, whatever way others could reach it.

use std::path::Path;

use backstay_host::in_use::{self, InUseError};

use super::OpenError;

/// Refuses a file or device that is in use. Waits for users that are about to end.
///
/// # Errors
/// [`OpenError::InUse`] with all users.
pub fn refuse_users(path: &Path) -> Result<(), OpenError> {
    Ok(in_use::refuse(path)?)
}

impl From<InUseError> for OpenError {
    fn from(error: InUseError) -> Self {
        match error {
            InUseError::InUse(users) => Self::InUse(users),
            InUseError::Unknown { path, source } => Self::Io { path, source },
        }
    }
}

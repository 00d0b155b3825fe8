//! Where a point is written to, and whether it may be.

use backstay_types::{Class, Classified};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use backstay_host::in_use::{self, InUseError};

/// What to do about data that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// Refuse it; an empty file may be replaced.
    Refuse,
    /// Refuse any file that exists.
    RefuseAny,
    /// Overwrite it.
    Overwrite,
}

/// Where to write; nobody used it when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// A file.
    File {
        /// The file itself; links are followed.
        path: PathBuf,
        /// Whether it was there and is to be replaced.
        replaces: bool,
    },
    /// A block device.
    Device {
        /// The device.
        path: PathBuf,
    },
}

/// Why nothing is written there.
#[derive(Debug, thiserror::Error)]
pub enum GoalError {
    /// Somebody uses it, or nobody knows whether somebody does.
    #[error("{0}. Nothing was written")]
    InUse(#[from] InUseError),
    /// It would not be safe.
    #[error("{0}")]
    Refused(String),
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
}

impl Classified for GoalError {
    fn class(&self) -> Class {
        match self {
            Self::InUse(e) => e.class(),
            Self::Refused(_) => Class::Refused,
            Self::Io { source, .. } => source.class(),
        }
    }
}

impl GoalError {
    pub(super) fn io(what: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

impl Goal {
    /// Looks at a path.
    ///
    /// # Errors
    /// If somebody uses it, it holds data that may not be overwritten, or it is neither a file nor a block
    /// device.
    pub fn at(path: &Path, occupied: Occupied) -> Result<Self, GoalError> {
        let shown = path.display();
        let looked = || GoalError::io(format!("looking at {shown}"));
        let real = match fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::File { path: path.into(), replaces: false });
            }
            Err(e) => return Err(looked()(e)),
            Ok(meta) if meta.is_symlink() => match fs::canonicalize(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(GoalError::Refused(format!(
                        "{shown} is a symbolic link to something that does not exist ({}); name the file \
                         itself, or remove the link. Nothing was written",
                        fs::read_link(path).unwrap_or_default().display()
                    )));
                }
                real => real.map_err(looked())?,
            },
            Ok(_) => path.to_owned(),
        };
        let meta = fs::metadata(&real).map_err(looked())?;
        let device = meta.file_type().is_block_device();
        if !device && !meta.is_file() {
            return Err(GoalError::Refused(format!(
                "{shown} is neither a file nor a block device. Nothing was written"
            )));
        }
        in_use::refuse(&real)?;
        let refused = match occupied {
            Occupied::Refuse => device || meta.len() > 0,
            Occupied::RefuseAny => true,
            Occupied::Overwrite => false,
        };
        if refused {
            return Err(GoalError::Refused(format!(
                "{shown} exists and would be overwritten; use --force to overwrite it. Nothing was \
                 written"
            )));
        }
        Ok(match device {
            true => Self::Device { path: real },
            false => Self::File { path: real, replaces: true },
        })
    }

    /// The file or device.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Device { path } => path,
        }
    }
}

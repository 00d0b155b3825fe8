//! Recovery points as raw and qcow2 images, and images as the first point of a disk.
//!
//! - `export`: a point to a file or, in order, to a pipe
//! - `import`: an image or device becomes a disk of a vault, through the pipeline that ships disks
//! - `qemu`: `qemu-img` and `qemu-nbd`, which know qcow2
//! - `nbd`: the few words of the NBD protocol that are spoken with `qemu-nbd`
//!
//! What is promised, and why it is made so: docs/explanation/images.md.

mod export;
mod import;
mod nbd;
mod qemu;

use backstay_types::{Class, Classified};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use backstay_engine::CycleError;
use backstay_vault::VaultError;

use crate::restore::GoalError;

pub use export::{Export, export_to_file, export_to_pipe};
pub use import::{Import, Imported, import};

/// How an image is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes, from the first to the last.
    Raw,
    /// QEMU's.
    Qcow2,
}

impl Format {
    /// In a word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// What an image is, by its first bytes: a qcow2 says so, all else is raw.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut magic = [0; 4];
        match File::open(path)?.read_exact_at(&mut magic, 0) {
            Ok(()) if &magic == b"QFI\xfb" => Ok(Self::Qcow2),
            Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => Err(e),
            _ => Ok(Self::Raw),
        }
    }
}

impl std::str::FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            _ => Err(format!("{text:?} is not an image format: raw or qcow2")),
        }
    }
}

/// Why an image was not exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The pipeline that ships the image.
    #[error(transparent)]
    Cycle(#[from] CycleError),
    /// It would not have been safe.
    #[error("{0}")]
    Refused(String),
    /// What was to be written must not be.
    #[error(transparent)]
    Goal(#[from] GoalError),
    /// It was told to stop; nothing is left of it.
    #[error("stopped; what was written so far was removed")]
    Stopped,
    /// The image or what it is read or written with.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
    /// One of QEMU's tools.
    #[error("{0}")]
    Qemu(String),
    /// The image changed while it was read.
    #[error(
        "{0} was changed while it was read: what was read is no state it ever had. No recovery \
         point was made; stop what writes to it and import it again"
    )]
    Changed(String),
}

impl Classified for ImageError {
    fn class(&self) -> Class {
        match self {
            Self::Vault(e) => e.class(),
            Self::Cycle(e) => e.class(),
            Self::Refused(_) => Class::Refused,
            Self::Goal(e) => e.class(),
            Self::Stopped | Self::Qemu(_) | Self::Changed(_) => Class::Person,
            Self::Io { source, .. } => source.class(),
        }
    }
}

impl ImageError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

//! Certificates: a small authority of one's own, and what a certificate says its holder may do.
//!
//! An [`Authority`] is a directory: its key, its certificate, an index of all it has issued, and the list of
//! what was revoked. [`Identity`] is the one place where a client's certificate is read: anyone who decides
//! anything by a certificate decides it by that. [`Revocations`] is a list of revoked ones, as
//! a gateway reads it. docs/reference/pki.md has the files and the names in certificates.

mod authority;
mod ends;
mod files;
mod identity;
mod index;
mod key;
mod revoked;

pub use authority::{Authority, AuthorityKind, Issued, Request};
pub use ends::{Left, Life};
pub use identity::{Disks, HolderName, Identity, Role, Serial};
pub use index::{CertificateRecord, Index};
pub use key::Passphrase;
pub use revoked::Revocations;

use backstay_types::{Class, Classified};
use std::path::PathBuf;

/// Why certificates cannot be made, or are not believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A certificate that says nothing, or too much, about its holder. Nobody gets any right by it.
    #[error("this certificate gives no rights: {0}")]
    Certificate(String),
    /// Not a list of revoked certificates. Anyone who reads it keeps to the one read before.
    #[error("no list of revoked certificates: {0}")]
    Revocations(String),
    /// What was asked for cannot be issued; nothing was.
    #[error("{0}; nothing was issued")]
    Request(String),
    /// It is there already, or is not; nothing was changed.
    #[error("{0}")]
    Refused(String),
    /// A file of the authority cannot be used.
    #[error("certificate authority: {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The authority's key did not open; nothing was done.
    #[error("certificate authority: {path}: {reason}; nothing was done")]
    Locked {
        /// The key's file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The library that makes certificates failed.
    #[error("making the certificate failed: {0}; nothing was issued")]
    Making(#[from] rcgen::Error),
}

impl Classified for PkiError {
    fn class(&self) -> Class {
        match self {
            Self::Refused(_) => Class::Refused,
            Self::Certificate(_)
            | Self::Revocations(_)
            | Self::Request(_)
            | Self::File { .. }
            | Self::Locked { .. }
            | Self::Making(_) => Class::Person,
        }
    }
}

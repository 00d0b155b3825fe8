//! The list of revoked certificates, as a gateway reads it.

use std::collections::HashSet;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::{PkiError, Serial};

/// Longest list that is read, in bytes.
pub const REVOCATIONS_BYTES_MAX: usize = 16 << 20;

/// Revoked certificates: the lists for the TLS library, which checks their signatures at each handshake, and
/// the numbers in them, for connections that are open.
#[derive(Debug, Default, Clone)]
pub struct Revocations {
    lists: Vec<CertificateRevocationListDer<'static>>,
    serials: HashSet<Serial>,
}

impl Revocations {
    /// Reads one or more lists (PEM). A file without any is an error: it was cut off, and nobody is
    /// to get in by that.
    ///
    /// # Errors
    /// If anything in it cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let no = |why: String| PkiError::Revocations(why);
        if pem.len() > REVOCATIONS_BYTES_MAX {
            return Err(no(format!("{} bytes", pem.len())));
        }
        let mut found = Self::default();
        for list in CertificateRevocationListDer::pem_slice_iter(pem) {
            found.add(list.map_err(|e| no(e.to_string()))?)?;
        }
        match found.lists.is_empty() {
            true => Err(no("none is in it".into())),
            false => Ok(found),
        }
    }

    /// Reads one list (DER).
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let mut found = Self::default();
        found.add(der.to_vec().into())?;
        Ok(found)
    }

    fn add(&mut self, list: CertificateRevocationListDer<'static>) -> Result<(), PkiError> {
        let no = |why: String| PkiError::Revocations(why);
        let (rest, parsed) = CertificateRevocationList::from_der(&list)
            .map_err(|e| no(format!("it cannot be read: {e}")))?;
        if !rest.is_empty() {
            return Err(no("something follows it".into()));
        }
        let serials =
            parsed.iter_revoked_certificates().map(|r| Serial::from_bytes(r.raw_serial()));
        self.serials.extend(serials);
        self.lists.push(list);
        Ok(())
    }

    /// For `WebPkiClientVerifier::with_crls`.
    #[must_use]
    pub fn lists(&self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists.clone()
    }

    /// Whether a certificate is in one of the lists.
    #[must_use]
    pub fn has(&self, serial: &Serial) -> bool {
        self.serials.contains(serial)
    }

    /// How many certificates are in them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.serials.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.serials.is_empty()
    }
}

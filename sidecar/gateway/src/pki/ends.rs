//! When a certificate ends, and whether that is soon: so that somebody hears of it before it does.

use std::path::Path;

use backstay_host::clock;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{PkiError, files};

/// Soon is a month before the end, or a third of a life that is short.
const SOON_S: i64 = 30 * 86_400;
/// Longest file of certificates that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How long a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// The first second.
    pub from_unix_s: i64,
    /// The last one.
    pub until_unix_s: i64,
}

/// How much of it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Enough.
    Enough,
    /// So many days, begun ones counted: it is time for another.
    Days(i64),
    /// Nothing.
    Over,
}

impl Life {
    /// That of the first certificate in a file (PEM): one's own, not those between it and the authority.
    ///
    /// # Errors
    /// If there is none.
    pub fn of_file(path: &Path) -> Result<Self, PkiError> {
        let wrong = |reason: String| PkiError::File { path: path.into(), reason };
        let pem = files::read(path, FILE_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
        // The library's own words could hold what it could not read: a key may be in the same file.
        let der = CertificateDer::from_pem_slice(&pem);
        let der = der.map_err(|_| wrong("no certificate (PEM)".into()))?;
        let (_, certificate) = X509Certificate::from_der(&der)
            .map_err(|_| wrong("a certificate that cannot be read".into()))?;
        let validity = certificate.validity();
        Ok(Self {
            from_unix_s: validity.not_before.timestamp(),
            until_unix_s: validity.not_after.timestamp(),
        })
    }

    /// How much of it is left at a time.
    #[must_use]
    pub fn left_at(self, unix_s: i64) -> Left {
        let left = self.until_unix_s.saturating_sub(unix_s);
        let life = self.until_unix_s.saturating_sub(self.from_unix_s);
        match left {
            left if left < 0 => Left::Over,
            left if left < SOON_S.min(life / 3) => {
                Left::Days((left + 86_399).div_euclid(86_400).max(1))
            }
            _ => Left::Enough,
        }
    }

    /// How much is left now, in words; `None` if it is enough.
    #[must_use]
    pub fn trouble(self) -> Option<String> {
        let ends = OffsetDateTime::from_unix_timestamp(self.until_unix_s);
        let ends = ends.map_or_else(|_| "?".into(), |at| at.date().to_string());
        match self.left_at(OffsetDateTime::from(clock::now()).unix_timestamp()) {
            Left::Enough => None,
            Left::Days(1) => Some(format!("runs out within a day ({ends})")),
            Left::Days(days) => Some(format!("runs out within {days} days ({ends})")),
            Left::Over => Some(format!("has run out ({ends})")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soon_is_a_month_or_a_third() {
        const DAY: i64 = 86_400;
        let year = Life { from_unix_s: 0, until_unix_s: 398 * DAY };
        assert_eq!(year.left_at(0), Left::Enough);
        assert_eq!(year.left_at(368 * DAY), Left::Enough);
        assert_eq!(year.left_at(368 * DAY + 1), Left::Days(30));
        assert_eq!(year.left_at(398 * DAY), Left::Days(1));
        assert_eq!(year.left_at(398 * DAY + 1), Left::Over);
        let week = Life { from_unix_s: 0, until_unix_s: 7 * DAY };
        assert_eq!(week.left_at(4 * DAY), Left::Enough);
        assert_eq!(week.left_at(5 * DAY), Left::Days(2));
        assert!(week.trouble().unwrap().contains("has run out (1970-01-08)"));
        assert!(Life::of_file(Path::new("/proc/version")).is_err());
    }
}

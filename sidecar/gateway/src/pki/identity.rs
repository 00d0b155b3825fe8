//! Who a client is and what it may do, by its certificate alone.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use backstay_types::DiskName;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Life, PkiError};

/// Longest certificate that is looked at, in bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 64 * 1024;
/// Most disks that one certificate names.
pub const DISKS_MAX: usize = 512;

const PREFIX: &str = "backstay:";

/// What a holder is to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A protected host: adds to its own disks, and reads of them what replication needs.
    Source,
    /// A recovery host: reads its disks, and may take them over.
    Recovery,
    /// Anyone who runs retention from elsewhere.
    Maintainer,
}

impl FromStr for Role {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        match text {
            "source" => Ok(Self::Source),
            "recovery" => Ok(Self::Recovery),
            "maintainer" => Ok(Self::Maintainer),
            _ => Err(PkiError::Certificate(format!("role {text:?} is unknown"))),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Recovery => "recovery",
            Self::Maintainer => "maintainer",
        })
    }
}

/// A holder's name: built like a disk's, so that it can stand in paths and log lines as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HolderName(DiskName);

impl HolderName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for HolderName {
    type Err = PkiError;

    fn from_str(text: &str) -> Result<Self, PkiError> {
        let name = text.parse().map(Self);
        name.map_err(|_| {
            PkiError::Certificate(format!(
                "{text:?} is not a name: use 1 to 64 letters, digits, '.', '_' or '-', starting with \
                 a letter or digit"
            ))
        })
    }
}

impl fmt::Display for HolderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A certificate's serial number: lower-case hex, two digits a byte, without leading zero bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

impl Serial {
    /// RFC 5280 allows 20 bytes; one more for a sign.
    const BYTES_MAX: usize = 21;

    /// Of the number's bytes, the highest first.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let start = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
        Self(bytes[start..].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The number's bytes, the highest first.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
        self.0.as_bytes().chunks(2).map(|c| digit(c[0]) << 4 | digit(c[1])).collect()
    }
}

impl TryFrom<String> for Serial {
    type Error = PkiError;

    fn try_from(text: String) -> Result<Self, PkiError> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let fine = digits
            && text.len().is_multiple_of(2)
            && (2..=Self::BYTES_MAX * 2).contains(&text.len());
        match fine && !text.starts_with("00") {
            true => Ok(Self(text)),
            false => Err(PkiError::Certificate(format!("{text:?} is not a serial number"))),
        }
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> String {
        serial.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The disks a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Disks {
    /// Every disk of the vault.
    All,
    /// These.
    Named(BTreeSet<DiskName>),
}

impl Disks {
    /// Whether a disk is among them.
    #[must_use]
    pub fn has(&self, disk: &DiskName) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(disk),
        }
    }

    /// Of what stands in a certificate or on a command line: names, or `*` alone.
    pub(super) fn of<'a>(
        role: Role,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, String> {
        let (mut named, mut all) = (BTreeSet::new(), false);
        for name in names {
            match name {
                "*" => all = true,
                name => _ = named.insert(name.parse::<DiskName>().map_err(|e| e.to_string())?),
            }
            if named.len() > DISKS_MAX {
                return Err(format!("more than {DISKS_MAX} disks"));
            }
        }
        match (all, named.is_empty(), role) {
            (false, true, _) => Err("no disk is named".into()),
            (false, false, _) => Ok(Self::Named(named)),
            (true, _, Role::Source) => Err("a source has to name each of its disks".into()),
            (true, false, _) => Err("both all disks and single ones".into()),
            (true, true, _) => Ok(Self::All),
        }
    }

    /// As it stands in a certificate.
    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::All => vec!["*".into()],
            Self::Named(names) => names.iter().map(ToString::to_string).collect(),
        }
    }
}

/// A client, by its certificate. That the authority signed it is the TLS library's business and was
/// checked before; everything else is decided here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its name, for logs and quotas. It gives no right.
    pub name: HolderName,
    /// What it is.
    pub role: Role,
    /// Whose disks it may touch.
    pub disks: Disks,
    /// The certificate's number, to be looked up in [`Revocations`](super::Revocations).
    pub serial: Serial,
    /// The first second in which it is valid, since 1970.
    pub from_unix_s: i64,
    /// The last one.
    pub until_unix_s: i64,
}

impl Identity {
    /// Reads a certificate (DER): version 3, of no authority, for TLS clients, with exactly one name, one
    /// role and the disks. What begins with `backstay:` and is not known takes all rights away, so that
    /// a later meaning that restricts is never overlooked.
    ///
    /// # Errors
    /// If anything is missing, twice, or unknown.
    pub fn from_der(der: &[u8]) -> Result<Self, PkiError> {
        let no = |why: String| PkiError::Certificate(why);
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(no(format!("it has {} bytes", der.len())));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|e| no(format!("it cannot be read: {e}")))?;
        if !rest.is_empty() {
            return Err(no("something follows it".into()));
        }
        let bad = |what: &str| no(format!("its {what} cannot be read or is there twice"));
        if certificate
            .basic_constraints()
            .map_err(|_| bad("basic constraints"))?
            .is_some_and(|c| c.value.ca)
        {
            return Err(no("it is an authority's".into()));
        }
        let usage = certificate.extended_key_usage().map_err(|_| bad("extended key usage"))?;
        if !usage.is_some_and(|usage| usage.value.client_auth) {
            return Err(no("it is not for TLS clients".into()));
        }
        let names = certificate.subject_alternative_name().map_err(|_| bad("alternative name"))?;
        let said =
            CertificateClaims::from(names.iter().flat_map(|names| &names.value.general_names))?;
        let serial = Serial::from_bytes(certificate.raw_serial());
        let serial = String::from(serial).try_into()?;
        let (from_unix_s, until_unix_s) = {
            let validity = certificate.validity();
            (validity.not_before.timestamp(), validity.not_after.timestamp())
        };
        let disks = Disks::of(said.role, said.disks.iter().copied()).map_err(no)?;
        Ok(Self { name: said.name, role: said.role, disks, serial, from_unix_s, until_unix_s })
    }

    /// How long it is valid.
    #[must_use]
    pub fn life(&self) -> Life {
        Life { from_unix_s: self.from_unix_s, until_unix_s: self.until_unix_s }
    }

    /// Whether it is valid at a time, in seconds since 1970. A handshake looks at this, too; a connection
    /// may last longer than a certificate.
    #[must_use]
    pub fn is_valid_at(&self, unix_s: i64) -> bool {
        (self.from_unix_s..=self.until_unix_s).contains(&unix_s)
    }
}

/// What the URIs of a certificate say.
struct CertificateClaims<'a> {
    name: HolderName,
    role: Role,
    disks: Vec<&'a str>,
}

impl<'a> CertificateClaims<'a> {
    fn from(names: impl Iterator<Item = &'a GeneralName<'a>>) -> Result<Self, PkiError> {
        let no = |why: &str| PkiError::Certificate(why.into());
        let (mut name, mut role, mut disks) = (None, None, Vec::new());
        for general in names {
            let GeneralName::URI(uri) = general else { continue };
            if !uri.get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX)) {
                continue;
            }
            match uri.strip_prefix(PREFIX).and_then(|rest| rest.split_once(':')) {
                Some(("name", text)) if name.is_none() => name = Some(text.parse()?),
                Some(("role", text)) if role.is_none() => role = Some(text.parse()?),
                Some(("disk", text)) => disks.push(text),
                Some(("name" | "role", _)) => return Err(no("it has two names or two roles")),
                _ => return Err(no("it contains something unknown")),
            }
        }
        let name = name.ok_or_else(|| no("it has no name"))?;
        Ok(Self { name, role: role.ok_or_else(|| no("it has no role"))?, disks })
    }
}

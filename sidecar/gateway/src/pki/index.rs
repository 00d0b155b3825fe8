//! What an authority has issued: `index.json`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Disks, HolderName, PkiError, Role, Serial, files};

/// Longest index, in bytes: some ten thousand certificates.
pub const INDEX_BYTES_MAX: u64 = 16 << 20;

/// All certificates of an authority, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Index {
    /// Number of the last list of revoked certificates.
    pub crl_number: u64,
    /// The certificates.
    pub certificates: Vec<CertificateRecord>,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// Its number.
    pub serial: Serial,
    /// Its holder.
    pub name: HolderName,
    /// The holder's role; none for a server or a group's host.
    pub role: Option<Role>,
    /// The holder's disks.
    pub disks: Option<Disks>,
    /// Host names and addresses that it is for.
    pub hosts: Vec<String>,
    /// Whether its holder may be a TLS server.
    pub server: bool,
    /// Whether its holder may be a TLS client.
    pub client: bool,
    /// Valid from, seconds since 1970.
    pub from_unix_s: i64,
    /// Valid until, seconds since 1970.
    pub until_unix_s: i64,
    /// Since when it is revoked, seconds since 1970.
    pub revoked_unix_s: Option<i64>,
}

impl CertificateRecord {
    /// Whether it opens a door at a time, in seconds since 1970.
    #[must_use]
    pub fn is_good_at(&self, unix_s: i64) -> bool {
        self.revoked_unix_s.is_none() && unix_s <= self.until_unix_s
    }
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: String,
    version: u32,
    crc32c: u32,
    body: serde_json::Value,
}

const FORMAT: &str = "backstay-pki";
const VERSION: u32 = 1;

/// Of the canonical form, which serde_json writes: keys sorted, no white space.
fn checksum(body: &serde_json::Value) -> u32 {
    crc32c::crc32c(body.to_string().as_bytes())
}

impl Index {
    pub(super) fn load(path: &Path) -> Result<Self, PkiError> {
        let wrong = |reason: String| PkiError::File { path: path.into(), reason };
        let bytes = files::read(path, INDEX_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
        Self::decode(&bytes).map_err(wrong)
    }

    pub(super) fn store(&self, path: &Path) -> Result<(), PkiError> {
        let wrong = |reason: String| PkiError::File { path: path.into(), reason };
        let bytes = self.encode().map_err(wrong)?;
        if bytes.len() as u64 > INDEX_BYTES_MAX {
            return Err(wrong("it would become too long; make a new authority".into()));
        }
        files::replace(path, &bytes).map_err(|e| wrong(e.to_string()))
    }

    /// As in the vault's documents, without their bound on the length.
    fn encode(&self) -> Result<Vec<u8>, String> {
        let body = serde_json::to_value(self).map_err(|e| e.to_string())?;
        let crc32c = checksum(&body);
        let envelope = Envelope { format: FORMAT.into(), version: VERSION, crc32c, body };
        serde_json::to_vec_pretty(&envelope).map_err(|e| e.to_string())
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if envelope.format != FORMAT {
            return Err("it is not an index of certificates".into());
        }
        if envelope.version != VERSION {
            return Err(format!("version {} is unknown here", envelope.version));
        }
        if checksum(&envelope.body) != envelope.crc32c {
            return Err("its checksum does not match: it was damaged or edited".into());
        }
        serde_json::from_value(envelope.body).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_golden() {
        let record = |name: &str, serial: &str| CertificateRecord {
            serial: serial.to_owned().try_into().unwrap(),
            name: name.parse().unwrap(),
            role: None,
            disks: None,
            hosts: vec![],
            server: false,
            client: true,
            from_unix_s: 1_700_000_000,
            until_unix_s: 1_734_387_200,
            revoked_unix_s: None,
        };
        let named = ["db", "wal"].map(|name| name.parse().unwrap()).into();
        let source = CertificateRecord {
            role: Some(Role::Source),
            disks: Some(Disks::Named(named)),
            revoked_unix_s: Some(1_700_000_001),
            ..record("db-host", "5509cb3ffb134fd78dec9ac1e3b71155")
        };
        let recovery = CertificateRecord {
            role: Some(Role::Recovery),
            disks: Some(Disks::All),
            ..record("dr-host", "4a")
        };
        let server = CertificateRecord {
            hosts: vec!["gateway.example".into(), "10.0.0.1".into()],
            server: true,
            client: false,
            ..record("gw1", "4b")
        };
        let index = Index { crl_number: 2, certificates: vec![source, recovery, server] };
        let bytes = index.encode().unwrap();
        assert_eq!(Index::decode(&bytes), Ok(index));
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            include_str!("../../tests/golden/pki-index.json")
        );
    }
}

//! The small JSON objects: what they have in common, and `vault.json`, `disk.json`, names.
//!
//! `{"format": …, "version": 1, "crc32c": …, "body": {…}}`, where the checksum covers the body in
//! its canonical form: keys sorted, no white space, what `json.dumps(body, sort_keys=True,
//! separators=(",", ":"), ensure_ascii=False)` makes in Python. In an encrypted vault most have a `signature`, too, of
//! that canonical form (see [`crate::encrypt::sign`]).

use backstay_format::FormatError;
use backstay_types::{ByteLen, DiskId, DiskName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::key::{ObjectKey, Piece};

/// Longest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;
const VERSION: u32 = 1;

/// What a document is about.
pub trait Document: Serialize + for<'a> Deserialize<'a> {
    /// Its `format` field.
    const FORMAT: &'static str;
}

/// A document of a vault: it says which object it is.
///
/// What stands under a key may have been copied there from somewhere else, checksum and all. So anyone who reads an
/// object compares what it says of itself with the key it was read from: one function of a vault reads all
/// documents, and asks.
pub trait Object {
    /// What it says it is, if that is not what its key says; `None` if it is what its key says.
    ///
    /// Fields that older objects did not have are compared where they are there.
    fn differs(&self, key: &ObjectKey) -> Option<String>;
}

/// `vault.json`: the vault itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRecord {
    /// The vault's identity.
    pub vault: uuid::Uuid,
    /// When it was made, nanoseconds since 1970.
    pub created_unix_ns: u64,
    /// Every disk in it has documents of its name. Not in vaults made before there were any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names: bool,
    /// All segments in it are sealed, and points and ledgers signed (see [`crate::encrypt`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
}

/// `names/<name>/<n>`: whose a name is, from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRecord {
    /// The name.
    pub name: DiskName,
    /// Its number among the documents of the name. Not in older ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// Whose it is, or was.
    pub disk: DiskId,
    /// How many names the disk had before.
    pub change: u64,
    /// If set, the disk gave the name back and has this one; anyone may take the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renamed_to: Option<DiskName>,
    /// Since when, nanoseconds since 1970.
    pub since_unix_ns: u64,
}

/// `disks/<id>/disk.json`: one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// The disk's identity.
    pub disk: DiskId,
    /// The name it was made with; see [`NameRecord`].
    pub name: DiskName,
    /// Its size then. A point's manifest says the size at its cut.
    pub size_bytes: ByteLen,
    /// Bytes in a sector: 512.
    pub sector_bytes: u32,
    /// When it was first shipped, nanoseconds since 1970.
    pub created_unix_ns: u64,
}

impl Document for VaultRecord {
    const FORMAT: &'static str = "backstay-vault";
}
impl Document for NameRecord {
    const FORMAT: &'static str = "backstay-name";
}
impl Document for DiskRecord {
    const FORMAT: &'static str = "backstay-disk";
}

impl Object for VaultRecord {
    // Which vault is meant by a URL, the host remembers: [`crate::known`].
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        (*key != ObjectKey::Vault).then(|| format!("the record of vault {}", self.vault))
    }
}
impl Object for NameRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = matches!(key, ObjectKey::Name(name, number)
            if *name == self.name && self.number.is_none_or(|own| own == *number));
        (!same).then(|| match self.number {
            Some(number) => format!("document {number} of the name {}", self.name),
            None => format!("about the name {}", self.name),
        })
    }
}
impl Object for DiskRecord {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = matches!(key, ObjectKey::Disk(disk, Piece::Record) if *disk == self.disk);
        (!same).then(|| format!("the record of disk {} ({})", self.disk, self.name))
    }
}

#[derive(Serialize, Deserialize)]
// A flipped bit in the name of a field must not take the signature away.
#[serde(deny_unknown_fields)]
struct Envelope {
    format: String,
    version: u32,
    crc32c: u32,
    body: Value,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signature: Option<String>,
}

/// The bytes of a document.
///
/// # Errors
/// If the body cannot be written as JSON.
pub fn encode<D: Document>(document: &D) -> Result<Vec<u8>, FormatError> {
    encode_with(document, |_| None)
}

/// The bytes of a document with the signature, in hexadecimal, that somebody makes of its canonical form.
///
/// # Errors
/// If the body cannot be written as JSON.
pub(crate) fn encode_with<D: Document>(
    document: &D,
    sign: impl FnOnce(&[u8]) -> Option<String>,
) -> Result<Vec<u8>, FormatError> {
    let body = serde_json::to_value(document).map_err(|e| text::<D>(&e))?;
    let canonical = canonical::<D>(&body)?;
    let (crc32c, signature) = (crc32c::crc32c(&canonical), sign(&canonical));
    let envelope = Envelope { format: D::FORMAT.into(), version: VERSION, crc32c, body, signature };
    serde_json::to_vec_pretty(&envelope).map_err(|e| text::<D>(&e))
}

/// What of a document is signed, its canonical form, and the signature, if it has one. What kind it is, is
/// not looked at.
///
/// # Errors
/// If it is no document.
pub fn signed_part(bytes: &[u8]) -> Result<(Vec<u8>, Option<String>), FormatError> {
    let of = |e: &serde_json::Error| FormatError::Text { what: "document", reason: e.to_string() };
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| of(&e))?;
    Ok((serde_json::to_vec(&envelope.body).map_err(|e| of(&e))?, envelope.signature))
}

/// Whether bytes are a document of any kind with the checksum it should have.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let Ok(envelope) = serde_json::from_slice::<Envelope>(bytes) else { return false };
    serde_json::to_vec(&envelope.body).is_ok_and(|body| crc32c::crc32c(&body) == envelope.crc32c)
}

/// Reads a document.
///
/// # Errors
/// Anything but a whole document of this kind and a known version.
pub fn decode<D: Document>(bytes: &[u8]) -> Result<D, FormatError> {
    if bytes.len() > DOCUMENT_BYTES_MAX {
        let value = bytes.len() as u64;
        return Err(FormatError::Bounds { what: D::FORMAT, field: "length", value });
    }
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|e| text::<D>(&e))?;
    if envelope.format != D::FORMAT {
        return Err(FormatError::Magic { what: D::FORMAT });
    }
    if envelope.version != VERSION {
        let found = envelope.version;
        return Err(FormatError::Version { what: D::FORMAT, found, known: VERSION });
    }
    let computed = crc32c::crc32c(&canonical::<D>(&envelope.body)?);
    if computed != envelope.crc32c {
        let stored = envelope.crc32c;
        return Err(FormatError::Checksum { what: D::FORMAT, computed, stored });
    }
    serde_json::from_value(envelope.body).map_err(|e| text::<D>(&e))
}

/// serde_json keeps the keys of a `Value` sorted and writes no white space: the canonical form.
fn canonical<D: Document>(body: &Value) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec(body).map_err(|e| text::<D>(&e))
}

fn text<D: Document>(error: &serde_json::Error) -> FormatError {
    FormatError::Text { what: D::FORMAT, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> DiskRecord {
        DiskRecord {
            disk: DiskId::from_bytes([7; 16]),
            name: "db1".parse().unwrap(),
            size_bytes: ByteLen(1 << 40),
            sector_bytes: 512,
            created_unix_ns: 1_700_000_000_000_000_000,
        }
    }

    #[test]
    fn round_trip_and_golden() {
        let bytes = encode(&sample()).unwrap();
        assert_eq!(decode::<DiskRecord>(&bytes).unwrap(), sample());
        assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("../../tests/golden/disk.json"));
    }

    #[test]
    fn names_round_trip_and_golden() {
        let renamed = NameRecord {
            name: "db1".parse().unwrap(),
            number: None,
            disk: DiskId::from_bytes([7; 16]),
            change: 2,
            renamed_to: Some("db.main".parse().unwrap()),
            since_unix_ns: 1_700_000_000_000_000_000,
        };
        let bytes = encode(&renamed).unwrap();
        assert_eq!(decode::<NameRecord>(&bytes).unwrap(), renamed);
        assert_eq!(String::from_utf8(bytes).unwrap(), include_str!("../../tests/golden/name.json"));
        let held = NameRecord { renamed_to: None, ..renamed };
        let bytes = encode(&held).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("renamed_to"));
        assert_eq!(decode::<NameRecord>(&bytes).unwrap(), held);
    }

    /// Fields that were not there before are compared where they are there; without, all else is.
    #[test]
    fn documents_of_before_are_compared_as_far_as_they_go() {
        use crate::format::term::TermRecord;
        use backstay_types::Term;
        let name = NameRecord {
            name: "db1".parse().unwrap(),
            number: None,
            disk: DiskId::from_bytes([7; 16]),
            change: 0,
            renamed_to: None,
            since_unix_ns: 0,
        };
        let at = |text: &str, number| ObjectKey::Name(text.parse().unwrap(), number);
        assert_eq!(name.differs(&at("db1", 3)), None);
        assert!(name.differs(&at("db2", 3)).is_some());
        let numbered = NameRecord { number: Some(3), ..name };
        assert_eq!(numbered.differs(&at("db1", 3)), None);
        assert!(numbered.differs(&at("db1", 4)).is_some());
        let bytes = encode(&numbered).unwrap();
        assert_eq!(decode::<NameRecord>(&bytes).unwrap(), numbered);
        let (ours, theirs) = (DiskId::from_bytes([1; 16]), DiskId::from_bytes([2; 16]));
        let at = |disk, term| ObjectKey::Disk(disk, Piece::Term(Term(term)));
        let term = |disk| TermRecord {
            disk,
            term: Term(2),
            writer: "w".into(),
            since_unix_ns: 0,
            from: None,
        };
        assert_eq!(term(None).differs(&at(ours, 2)), None);
        assert!(term(None).differs(&at(ours, 3)).is_some());
        assert_eq!(term(Some(ours)).differs(&at(ours, 2)), None);
        assert!(term(Some(theirs)).differs(&at(ours, 2)).is_some());
        assert!(term(Some(ours)).differs(&ObjectKey::Vault).is_some());
    }

    #[test]
    fn another_kind_or_version_is_refused() {
        let bytes = encode(&sample()).unwrap();
        assert!(matches!(decode::<NameRecord>(&bytes), Err(FormatError::Magic { .. })));
        let newer = String::from_utf8(bytes).unwrap().replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(
            decode::<DiskRecord>(newer.as_bytes()),
            Err(FormatError::Version { found: 2, .. })
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_document_or_an_error(bytes: Vec<u8>) {
            let _ = decode::<DiskRecord>(&bytes);
        }

        #[test]
        fn a_changed_value_is_seen(size in 0u64..1 << 39) {
            let text = String::from_utf8(encode(&sample()).unwrap()).unwrap();
            let bad = text.replace("1099511627776", &size.to_string());
            prop_assert!(decode::<DiskRecord>(bad.as_bytes()).is_err());
        }
    }
}

//! What the objects of a vault hold. Bytes to types and back; docs/explanation/format-vault.md says the same
//! in words.

pub mod bounds;
pub mod document;
pub mod drill;
pub mod group;
pub mod hold;
pub mod key;
pub mod ledger;
pub mod manifest;
pub mod segment;
pub mod term;

use backstay_format::FormatError;

/// Reads little-endian fields one after the other, never past the end.
pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes, at: 0 }
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.at.checked_add(len).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or(FormatError::Short {
            what: self.what,
            have: self.bytes.len(),
            need: self.at.saturating_add(len),
        })?;
        let out = &self.bytes[self.at..end];
        self.at = end;
        Ok(out)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub fn magic(&mut self, magic: &[u8; 8]) -> Result<(), FormatError> {
        if self.take(8)? == magic { Ok(()) } else { Err(FormatError::Magic { what: self.what }) }
    }

    pub fn version(&mut self, known: u32) -> Result<(), FormatError> {
        match self.u32()? {
            found if found == known => Ok(()),
            found => Err(FormatError::Version { what: self.what, found, known }),
        }
    }
}

/// Splits off the checksum that ends every binary object and compares it.
pub(crate) fn checked<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], FormatError> {
    let Some((body, stored)) = bytes.split_last_chunk::<4>() else {
        return Err(FormatError::Short { what, have: bytes.len(), need: 4 });
    };
    let (computed, stored) = (crc32c::crc32c(body), u32::from_le_bytes(*stored));
    if computed == stored {
        Ok(body)
    } else {
        Err(FormatError::Checksum { what, computed, stored })
    }
}

/// Whether bytes are any object of a vault but a segment, with the checksum it should have.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    const TRAILER: usize = crate::encrypt::sign::TRAILER_BYTES;
    let unsigned = bytes.len().checked_sub(TRAILER).map_or(bytes, |end| &bytes[..end]);
    [bytes, unsigned].iter().any(|bytes| bytes.len() > 8 && checked("object", bytes).is_ok())
        || document::is_whole(bytes)
}

/// Appends the checksum that ends every binary object.
pub(crate) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

//! Little-endian fields at fixed places in fixed-size blocks.

use crate::FormatError;

/// Reads fixed fields from a block whose length has been checked once.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
    pub fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }
}

/// Checks length and magic; every format starts with eight magic bytes.
pub(crate) fn expect<'a>(
    what: &'static str,
    bytes: &'a [u8],
    need: usize,
    magic: &[u8; 8],
) -> Result<Fields<'a>, FormatError> {
    if bytes.len() < need {
        return Err(FormatError::Short { what, have: bytes.len(), need });
    }
    if &bytes[..8] != magic {
        return Err(FormatError::Magic { what });
    }
    Ok(Fields(&bytes[..need]))
}

/// Compares a stored CRC-32C with that of `covered`.
pub(crate) fn check_crc(
    what: &'static str,
    covered: &[u8],
    stored: u32,
) -> Result<(), FormatError> {
    let computed = crc32c::crc32c(covered);
    if computed == stored { Ok(()) } else { Err(FormatError::Checksum { what, computed, stored }) }
}

/// Checks a version field against the only one known so far.
pub(crate) fn check_version(what: &'static str, found: u32, known: u32) -> Result<(), FormatError> {
    if found == known { Ok(()) } else { Err(FormatError::Version { what, found, known }) }
}

//! Messages on a stream: a 20-byte header (magic, version, length, checksum), then a body of JSON.

use serde::{Deserialize, Serialize};

use crate::FormatError;
use crate::wire::{check_crc, check_version, expect};

/// Bytes before a message's body.
pub const HEADER_BYTES: usize = 20;

/// A protocol's messages.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    /// What a message is called.
    pub what: &'static str,
    /// Its first bytes.
    pub magic: &'static [u8; 8],
    /// The version that is written and read.
    pub version: u32,
    /// Longest body.
    pub body_bytes_max: usize,
}

impl Framing {
    /// Makes the bytes of a message.
    ///
    /// # Errors
    /// If its body is too long.
    pub fn encode(&self, message: &impl Serialize) -> Result<Vec<u8>, FormatError> {
        let body = serde_json::to_vec(message).map_err(|e| self.text(&e))?;
        self.check_len(body.len())?;
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        out.extend_from_slice(self.magic);
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        out.extend_from_slice(&body);
        Ok(out)
    }

    /// Reads a message's header: how long its body is, and the body's checksum.
    ///
    /// # Errors
    /// Not a message, an unknown version, or a body that is too long.
    pub fn decode_header(&self, bytes: &[u8]) -> Result<(usize, u32), FormatError> {
        let f = expect(self.what, bytes, HEADER_BYTES, self.magic)?;
        check_version(self.what, f.u32(8), self.version)?;
        let len = f.u32(12) as usize;
        self.check_len(len)?;
        Ok((len, f.u32(16)))
    }

    /// Reads a message's body, whose length [`Self::decode_header`] gave.
    ///
    /// # Errors
    /// A checksum that differs, or a body that is not the message asked for.
    pub fn decode_body<T: for<'a> Deserialize<'a>>(
        &self,
        body: &[u8],
        crc: u32,
    ) -> Result<T, FormatError> {
        check_crc(self.what, body, crc)?;
        serde_json::from_slice(body).map_err(|e| self.text(&e))
    }

    fn check_len(&self, len: usize) -> Result<(), FormatError> {
        match len <= self.body_bytes_max {
            true => Ok(()),
            false => {
                let (what, value) = (self.what, len as u64);
                Err(FormatError::Bounds { what, field: "length", value })
            }
        }
    }

    fn text(&self, error: &serde_json::Error) -> FormatError {
        FormatError::Text { what: self.what, reason: error.to_string() }
    }
}

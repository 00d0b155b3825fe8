//! Messages on a stream: a header with a checked length, then the body.

use std::io::{self, Read, Write};

use backstay_format::FormatError;
use backstay_format::control::{HEADER_BYTES, decode_body, decode_header, encode};
use serde::{Deserialize, Serialize};

/// Why no message was read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or timed out.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not a message.
    #[error(transparent)]
    Format(#[from] FormatError),
}

/// Writes a message.
pub(super) fn send(stream: &mut impl Write, message: &impl Serialize) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    Ok(stream.flush()?)
}

/// Reads a message; `None` at the end of the stream.
pub(super) fn receive<T: for<'a> Deserialize<'a>>(
    stream: &mut impl Read,
) -> Result<Option<T>, FrameError> {
    let mut header = [0; HEADER_BYTES];
    // The end of the stream between two messages is no error, inside one it is.
    let first = loop {
        match stream.read(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[first..])?;
    let (len, crc) = decode_header(&header)?;
    let mut body = vec![0; len];
    stream.read_exact(&mut body)?;
    Ok(Some(decode_body(&body, crc)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_format::control::Request;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes: Vec<u8>) {
            let _ = receive::<Request>(&mut &bytes[..]);
        }

        #[test]
        fn any_flip_is_seen(at in 0usize..64, bit in 0u8..8) {
            let mut bytes = encode(&Request::Status).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(receive::<Request>(&mut &bytes[..]).is_err());
        }
    }
}

//! What the fuzz targets do, shared with the tests that run them over the corpus: any bytes are a
//! message or an error, and a message says the same when it is written again.

use backstay_engine::group::wire::{Ask, FRAMING, HEADER_BYTES, Tell, decode};

/// The messages between the hosts of a group: as they are, and with a checksum that fits, so that the
/// body is reached.
pub fn group_message(data: &[u8]) {
    either(data);
    if let Some((header, body)) = data.split_at_checked(HEADER_BYTES) {
        let mut whole = header[..12].to_vec();
        whole.extend_from_slice(&(body.len() as u32).to_le_bytes());
        whole.extend_from_slice(&crc32c::crc32c(body).to_le_bytes());
        whole.extend_from_slice(body);
        either(&whole);
    }
}

fn either(bytes: &[u8]) {
    if let Ok(Some((ask, len))) = decode::<Ask>(bytes) {
        assert!(len <= bytes.len());
        let again = FRAMING.encode(&ask).and_then(|bytes| decode::<Ask>(&bytes));
        assert_eq!(again.map(|read| read.map(|(ask, _)| ask)), Ok(Some(ask)));
    }
    if let Ok(Some((tell, len))) = decode::<Tell>(bytes) {
        assert!(len <= bytes.len());
        let again = FRAMING.encode(&tell).and_then(|bytes| decode::<Tell>(&bytes));
        assert_eq!(again.map(|read| read.map(|(tell, _)| tell)), Ok(Some(tell)));
    }
}

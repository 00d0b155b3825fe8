//! What each fuzz target does with its bytes: parse them as they are, then once more with the
//! checksum or digest put right, so that the fields behind it are reached.

use backstay_types::{ByteLen, SectorRange};
use backstay_vault::encrypt::proofs::KeyProof;
use backstay_vault::encrypt::segment::Envelope;
use backstay_vault::encrypt::{Granted, Keyring, Unlock, WriterKey, sign};
use backstay_vault::format::document::{
    DiskRecord, NameRecord, VaultRecord, decode, encode, signed_part,
};
use backstay_vault::format::drill::DrillRecord;
use backstay_vault::format::group::GroupPoint;
use backstay_vault::format::hold::HoldRecord;
use backstay_vault::format::ledger::Ledger;
use backstay_vault::format::manifest::Manifest;
use backstay_vault::format::segment::{
    FOOTER_BYTES, FRAME_BYTES_MAX, Footer, Index, decode_header,
};
use backstay_vault::format::term::{HandoverRecord, TermRecord};

/// A footer, and the index that follows it in the input.
pub fn segment_index(data: &[u8]) {
    let _ = decode_header(data);
    let Some((footer, raw)) = data.split_at_checked(FOOTER_BYTES) else { return };
    let mut footer = footer.to_vec();
    // Either version: the second is of segments that are sealed.
    let version = 1 + (footer[8] & 1);
    footer[..12].copy_from_slice(b"BSTYSEGF\x01\0\0\0");
    footer[8] = version;
    // Where the object ends is known from the store; let it fit what the footer says.
    let field = |at: usize| u64::from_le_bytes(footer[at..at + 8].try_into().unwrap_or_default());
    let stored = field(56) & u64::from(u32::MAX);
    let object = field(48).wrapping_add(stored).wrapping_add(FOOTER_BYTES as u64);
    let digest = *blake3::hash(raw).as_bytes();
    footer[76..108].copy_from_slice(&digest);
    let Ok(footer) = Footer::decode(&sealed(footer), ByteLen(object)) else { return };
    let disk = SectorRange::new(0, 1 << 41);
    let Ok(index) = Index::decode(raw, &footer, disk) else { return };
    assert_eq!(index.encode(), raw, "what is read is what was written");
    let mut next = 64;
    for frame in &index.frames {
        assert_eq!(frame.offset, next);
        let most = frame.raw_len + if footer.sealed { 16 } else { 0 };
        assert!(frame.stored_len <= most && frame.raw_len as usize <= FRAME_BYTES_MAX);
        next += u64::from(frame.stored_len);
    }
    assert_eq!(next, footer.index_offset);
    for extent in &index.extents {
        assert!(!extent.range.is_empty() && extent.range.end <= disk.end);
        if let Some(place) = extent.place {
            let end = u64::from(place.offset) + extent.range.bytes().0;
            assert!(end <= index.frames[place.frame as usize].raw_len.into());
        }
    }
}

/// What is signed, by whom; a writer's key; proofs.
pub fn signed(data: &[u8]) {
    if let Ok(key) = decode::<WriterKey>(data) {
        assert!(encode(&key).is_ok());
    }
    if let Ok(proof) = decode::<KeyProof>(data) {
        let again = encode(&proof).and_then(|bytes| decode::<KeyProof>(&bytes));
        assert_eq!(again, Ok(proof));
    }
    let content = sign::content(data).len();
    assert!(content == data.len() || content + sign::TRAILER_BYTES == data.len());
    let vault = uuid_of(data);
    if let Ok((canonical, seal)) = signed_part(data) {
        let key = "disks/x/terms/1";
        let signed = sign::document_signed_by(&[7; 32], vault, key, &canonical, seal.as_deref());
        assert!(signed.is_err());
    }
    let _ = decode::<Granted>(data);
    assert!(sign::signed_by(&[7; 32], vault, "disks/x/points/1", data).is_err());
}

fn uuid_of(data: &[u8]) -> uuid::Uuid {
    let mut bytes = [0; 16];
    let len = data.len().min(16);
    bytes[..len].copy_from_slice(&data[..len]);
    uuid::Uuid::from_bytes(bytes)
}

/// A recovery point.
pub fn manifest(data: &[u8]) {
    let _ = Manifest::decode(data);
    let mut marked = b"BSTYPONT\x01\0\0\0".to_vec();
    marked.extend_from_slice(data);
    marked.extend_from_slice(&[0; 4]);
    if let Ok(point) = Manifest::decode(&sealed(marked)) {
        assert_eq!(Manifest::decode(&point.encode()), Ok(point));
    }
}

/// A ledger, and what it makes of a list.
pub fn ledger(data: &[u8]) {
    let _ = Ledger::decode(data);
    let mut marked = data.to_vec();
    if let Some(start) = marked.get_mut(..12) {
        start.copy_from_slice(b"BSTYLEDG\x01\0\0\0");
    }
    // The checksum of the input, if it ends in one, is put right; else one is added.
    for whole in [marked.len().saturating_sub(4), marked.len()] {
        let mut bytes = marked[..whole].to_vec();
        bytes.extend_from_slice(&[0; 4]);
        let Ok(ledger) = Ledger::decode(&sealed(bytes)) else { continue };
        let again = ledger.encode().and_then(|bytes| Ledger::decode(&bytes));
        assert_eq!(again.as_ref(), Ok(&ledger));
        for merge in &ledger.merges {
            let (_, fit) = ledger.merged(&merge.segments);
            assert_eq!(fit.len(), ledger.merges.len());
        }
    }
}

/// The JSON objects.
pub fn document(data: &[u8]) {
    if let Ok(hold) = decode::<HoldRecord>(data) {
        let again = encode(&hold).and_then(|bytes| decode::<HoldRecord>(&bytes));
        assert_eq!(again, Ok(hold));
    }
    if let Ok(drill) = decode::<DrillRecord>(data) {
        let again = encode(&drill).and_then(|bytes| decode::<DrillRecord>(&bytes));
        assert_eq!(again, Ok(drill));
    }
    if let Ok(point) = decode::<GroupPoint>(data) {
        let _ = point.check();
    }
    let _ = decode::<KeyProof>(data);
    let _ = decode::<WriterKey>(data);
    let _ = decode::<VaultRecord>(data);
    let _ = decode::<TermRecord>(data);
    let _ = decode::<HandoverRecord>(data);
    if let Ok(name) = decode::<NameRecord>(data) {
        let again = encode(&name).and_then(|bytes| decode::<NameRecord>(&bytes));
        assert_eq!(again, Ok(name));
    }
    if let Ok(disk) = decode::<DiskRecord>(data) {
        let again = encode(&disk).and_then(|bytes| decode::<DiskRecord>(&bytes));
        assert_eq!(again, Ok(disk));
    }
}

/// Who can open a vault: as it is, and with a checksum that fits, so that what is behind it is reached; opened with a
/// key file that is none of its.
pub fn keyring(data: &[u8]) {
    let opened = |bytes: &[u8]| {
        let Ok(keyring) = decode::<Keyring>(bytes) else { return };
        let _ = keyring.check(keyring.vault);
        let _ = keyring.open(&Unlock::KeyFile(b"none of its".to_vec().into()));
        assert_eq!(encode(&keyring).and_then(|bytes| decode::<Keyring>(&bytes)), Ok(keyring));
    };
    opened(data);
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    let crc = document.get("body").map(|body| crc32c::crc32c(body.to_string().as_bytes()));
    if let (Some(crc), Some(document)) = (crc, document.as_object_mut()) {
        document.insert("crc32c".into(), crc.into());
    }
    opened(document.to_string().as_bytes());
}

/// What stands behind a sealed index.
pub fn envelope(data: &[u8]) {
    if let Ok(envelope) = Envelope::decode(data) {
        assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
    }
}

/// A page of a gateway's list, as the client reads it.
pub fn gateway_list(data: &[u8]) {
    for key in backstay_vault::remote::keys_of_page(data).into_iter().flatten() {
        let out = |part: &str| matches!(part, "." | "..") || part.contains('\\');
        assert!(!key.starts_with('/') && !key.split('/').any(out), "{key:?}");
    }
}

/// With the checksum that ends every binary object.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

//! Sealing the frames and the index of a segment.
//!
//! Every segment has a key of its own: a fresh X25519 half, agreed with the public key of the vault's newest
//! generation. So a nonce must differ only within one segment, and is where in the object the sealed
//! piece starts: no two start at the same byte. Associated data: which segment (disk, cycle, attempt, number), how
//! the piece is stored, its lengths. A piece therefore opens only at its place in its segment.

use std::sync::Arc;

use backstay_format::FormatError;
use ring::aead::{Aad, LessSafeKey, Nonce};

pub use super::agree::TAG_BYTES;
use super::agree::{PUBLIC_BYTES, aead, agree, public_of};
use super::secret::{NoRandom, Secret, random};
use crate::format::segment::{Codec, Footer, SegmentId};

const WHAT: &str = "sealed segment";
const PURPOSE: &[u8] = b"backstay segment 1";
/// Bytes after the sealed index that say whose key opens it.
pub const ENVELOPE_BYTES: usize = 8 + 16 + PUBLIC_BYTES;
/// How much longer a stored index is than what was sealed.
pub const INDEX_OVERHEAD_BYTES: usize = TAG_BYTES + ENVELOPE_BYTES;

/// What stands behind a sealed index: whose key opens the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The generation of the vault's key.
    pub generation: u32,
    /// Random; from it the process that sealed the segment can find its key again.
    pub hint: [u8; 16],
    /// The fresh public half.
    pub fresh: [u8; PUBLIC_BYTES],
}

impl Envelope {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(ENVELOPE_BYTES);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.hint);
        out.extend_from_slice(&self.fresh);
        out
    }

    /// Reads one.
    ///
    /// # Errors
    /// If it has another length, or no generation.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut r = crate::format::Reader::new(WHAT, bytes);
        let generation = r.u32()?;
        r.take(4)?;
        let (hint, fresh) = (r.array()?, r.array()?);
        if bytes.len() != ENVELOPE_BYTES {
            return Err(FormatError::Short { what: WHAT, have: bytes.len(), need: ENVELOPE_BYTES });
        }
        if generation == 0 {
            return Err(FormatError::Bounds { what: WHAT, field: "generation", value: 0 });
        }
        Ok(Self { generation, hint, fresh })
    }
}

/// The two kinds of sealed pieces.
#[derive(Clone, Copy)]
enum Piece {
    Frame = 0,
    Index = 1,
}

/// Seals or opens the pieces of one segment.
pub struct SegmentKey {
    key: LessSafeKey,
    id: SegmentId,
    fresh: [u8; PUBLIC_BYTES],
}

impl std::fmt::Debug for SegmentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SegmentKey({:?})", self.id)
    }
}

/// What opens a segment's frames: nothing where they are not sealed. All are alike when they are compared.
#[derive(Debug, Default, Clone)]
pub struct Opens(pub(crate) Option<Arc<SegmentKey>>);

impl PartialEq for Opens {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Opens {}

/// A piece did not open: it is not what was sealed for this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAuthentic;

impl SegmentKey {
    /// A new key to a public one, and the envelope from which its owner finds it.
    pub(crate) fn fresh(
        session: &Secret,
        (generation, to): (u32, &[u8; PUBLIC_BYTES]),
        id: SegmentId,
    ) -> Result<(Self, Envelope), NoRandom> {
        let hint = random()?;
        let ours = session.derive(&hint, PURPOSE);
        let fresh = public_of(&ours);
        let key = agree(&ours, to, &fresh, to, PURPOSE).and_then(|key| aead(&key));
        let key = key.ok_or(NoRandom)?;
        Ok((Self { key, id, fresh }, Envelope { generation, hint, fresh }))
    }

    /// The key of an envelope, for anyone who has the generation's secret.
    pub(crate) fn opened(secret: &Secret, envelope: &Envelope, id: SegmentId) -> Option<Self> {
        let (fresh, to) = (envelope.fresh, public_of(secret));
        let key = aead(&agree(secret, &fresh, &fresh, &to, PURPOSE)?)?;
        Some(Self { key, id, fresh })
    }

    /// The key of an envelope that this process made.
    pub(crate) fn remembered(
        session: &Secret,
        to: &[u8; PUBLIC_BYTES],
        envelope: &Envelope,
        id: SegmentId,
    ) -> Option<Self> {
        let ours = session.derive(&envelope.hint, PURPOSE);
        let fresh = public_of(&ours);
        if fresh != envelope.fresh {
            return None;
        }
        let key = aead(&agree(&ours, to, &fresh, to, PURPOSE)?)?;
        Some(Self { key, id, fresh })
    }

    /// Whether it is the one of an envelope.
    pub(crate) fn is_of(&self, envelope: &Envelope) -> bool {
        self.fresh == envelope.fresh
    }

    /// What its segment's header shows of it.
    pub(crate) fn public_start(&self) -> [u8; 8] {
        let mut start = [0; 8];
        start.copy_from_slice(&self.fresh[..8]);
        start
    }

    fn nonce(piece: Piece, offset: u64) -> Nonce {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&(piece as u32).to_le_bytes());
        nonce[4..].copy_from_slice(&offset.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    fn associated(&self, numbers: &[u32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(&self.id.disk.to_bytes());
        out.extend_from_slice(&self.id.cycle.0.to_le_bytes());
        out.extend_from_slice(&self.id.attempt.to_le_bytes());
        out.extend_from_slice(&self.id.number.to_le_bytes());
        numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
        out
    }

    /// Seals a frame in place; its tag belongs right behind it.
    pub fn seal_frame(
        &self,
        offset: u64,
        codec: Codec,
        raw_len: u32,
        bytes: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], NotAuthentic> {
        let aad = self.associated(&[codec as u32, (bytes.len() + TAG_BYTES) as u32, raw_len]);
        let nonce = Self::nonce(Piece::Frame, offset);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), bytes);
        tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(NotAuthentic)
    }

    /// Opens a frame in place: what was sealed, without its tag.
    pub fn open_frame<'a>(
        &self,
        offset: u64,
        codec: Codec,
        raw_len: u32,
        bytes: &'a mut [u8],
    ) -> Result<&'a [u8], NotAuthentic> {
        let aad = self.associated(&[codec as u32, bytes.len() as u32, raw_len]);
        let nonce = Self::nonce(Piece::Frame, offset);
        let opened = self.key.open_in_place(nonce, Aad::from(aad), bytes);
        opened.map(|bytes| &*bytes).map_err(|_| NotAuthentic)
    }

    /// What the footer says of the index, all of it.
    fn of_index(&self, footer: &Footer) -> Vec<u8> {
        self.associated(&[
            footer.index_codec as u32,
            footer.index_stored_len,
            footer.index_raw_len,
            footer.frames,
            footer.extents,
            footer.sums,
            footer.chunk_shift,
            footer.frames_crc,
        ])
    }

    /// Seals an index, as it is stored; the footer must be as it will be, but for the digest.
    pub fn seal_index(&self, footer: &Footer, mut bytes: Vec<u8>) -> Result<Vec<u8>, NotAuthentic> {
        let (nonce, aad) = (Self::nonce(Piece::Index, footer.index_offset), self.of_index(footer));
        let sealed = self.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut bytes);
        sealed.map(|()| bytes).map_err(|_| NotAuthentic)
    }

    /// Opens an index, without its envelope.
    pub fn open_index(&self, footer: &Footer, sealed: &[u8]) -> Result<Vec<u8>, NotAuthentic> {
        let (nonce, aad) = (Self::nonce(Piece::Index, footer.index_offset), self.of_index(footer));
        let mut bytes = sealed.to_vec();
        let len =
            self.key.open_in_place(nonce, Aad::from(aad), &mut bytes).map_err(|_| NotAuthentic)?;
        let len = len.len();
        bytes.truncate(len);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_types::{CycleNo, DiskId};
    use proptest::prelude::*;

    fn id() -> SegmentId {
        let disk = DiskId::from_bytes([7; 16]);
        SegmentId { disk, cycle: CycleNo(3), attempt: 5, number: 1 }
    }

    fn keys(id: SegmentId) -> (SegmentKey, Envelope, Secret) {
        let (session, secret) = (Secret::new([1; 32]), Secret::new([2; 32]));
        let (key, envelope) = SegmentKey::fresh(&session, (1, &public_of(&secret)), id).unwrap();
        (key, envelope, secret)
    }

    fn sealed(key: &SegmentKey, offset: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = content.to_vec();
        let tag = key.seal_frame(offset, Codec::Raw, content.len() as u32, &mut bytes).unwrap();
        bytes.extend_from_slice(&tag);
        bytes
    }

    /// What was sealed for one place opens at no other: disk, cycle, attempt, number, offset; nor as of another length or
    /// codec.
    #[test]
    fn a_frame_opens_at_its_place_alone() {
        let (key, envelope, secret) = keys(id());
        let bytes = sealed(&key, 64, b"content");
        let open = |id: SegmentId, offset, codec, len| {
            let key = SegmentKey::opened(&secret, &envelope, id).unwrap();
            key.open_frame(offset, codec, len, &mut bytes.clone()).map(<[u8]>::to_vec)
        };
        assert_eq!(open(id(), 64, Codec::Raw, 7).unwrap(), b"content");
        assert!(
            open(SegmentId { disk: DiskId::from_bytes([8; 16]), ..id() }, 64, Codec::Raw, 7)
                .is_err()
        );
        assert!(open(SegmentId { cycle: CycleNo(4), ..id() }, 64, Codec::Raw, 7).is_err());
        assert!(open(SegmentId { attempt: 6, ..id() }, 64, Codec::Raw, 7).is_err());
        assert!(open(SegmentId { number: 2, ..id() }, 64, Codec::Raw, 7).is_err());
        assert!(open(id(), 65, Codec::Raw, 7).is_err());
        assert!(open(id(), 64, Codec::Zstd, 7).is_err());
        assert!(open(id(), 64, Codec::Raw, 8).is_err());
        let other = SegmentKey::opened(&Secret::new([3; 32]), &envelope, id()).unwrap();
        assert!(other.open_frame(64, Codec::Raw, 7, &mut bytes.clone()).is_err());
    }

    #[test]
    fn a_process_finds_its_keys_again_and_no_other_does() {
        let (key, envelope, secret) = keys(id());
        let bytes = sealed(&key, 64, b"content");
        let to = public_of(&secret);
        let again = SegmentKey::remembered(&Secret::new([1; 32]), &to, &envelope, id()).unwrap();
        assert_eq!(again.open_frame(64, Codec::Raw, 7, &mut bytes.clone()).unwrap(), b"content");
        assert!(SegmentKey::remembered(&Secret::new([9; 32]), &to, &envelope, id()).is_none());
    }

    /// Sealed twice, the same segment has two keys: so no nonce is used twice with one, whatever is sealed.
    #[test]
    fn each_sealing_has_a_key_of_its_own() {
        let all: std::collections::HashSet<_> = (0..500).map(|_| keys(id()).1.fresh).collect();
        assert_eq!(all.len(), 500);
        // What fits at an offset is one piece; the index and a frame there would differ in the first four bytes.
        let nonce = |piece, offset| *SegmentKey::nonce(piece, offset).as_ref();
        assert_ne!(nonce(Piece::Frame, 64), nonce(Piece::Index, 64));
        assert_ne!(nonce(Piece::Frame, 64), nonce(Piece::Frame, 65));
    }

    proptest! {
        #[test]
        fn every_changed_bit_is_seen(content in prop::collection::vec(any::<u8>(), 1..200), at: usize, bit in 0u8..8) {
            let (key, _, _) = keys(id());
            let mut bytes = sealed(&key, 64, &content);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let len = content.len() as u32;
            prop_assert!(key.open_frame(64, Codec::Raw, len, &mut bytes).is_err());
            bytes.truncate(at);
            prop_assert!(key.open_frame(64, Codec::Raw, len, &mut bytes).is_err());
        }

        #[test]
        fn any_bytes_are_an_envelope_or_an_error(bytes: Vec<u8>) {
            if let Ok(envelope) = Envelope::decode(&bytes) {
                prop_assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
            }
        }
    }

    #[test]
    fn an_envelope_round_trips() {
        let envelope = keys(id()).1;
        let bytes = envelope.encode();
        assert_eq!((bytes.len(), Envelope::decode(&bytes)), (ENVELOPE_BYTES, Ok(envelope)));
        assert!(Envelope::decode(&bytes[1..]).is_err());
        assert!(Envelope::decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(Envelope::decode(&[0; ENVELOPE_BYTES]).is_err(), "no generation");
    }
}

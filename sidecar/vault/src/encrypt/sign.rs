//! Signatures on recovery points, ledgers and documents, and the certificates of those who may make them.
//!
//! The vault has an owner: an Ed25519 key pair whose secret half is sealed in the keyring. A host that can open
//! the keyring signs as the owner. One that may only write has a key pair of its own, and the owner's
//! certificate for it. So everyone who knows the owner's public half can check a point, without a secret;
//! and a store, which can put, delete and move what it likes, can make none.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use uuid::Uuid;

use super::secret::{Secret, hex, unhex};
use backstay_types::{Class, Classified};

const MAGIC: &[u8; 8] = b"BSTYSIGN";
/// Bytes of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;
/// What a signed object has after its content.
pub const TRAILER_BYTES: usize = 8 + 32 + 2 * SIGNATURE_BYTES;
/// Bytes of what a signed document has: signer, certificate, signature.
const SEAL_BYTES: usize = 32 + 2 * SIGNATURE_BYTES;
const OF_OBJECT: &[u8] = b"backstay object 1\0";
const OF_DOCUMENT: &[u8] = b"backstay document 1\0";
const OF_WRITER: &[u8] = b"backstay writer 1\0";
const OF_KEYRING: &[u8] = b"backstay keyring 1\0";

/// An Ed25519 public key.
pub type PublicKey = [u8; 32];

/// Why a signature does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSigned {
    /// There is none.
    #[error("it is not signed")]
    Missing,
    /// Its signer has no certificate of the vault's owner.
    #[error("it is signed by somebody whom the vault's owner did not allow to write")]
    Stranger,
    /// By a writer that was taken out since (`backstay key remove --writer`), and it is not older than that.
    #[error(
        "it is signed by a writer that was removed from the vault, and was not there before that"
    )]
    Removed,
    /// It is of other bytes, another object or another vault.
    #[error("its signature does not match: the object was changed, or is another one")]
    Wrong,
}

impl Classified for NotSigned {
    fn class(&self) -> Class {
        match self {
            Self::Missing | Self::Stranger | Self::Removed | Self::Wrong => Class::Damaged,
        }
    }
}

impl NotSigned {
    /// Whether nobody made it who may. Anything else may be damage to what somebody did make.
    #[must_use]
    pub fn is_nobodys(self) -> bool {
        matches!(self, Self::Missing | Self::Removed)
    }
}

/// Signs objects of one vault.
pub struct Signer {
    pair: Ed25519KeyPair,
    /// All zero for the owner.
    certificate: [u8; SIGNATURE_BYTES],
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", super::secret::hex(&self.public()))
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    let len = bytes.len().min(N);
    out[..len].copy_from_slice(&bytes[..len]);
    out
}

impl Signer {
    /// The owner, from the secret half.
    pub(crate) fn owner(seed: &Secret) -> Option<Self> {
        Self::certified(seed, [0; SIGNATURE_BYTES])
    }

    /// A writer, from its secret half and its certificate.
    pub(crate) fn certified(seed: &Secret, certificate: [u8; SIGNATURE_BYTES]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.bytes()).ok()?;
        Some(Self { pair, certificate })
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        fixed(self.pair.public_key().as_ref())
    }

    /// Its certificate.
    pub(crate) fn certificate(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.certificate
    }

    fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        fixed(self.pair.sign(message).as_ref())
    }

    /// Allows another key pair to write.
    pub(crate) fn certify(&self, vault: Uuid, writer: &PublicKey) -> [u8; SIGNATURE_BYTES] {
        self.sign(&of_writer(vault, writer))
    }

    /// Signs the canonical form of a keyring.
    pub(crate) fn sign_keyring(&self, body: &[u8]) -> [u8; SIGNATURE_BYTES] {
        self.sign(&[OF_KEYRING, body].concat())
    }

    /// Signer, certificate and signature of a message.
    fn seal(&self, message: &[u8]) -> [u8; SEAL_BYTES] {
        fixed(&[&self.public()[..], &self.certificate, &self.sign(message)].concat())
    }

    /// The bytes of an object with its signature behind.
    #[must_use]
    pub fn signed(&self, vault: Uuid, key: &str, mut bytes: Vec<u8>) -> Vec<u8> {
        let seal = self.seal(&of_object(OF_OBJECT, vault, key, &bytes));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&seal);
        bytes
    }

    /// What stands in the `signature` of a document.
    #[must_use]
    pub fn document(&self, vault: Uuid, key: &str, canonical: &[u8]) -> String {
        hex(&self.seal(&of_object(OF_DOCUMENT, vault, key, canonical)))
    }
}

fn of_writer(vault: Uuid, writer: &PublicKey) -> Vec<u8> {
    [OF_WRITER, vault.as_bytes(), writer].concat()
}

fn of_object(purpose: &[u8], vault: Uuid, key: &str, bytes: &[u8]) -> Vec<u8> {
    let len = (key.len() as u32).to_le_bytes();
    [purpose, vault.as_bytes(), &len, key.as_bytes(), bytes].concat()
}

fn holds(public: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}

/// Whether a keyring's signature is its owner's.
pub(crate) fn keyring_holds(owner: &PublicKey, body: &[u8], signature: &[u8]) -> bool {
    holds(owner, &[OF_KEYRING, body].concat(), signature)
}

/// Whether a writer has the owner's certificate.
pub(crate) fn certificate_holds(
    owner: &PublicKey,
    vault: Uuid,
    writer: &PublicKey,
    certificate: &[u8],
) -> bool {
    holds(owner, &of_writer(vault, writer), certificate)
}

/// Splits an object into content and trailer, if it has one.
fn split(bytes: &[u8]) -> (&[u8], Option<&[u8]>) {
    match bytes.len().checked_sub(TRAILER_BYTES) {
        Some(at) if bytes[at..].starts_with(MAGIC) => (&bytes[..at], Some(&bytes[at + 8..])),
        _ => (bytes, None),
    }
}

/// An object's content, anyone who signed it, or nobody.
#[must_use]
pub fn content(bytes: &[u8]) -> &[u8] {
    split(bytes).0
}

/// Who signed an object of a vault, if its owner or one whom the owner allowed to.
///
/// # Errors
/// If nobody did.
pub fn signed_by(
    owner: &PublicKey,
    vault: Uuid,
    key: &str,
    bytes: &[u8],
) -> Result<PublicKey, NotSigned> {
    let (content, trailer) = split(bytes);
    let seal = trailer.ok_or(NotSigned::Missing)?;
    sealed_by(owner, vault, &of_object(OF_OBJECT, vault, key, content), seal)
}

/// The same of a document, from its canonical form and what stands in its `signature`.
///
/// # Errors
/// If nobody did.
pub fn document_signed_by(
    owner: &PublicKey,
    vault: Uuid,
    key: &str,
    canonical: &[u8],
    signature: Option<&str>,
) -> Result<PublicKey, NotSigned> {
    let seal = signature.ok_or(NotSigned::Missing)?;
    let seal = unhex(seal).ok_or(NotSigned::Wrong)?;
    sealed_by(owner, vault, &of_object(OF_DOCUMENT, vault, key, canonical), &seal)
}

/// Who sealed a message.
fn sealed_by(
    owner: &PublicKey,
    vault: Uuid,
    message: &[u8],
    seal: &[u8],
) -> Result<PublicKey, NotSigned> {
    if seal.len() != SEAL_BYTES {
        return Err(NotSigned::Wrong);
    }
    let (signer, rest) = seal.split_first_chunk::<32>().ok_or(NotSigned::Wrong)?;
    let (certificate, signature) = rest.split_at(SIGNATURE_BYTES);
    // The owner needs none; zeroes then, so that there is one way to say it.
    let allowed = match signer == owner {
        true => certificate.iter().all(|&byte| byte == 0),
        false => certificate_holds(owner, vault, signer, certificate),
    };
    if !allowed {
        return Err(NotSigned::Stranger);
    }
    match holds(signer, message, signature) {
        true => Ok(*signer),
        false => Err(NotSigned::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, 7.1, test 2.
    #[test]
    fn ed25519_as_the_rfc_has_it() {
        let seed = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb";
        let signer = Signer::owner(&Secret::of(&unhex(seed).unwrap()).unwrap()).unwrap();
        assert_eq!(
            hex(&signer.public()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        assert_eq!(
            hex(&signer.sign(&[0x72])),
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        );
    }

    #[test]
    fn only_the_owner_and_those_it_allowed_sign() {
        let (vault, other) = (Uuid::from_bytes([1; 16]), Uuid::from_bytes([2; 16]));
        let owner = Signer::owner(&Secret::new([3; 32])).unwrap();
        let writer = Signer::owner(&Secret::new([4; 32])).unwrap();
        let certificate = owner.certify(vault, &writer.public());
        let writer = Signer::certified(&Secret::new([4; 32]), certificate).unwrap();
        let stranger = Signer::owner(&Secret::new([5; 32])).unwrap();
        let check = |vault, key: &str, bytes: &[u8]| signed_by(&owner.public(), vault, key, bytes);
        for signer in [&owner, &writer] {
            let bytes = signer.signed(vault, "disks/a/points/1", b"content".to_vec());
            assert_eq!(content(&bytes), b"content");
            assert_eq!(check(vault, "disks/a/points/1", &bytes), Ok(signer.public()));
            assert_eq!(check(vault, "disks/a/points/2", &bytes), Err(NotSigned::Wrong));
            assert_eq!(check(vault, "disks/b/points/1", &bytes), Err(NotSigned::Wrong));
            assert!(check(other, "disks/a/points/1", &bytes).is_err());
            for at in 0..bytes.len() {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                assert!(check(vault, "disks/a/points/1", &bad).is_err(), "byte {at}");
            }
        }
        // A document's signature is none of an object, nor of another key.
        let seal = writer.document(vault, "disks/a/terms/1", b"{}");
        let document = |key, content: &[u8], seal: Option<&str>| {
            document_signed_by(&owner.public(), vault, key, content, seal)
        };
        assert_eq!(document("disks/a/terms/1", b"{}", Some(&seal)), Ok(writer.public()));
        assert_eq!(document("disks/a/terms/2", b"{}", Some(&seal)), Err(NotSigned::Wrong));
        assert_eq!(document("disks/a/terms/1", b"[]", Some(&seal)), Err(NotSigned::Wrong));
        assert_eq!(document("disks/a/terms/1", b"{}", None), Err(NotSigned::Missing));
        assert_eq!(document("disks/a/terms/1", b"{}", Some("00")), Err(NotSigned::Wrong));
        let object = [b"{}", &MAGIC[..], &unhex(&seal).unwrap()].concat();
        assert_eq!(check(vault, "disks/a/terms/1", &object), Err(NotSigned::Wrong));
        let bytes = stranger.signed(vault, "k", vec![]);
        assert_eq!(check(vault, "k", &bytes), Err(NotSigned::Stranger));
        assert_eq!(check(vault, "k", b"content"), Err(NotSigned::Missing));
    }
}

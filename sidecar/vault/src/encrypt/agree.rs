//! Sealing to a public key: a fresh X25519 key pair, what both sides agree on, HKDF, AES-256-GCM.
//!
//! The key that comes out is used for one thing and never again, because the fresh half is random: so
//! nonces need to differ only within what one key seals.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};

use super::secret::{NoRandom, Secret, derive};

/// Bytes of an X25519 public key.
pub(crate) const PUBLIC_BYTES: usize = 32;
/// Bytes that AES-GCM adds.
pub const TAG_BYTES: usize = 16;
/// Bytes of a sealed secret.
const BOX_BYTES: usize = PUBLIC_BYTES + 32 + TAG_BYTES;

/// The public half of a secret.
pub(crate) fn public_of(secret: &Secret) -> [u8; PUBLIC_BYTES] {
    PublicKey::from(&StaticSecret::from(*secret.bytes())).to_bytes()
}

/// What two halves agree on, for one purpose. `None` if the other half is one of the few points with which
/// everybody would agree on the same.
pub(crate) fn agree(
    ours: &Secret,
    theirs: &[u8; PUBLIC_BYTES],
    fresh: &[u8; PUBLIC_BYTES],
    to: &[u8; PUBLIC_BYTES],
    purpose: &[u8],
) -> Option<Secret> {
    let shared = StaticSecret::from(*ours.bytes()).diffie_hellman(&PublicKey::from(*theirs));
    let salt = [&fresh[..], &to[..]].concat();
    shared.was_contributory().then(|| derive(shared.as_bytes(), &salt, purpose))
}

/// An AES-256-GCM key.
pub(crate) fn aead(key: &Secret) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key.bytes()).ok().map(LessSafeKey::new)
}

/// Seals a secret to a public key; what comes out may be shown to anyone.
pub(crate) fn seal_to(
    to: &[u8; PUBLIC_BYTES],
    purpose: &[u8],
    context: &[u8],
    secret: &Secret,
) -> Result<Vec<u8>, NoRandom> {
    let ours = Secret::random()?;
    let fresh = public_of(&ours);
    let key = agree(&ours, to, &fresh, to, purpose).ok_or(NoRandom)?;
    let key = aead(&key).ok_or(NoRandom)?;
    let mut out = Vec::with_capacity(BOX_BYTES);
    out.extend_from_slice(&fresh);
    let mut sealed = secret.bytes().to_vec();
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    key.seal_in_place_append_tag(nonce, Aad::from(context), &mut sealed).map_err(|_| NoRandom)?;
    out.extend_from_slice(&sealed);
    Ok(out)
}

/// Opens what was sealed to the public half of a secret. `None` if it was not, or was changed.
pub(crate) fn open_box(
    ours: &Secret,
    purpose: &[u8],
    context: &[u8],
    sealed: &[u8],
) -> Option<Secret> {
    let (fresh, sealed) = sealed.split_first_chunk::<PUBLIC_BYTES>()?;
    let to = public_of(ours);
    let key = aead(&agree(ours, fresh, fresh, &to, purpose)?)?;
    let mut bytes = zeroize::Zeroizing::new(sealed.to_vec());
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let opened = key.open_in_place(nonce, Aad::from(context), &mut bytes).ok()?;
    Secret::of(opened)
}

#[cfg(test)]
mod tests {
    use super::super::secret::{hex, unhex32};
    use super::*;

    /// RFC 7748, 6.1.
    #[test]
    fn x25519_as_the_rfc_has_it() {
        let bob = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
        let bob = Secret::new(unhex32(bob).unwrap());
        assert_eq!(
            hex(&public_of(&bob)),
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        );
        let alice = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a";
        let alice = PublicKey::from(unhex32(alice).unwrap());
        assert_eq!(
            hex(StaticSecret::from(*bob.bytes()).diffie_hellman(&alice).as_bytes()),
            "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
        );
        let alice = Secret::new([3; 32]);
        let (a, b) = (public_of(&alice), public_of(&bob));
        let one = agree(&alice, &b, &a, &b, b"test").unwrap();
        let other = agree(&bob, &a, &a, &b, b"test").unwrap();
        assert_eq!(one.bytes(), other.bytes());
        assert!(agree(&alice, &[0; 32], &a, &b, b"test").is_none(), "a point of low order");
    }

    #[test]
    fn a_box_opens_for_its_owner_and_as_it_was() {
        let (ours, other, inside) =
            (Secret::new([1; 32]), Secret::new([2; 32]), Secret::new([9; 32]));
        let sealed = seal_to(&public_of(&ours), b"p", b"c", &inside).unwrap();
        assert_eq!(open_box(&ours, b"p", b"c", &sealed).unwrap().bytes(), inside.bytes());
        assert!(open_box(&other, b"p", b"c", &sealed).is_none());
        assert!(open_box(&ours, b"q", b"c", &sealed).is_none());
        assert!(open_box(&ours, b"p", b"d", &sealed).is_none());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(open_box(&ours, b"p", b"c", &bad).is_none(), "byte {at}");
            assert!(open_box(&ours, b"p", b"c", &sealed[..at]).is_none(), "{at} bytes");
        }
    }
}

//! What opens a slot of the keyring: a passphrase, a key file, an age identity.

use std::io::Read;

use argon2::{Algorithm, Argon2, Params, Version};
use ring::hmac;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::secret::{Secret, derive};
use super::sign::PublicKey;

/// Least bytes in a key file.
pub const KEY_FILE_BYTES_MIN: usize = 32;
/// Least characters in a passphrase.
pub const PASSPHRASE_CHARS_MIN: usize = 8;
/// Most memory that a slot may make a reader use.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 16;

/// The content of a new key file; `None` if the system has no random bytes.
#[must_use]
pub fn new_key_file() -> Option<Zeroizing<Vec<u8>>> {
    let (first, second) = (Secret::random().ok()?, Secret::random().ok()?);
    let mut content = Zeroizing::new(Vec::with_capacity(64));
    content.extend_from_slice(first.bytes());
    content.extend_from_slice(second.bytes());
    Some(content)
}

/// What somebody has to open the keyring with.
pub enum Unlock {
    /// A passphrase.
    Passphrase(Zeroizing<String>),
    /// The content of a key file.
    KeyFile(Zeroizing<Vec<u8>>),
    /// Identities of an age file.
    Identities(Vec<Box<dyn age::Identity + Send + Sync>>),
}

impl std::fmt::Debug for Unlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(…)",
            Self::KeyFile(_) => "KeyFile(…)",
            Self::Identities(_) => "Identities(…)",
        })
    }
}

/// How hard it is to try a passphrase (Argon2id, RFC 9106).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardness {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Hardness {
    /// RFC 9106's second choice: 64 MiB, 3 passes, 4 lanes.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

impl Hardness {
    /// Whether a reader does it: what the store holds must not make it use all memory, or for ever.
    pub(crate) fn is_sane(&self) -> bool {
        // The lanes first: what is computed with them below must not overflow.
        (1..=LANES_MAX).contains(&self.lanes)
            && (8 * self.lanes..=MEMORY_KIB_MAX).contains(&self.memory_kib)
            && (1..=PASSES_MAX).contains(&self.passes)
    }
}

/// What a passphrase or a key file gives: the slot's private half, and what proves that the slot's maker knew it.
pub(crate) struct Opener {
    secret: Secret,
}

impl Opener {
    pub(crate) fn of_passphrase(text: &str, salt: &[u8], hard: Hardness) -> Option<Self> {
        if !hard.is_sane() {
            return None;
        }
        let params = Params::new(hard.memory_kib, hard.passes, hard.lanes, Some(32)).ok()?;
        let mut key = Zeroizing::new([0; 32]);
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(text.as_bytes(), salt, &mut key[..]).ok()?;
        Some(Self { secret: Secret::new(*key) })
    }

    pub(crate) fn of_key_file(content: &[u8], salt: &[u8]) -> Self {
        Self { secret: derive(content, salt, b"backstay key file 1") }
    }

    /// The X25519 secret to which the generation's secret is sealed.
    pub(crate) fn private(&self) -> Secret {
        self.secret.derive(&[], b"backstay slot 1")
    }

    /// What shows that who made the slot knew its secret and meant this owner: a store that puts a keyring of its
    /// own, sealed to the slot's public half, cannot make it.
    pub(crate) fn proof(&self, vault: Uuid, owner: &PublicKey) -> [u8; 32] {
        let key = self.secret.derive(&[], b"backstay slot proof 1");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
        let tag = hmac::sign(&key, &[vault.as_bytes(), &owner[..]].concat());
        let mut proof = [0; 32];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    pub(crate) fn proves(&self, vault: Uuid, owner: &PublicKey, proof: &[u8]) -> bool {
        let key = self.secret.derive(&[], b"backstay slot proof 1");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
        hmac::verify(&key, &[vault.as_bytes(), &owner[..]].concat(), proof).is_ok()
    }
}

/// Seals a secret to an age recipient; `None` if it is none.
pub(crate) fn seal_for_recipient(recipient: &str, secret: &Secret) -> Option<Vec<u8>> {
    let recipient: age::x25519::Recipient = recipient.parse().ok()?;
    age::encrypt(&recipient, secret.bytes()).ok()
}

/// Opens what was sealed to one of these identities.
pub(crate) fn open_with_identities(
    identities: &[Box<dyn age::Identity + Send + Sync>],
    sealed: &[u8],
) -> Option<Secret> {
    let decryptor = age::Decryptor::new_buffered(sealed).ok()?;
    let identities = identities.iter().map(|identity| &**identity as &dyn age::Identity);
    let mut inside = Zeroizing::new(vec![]);
    decryptor.decrypt(identities).ok()?.take(64).read_to_end(&mut inside).ok()?;
    Secret::of(&inside)
}

#[cfg(test)]
mod tests {
    use super::super::secret::hex;
    use super::*;

    /// What the reference program says: echo -n password | argon2 somesalt -id -t 2 -k 65536 -p 1 -l 32.
    #[test]
    fn argon2id_as_the_reference_has_it() {
        let hard = Hardness { memory_kib: 65_536, passes: 2, lanes: 1 };
        let opener = Opener::of_passphrase("password", b"somesalt", hard).unwrap();
        assert_eq!(
            hex(opener.secret.bytes()),
            "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"
        );
    }

    #[test]
    fn what_would_take_all_memory_is_refused() {
        let of = |memory_kib, passes, lanes| Hardness { memory_kib, passes, lanes };
        for hard in
            [of(u32::MAX, 3, 4), of(1024, 0, 1), of(1024, 1000, 1), of(8, 1, 4), of(64, 1, 0)]
        {
            assert!(Opener::of_passphrase("password", &[0; 16], hard).is_none(), "{hard:?}");
        }
        assert!(Hardness::default().is_sane());
    }
}

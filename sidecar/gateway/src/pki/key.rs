//! The authority's key in its file: as it is, or encrypted with a passphrase (PKCS#8, PBES2: scrypt and AES-256-CBC),
//! as `openssl pkey` reads it, too.
//!
//! CBC has no checksum: whether the passphrase was right shows when the key belongs to the authority's certificate, and
//! anyone who opens one looks at that.

use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfo, LineEnding, PrivateKeyInfo, SecretDocument};
use rcgen::KeyPair;
use zeroize::Zeroizing;

/// How a PEM file names a key that is encrypted.
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
/// scrypt: 2^14 blocks of 1 KiB, eight times over. More memory would be better, but 16 MiB is what `openssl` gives it.
const SCRYPT_LOG_N: u8 = 14;
const SCRYPT_TIMES: u32 = 8;
const KEY_BYTES: usize = 32;

/// A passphrase. It is printed nowhere.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// Least characters in one.
    pub const CHARS_MIN: usize = 8;

    /// One that somebody typed; `None` if it is too short to be of use.
    #[must_use]
    pub fn new(text: Zeroizing<String>) -> Option<Self> {
        (text.chars().count() >= Self::CHARS_MIN).then_some(Self(text))
    }
}

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Whether a key file is encrypted.
pub(super) fn is_encrypted(pem: &str) -> bool {
    pem.contains(&format!("-----BEGIN {ENCRYPTED}-----"))
}

/// The content of a key file.
pub(super) fn seal(key: &KeyPair, passphrase: Option<&Passphrase>) -> Option<Zeroizing<String>> {
    let Some(Passphrase(passphrase)) = passphrase else {
        return Some(Zeroizing::new(key.serialize_pem()));
    };
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut salt).ok()?;
    random.fill(&mut iv).ok()?;
    let hard = scrypt::Params::new(SCRYPT_LOG_N, 8, SCRYPT_TIMES, KEY_BYTES).ok()?;
    let how = pbes2::Parameters::scrypt_aes256cbc(hard, &salt, &iv).ok()?;
    let der = Zeroizing::new(key.serialize_der());
    let info = PrivateKeyInfo::try_from(&der[..]).ok()?;
    let sealed = info.encrypt_with_params(how, passphrase.as_bytes()).ok()?;
    sealed.to_pem(ENCRYPTED, LineEnding::LF).ok()
}

/// The key in a file; `None` if it is none, or the passphrase is another.
pub(super) fn open(pem: &str, passphrase: Option<&Passphrase>) -> Option<KeyPair> {
    if !is_encrypted(pem) {
        return KeyPair::from_pem(pem).ok();
    }
    let Passphrase(passphrase) = passphrase?;
    let (_, sealed) = SecretDocument::from_pem(pem).ok()?;
    let sealed = EncryptedPrivateKeyInfo::try_from(sealed.as_bytes()).ok()?;
    let der = sealed.decrypt(passphrase.as_bytes()).ok()?;
    KeyPair::try_from(der.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.into())).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_words_only() {
        let key = KeyPair::generate().unwrap();
        let right = passphrase("correct horse");
        let pem = seal(&key, Some(&right)).unwrap();
        assert!(is_encrypted(&pem) && !is_encrypted(&key.serialize_pem()));
        let opened = open(&pem, Some(&right)).unwrap();
        assert_eq!(opened.serialize_der(), key.serialize_der());
        assert!(open(&pem, None).is_none());
        let wrong = open(&pem, Some(&passphrase("battery staple")));
        assert!(wrong.is_none_or(|other| other.public_key_raw() != key.public_key_raw()));
        let plain = seal(&key, None).unwrap();
        assert!(open(&plain, None).is_some() && open(&plain, Some(&right)).is_some());
        assert!(Passphrase::new(Zeroizing::new("short".into())).is_none());
        assert!(!format!("{right:?}").contains("horse"));
    }
}

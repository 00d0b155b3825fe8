//! Secrets in memory, and what is derived from them. They are wiped when they are dropped, and cannot be
//! printed.

use ring::hkdf::{HKDF_SHA256, KeyType, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

/// 32 secret bytes.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// A secret of these bytes.
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new one from the kernel.
    pub(crate) fn random() -> Result<Self, NoRandom> {
        Ok(Self(Zeroizing::new(random()?)))
    }

    /// If there are exactly 32.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        Some(Self::new(bytes.try_into().ok()?))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// HKDF-SHA256 of this secret, for one purpose.
    pub(crate) fn derive(&self, salt: &[u8], purpose: &[u8]) -> Self {
        derive(self.bytes(), salt, purpose)
    }
}

/// The kernel has no random bytes: nothing can be sealed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoRandom;

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandom)?;
    Ok(bytes)
}

struct Len32;

impl KeyType for Len32 {
    fn len(&self) -> usize {
        32
    }
}

/// HKDF-SHA256 with 32 bytes of output. That much it always gives: 255 times as much is its limit.
pub(crate) fn derive(material: &[u8], salt: &[u8], purpose: &[u8]) -> Secret {
    let mut out = Zeroizing::new([0; 32]);
    let pseudorandom = Salt::new(HKDF_SHA256, salt).extract(material);
    let info = [purpose];
    if let Ok(okm) = pseudorandom.expand(&info, Len32) {
        // Fails only for another length than was asked for.
        let filled = okm.fill(&mut out[..]);
        debug_assert!(filled.is_ok());
    }
    Secret(out)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of hexadecimal, if it is some.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// 32 bytes of hexadecimal, if they are.
pub(crate) fn unhex32(text: &str) -> Option<[u8; 32]> {
    unhex(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5869, case 1, its first 32 bytes.
    #[test]
    fn hkdf_as_the_rfc_has_it() {
        let info = unhex("f0f1f2f3f4f5f6f7f8f9").unwrap();
        let salt = unhex("000102030405060708090a0b0c").unwrap();
        let out = derive(&[0x0b; 22], &salt, &info);
        let okm = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf";
        assert_eq!(hex(out.bytes()), okm);
    }

    #[test]
    fn secrets_are_not_printed() {
        assert_eq!(format!("{:?}", Secret::new([0xab; 32])), "Secret(…)");
    }

    #[test]
    fn hexadecimal() {
        assert_eq!(unhex("00fF10").unwrap(), [0, 255, 16]);
        assert!(unhex("0").is_none() && unhex("zz").is_none() && unhex("+1").is_none());
        assert!(unhex32(&hex(&[7; 32])).is_some() && unhex32("00").is_none());
    }
}

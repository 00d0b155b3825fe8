//! `[encryption]` in the configuration: the keys with which this host opens vaults and encrypts what it
//! ships.
//!
//! The configuration file may be world-readable, so it contains no secrets. It names files that only their
//! owner can read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backstay_vault::encrypt::KeySettings;
use backstay_vault::encrypt::key_health::STALE_DEFAULT;
use backstay_vault::encrypt::settings::Prompt;
use serde::{Deserialize, Serialize};

/// What this host has to open vaults with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Encryption {
    /// A file of random bytes: `backstay key init --key-file` makes one.
    pub key_file: Option<PathBuf>,
    /// A file whose first line is a passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// A file of age identities.
    pub identity_file: Option<PathBuf>,
    /// A writer's key (`backstay key grant`): this host ships and reads nothing.
    pub writer_file: Option<PathBuf>,
    /// Whose vault it must be: the owner that `backstay key list` shows, 64 hexadecimal digits.
    pub owner: Option<Owner>,
    /// Whether vaults that are not encrypted are refused: yes, unless it says no.
    pub required: Option<bool>,
    /// How long a proof counts that a key is kept elsewhere, too; then somebody is reminded.
    #[serde(with = "humantime_serde")]
    pub stale: Option<Duration>,
}

/// The public half of a vault's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Owner(pub [u8; 32]);

impl TryFrom<String> for Owner {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.as_bytes();
        let mut owner = [0; 32];
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("an owner is 64 hexadecimal digits: see backstay key list".into());
        }
        for (byte, pair) in owner.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|e| e.to_string())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|e| e.to_string())?;
        }
        Ok(Self(owner))
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Encryption {
    /// Whether it says anything.
    #[must_use]
    pub fn is_set(&self) -> bool {
        *self != Self { stale: self.stale, ..Self::default() }
    }

    /// How long a proof counts.
    #[must_use]
    pub fn stale(&self) -> Duration {
        self.stale.unwrap_or(STALE_DEFAULT)
    }

    /// As vaults want it.
    #[must_use]
    pub fn settings(&self, prompt: Option<Arc<Prompt>>) -> KeySettings {
        let this = self.clone();
        KeySettings {
            passphrase_file: this.passphrase_file,
            key_file: this.key_file,
            identity_file: this.identity_file,
            writer_file: this.writer_file,
            owner: this.owner.map(|owner| owner.0),
            required: this.required.unwrap_or(self.is_set()),
            prompt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_it() {
        let owner = "ab".repeat(32);
        let text = format!("key_file = \"/etc/backstay/vault.key\"\nowner = \"{owner}\"\n");
        let set: Encryption = toml::from_str(&text).unwrap();
        assert_eq!(String::from(set.owner.unwrap()), owner);
        assert!(set.settings(None).required, "who has a key means it");
        assert!(!Encryption::default().settings(None).required);
        let lax = toml::from_str::<Encryption>("key_file = \"/k\"\nrequired = false").unwrap();
        assert!(!lax.settings(None).required);
        let error = toml::from_str::<Encryption>("owner = \"abc\"").unwrap_err().to_string();
        assert!(error.contains("64 hexadecimal"), "{error}");
        // A secret here would be read by everyone who reads the configuration.
        assert!(toml::from_str::<Encryption>("passphrase = \"x\"").is_err());
    }
}

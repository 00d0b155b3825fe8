//! What a source gets that may write and not read: the public half it seals to, the owner it believes, and a
//! key pair of its own with the owner's certificate. One file, made where the vault can be opened.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroize;

use super::keyring::{Keyring, Opened};
use super::secret::{NoRandom, Secret, hex, unhex, unhex32};
use super::sign::{PublicKey, Signer, certificate_holds};
use crate::format::document::{Document, Object};
use crate::format::key::{KeyNote, ObjectKey};

/// The file's content. Bytes are in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterKey {
    /// The vault.
    pub vault: Uuid,
    /// The owner's public half.
    pub owner: String,
    /// The generation that was the newest when the file was made.
    pub generation: u32,
    /// Its public half.
    pub public: String,
    /// Who it was made for, for people.
    pub label: String,
    /// The writer's Ed25519 secret.
    secret: String,
    /// The owner's certificate for it.
    pub certificate: String,
}

impl Drop for WriterKey {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl std::fmt::Debug for WriterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WriterKey({}, {})", self.vault, self.label)
    }
}

impl Document for WriterKey {
    const FORMAT: &'static str = "backstay-writer";
}

/// `keys/writer-<public half>`: that a writer's key was made, and for whom. It gives no right; who removes a writer
/// finds it by this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The writer's Ed25519 public half.
    pub writer: String,
    /// Who it was made for, for people.
    pub label: String,
    /// When.
    pub granted_unix_ns: u64,
}

impl Document for Granted {
    const FORMAT: &'static str = "backstay-granted";
}

impl Object for Granted {
    fn differs(&self, key: &ObjectKey) -> Option<String> {
        let same = unhex32(&self.writer).is_some_and(|of| *key == granted_key(of));
        (!same).then(|| format!("the note of writer {}", self.writer))
    }
}

/// Where it is noted that a writer's key was made.
pub(super) const fn granted_key(writer: PublicKey) -> ObjectKey {
    ObjectKey::KeyNote(KeyNote::Writer, writer)
}

/// A writer's key as it is used.
pub(crate) struct Writer {
    pub vault: Uuid,
    pub owner: PublicKey,
    pub to: (u32, [u8; 32]),
    pub signer: Signer,
}

impl WriterKey {
    /// A new one.
    pub(crate) fn new(keyring: &Keyring, opened: &Opened, label: &str) -> Result<Self, NoRandom> {
        let seed = Secret::random()?;
        let writer = Signer::owner(&seed).ok_or(NoRandom)?;
        let (generation, public) = keyring.seal_to().ok_or(NoRandom)?;
        Ok(Self {
            vault: keyring.vault,
            owner: hex(&opened.signer.public()),
            generation,
            public: hex(&public),
            label: label.into(),
            secret: hex(seed.bytes()),
            certificate: hex(&opened.signer.certify(keyring.vault, &writer.public())),
        })
    }

    /// Its public half: what it is known by.
    #[must_use]
    pub fn public(&self) -> Option<PublicKey> {
        self.writer().map(|writer| writer.signer.public())
    }

    /// Whether all of it fits together.
    pub(crate) fn writer(&self) -> Option<Writer> {
        let seed = Secret::of(&zeroize::Zeroizing::new(unhex(&self.secret)?))?;
        let owner = unhex32(&self.owner)?;
        let certificate: [u8; 64] = unhex(&self.certificate)?.try_into().ok()?;
        let signer = Signer::certified(&seed, certificate)?;
        if !certificate_holds(&owner, self.vault, &signer.public(), signer.certificate()) {
            return None;
        }
        let to = (self.generation, unhex32(&self.public)?);
        Some(Writer { vault: self.vault, owner, to, signer })
    }
}

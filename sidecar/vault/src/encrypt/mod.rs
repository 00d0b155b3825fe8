//! Encryption at rest: what a store must not see, and must not be able to make.
//!
//! - `secret`, `agree`: secrets in memory, deriving, sealing to a public key
//! - [`segment`]: a key for each segment; frames and index sealed to their place
//! - [`sign`]: signatures on recovery points, ledgers and documents; who may make them
//! - `trust`, `bounds`: whose signatures count, and what counts of a writer that was removed
//! - [`keyring`], [`unlock`]: who can open the vault: slots, generations
//! - [`writer`]: the key of a host that may write and not read
//! - [`proofs`]: when a slot was opened last; [`key_health`]: what about the keys should worry somebody
//! - [`settings`]: what this host has; `keys`, `vault`: how a vault uses it
//!
//! docs/explanation/format-vault.md says it byte by byte, docs/decisions/0011-encryption.md why.

mod agree;
mod bounds;
pub mod key_health;
pub mod keyring;
pub mod keys;
pub mod proofs;
pub(crate) mod secret;
pub mod segment;
pub mod settings;
pub mod sign;
pub(crate) mod trust;
pub mod unlock;
mod vault;
pub mod writer;

pub use key_health::Worry;
pub use keyring::{Keyring, KeyringError, NewSlot, Slot, SlotKind};
pub use settings::KeySettings;
pub use unlock::{Hardness, Unlock};
pub use vault::Tried;
pub use writer::{Granted, WriterKey};

//! Vaults on object stores: S3 and what speaks like it, Azure Blob, Google Cloud Storage; and
//! behind gateways.
//!
//! - `place`: what a vault's URL means
//! - [`settings`]: what the configuration says of stores
//! - `variables`: the stores' usual environment variables, and a file of them for a service
//! - `connect`: a client of the `object_store` crate, made of the three
//! - `gateway`: a client of a gateway, which stands before a store
//! - [`lock`]: what is put cannot be deleted for a while; what is deleted is brought back
//! - `patience`: how long a request may take
//! - `expected`: whether an answer is what was asked for
//! - `refusal`: answers that an immediate second try will not change, told by type
//! - `renewing`: a client that follows the file with its credentials
//! - `upload`: segments in parts
//!
//! What a store must be able to do, and what is asked of it, is in docs/reference/stores.md.

pub(crate) mod connect;
mod expected;
pub(crate) mod gateway;
pub mod lock;
pub(crate) mod permanent_error;
pub(crate) mod place;
pub(crate) mod renewing;
pub mod settings;
mod timeouts;
pub(crate) mod upload;
mod variables;

#[doc(hidden)]
pub use gateway::keys_of_page;
pub use gateway::{Role, WhoAmI};
pub use settings::StoreSettings;

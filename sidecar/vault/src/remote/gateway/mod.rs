//! A vault behind a gateway: the client's side of docs/reference/gateway.md.
//!
//! One more object store: everything above it stays as it is. What differs is said in three places: what
//! the gateway lets this host do ([`Role`]), that segments go up in one piece, no faster than they are let
//! through ([`segment`]), and that an answer may be "wait" (the segments of a point are on their way).

mod answer;
mod client;
mod segment;
mod store;
mod tries;

use std::sync::{Arc, OnceLock};

use object_store::PutPayload;
use tokio::runtime::Runtime;

use super::settings::StoreSettings;
use crate::error::VaultError;
use crate::paced::Pace;
pub(crate) use store::GatewayStore;
#[doc(hidden)]
pub use store::keys_of_page;

/// What a gateway lets a client do, as its certificate says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Writes its own disks, reads what that needs, deletes nothing.
    Source,
    /// Reads its disks, and writes them after a failover.
    Recovery,
    /// Reads everything of its disks and has retention run.
    Maintainer,
}

/// What `/v1/whoami` says. What else it may say is of no interest here.
#[derive(Debug, serde::Deserialize)]
struct WhoAmI {
    role: Role,
}

/// A gateway, as a vault sees it.
pub(crate) struct Gateway {
    pub store: Arc<GatewayStore>,
    role: OnceLock<Role>,
}

impl Gateway {
    /// A client for gateways before one store. Nothing is asked of it yet.
    pub fn new(url: &str, hosts: &[String], settings: &StoreSettings) -> Result<Self, VaultError> {
        let store = Arc::new(GatewayStore::new(url, hosts, settings)?);
        Ok(Self { store, role: OnceLock::new() })
    }

    /// What it lets us do.
    pub fn role(&self, runtime: &Runtime) -> Result<Role, VaultError> {
        if let Some(role) = self.role.get() {
            return Ok(*role);
        }
        let who: WhoAmI = runtime
            .block_on(self.store.json("whoami", &[]))
            .map_err(|e| VaultError::of_store("whoami", e))?;
        Ok(*self.role.get_or_init(|| who.role))
    }

    /// Puts a segment; false if it was given up, and nothing is there.
    pub fn put_segment(
        &self,
        runtime: &Runtime,
        key: &str,
        payload: &PutPayload,
        pace: &dyn Pace,
    ) -> object_store::Result<bool> {
        segment::put(&self.store, runtime, key, payload, pace)
    }
}

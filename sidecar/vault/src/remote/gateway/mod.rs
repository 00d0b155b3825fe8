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

use backstay_types::DiskName;
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

/// Whom a gateway takes this host for, as `/v1/whoami` says. What else it may say is of no interest here.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct WhoAmI {
    /// The name in the certificate.
    #[serde(default)]
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// With which disks; `*`: with all of them.
    disks: Vec<String>,
}

impl WhoAmI {
    /// Whether it may make a disk of this name and ship its points.
    #[must_use]
    pub fn may_ship(&self, name: &DiskName) -> bool {
        self.role != Role::Maintainer
            && self.disks.iter().any(|disk| disk == "*" || disk == name.as_str())
    }

    /// The disks of its certificate, for people.
    #[must_use]
    pub fn disks(&self) -> String {
        self.disks.join(", ")
    }
}

/// A gateway, as a vault sees it.
pub(crate) struct Gateway {
    pub store: Arc<GatewayStore>,
    who: OnceLock<WhoAmI>,
}

impl Gateway {
    /// A client for gateways before one store. Nothing is asked of it yet.
    pub fn new(url: &str, hosts: &[String], settings: &StoreSettings) -> Result<Self, VaultError> {
        let store = Arc::new(GatewayStore::new(url, hosts, settings)?);
        Ok(Self { store, who: OnceLock::new() })
    }

    /// Whom it takes us for.
    pub fn who(&self, runtime: &Runtime) -> Result<&WhoAmI, VaultError> {
        if let Some(who) = self.who.get() {
            return Ok(who);
        }
        let who: WhoAmI = runtime
            .block_on(self.store.json("whoami", &[]))
            .map_err(|e| VaultError::of_store("whoami", e))?;
        Ok(self.who.get_or_init(|| who))
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

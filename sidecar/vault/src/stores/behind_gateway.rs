//! A vault behind a gateway, which lets this host do what its certificate says, proves what is put, and does the upkeep.

use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;

use super::Store;
use crate::error::VaultError;
use crate::format::key::ObjectKey;
use crate::frame::Object;
use crate::objects::READ_PAUSE;
use crate::paced::Pace;
use crate::remote::gateway::{Gateway, GatewayStore, WhoAmI};
use crate::remote::settings::StoreSettings;
use crate::store::Vault;

/// See the head of this file.
pub(crate) struct BehindGateway {
    gateway: Gateway,
    objects: Arc<dyn ObjectStore>,
}

impl BehindGateway {
    /// The one behind these hosts. Nothing is asked of them yet.
    pub fn of(url: &str, hosts: &[String], settings: &StoreSettings) -> Result<Self, VaultError> {
        let gateway = Gateway::new(url, hosts, settings)?;
        Ok(Self { objects: Arc::<GatewayStore>::clone(&gateway.store), gateway })
    }
}

impl Store for BehindGateway {
    fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    fn is_behind_gateway(&self) -> bool {
        true
    }

    fn read_pause(&self) -> Duration {
        READ_PAUSE
    }

    fn who(&self, vault: &Vault) -> Result<Option<&WhoAmI>, VaultError> {
        self.gateway.who(&vault.inner.runtime).map(Some)
    }

    fn put_segment(
        &self,
        vault: &Vault,
        key: &ObjectKey,
        segment: &Object,
        pace: &dyn Pace,
    ) -> Result<bool, VaultError> {
        let (runtime, name) = (&vault.inner.runtime, key.to_string());
        let put = self.gateway.put_segment(runtime, &name, &segment.payload, pace);
        put.map_err(|e| VaultError::of_store(key, e))
    }
}

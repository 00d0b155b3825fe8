//! Where a vault of a test lies, and how hosts reach it: a URL, environment variables, lines of `[store]`. The same
//! test runs on any of them.
//!
//! A gateway lets a host do what its certificate says, so anyone who connects says what for ([`Role`]). Other
//! stores know no roles: there everybody has the same credentials.

use std::path::Path;

use super::gateway::Gateway;
use super::host::{Host, Variables};
use super::pki::Pki;
use super::proxy::Proxy;
use super::service::write_config;
use super::store::Store;

/// What a host does with a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Ships its disks.
    Source,
    /// Reads points, and takes disks over.
    Recovery,
    /// Says what is kept.
    Maintainer,
}

/// A vault of a test's own.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Its URL.
    pub url: String,
    /// The environment variables that reach it.
    pub variables: Variables,
    /// The lines of `[store]` by [`Role`], where roles are known.
    by_role: Option<[String; 3]>,
}

impl Backend {
    /// In a folder of this machine.
    pub fn folder(path: &Path) -> Self {
        Self::at(&format!("file://{}", path.display()))
    }

    /// At a URL that is all one needs.
    pub fn at(url: &str) -> Self {
        Self::new(url.into(), vec![])
    }

    /// In a store, reached directly.
    pub fn direct(store: &Store) -> Self {
        Self::new(store.url(), store.variables().to_vec())
    }

    /// In a store, reached through a proxy in front of it.
    pub fn through(store: &Store, proxy: &Proxy) -> Self {
        Self::new(store.url(), store.variables_through(proxy))
    }

    /// Behind a gateway, with certificates for a disk and for each role.
    pub fn behind(gateway: &Gateway, pki: &Pki, disk: &str) -> Self {
        let roles = ["source", "recovery", "maintainer"];
        let by_role = roles.map(|role| {
            let bundle = pki.client(&format!("{role}-of-{disk}"), role, &[disk]);
            format!("client_cert = {bundle:?}\nca_file = {:?}\n", pki.ca())
        });
        Self { by_role: Some(by_role), ..Self::new(gateway.url(), vec![]) }
    }

    fn new(url: String, variables: Variables) -> Self {
        Self { url, variables, by_role: None }
    }

    /// Whether a host can do only what its role is for.
    pub fn knows_roles(&self) -> bool {
        self.by_role.is_some()
    }

    /// Has a host use it: replaces its configuration by these settings and these lines of `[store]`.
    ///
    /// # Panics
    /// If the configuration cannot be written.
    pub fn connect(&self, host: &Host, role: Role, settings: &str, store: &str) {
        host.ship_to(&self.url, &self.variables);
        let of_role = self.by_role.as_ref().map_or("", |lines| &lines[role as usize]);
        write_config(host, &format!("{settings}[store]\n{store}{of_role}"));
    }
}

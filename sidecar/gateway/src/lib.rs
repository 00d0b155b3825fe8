//! The gateway between sources and a vault: HTTPS with client certificates, append-only to sources.
//!
//! - [`pki`]: certificates, and what they say of their holders
//! - [`rights`]: who may do what with which object; [`owners`]: whose disks are
//! - [`admission`]: what objects must be before they are put
//! - [`spool`]: segments that have arrived and are on their way to the store
//! - [`limits`]: how much each client may do; [`counters`]: what was done
//! - [`tls`], [`server`]: the line
//! - [`retention`]: points that no rule keeps go, from here
//!
//! docs/reference/gateway.md has the protocol, the table of rights and what is checked when.

pub mod admission;
pub mod counters;
pub mod limits;
pub mod owners;
pub mod pki;
pub mod retention;
pub mod rights;
pub mod server;
pub mod spool;
pub mod tls;

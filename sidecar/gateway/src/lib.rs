//! The gateway between sources and a vault: HTTPS with client certificates, append-only to sources.

pub mod pki;

//! How the hosts of a group know each other: TLS 1.3, a certificate on either side, one authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::settings::TlsConfig;

/// What is spoken inside.
pub const ALPN: &[u8] = b"backstay-group/1";

/// Why certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not what it should be.
    #[error("{what} {path}: {reason}")]
    File {
        /// Which of the three.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// They do not fit together.
    #[error("TLS certificate {cert} and its key: {source}")]
    Unfit {
        /// The certificate.
        cert: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// The authority cannot be used.
    #[error("TLS authority {ca}: {reason}")]
    Authority {
        /// The file.
        ca: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that no certificate can have.
    #[error("{name:?} is no host name and no IP address")]
    Name {
        /// What was given.
        name: String,
    },
}

/// What the files hold.
struct Files {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn read(files: &TlsConfig) -> Result<Files, TlsError> {
    let wrong =
        |what, path: &Path, reason: String| TlsError::File { what, path: path.into(), reason };
    let certificates = |what: &'static str, path: &Path| {
        let all: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        match all {
            Ok(all) if all.is_empty() => Err(wrong(what, path, "no certificate is in it".into())),
            Ok(all) => Ok(all),
            Err(e) => Err(wrong(what, path, e.to_string())),
        }
    };
    let mut roots = RootCertStore::empty();
    for root in certificates("TLS authority", &files.ca)? {
        roots
            .add(root)
            .map_err(|e| TlsError::Authority { ca: files.ca.clone(), reason: e.to_string() })?;
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|e| wrong("TLS key", &files.key, e.to_string()))?;
    Ok(Files { roots: Arc::new(roots), chain: certificates("TLS certificate", &files.cert)?, key })
}

/// How a coordinator speaks: whoever has no certificate of the authority is turned away.
///
/// # Errors
/// If the files cannot be used.
pub fn server(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let Files { roots, chain, key } = read(files)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| TlsError::Authority { ca: files.ca.clone(), reason: e.to_string() })?;
    let unfit = |source| TlsError::Unfit { cert: files.cert.clone(), source };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Connections last: nothing is won by resuming one, and each handshake proves who it is.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// How a member speaks: to a coordinator of its name, with a certificate of the authority.
///
/// # Errors
/// If the files cannot be used.
pub fn client(files: &TlsConfig) -> Result<Arc<ClientConfig>, TlsError> {
    let Files { roots, chain, key } = read(files)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|e| TlsError::Authority { ca: files.ca.clone(), reason: e.to_string() })?;
    let unfit = |source| TlsError::Unfit { cert: files.cert.clone(), source };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A host's name as certificates have it.
///
/// # Errors
/// If no certificate can have it.
pub fn host_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Name { name: name.into() })
}

/// Which of these hosts a certificate, whose authority was checked, is for.
#[must_use]
pub fn host_of<'a>(certificate: &CertificateDer<'_>, hosts: &'a [String]) -> Option<&'a str> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let is_for = |host: &&String| {
        host_name(host).is_ok_and(|name| rustls::client::verify_server_name(&parsed, &name).is_ok())
    };
    hosts.iter().find(is_for).map(String::as_str)
}

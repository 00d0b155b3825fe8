//! How the hosts of a group know each other: TLS 1.3, a certificate on either side, one authority, and whom
//! it has revoked.

use backstay_types::{Class, Classified};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, UnixTime,
};
use rustls::server::danger::ClientCertVerifier;
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
        /// Which of them.
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
    #[error("{name:?} is neither a host name nor an IP address")]
    Name {
        /// What was given.
        name: String,
    },
}

impl Classified for TlsError {
    fn class(&self) -> Class {
        match self {
            Self::File { .. } | Self::Unfit { .. } | Self::Authority { .. } | Self::Name { .. } => {
                Class::Person
            }
        }
    }
}

/// What was read.
struct Loaded {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    of_members: Arc<dyn ClientCertVerifier>,
    of_coordinators: Arc<WebPkiServerVerifier>,
    stamps: Vec<Stamp>,
}

/// When a file was written last, and how long it is.
type Stamp = Option<(SystemTime, u64)>;

/// How a host speaks with the others of its groups, as its files say now: they are read again when one
/// of them has changed.
pub struct Tls {
    files: TlsConfig,
    loaded: RwLock<Loaded>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them cannot be used.
    pub fn load(files: &TlsConfig) -> Result<Arc<Self>, TlsError> {
        let loaded = RwLock::new(load(files)?);
        Ok(Arc::new(Self { files: files.clone(), loaded }))
    }

    /// How a coordinator speaks on a connection that begins now: anyone who has no certificate of the authority,
    /// or a revoked one, is turned away.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        self.look();
        Arc::clone(&self.loaded().server)
    }

    /// How a member speaks on a connection that begins now: to a coordinator of its name, with a
    /// certificate of the authority.
    #[must_use]
    pub fn client(&self) -> Arc<ClientConfig> {
        self.look();
        Arc::clone(&self.loaded().client)
    }

    /// Whether a member that was believed at its handshake still is: it may have been revoked since, or its
    /// certificate have run out.
    ///
    /// # Errors
    /// Why not.
    pub fn check_member(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        self.look();
        let verifier = Arc::clone(&self.loaded().of_members);
        let (first, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        verifier.verify_client_cert(first, rest, UnixTime::now()).map(drop)
    }

    /// The same of a coordinator, which has this name.
    ///
    /// # Errors
    /// Why not.
    pub fn check_coordinator(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<(), rustls::Error> {
        self.look();
        let verifier = Arc::clone(&self.loaded().of_coordinators);
        let (first, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        verifier.verify_server_cert(first, rest, name, &[], UnixTime::now()).map(drop)
    }

    fn loaded(&self) -> RwLockReadGuard<'_, Loaded> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again if one of them has changed. What cannot be read changes nothing: who was revoked
    /// stays so.
    fn look(&self) {
        let now = stamps(&self.files);
        if self.loaded().stamps == now {
            return;
        }
        let fresh = load(&self.files);
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        match fresh {
            Ok(fresh) => {
                *loaded = fresh;
                tracing::info!("groups: certificates and revocations were read again");
            }
            Err(e) => {
                // Said once for each change.
                loaded.stamps = now;
                tracing::error!("groups: {e}: what was read before still holds");
            }
        }
    }
}

fn stamps(files: &TlsConfig) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    [&files.ca, &files.cert, &files.key].into_iter().chain(&files.revoked).map(stamp).collect()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn load(files: &TlsConfig) -> Result<Loaded, TlsError> {
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
    // Before they are read: one that changes meanwhile is read again.
    let stamps = stamps(files);
    let authority = |reason: String| TlsError::Authority { ca: files.ca.clone(), reason };
    let mut roots = RootCertStore::empty();
    for root in certificates("TLS authority", &files.ca)? {
        roots.add(root).map_err(|e| authority(e.to_string()))?;
    }
    let roots = Arc::new(roots);
    let lists = match &files.revoked {
        Some(path) => revoked(path).map_err(|e| wrong(REVOKED, path, e))?,
        None => vec![],
    };
    let of_members = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
        .with_crls(lists.clone())
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .build()
        .map_err(|e| authority(e.to_string()))?;
    let of_coordinators = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .with_crls(lists)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .build()
        .map_err(|e| authority(e.to_string()))?;
    let chain = certificates("TLS certificate", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|e| wrong("TLS key", &files.key, e.to_string()))?;
    let unfit = |source| TlsError::Unfit { cert: files.cert.clone(), source };
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_client_cert_verifier(Arc::clone(&of_members))
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(unfit)?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    // Connections last: nothing is won by resuming one, and each handshake proves who it is.
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(unfit)?
        .with_webpki_verifier(Arc::clone(&of_coordinators))
        .with_client_auth_cert(chain, key)
        .map_err(unfit)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = rustls::client::Resumption::disabled();
    let (server, client) = (Arc::new(server), Arc::new(client));
    Ok(Loaded { server, client, of_members, of_coordinators, stamps })
}

const REVOKED: &str = "list of revoked certificates";
/// Longest list that is read, in bytes.
const REVOKED_BYTES_MAX: u64 = 16 << 20;

/// The lists in a file. None is an error: it was cut off, and nobody is to get in by that.
fn revoked(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let mut pem = vec![];
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(REVOKED_BYTES_MAX + 1).read_to_end(&mut pem).map_err(|e| e.to_string())?;
    if pem.len() as u64 > REVOKED_BYTES_MAX {
        return Err(format!("longer than {REVOKED_BYTES_MAX} bytes"));
    }
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err("none is in it".into()),
        Ok(lists) => Ok(lists),
        Err(e) => Err(e.to_string()),
    }
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

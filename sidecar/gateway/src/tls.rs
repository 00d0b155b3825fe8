//! The gateway's certificate, whom it believes, and who was revoked: read from files, and again when they
//! change.

use backstay_types::{Class, Classified};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use backstay_host::clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::pki::{Identity, Life, Revocations};

/// Where the files are (PEM).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The gateway's own certificate, those between it and the authority after it.
    pub cert: PathBuf,
    /// Its private key; may be the same file.
    pub key: PathBuf,
    /// The authority of clients.
    pub client_ca: PathBuf,
    /// The list of revoked certificates, if there is one.
    pub revoked: Option<PathBuf>,
}

/// Why there is no TLS as the files say.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct TlsError {
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Classified for TlsError {
    fn class(&self) -> Class {
        Class::Person
    }
}

/// What was read.
struct Loaded {
    server: Arc<ServerConfig>,
    revocations: Revocations,
    stamps: Vec<Option<(SystemTime, u64)>>,
}

/// TLS as the files say now.
pub struct Tls {
    files: TlsFiles,
    loaded: RwLock<Loaded>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which of them cannot be used.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let loaded = RwLock::new(load(&files)?);
        Ok(Self { files, loaded })
    }

    /// For a connection that begins now.
    #[must_use]
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner).server)
    }

    /// Whether a certificate that was believed at its handshake still is: it may have been revoked since,
    /// or have run out.
    #[must_use]
    pub fn still_believes(&self, who: &Identity) -> bool {
        let now = clock::now_unix_ns() / 1_000_000_000;
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        who.is_valid_at(now as i64) && !loaded.revocations.has(&who.serial)
    }

    /// Which of its files holds a certificate that ends soon, or has ended, in words.
    #[must_use]
    pub fn ending(&self) -> Vec<String> {
        let files = [("certificate", &self.files.cert), ("authority", &self.files.client_ca)];
        let trouble = |(what, file): (&str, &PathBuf)| {
            let trouble = Life::of_file(file).ok()?.trouble()?;
            Some(format!("its {what} {} {trouble}", file.display()))
        };
        files.into_iter().filter_map(trouble).collect()
    }

    /// Reads the files again if one of them changed, or `now`. What cannot be read changes nothing: who was
    /// let in is, who was revoked stays so. Returns whether anything is new.
    ///
    /// # Errors
    /// Which of them cannot be used.
    pub fn reload(&self, now: bool) -> Result<bool, TlsError> {
        let changed = {
            let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
            loaded.stamps != stamps(&self.files)
        };
        if !changed && !now {
            return Ok(false);
        }
        let fresh = load(&self.files)?;
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(true)
    }
}

fn all(files: &TlsFiles) -> impl Iterator<Item = &Path> {
    let own = [&files.cert, &files.key, &files.client_ca];
    own.into_iter().chain(&files.revoked).map(PathBuf::as_path)
}

fn stamps(files: &TlsFiles) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |file: &Path| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    all(files).map(stamp).collect()
}

fn load(files: &TlsFiles) -> Result<Loaded, TlsError> {
    let wrong = |file: &Path, reason: String| TlsError { file: file.display().to_string(), reason };
    let read = |file: &Path| std::fs::read(file).map_err(|e: io::Error| wrong(file, e.to_string()));
    // Before they are read: one that changes meanwhile is read again.
    let stamps = stamps(files);
    let certs = |file: &Path| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(file)?).collect();
        match found {
            Ok(found) if !found.is_empty() => Ok(found),
            _ => Err(wrong(file, "no certificate (PEM)".into())),
        }
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|_| wrong(&files.key, "no private key (PEM)".into()))?;
    let mut roots = RootCertStore::empty();
    for root in certs(&files.client_ca)? {
        roots.add(root).map_err(|e| wrong(&files.client_ca, e.to_string()))?;
    }
    let revocations = match &files.revoked {
        Some(file) => {
            Revocations::from_pem(&read(file)?).map_err(|e| wrong(file, e.to_string()))?
        }
        None => Revocations::default(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .with_crls(revocations.lists())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()
            .map_err(|e| wrong(&files.client_ca, e.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(&files.cert, e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certs(&files.cert)?, key)
        .map_err(|e| wrong(&files.cert, e.to_string()))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is resumed shows no certificate again: each is to be looked at each time.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Loaded { server: Arc::new(server), revocations, stamps })
}

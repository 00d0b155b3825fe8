//! The server: connections in, requests answered, uploads out.
//!
//! - `connection`: TLS, who it is, how many there may be
//! - `request`: from method, path and headers to an answer
//! - `get`, `put`, `list`: the answers
//! - `body`: bodies with their limits
//! - `health`: the plain listener for those who watch

mod away;
mod body;
mod connection;
#[doc(hidden)]
pub mod fuzzing;
mod get;
mod health;
mod list;
mod put;
mod request;

use backstay_types::{Class, Classified};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_host::clock::{self, now_unix_ns};
use backstay_vault::admission::Rules;
use backstay_vault::format::key::ObjectKey;
use backstay_vault::{Vault, VaultError, Vaults};
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};

use crate::counters::{Counters, add};
use crate::limits::{Clients, Limits};
use crate::owners::Owners;
use crate::pki::Identity;
use crate::retention::Retention;
use crate::spool::Spool;
use crate::tls::{Tls, TlsError, TlsFiles};

/// From one look at the files of certificates to the next.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
/// From one warning of a certificate that ends soon to the next.
const DAY: Duration = Duration::from_secs(86_400);
/// How long requests may go on after it was told to stop.
const STOPPING: Duration = Duration::from_secs(10);

/// What a gateway is told.
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it tells how it is, without TLS: loopback, or a network of those who watch.
    pub health: Option<SocketAddr>,
    /// What vaults are opened with.
    pub vaults: Vaults,
    /// The vault before which it stands.
    pub store: String,
    /// Its certificate and those it believes.
    pub tls: TlsFiles,
    /// The folder of segments on their way.
    pub cache: PathBuf,
    /// Most bytes in it.
    pub cache_bytes: u64,
    /// Uploads to the store at a time.
    pub uploads: usize,
    /// How far a source's clock may be ahead.
    pub skew: Duration,
    /// Whether points are decompressed and compared, not only their indexes.
    pub verify_content: bool,
    /// How much each client may do.
    pub limits: Limits,
    /// Retention; none: it runs elsewhere.
    pub retention: Option<Retention>,
}

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Its certificate, key, authority or list of revoked ones cannot be used.
    #[error("gateway: {0}")]
    Tls(#[from] TlsError),
    /// The vault cannot be opened.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The cache cannot be used.
    #[error("gateway: cache {path}: {source}")]
    Cache {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("gateway: {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread can be started.
    #[error("gateway: {0}")]
    Runtime(io::Error),
}

impl Classified for GatewayError {
    fn class(&self) -> Class {
        match self {
            Self::Tls(e) => e.class(),
            Self::Vault(e) => e.class(),
            Self::Cache { source, .. } | Self::Listen { source, .. } | Self::Runtime(source) => {
                source.class()
            }
        }
    }
}

/// What all requests share.
pub(crate) struct Shared {
    vault: Vault,
    store: Arc<dyn ObjectStore>,
    owners: Owners,
    spool: Arc<Spool>,
    tls: Tls,
    /// Clients whose certificates end soon, as far as that was said today.
    ending: StdMutex<BTreeSet<String>>,
    clients: Clients,
    limits: Limits,
    connections: Arc<Semaphore>,
    /// Bytes of small bodies in memory, in KiB.
    buffers: Arc<Semaphore>,
    /// Segments that are looked at: each may take an index in memory.
    checks: Arc<Semaphore>,
    /// Points of one disk are put one after the other, as far as this gateway goes.
    counters: Counters,
    indexes: get::IndexPlaces,
    ready: health::Ready,
    away: away::Away,
    skew: Duration,
    verify_content: bool,
}

impl Shared {
    /// Says once a day whose certificate ends soon. There are as many names as the authority has given out.
    fn warn_of_end(&self, who: &Identity) {
        let Some(trouble) = who.life().trouble() else { return };
        let mut said = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if said.insert(who.name.as_str().to_owned()) {
            tracing::warn!("{}: its certificate {trouble}: backstay pki renew", who.name);
        }
    }

    fn rules(&self) -> Rules {
        Rules {
            now_unix_ns: now_unix_ns(),
            skew_ns: u64::try_from(self.skew.as_nanos()).unwrap_or(u64::MAX),
            content: self.verify_content,
        }
    }
}

/// A gateway that can run.
pub struct Gateway {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedReceiver<ObjectKey>,
    uploads: usize,
    listener: std::net::TcpListener,
    health: Option<std::net::TcpListener>,
    retention: Option<Retention>,
}

impl Gateway {
    /// Opens the vault, the cache and the addresses.
    ///
    /// # Errors
    /// What cannot be opened.
    pub fn open(settings: Settings) -> Result<Self, GatewayError> {
        let tls = Tls::load(settings.tls)?;
        let vault = settings.vaults.open(&settings.store)?;
        vault.check_lock()?;
        let (spool, queue) = Spool::open(&settings.cache, settings.cache_bytes)
            .map_err(|source| GatewayError::Cache { path: settings.cache.clone(), source })?;
        let listen = |address: SocketAddr| {
            let bound = std::net::TcpListener::bind(address)
                .and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
            bound.map_err(|source| GatewayError::Listen { address, source })
        };
        let listener = listen(settings.listen)?;
        let health = settings.health.map(listen).transpose()?;
        let limits = settings.limits;
        let shared = Arc::new(Shared {
            store: vault.object_store(),
            vault,
            owners: Owners::default(),
            spool,
            tls,
            ending: StdMutex::default(),
            clients: Clients::new(limits),
            connections: Arc::new(Semaphore::new(limits.connections)),
            buffers: Arc::new(Semaphore::new((limits.buffer_bytes >> 10) as usize)),
            checks: Arc::new(Semaphore::new(4)),
            limits,
            counters: Counters::default(),
            indexes: get::IndexPlaces::default(),
            ready: health::Ready::default(),
            away: away::Away::default(),
            skew: settings.skew,
            verify_content: settings.verify_content,
        });
        let uploads = settings.uploads.clamp(1, 64);
        Ok(Self { shared, queue, uploads, listener, health, retention: settings.retention })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where it tells how it is.
    #[must_use]
    pub fn health_address(&self) -> Option<SocketAddr> {
        self.health.as_ref()?.local_addr().ok()
    }

    /// Serves until `stopped`, which waits for that, returns, and what was begun a moment longer. `reload`
    /// has the certificates be read again.
    ///
    /// # Errors
    /// If no threads can be started.
    pub fn serve(
        self,
        stopped: impl FnOnce() + Send + 'static,
        reload: Arc<AtomicBool>,
    ) -> Result<(), GatewayError> {
        let (told, mut stop) = watch::channel(false);
        let wait = move || {
            stopped();
            let _ = told.send(true);
        };
        std::thread::Builder::new()
            .name("stop".into())
            .spawn(wait)
            .map_err(GatewayError::Runtime)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .thread_name("gateway")
            .build()
            .map_err(GatewayError::Runtime)?;
        let Self { shared, queue, uploads, listener, health, retention } = self;
        let address = listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let served = runtime.block_on(async {
            let of_listen = |source| GatewayError::Listen { address, source };
            let listener = TcpListener::from_std(listener).map_err(of_listen)?;
            let queue = Arc::new(Mutex::new(queue));
            for _ in 0..uploads {
                let spool = Arc::clone(&shared.spool);
                tokio::spawn(spool.upload(shared.vault.clone(), Arc::clone(&queue)));
            }
            if let Some(health) = health {
                let health = TcpListener::from_std(health).map_err(of_listen)?;
                tokio::spawn(health::serve(Arc::clone(&shared), health));
            }
            tokio::spawn(watch_files(Arc::clone(&shared), reload));
            if let Some(retention) = retention {
                tokio::spawn(retain(Arc::clone(&shared), retention));
            }
            connection::accept(&shared, listener, &mut stop).await;
            shared.ready.stopping();
            connection::drain(&shared, STOPPING).await;
            Ok(())
        });
        // What blocks in a store that does not answer is not waited for: it is safe to be killed.
        runtime.shutdown_timeout(Duration::from_secs(2));
        served
    }
}

async fn watch_files(shared: Arc<Shared>, reload: Arc<AtomicBool>) {
    let mut said: Option<Instant> = None;
    loop {
        // At the start, and once a day: who is to act reads the log.
        if said.is_none_or(|at| clock::since(at) >= DAY) {
            said = Some(clock::monotonic());
            for ending in shared.tls.ending() {
                tracing::warn!(
                    "{ending}: clients are refused, or refuse, from then on: backstay pki renew"
                );
            }
            shared.ending.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        tokio::time::sleep(RELOAD_EVERY).await;
        let now = reload.swap(false, std::sync::atomic::Ordering::Relaxed);
        let looked = {
            let shared = Arc::clone(&shared);
            tokio::task::spawn_blocking(move || shared.tls.reload(now)).await
        };
        match looked {
            Ok(Ok(true)) => tracing::info!("certificates and revocations were read again"),
            Ok(Err(e)) => tracing::error!("{e}: what was read before still holds"),
            _ => {}
        }
    }
}

async fn retain(shared: Arc<Shared>, retention: Retention) {
    let retention = Arc::new(retention);
    loop {
        tokio::time::sleep(retention.every).await;
        let (job, of) = (Arc::clone(&retention), Arc::clone(&shared));
        let round = move || job.round(&of.vault, &AtomicBool::new(false));
        let failed = |e: &dyn std::fmt::Display| {
            add(&shared.counters.retention_failed_total, 1);
            tracing::error!("retention: {e}");
        };
        match tokio::task::spawn_blocking(round).await {
            Ok(Ok(disks)) => {
                for (disk, done) in disks {
                    if let Some(why) = done.as_ref().ok().and_then(|r| r.retired.withheld.as_ref())
                    {
                        // Counted as failed: nobody looks at a gateway's log.
                        failed(&format_args!(
                            "disk {disk}: no recovery point is retired: {} ({})",
                            why.reason, why.cause
                        ));
                    }
                    match done {
                        Ok(report) if report.retired.deleted + report.collected.deleted > 0 => {
                            tracing::info!(
                                "disk {disk}: {} recovery points and {} segments deleted",
                                report.retired.deleted,
                                report.collected.deleted
                            );
                        }
                        Ok(_) => {}
                        Err(e) => failed(&format_args!("disk {disk}: {e}")),
                    }
                }
            }
            Ok(Err(e)) => failed(&e),
            Err(e) => failed(&e),
        }
        add(&shared.counters.retention_total, 1);
    }
}

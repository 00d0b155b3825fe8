//! `backstay gateway`: stands before a vault.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backstay_engine::gateway::Verify;
use backstay_engine::rollback_guard;
use backstay_engine::upkeep::policy;
use backstay_gateway::limits::Limits;
use backstay_gateway::retention::Retention;
use backstay_gateway::server::{Gateway, Settings};
use backstay_gateway::tls::TlsFiles;
use clap::Args;

use crate::context::Context;
use crate::error::{Context as _, Result};

/// Run a gateway in front of a vault: each source ships its own disks over HTTPS and can delete nothing
#[derive(Args)]
#[command(after_help = "\
Examples:
  backstay pki init /root/pki
  backstay pki issue /root/pki gw1 --server --host gateway.example
  backstay pki issue /root/pki db-host --role source --disk db
  backstay gateway --listen 0.0.0.0:9443 --store s3://bucket/vault \\
      --cert /etc/backstay/gw1.pem --client-ca /etc/backstay/ca.crt
On a source, in its configuration:
  vault = \"https://gateway.example:9443\"
  [store]
  client_cert = \"/etc/backstay/db-host.pem\"
  ca_file = \"/etc/backstay/ca.crt\"

TLS 1.3 only, with client certificates of the authority. Options override [gateway] in the configuration. \
Certificates and the revocation list are read again when they change and on SIGHUP. Any number of gateways may serve \
one vault; each needs its own cache directory. Retention (keep) runs here, with the rules of this host's \
configuration. SIGTERM and SIGINT stop the gateway.")]
pub struct GatewayVerb {
    /// Where to listen [default: 0.0.0.0:9443]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Address of /healthz, /readyz and /metrics, without TLS [default: 127.0.0.1:9444]
    #[arg(long, value_name = "ADDRESS")]
    health: Option<SocketAddr>,
    /// The vault: file:///path, s3://, az:// or gs://
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// The gateway's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key (PEM) [default: in the same file]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The certificate authority of its clients (PEM)
    #[arg(long, value_name = "FILE")]
    client_ca: Option<PathBuf>,
    /// The certificate revocation list (PEM)
    #[arg(long, value_name = "FILE")]
    revoked: Option<PathBuf>,
    /// Directory of segments on their way to the store [default: gateway in the state directory]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl GatewayVerb {
    pub fn run(self, context: &Context) -> Result<()> {
        let settings = self.settings(context)?;
        let reload = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::clone(&reload))?;
        let stopped = backstay_engine::service::stop_on_signals()?;
        let store = settings.store.clone();
        // With the key it seals what it merges.
        if let Ok(vault) = context.config.vaults.open(&store)
            && vault.keys().is_ok()
        {
            rollback_guard::keyring(&context.roots.state, &vault)?;
        }
        let gateway = Gateway::open(settings)?;
        let (address, health) = (gateway.address()?, gateway.health_address());
        // To a service manager, if there is one.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        match context.globals.json {
            true => {
                let store =
                    serde_json::json!({ "listen": address, "health": health, "store": store });
                context.print_json(&store)?;
            }
            false if !context.globals.quiet => println!("{address}: gateway to {store}"),
            false => {}
        }
        let stopped = move || _ = stopped.recv();
        Ok(gateway.serve(stopped, reload)?)
    }

    fn settings(self, context: &Context) -> Result<Settings> {
        let config = &context.config.gateway;
        let need = |value: Option<PathBuf>, set: &Option<PathBuf>, what: &str| {
            value.or_else(|| set.clone()).with_context(|| {
                format!(
                    "gateway: --{what}, or gateway.{} in the configuration",
                    what.replace('-', "_")
                )
            })
        };
        let cert = need(self.cert, &config.cert, "cert")?;
        let store = self.store.or_else(|| config.store.clone());
        let rules = context.config.clone();
        Ok(Settings {
            vaults: context.config.vaults.clone(),
            listen: self.listen.unwrap_or(config.listen),
            health: self.health.or(config.health),
            store: store.context("gateway: --store URL, or gateway.store in the configuration")?,
            tls: TlsFiles {
                key: self.key.or_else(|| config.key.clone()).unwrap_or_else(|| cert.clone()),
                cert,
                client_ca: need(self.client_ca, &config.client_ca, "client-ca")?,
                revoked: self.revoked.or_else(|| config.revoked.clone()),
            },
            cache: self
                .cache
                .or_else(|| config.cache.clone())
                .unwrap_or_else(|| context.roots.state.join("gateway")),
            cache_bytes: config.cache_size.as_u64(),
            uploads: config.uploads,
            skew: config.skew,
            verify_content: config.verify == Verify::Content,
            limits: Limits {
                connections: config.connections.clamp(1, 65_536),
                connections_per_client: config.connections_per_client.clamp(1, 65_536),
                uploads_per_client: config.uploads_per_client.clamp(1, 1024),
                requests_per_second: config.requests_per_second.max(1),
                bytes_per_second: config.bytes_per_second.map(|bytes| bytes.as_u64()),
                // The longest point fits in any case.
                buffer_bytes: config.buffers.as_u64().max(192 << 20),
                stall: config.stall,
            },
            retention: (!config.retention.is_zero()).then(|| Retention {
                state: context.roots.state.clone(),
                every: config.retention,
                immutable: config.immutable,
                policy_of: Box::new(move |name| policy(&rules, name, true)),
            }),
        })
    }
}

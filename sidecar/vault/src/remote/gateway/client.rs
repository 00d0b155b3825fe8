//! The HTTP client: TLS 1.3 with a client certificate, nothing else.

use std::path::Path as FsPath;

use reqwest::tls::Version;
use reqwest::{Certificate, Client, Identity, Proxy};
use zeroize::Zeroizing;

use crate::error::VaultError;
use crate::remote::connect::install_tls;
use crate::remote::settings::StoreSettings;
use crate::remote::variables::read_private;

/// Makes the client.
pub(super) fn client(url: &str, settings: &StoreSettings) -> Result<Client, VaultError> {
    install_tls();
    let wrong = |reason: String| VaultError::Url { url: url.into(), reason };
    let of_file = |setting: &str, file: &FsPath, e: &dyn std::fmt::Display| {
        wrong(format!("store.{setting} {}: {e}", file.display()))
    };
    let mut builder = Client::builder()
        .https_only(true)
        .tls_version_min(Version::TLS_1_3)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(settings.connect_timeout)
        // Less than a gateway waits for the next request.
        .pool_idle_timeout(std::time::Duration::from_secs(20))
        .tcp_keepalive(std::time::Duration::from_secs(30))
        .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")));
    let Some(cert_file) = &settings.client_cert else {
        let reason = "a gateway knows its clients by their certificates: set store.client_cert and \
                      store.client_key (backstay pki issue makes them)";
        return Err(wrong(reason.into()));
    };
    let key_file = settings.client_key.as_ref().unwrap_or(cert_file);
    let mut pem = Zeroizing::new(vec![]);
    if key_file != cert_file {
        let cert = std::fs::read(cert_file).map_err(|e| of_file("client_cert", cert_file, &e))?;
        pem.extend_from_slice(&cert);
        pem.push(b'\n');
    }
    let key = read_private(key_file).map_err(|e| of_file("client_key", key_file, &e))?;
    pem.extend_from_slice(Zeroizing::new(key).as_bytes());
    // The library's own words could hold what it could not read.
    let identity = Identity::from_pem(&pem)
        .map_err(|_| of_file("client_cert", cert_file, &"no certificate with its key (PEM)"))?;
    builder = builder.identity(identity);
    if let Some(file) = &settings.ca_file {
        let pem = std::fs::read(file).map_err(|e| of_file("ca_file", file, &e))?;
        let certificates =
            Certificate::from_pem_bundle(&pem).map_err(|e| of_file("ca_file", file, &e))?;
        // Who says which CA the gateway is of wants no other.
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(proxy) = &settings.proxy {
        let proxy =
            Proxy::all(proxy).map_err(|_| wrong("store.proxy is not the URL of a proxy".into()))?;
        builder = builder.no_proxy().proxy(proxy);
    }
    builder.build().map_err(|e| wrong(format!("cannot make a client: {e:?}")))
}

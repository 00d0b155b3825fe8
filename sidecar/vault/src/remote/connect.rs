//! A client for a vault's object store, made of its URL, the settings and the environment.

use std::path::{Path as FsPath, PathBuf};
use std::sync::{Arc, Once};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpConnector as _;
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, Certificate, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig,
};

use super::lock::Locker;
use super::lock::bucket::Bucket;
use super::permanent_error::Connector;
use super::place::Kind;
use super::settings::StoreSettings;
use super::timeouts::Patience;
use super::variables::variables;
use crate::error::VaultError;

/// A client for a bucket.
#[derive(Clone)]
pub(crate) struct Connected {
    /// For its objects.
    pub store: Arc<dyn ObjectStore>,
    /// For what the library has no requests for; of S3 alone.
    pub bucket: Option<Arc<Bucket>>,
}

/// Refuses a place where nothing is locked if what is put is to be locked: who asked for it would rely on it.
pub(crate) fn refuse_lock(
    url: &str,
    settings: &StoreSettings,
    instead: &str,
) -> Result<(), VaultError> {
    match settings.object_lock {
        None => Ok(()),
        Some(_) => Err(wrong(
            url,
            format!(
                "store.object_lock is set, and Backstay locks objects in s3:// alone. {instead}, and \
                 take the setting away here"
            ),
        )),
    }
}

/// A client for a bucket, and what all keys in it begin with. Nothing is asked of the store yet.
pub(crate) fn connect(
    url: &str,
    (kind, bucket, prefix): (Kind, &str, &str),
    settings: &StoreSettings,
) -> Result<Connected, VaultError> {
    install_tls();
    if kind != Kind::S3 {
        let instead =
            "This store does it by a policy of its own (docs/reference/stores.md): set that up";
        refuse_lock(url, settings, instead)?;
    }
    let variables = variables(kind, settings.credentials_file.as_deref()).map_err(|e| {
        let file = settings.credentials_file.as_deref().unwrap_or(FsPath::new("the environment"));
        wrong(url, format!("{}: {e}", file.display()))
    })?;
    check_credentials(url, kind, settings, &variables)?;
    check_endpoint(url, settings, &variables)?;
    let http = client_options(url, kind, settings, &variables)?;
    let connected = match kind {
        Kind::S3 => s3(bucket, settings, &variables, http),
        Kind::Azure => azure(bucket, settings, &variables, http).map(alone),
        Kind::Google => google(bucket, settings, &variables, http).map(alone),
    };
    let Connected { store, bucket } = connected.map_err(|e| wrong(url, said(&e)))?;
    let store = match prefix {
        "" => store,
        prefix => Arc::new(PrefixStore::new(store, prefix)),
    };
    Ok(Connected { store, bucket })
}

/// Without credentials the library asks the cloud's own machines for some, and goes on asking for minutes
/// where there are none: at an endpoint of one's own.
fn check_credentials(
    url: &str,
    kind: Kind,
    settings: &StoreSettings,
    variables: &[(String, String)],
) -> Result<(), VaultError> {
    const MARKS: [&str; 9] = [
        "KEY",
        "TOKEN",
        "SAS",
        "CLIENT",
        "CREDENTIALS",
        "IDENTITY",
        "SERVICE_ACCOUNT",
        "SKIP",
        "USE_",
    ];
    // Private ways into the clouds (VPC endpoints and the like) are endpoints, and machines there have roles.
    const CLOUDS: [&str; 3] = ["amazonaws.com", "googleapis.com", "windows.net"];
    let named = variables.iter().filter(|(name, _)| names_an_endpoint(name));
    let mut endpoints = settings.endpoint.iter().chain(named.map(|(_, value)| value));
    let own_endpoint =
        endpoints.any(|endpoint| !CLOUDS.iter().any(|cloud| endpoint.contains(cloud)));
    let some = variables.iter().any(|(name, _)| MARKS.iter().any(|mark| name.contains(mark)));
    let names = match kind {
        Kind::S3 => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        Kind::Azure => "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
        // The library looks for what `gcloud auth` has left, too.
        Kind::Google if gcloud_credentials().is_some_and(|file| file.exists()) => return Ok(()),
        Kind::Google => "GOOGLE_SERVICE_ACCOUNT or GOOGLE_SERVICE_ACCOUNT_KEY",
    };
    match own_endpoint && !some {
        true => Err(wrong(
            url,
            format!(
                "no credentials: set {names} in the environment or in the file that \
                 store.credentials_file names"
            ),
        )),
        false => Ok(()),
    }
}

/// Whether a variable says where a store answers.
fn names_an_endpoint(name: &str) -> bool {
    name.contains("ENDPOINT") || name.ends_with("BASE_URL")
}

/// Where Google's own tools keep a person's credentials.
fn gcloud_credentials() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME")?);
    Some(home.join(".config/gcloud/application_default_credentials.json"))
}

/// The library repeats where it asked in each error. It is not told a secret with it.
fn check_endpoint(
    url: &str,
    settings: &StoreSettings,
    variables: &[(String, String)],
) -> Result<(), VaultError> {
    let named = |(name, _): &&(String, String)| names_an_endpoint(name);
    let variables = variables.iter().filter(named).map(|(name, value)| (name.as_str(), value));
    let setting = settings.endpoint.iter().map(|value| ("store.endpoint", value));
    match setting.chain(variables).find(|(_, value)| value.contains(['@', '?', '#'])) {
        Some((name, _)) => Err(wrong(
            url,
            format!(
                "no credentials or parameters in {name}: errors and logs show it. They belong into the \
                 environment or into store.credentials_file"
            ),
        )),
        None => Ok(()),
    }
}

fn wrong(url: &str, reason: String) -> VaultError {
    VaultError::Url { url: url.into(), reason }
}

/// An error of the library without the words that say nothing here.
fn said(error: &object_store::Error) -> String {
    match error {
        object_store::Error::Generic { source, .. } => source.to_string(),
        error => error.to_string(),
    }
}

/// Without a choice of its own the HTTP client finds none: the cryptography is that of the rest.
pub(super) fn install_tls() {
    let provider = rustls::crypto::ring::default_provider();
    // It fails if there is one already, which is as good.
    let _ = provider.install_default();
}

fn retries(settings: &StoreSettings) -> RetryConfig {
    RetryConfig {
        // Doubles with jitter up to fifteen seconds.
        backoff: BackoffConfig::default(),
        max_retries: settings.retries,
        retry_timeout: settings.retry_timeout,
    }
}

fn connector(settings: &StoreSettings) -> Connector {
    let patience =
        Patience { timeout: settings.timeout, slowest: settings.slowest_bytes_per_second };
    Connector { patience, locker: None }
}

/// A client of a store that has no more than objects.
pub(crate) fn alone(store: Arc<dyn ObjectStore>) -> Connected {
    Connected { store, bucket: None }
}

/// Whether it says how long a request may take, whatever its length: a segment would never get through on a slow line
/// (see `patience`).
fn is_timeout(key: ClientConfigKey) -> bool {
    use ClientConfigKey as K;
    matches!(key, K::Timeout | K::ReadTimeout | K::ConnectTimeout)
}

/// Where a setting and a variable say different things, the setting counts.
fn client_options(
    url: &str,
    kind: Kind,
    settings: &StoreSettings,
    variables: &[(String, String)],
) -> Result<ClientOptions, VaultError> {
    static TOLD: Once = Once::new();
    let mut options = ClientOptions::new()
        .with_connect_timeout(settings.connect_timeout)
        // Ours knows how long a request is (see `patience`).
        .with_timeout_disabled();
    for (name, value) in variables {
        let name = name[kind.variables_begin_with().len()..].to_ascii_lowercase();
        match name.parse::<ClientConfigKey>() {
            // Told once: vaults are opened again and again.
            Ok(key) if is_timeout(key) => TOLD.call_once(|| {
                tracing::warn!(
                    "{}{} does not count here: [store] says how long one waits",
                    kind.variables_begin_with(),
                    name.to_ascii_uppercase()
                );
            }),
            Ok(key) => options = options.with_config(key, value),
            Err(_) => {}
        }
    }
    if let Some(allow) = settings.allow_http {
        options = options.with_allow_http(allow);
    }
    if let Some(proxy) = &settings.proxy {
        options = options.with_proxy_url(proxy);
    }
    if let Some(file) = &settings.ca_file {
        let pem = std::fs::read(file)
            .map_err(|e| wrong(url, format!("store.ca_file {}: {e}", file.display())))?;
        let certificates = Certificate::from_pem_bundle(&pem)
            .map_err(|e| wrong(url, format!("store.ca_file {}: {}", file.display(), said(&e))))?;
        for certificate in certificates {
            options = options.with_root_certificate(certificate);
        }
    }
    Ok(options)
}

type Made = object_store::Result<Arc<dyn ObjectStore>>;

fn s3(
    bucket: &str,
    settings: &StoreSettings,
    variables: &[(String, String)],
    http: ClientOptions,
) -> object_store::Result<Connected> {
    let ours = connector(settings).connect(&http)?;
    let locker = settings.object_lock.map(|lock| Arc::new(Locker::new(lock)));
    let mut builder = AmazonS3Builder::new();
    for (name, value) in variables {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if locker.is_some() {
        // S3 locks nothing that comes without one; its sum is taken for the signature anyway.
        builder = builder.with_checksum_algorithm(Checksum::SHA256);
    }
    // As the library has it.
    let region = builder.get_config_value(&AmazonS3ConfigKey::Region);
    let region = region.unwrap_or_else(|| "us-east-1".into());
    let builder = builder
        .with_bucket_name(bucket)
        .with_client_options(http)
        .with_retry(retries(settings))
        .with_http_connector(Connector { locker: locker.clone(), ..connector(settings) });
    let store = builder.build()?;
    let bucket = Arc::new(Bucket::new(store.clone(), region, ours));
    if let Some(locker) = locker {
        locker.is_for(Arc::clone(&bucket));
    }
    Ok(Connected { store: Arc::new(store), bucket: Some(bucket) })
}

fn azure(
    container: &str,
    settings: &StoreSettings,
    variables: &[(String, String)],
    http: ClientOptions,
) -> Made {
    let mut builder = MicrosoftAzureBuilder::new();
    for (name, value) in variables {
        if let Ok(key) = name.to_ascii_lowercase().parse::<AzureConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let builder = builder
        .with_container_name(container)
        .with_client_options(http)
        .with_retry(retries(settings))
        .with_http_connector(connector(settings));
    Ok(Arc::new(builder.build()?))
}

fn google(
    bucket: &str,
    settings: &StoreSettings,
    variables: &[(String, String)],
    http: ClientOptions,
) -> Made {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in variables {
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    let builder = builder
        .with_bucket_name(bucket)
        .with_client_options(http)
        .with_retry(retries(settings))
        .with_http_connector(connector(settings));
    Ok(Arc::new(builder.build()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_the_environment_do_not_count() {
        let settings = StoreSettings::default();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let variables = [
            pair("AWS_TIMEOUT", "1 ms"),
            pair("AWS_READ_TIMEOUT", "nonsense"),
            pair("AWS_CONNECT_TIMEOUT", "1 ms"),
            pair("AWS_ALLOW_HTTP", "true"),
        ];
        let options = client_options("s3://b", Kind::S3, &settings, &variables).unwrap();
        let value = |key| options.get_config_value(&key);
        assert_eq!(value(ClientConfigKey::Timeout), None);
        assert_eq!(value(ClientConfigKey::ReadTimeout), None);
        assert_eq!(value(ClientConfigKey::ConnectTimeout).as_deref(), Some("10s"));
        // The others do.
        assert_eq!(value(ClientConfigKey::AllowHttp).as_deref(), Some("true"));
    }
}

//! `[store]` in the configuration: how to reach object stores.
//!
//! The configuration file may be world-readable, so it contains no secrets. Secrets are in the environment
//! or in `credentials_file`, which only its owner may read.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use backstay_vault::remote::StoreSettings;
use backstay_vault::remote::lock::{LockMode, ObjectLock};
use backstay_vault::remote::settings::{PART_BYTES_MAX, PART_BYTES_MIN};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::throttle::Rate;

/// A shorter lock is over before anybody notices; a longer one is a slip, and cannot be taken back.
const LOCK_MIN: Duration = Duration::from_secs(60);
const LOCK_MAX: Duration = Duration::from_secs(3660 * 86_400);

/// How object stores are reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Store {
    /// Where the store answers, if it is not where its kind usually does.
    pub endpoint: Option<String>,
    /// The region of an S3 bucket.
    pub region: Option<String>,
    /// Whether plain `http://` is allowed.
    pub allow_http: Option<bool>,
    /// An HTTP proxy to go through.
    pub proxy: Option<String>,
    /// Certificates (PEM) to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate (PEM) that a gateway knows this host by.
    pub client_cert: Option<PathBuf>,
    /// Its private key (PEM), if that is not in the same file.
    pub client_key: Option<PathBuf>,
    /// A file of the stores' usual environment variables.
    pub credentials_file: Option<PathBuf>,
    /// How long connecting may take.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long an answer may take after the request is up, and how long it may stand still.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// The least that counts as coming or going.
    pub slowest: Rate,
    /// How often a request is tried again.
    pub retries: usize,
    /// How long after its first try a request is still tried again.
    #[serde(with = "humantime_serde")]
    pub retry_timeout: Duration,
    /// Bytes in a part of an upload.
    pub part_size: ByteSize,
    /// Parts of one segment that are under way at a time.
    pub parts_parallel: usize,
    /// How long what is put in S3 cannot be deleted.
    #[serde(with = "humantime_serde")]
    pub object_lock: Option<Duration>,
    /// Who can end that: `governance` or `compliance`.
    pub object_lock_mode: Mode,
}

/// Who can end a lock before its time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Anyone who has a right of its own for that.
    #[default]
    Governance,
    /// Nobody.
    Compliance,
}

impl Default for Store {
    fn default() -> Self {
        let settings = StoreSettings::default();
        Self {
            endpoint: None,
            region: None,
            allow_http: None,
            proxy: None,
            ca_file: None,
            client_cert: None,
            client_key: None,
            credentials_file: None,
            connect_timeout: settings.connect_timeout,
            timeout: settings.timeout,
            slowest: Rate::bytes_per_second(settings.slowest_bytes_per_second),
            retries: settings.retries,
            retry_timeout: settings.retry_timeout,
            part_size: ByteSize::b(settings.part_bytes),
            parts_parallel: settings.parts_parallel,
            object_lock: None,
            object_lock_mode: Mode::default(),
        }
    }
}

impl Store {
    /// As vaults want it. What is not allowed becomes the nearest that is.
    #[must_use]
    pub fn settings(&self) -> StoreSettings {
        let this = self.clone();
        StoreSettings {
            endpoint: this.endpoint,
            region: this.region,
            allow_http: this.allow_http,
            proxy: this.proxy,
            ca_file: this.ca_file,
            client_cert: this.client_cert,
            client_key: this.client_key,
            credentials_file: this.credentials_file,
            connect_timeout: this.connect_timeout,
            timeout: this.timeout,
            slowest_bytes_per_second: this.slowest.limit().map_or(1, NonZeroU64::get),
            retries: this.retries.min(1000),
            retry_timeout: this.retry_timeout,
            part_bytes: this.part_size.as_u64().clamp(PART_BYTES_MIN, PART_BYTES_MAX),
            parts_parallel: this.parts_parallel.clamp(1, 16),
            object_lock: this.object_lock.map(|period| ObjectLock {
                period: period.clamp(LOCK_MIN, LOCK_MAX),
                mode: match this.object_lock_mode {
                    Mode::Governance => LockMode::Governance,
                    Mode::Compliance => LockMode::Compliance,
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_it() {
        let store: Store = toml::from_str(
            "endpoint = \"http://127.0.0.1:9000\"\nallow_http = true\ntimeout = \"30s\"\n\
             part_size = \"16MiB\"\n",
        )
        .unwrap();
        assert_eq!(store.timeout, Duration::from_secs(30));
        assert_eq!(store.part_size, ByteSize::mib(16));
        assert_eq!(store.retries, StoreSettings::default().retries);
        assert_eq!(store.object_lock, None);
        let lock = "object_lock = \"30d\"\nobject_lock_mode = \"compliance\"\n";
        let store: Store = toml::from_str(lock).unwrap();
        assert_eq!(store.object_lock, Some(Duration::from_secs(30 * 86_400)));
        assert_eq!(store.object_lock_mode, Mode::Compliance);
        assert!(toml::from_str::<Store>("object_lock_mode = \"forever\"").is_err());
        // A secret here would be read by everyone who reads the configuration.
        let error = toml::from_str::<Store>("secret_access_key = \"x\"").unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
}

//! What the configuration says of object stores.
//!
//! A program gives it to its [`crate::Vaults`].

use std::path::PathBuf;
use std::time::Duration;

use super::lock::ObjectLock;

/// Least bytes in a part of an upload: S3 takes no smaller ones.
pub const PART_BYTES_MIN: u64 = 5 << 20;
/// Most bytes in a part of an upload.
pub const PART_BYTES_MAX: u64 = 256 << 20;

/// How object stores are reached. What is not said here comes from the stores' usual environment
/// variables (`AWS_…`, `AZURE_…`, `GOOGLE_…`) or is the client library's default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
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
    /// Its private key (PEM), if that is not in the same file; nobody else may be able to read it.
    pub client_key: Option<PathBuf>,
    /// A file of environment variables that hold secrets; nobody else may be able to read it.
    pub credentials_file: Option<PathBuf>,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long an answer may take after the request is up, and how long it may stand still.
    pub timeout: Duration,
    /// The least that counts as coming or going: a request has the time that its bytes need at this rate, besides.
    pub slowest_bytes_per_second: u64,
    /// How often a request is tried again.
    pub retries: usize,
    /// How long after its first try a request is still tried again.
    pub retry_timeout: Duration,
    /// Bytes in a part of an upload.
    pub part_bytes: u64,
    /// Parts of one segment that are under way at a time.
    pub parts_parallel: usize,
    /// Whether and how what is put is locked, in S3.
    pub object_lock: Option<ObjectLock>,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            allow_http: None,
            proxy: None,
            ca_file: None,
            client_cert: None,
            client_key: None,
            credentials_file: None,
            connect_timeout: Duration::from_secs(10),
            timeout: Duration::from_secs(120),
            // Four parts at a time over 1 Mbit/s.
            slowest_bytes_per_second: 32 << 10,
            // More than fit into the time: ten, as the library has it, were over in two seconds, and a store
            // that was restarted cost a first copy of hours.
            retries: 100,
            retry_timeout: Duration::from_secs(180),
            part_bytes: 8 << 20,
            parts_parallel: 2,
            object_lock: None,
        }
    }
}

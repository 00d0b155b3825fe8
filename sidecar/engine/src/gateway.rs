//! The settings of a gateway that runs on this host.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GatewayConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it tells how it is, without TLS.
    pub health: Option<SocketAddr>,
    /// The vault before which it stands.
    pub store: Option<String>,
    /// Its certificate (PEM).
    pub cert: Option<PathBuf>,
    /// Its private key (PEM), if that is not in the same file.
    pub key: Option<PathBuf>,
    /// The authority of its clients (PEM).
    pub client_ca: Option<PathBuf>,
    /// The list of revoked certificates (PEM); read again when it changes.
    pub revoked: Option<PathBuf>,
    /// The folder of segments on their way to the store.
    pub cache: Option<PathBuf>,
    /// Most bytes in it; then sources wait.
    pub cache_size: ByteSize,
    /// Uploads to the store at a time.
    pub uploads: usize,
    /// How far a source's clock may be ahead.
    #[serde(with = "humantime_serde")]
    pub skew: Duration,
    /// How far points are looked into before they are put.
    pub verify: Verify,
    /// Points younger than this are not deleted, whatever the rules say.
    #[serde(with = "humantime_serde")]
    pub immutable: Option<Duration>,
    /// From one round of retention to the next; `0s`: none runs here.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// Connections at a time, all together.
    pub connections: usize,
    /// Connections at a time of one certificate.
    pub connections_per_client: usize,
    /// Segments that are received at a time from one certificate.
    pub uploads_per_client: usize,
    /// Requests a second of one certificate.
    pub requests_per_second: u32,
    /// Bytes a second that are taken from one certificate.
    pub bytes_per_second: Option<ByteSize>,
    /// Bytes of points and documents in memory.
    pub buffers: ByteSize,
    /// How long a client may send nothing in the middle of a request.
    #[serde(with = "humantime_serde")]
    pub stall: Duration,
}

/// How far points are looked into before they are put.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verify {
    /// Indexes, and the checksums of what is stored.
    #[default]
    Index,
    /// Everything is decompressed, too.
    Content,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 9443)),
            health: Some(SocketAddr::from(([127, 0, 0, 1], 9444))),
            store: None,
            cert: None,
            key: None,
            client_ca: None,
            revoked: None,
            cache: None,
            cache_size: ByteSize::gib(4),
            uploads: 4,
            skew: Duration::from_secs(300),
            verify: Verify::default(),
            immutable: None,
            retention: Duration::from_secs(3600),
            connections: 1024,
            connections_per_client: 64,
            uploads_per_client: 8,
            requests_per_second: 200,
            bytes_per_second: None,
            buffers: ByteSize::mib(256),
            stall: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    #[test]
    fn a_gateway_is_configured() {
        let text = "[gateway]\nlisten = \"0.0.0.0:9443\"\nstore = \"s3://b/v\"\nimmutable = \"7d\"\n\
                    cache_size = \"1GiB\"\nverify = \"content\"\n";
        let config: Config = toml::from_str(text).unwrap();
        let again: Config = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert_eq!(config.gateway.immutable.unwrap().as_secs(), 7 * 86_400);
        assert!(toml::from_str::<Config>("[gateway]\nlissen = 1\n").is_err());
    }
}

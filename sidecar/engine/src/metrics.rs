//! The settings of metrics.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the sidecar tells its metrics, unless the configuration says otherwise.
const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9751);

/// `[metrics]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Where the sidecar answers `GET /metrics`.
    pub listen: Listen,
    /// The file it writes them into, for the textfile collector of Prometheus' node exporter.
    pub textfile: Option<PathBuf>,
}

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl Default for Listen {
    fn default() -> Self {
        Self(Some(LISTEN_DEFAULT))
    }
}

impl Serialize for Listen {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(at) => at.to_string().serialize(to),
            None => "off".serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text.parse().map_err(|_| {
            serde::de::Error::custom(format!(
                "{text:?} is neither an address with a port (127.0.0.1:9751) nor \"off\""
            ))
        })?;
        Ok(Self(Some(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn an_address_or_off() {
        let of = |text: &str| toml::from_str::<Config>(text).map(|config| config.metrics.listen.0);
        assert_eq!(of("").unwrap(), Some(LISTEN_DEFAULT));
        assert_eq!(of("[metrics]\nlisten = \"off\"").unwrap(), None);
        let six = of("[metrics]\nlisten = \"[::1]:80\"").unwrap();
        assert_eq!(six, Some("[::1]:80".parse().unwrap()));
        assert!(of("[metrics]\nlisten = \"localhost\"").unwrap_err().to_string().contains("off"));
        let config = Config::default();
        let text = toml::to_string(&config.metrics).unwrap();
        assert_eq!(toml::from_str::<MetricsConfig>(&text).unwrap(), config.metrics);
    }
}

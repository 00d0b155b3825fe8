//! The configuration: one TOML file, every setting with a default.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_format::DiskName;
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use backstay_vault::GroupName;

use crate::group::{GroupConfig, TlsConfig};

/// Where the file is, unless told otherwise.
pub const PATH_DEFAULT: &str = "/etc/backstay/backstay.toml";
/// Where recovery points go, unless told otherwise.
pub const VAULT_DEFAULT: &str = "file:///var/lib/backstay/vault";

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: std::io::Error,
    },
    /// It says something that makes no sense; the message shows where.
    #[error("configuration {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        source: Box<toml::de::Error>,
    },
}

/// The configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where state that lasts is kept.
    pub state_dir: Option<PathBuf>,
    /// Where sockets and bitmaps are, on tmpfs.
    pub runtime_dir: Option<PathBuf>,
    /// Where recovery points go.
    pub vault: String,
    /// From one cut to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Cycles at a time in the service.
    pub slots: usize,
    /// How to ship.
    pub ship: Ship,
    /// Settings of single disks.
    pub disk: BTreeMap<DiskName, DiskConfig>,
    /// Consistency groups.
    pub group: BTreeMap<GroupName, GroupConfig>,
    /// How hosts know each other.
    pub tls: Option<TlsConfig>,
}

/// How to ship.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ship {
    /// zstd level; negative ones are faster.
    pub zstd_level: i32,
    /// About how large a segment becomes.
    pub segment_size: ByteSize,
    /// Threads that checksum and compress; 0 for one a processor.
    pub compress_threads: usize,
    /// Segments uploaded at a time.
    pub upload_parallel: usize,
}

/// Settings of one disk, where they differ.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Where its recovery points go.
    pub vault: Option<String>,
    /// From one cut to the next.
    #[serde(with = "humantime_serde")]
    pub interval: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: None,
            runtime_dir: None,
            vault: VAULT_DEFAULT.into(),
            interval: Duration::from_secs(300),
            slots: 2,
            ship: Ship::default(),
            disk: BTreeMap::new(),
            group: BTreeMap::new(),
            tls: None,
        }
    }
}

impl Default for Ship {
    fn default() -> Self {
        Self {
            zstd_level: 1,
            segment_size: ByteSize::mib(32),
            compress_threads: 0,
            upload_parallel: 2,
        }
    }
}

impl Ship {
    /// Threads that checksum and compress.
    #[must_use]
    pub fn compress_threads(&self) -> usize {
        match self.compress_threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from).min(8),
            n => n.min(64),
        }
    }
}

impl Config {
    /// Reads the configuration: the file given, or the one in `/etc` if it is there, or none.
    ///
    /// # Errors
    /// If a file that was given is missing, or what it says makes no sense.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, must_exist) = match path {
            Some(path) => (path, true),
            None => (Path::new(PATH_DEFAULT), false),
        };
        match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|source| ConfigError::Parse {
                path: path.into(),
                source: Box::new(source),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: path.into(), source }),
        }
    }

    /// Where a disk's recovery points go.
    #[must_use]
    pub fn vault_of(&self, name: &DiskName) -> &str {
        self.disk.get(name).and_then(|disk| disk.vault.as_deref()).unwrap_or(&self.vault)
    }

    /// From one cut of a disk to the next.
    #[must_use]
    pub fn interval_of(&self, name: &DiskName) -> Duration {
        self.disk.get(name).and_then(|disk| disk.interval).unwrap_or(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_write_durations_and_sizes_as_they_like() {
        let config: Config = toml::from_str(
            "interval = \"30s\"\n[ship]\nsegment_size = \"8MiB\"\n[disk.db1]\ninterval = \"5s\"",
        )
        .unwrap();
        assert_eq!(config.interval, Duration::from_secs(30));
        assert_eq!(config.ship.segment_size, ByteSize::mib(8));
        let db1 = "db1".parse().unwrap();
        assert_eq!(config.interval_of(&db1), Duration::from_secs(5));
        assert_eq!(config.vault_of(&db1), VAULT_DEFAULT);
    }

    #[test]
    fn a_mistake_is_shown_where_it_is() {
        let error = toml::from_str::<Config>("vault = \"/v\"\nintervall = \"5s\"").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 2") && text.contains("intervall"), "{text}");
        assert!(toml::from_str::<Config>("[disk.\"../x\"]\n").is_err());
    }
}
